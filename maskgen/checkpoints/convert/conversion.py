"""`maskgen convert`: a published checkpoint -> a maskgen checkpoint."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import MODEL, RECIPE, TOKENIZER, newest_in, write_checkpoint
from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, Target
from maskgen.checkpoints.convert.files import read_published
from maskgen.checkpoints.convert.published import Published, WeightsKind
from maskgen.core.errors import UserError, unknown
from maskgen.core.files import local_path
from maskgen.core.terminal import first_few, printable
from maskgen.recipes.build import build_network
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import sizes_without_weights
from maskgen.tokenizers.text.tokenizer import TextTokenizer, huggingface

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Options(TypedDict, total=False):
    """Options of `maskgen convert` that say what the file is, see `run`."""

    layout: str | None
    weights: WeightsKind | None
    tokenizer: str | None
    image_size: int | None


@dataclass(frozen=True)
class Plan:
    """A published checkpoint whose layout is known and whose tensors fill the network of its recipe.

    Attributes:
        name: of the layout.
        shapes: of the checkpoint to be, on the meta device.
    """

    found: Published
    name: str
    converter: Converter
    recipe: Recipe
    target: Target
    shapes: Mapping[str, Tensor]


def run(
    file: str,
    output: str,
    layout: str | None = None,
    weights: WeightsKind | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    image_size: int | None = None,
) -> Path:
    """Read a published checkpoint, check that it fills the network exactly, and write a checkpoint; returns where.

    Args:
        file: of weights, or a folder, see `read_published`.
        output: directory of the checkpoint.
        layout: name of a converter; None to recognise it from names and shapes of the tensors.
        weights: which weights to take from a file that holds both.
        tokenizer: folder, file or hub id of the tokenizer, in place of the recipe's.
        dtype: `fp32`, `bf16` or `fp16`; None keeps the number format of the file.
        image_size: side of the images in pixels, for layouts whose tensors do not tell it.

    Raises:
        UserError: a file that cannot be read safely or is of another network, or a directory in use.
    """
    with TemporaryDirectory(prefix="maskgen-convert-") as scratch:
        plan = planned(file, layout, weights, tokenizer, image_size, scratch=Path(scratch))
        home = _text_tokenizer(plan, tokenizer, Path(scratch))
        tensors = plan.converter.tensors(plan.found)
        for name in [*tensors]:
            tensors[name] = tensors[name].to(_type(tensors[name], dtype)).contiguous()
        path = local_path(output)
        write_checkpoint(path, plan.recipe, {MODEL: tensors}, _info(plan, file, weights), home)
    return path


def dry_run(file: str, dtype: str | None = None, **options: Unpack[Options]) -> str:
    """What `run` would make of a file: layout, network, bytes on disk and in memory; takes the arguments of `run`."""
    with TemporaryDirectory(prefix="maskgen-convert-") as scratch:
        plan = planned(file, scratch=Path(scratch), **options)
    shapes = plan.shapes.values()
    n = sum(value.numel() for value in shapes)
    stored = sum(value.numel() * _type(value, dtype).itemsize for value in shapes)
    rows = plan.target.layout.length if plan.target.layout is not None else 0
    return "\n".join([
        f"layout       {plan.name}: {plan.recipe.summary}",
        f"parameters   {n:,} in {len(plan.shapes)} tensors",
        f"tokens       {rows:,} in a row" if rows else "tokens       none: no generator",
        f"tokenizer    {plan.recipe.tokenizer}",
        f"on disk      {stored / 1e9:,.2f} GB",
        f"in memory    {4 * n / 1e9:,.2f} GB to sample in fp32, {2 * n / 1e9:,.2f} GB in bf16",
    ])  # fmt: skip


def planned(
    file: str,
    layout: str | None = None,
    weights: WeightsKind | None = None,
    tokenizer: str | None = None,
    image_size: int | None = None,
    *,
    scratch: Path,
) -> Plan:
    """What `run` will do, checked without reading the weights; a tokenizer that is published is converted in `scratch`.

    Raises:
        UserError: see `run`.
    """
    found = read_published(local_path(file), weights, image_size)
    headers = found.headers()
    name = _layout(headers, layout, file)
    converter = CONVERTERS.build(name)
    target = converter.target(headers)
    tree = dict(target.recipe)
    if tokenizer is not None and target.facts.image_shape is not None:
        tree["tokenizer"] = _image_tokenizer(tree, tokenizer, target.facts.image_shape[1], scratch)
    shapes = converter.tensors(headers)
    n_parameters = sum(value.numel() for value in shapes.values())
    tree["summary"] = f"{CONVERTERS.summary(name).rstrip('.')}; {n_parameters:,} parameters, converted"
    recipe = parse_recipe(tree)
    _check(recipe, target, shapes, file)
    _check_tokenizer(recipe, target, file)
    return Plan(found, name, converter, recipe, target, shapes)


def _layout(found: Published, layout: str | None, file: str) -> str:
    """The layout of a file, which must be the given one if one is given.

    Raises:
        UserError: no layout fits, or another one than the given does.
    """
    if layout is not None and layout not in CONVERTERS.names():
        raise UserError(unknown("layout", layout, CONVERTERS.names()))
    fits = [name for name in CONVERTERS.names() if CONVERTERS.build(name).recognises(found)]
    if layout in fits or (layout is not None and not fits):
        return str(layout)
    if layout is not None:
        raise UserError(f"{file} holds weights in the layout of {fits[0]}, not of {layout}; use --layout {fits[0]}")
    if len(fits) > 1:
        raise UserError(f"the tensors of {file} fit several of the layouts: {', '.join(fits)}; choose with --layout")
    if not fits:
        raise UserError(
            f"the tensors of {file} fit none of the layouts {', '.join(CONVERTERS.names())}; it holds {seen(found)}"
        )
    return fits[0]


def seen(found: Published) -> str:
    """What a checkpoint holds, in one line."""
    shown = first_few([f"{name} {tuple(value.shape)}" for name, value in found.state.items()])
    kind = f" ({found.config['model_type']})" if "model_type" in found.config else ""
    return printable(f"{len(found.state)} tensors{kind}: {shown}")


def _check(recipe: Recipe, target: Target, shapes: Mapping[str, Tensor], file: str) -> None:
    """Hold the tensors against the network, which takes no memory.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = build_network(recipe, target.facts, target.layout)
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in shapes.items()}
    faults = [f"{key} is missing" for key in sorted(needed.keys() - given.keys())]
    faults += [f"{key} is left over" for key in sorted(given.keys() - needed.keys())]
    faults += [
        f"{key} is {given[key]}, not {needed[key]}"
        for key in sorted(needed.keys() & given.keys())
        if needed[key] != given[key]
    ]
    if faults:
        raise UserError(f"{file} does not fill the network: {first_few(faults)}")


def _check_tokenizer(recipe: Recipe, target: Target, file: str) -> None:
    """Hold the tokens against those of the recipe's tokenizer, as far as they are known without its weights.

    Raises:
        UserError: they are others, so the file belongs to another autoencoder.
    """
    layout, shape = target.layout, target.facts.image_shape
    if layout is None or shape is None or recipe.tokenizer is None or recipe.tokenizer_source is not None:
        return
    name, arguments = TOKENIZERS.check(recipe.tokenizer, "tokenizer")
    sizes = sizes_without_weights(name, shape, arguments)
    if sizes is None or (sizes["token_width"], sizes["grid"]) == (layout.width, layout.shape):
        return
    raise UserError(
        f"{file} was trained on tokens of {layout.width} numbers in a grid {layout.shape}, but the tokenizer "
        f"{arguments.get('source', name)} has {sizes['token_width']} in {sizes['grid']}; give its own by --tokenizer"
    )


def _image_tokenizer(tree: Mapping[str, object], given: str, size: int, scratch: Path) -> object:
    """The recipe's `tokenizer` with the given one in place of its own.

    An autoencoder that the recipe names by its source is a folder or hub id; any other one is a checkpoint, made in
    `scratch` if a published one is given.
    """
    spec = tree.get("tokenizer")
    if isinstance(spec, Mapping) and "source" in spec:
        return {**spec, "source": given}
    path = local_path(given)
    if path.is_file() or (path.is_dir() and not (path / RECIPE).is_file() and newest_in(path) is None):
        return {"from": str(run(given, str(scratch / "tokenizer"), image_size=size))}
    return {"from": given}


def _text_tokenizer(plan: Plan, given: str | None, scratch: Path) -> Path | None:
    """A directory with the tokenizer of a text generator; None for other checkpoints.

    Raises:
        UserError: there is none, or it has more tokens than the network.
    """
    layout = plan.target.layout
    if plan.recipe.kind != "text" or layout is None:
        return None
    found: TextTokenizer | None = huggingface(given) if given is not None else plan.converter.text_tokenizer(plan.found)
    if found is None:
        raise UserError(f"{plan.name} needs its tokenizer: name it with --tokenizer FOLDER_OR_ID")
    if found.vocab_size > layout.vocab_size:
        raise UserError(
            f"the tokenizer has {found.vocab_size:,} tokens, the network {layout.vocab_size:,}; it is of another model"
        )
    found.save(scratch / TOKENIZER)
    return scratch


def _type(value: Tensor, dtype: str | None) -> torch.dtype:
    """The number format of a tensor in the checkpoint: the given one if it holds real numbers."""
    return value.dtype if dtype is None or not value.is_floating_point() else DTYPES[dtype]


def _info(plan: Plan, file: str, weights: WeightsKind | None) -> dict[str, object]:
    """What the checkpoint remembers of its source."""
    facts, recipe = plan.target.facts, plan.recipe
    path = local_path(file)
    source = {"name": path.name, "layout": plan.name, "sha256": plan.found.digest()}
    sizes: dict[str, object] = {"length": facts.length}
    if plan.target.layout is not None and recipe.kind == "text":
        sizes["vocab_size"] = plan.target.layout.vocab_size
    if facts.image_shape is not None:
        sizes = {"image_shape": facts.image_shape}
    if facts.caption_shape is not None:
        sizes["caption_shape"] = facts.caption_shape
    chosen = "" if weights is None else f" --weights {weights}"
    return {
        "step": 0, "classes": list(plan.target.classes or map(str, range(facts.n_classes))), **sizes, "seconds": 0.0,
        "device": "cpu", "maskgen": importlib.metadata.version("maskgen"), "torch": torch.__version__,
        "command": f"maskgen convert {path.name} --layout {plan.name}{chosen}", "source": source,
        "summary": recipe.summary,
    }  # fmt: skip
