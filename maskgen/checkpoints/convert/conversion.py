"""`maskgen convert`: a published checkpoint -> a maskgen checkpoint."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from maskgen.checkpoints.autoencoder import source_digests
from maskgen.checkpoints.checkpoint import (
    MODEL,
    RECIPE,
    TOKENIZER,
    CheckpointError,
    load_tokenizer,
    newest_in,
    write_checkpoint,
)
from maskgen.checkpoints.convert.converter import CONVERTERS, Converter, DiffusersFolder, Target
from maskgen.checkpoints.convert.files import read_published
from maskgen.checkpoints.convert.filled import check_filled, write_folder
from maskgen.checkpoints.convert.published import Published, WeightsKind
from maskgen.checkpoints.filling import DTYPES
from maskgen.core.errors import UserError, unknown
from maskgen.core.files import local_path
from maskgen.core.terminal import first_few, printable
from maskgen.recipes.build import build_network
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import sizes_without_weights
from maskgen.tokenizers.text.pretrained import tokenizer_folder


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
        target: its recipe with the tokenizer that was given.
        shapes: of the checkpoint to be, on the meta device.
    """

    found: Published
    name: str
    target: Target
    recipe: Recipe
    shapes: Mapping[str, Tensor]

    @property
    def converter(self) -> Converter:
        return CONVERTERS.build(self.name)


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

    An autoencoder of diffusers in its original names becomes a folder of diffusers instead.

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
    found = read_published(local_path(file), weights, image_size)
    name = recognised(found.headers(), layout, file)
    folder = CONVERTERS.build(name).target(found.headers())
    if isinstance(folder, DiffusersFolder):
        return write_folder(found, name, folder, local_path(output), None if dtype is None else DTYPES[dtype])
    with TemporaryDirectory(prefix="maskgen-convert-") as scratch:
        plan = planned(found, name, file, tokenizer, Path(scratch))
        _check_copied_tokenizer(plan, tokenizer, file)
        home = _text_tokenizer(plan, tokenizer, Path(scratch))
        return _write(plan, output, dtype, _info(plan, file, weights), home)


def _write(plan: Plan, output: str, dtype: str | None, info: Mapping[str, object], home: Path | None = None) -> Path:
    """Convert the weights of a plan and write the checkpoint."""
    tensors = plan.converter.tensors(plan.found)
    for name in [*tensors]:
        tensors[name] = tensors[name].to(_type(tensors[name], dtype)).contiguous()
    path = local_path(output)
    write_checkpoint(path, plan.recipe, {MODEL: tensors}, info, home)
    return path


def dry_run(file: str, dtype: str | None = None, **options: Unpack[Options]) -> str:
    """What `run` would make of a file: layout, network, bytes on disk and in memory; takes the arguments of `run`."""
    found = read_published(local_path(file), options.get("weights"), options.get("image_size"))
    name = recognised(found.headers(), options.get("layout"), file)
    with TemporaryDirectory(prefix="maskgen-convert-") as scratch:
        target = CONVERTERS.build(name).target(found.headers())
        if isinstance(target, DiffusersFolder):
            shapes = CONVERTERS.build(name).tensors(found.headers())
            return _needs(name, f"a folder of {target.kind} for a tokenizer's source", shapes, dtype)
        plan = planned(found, name, file, options.get("tokenizer"), Path(scratch))
    layout = plan.target.layout
    needs = _needs(name, plan.recipe.summary, plan.shapes, dtype)
    if layout is None:
        return needs
    given = options.get("tokenizer") or found.folder if plan.recipe.kind == "text" else None
    return f"{needs}\ntokens       {layout.length:,} in a row\ntokenizer    {given or plan.recipe.tokenizer}"


def _needs(name: str, what: str, shapes: Mapping[str, Tensor], dtype: str | None) -> str:
    """Parameters, bytes on disk and in memory."""
    n = sum(value.numel() for value in shapes.values())
    stored = sum(value.numel() * _type(value, dtype).itemsize for value in shapes.values())
    return "\n".join([
        f"layout       {name}: {what}",
        f"parameters   {n:,} in {len(shapes)} tensors",
        f"on disk      {stored / 1e9:,.3f} GB",
        f"in memory    {4 * n / 1e9:,.3f} GB to use in fp32, {2 * n / 1e9:,.3f} GB in bf16",
    ])  # fmt: skip


def planned(found: Published, name: str, file: str, tokenizer: str | None, scratch: Path) -> Plan:
    """What `run` will do, checked without reading the weights.

    Args:
        found: a published checkpoint of layout `name`.
        file: its name in messages.
        tokenizer: the user's; a published one of images is converted in `scratch`.

    Raises:
        UserError: the weights do not fill the network, or the tokenizer is of another one.
    """
    headers, converter = found.headers(), CONVERTERS.build(name)
    target = converter.target(headers)
    assert isinstance(target, Target)
    tree, shapes = dict(target.recipe), converter.tensors(headers)
    if tokenizer is not None and target.layout is None:
        raise UserError(f"{file} holds no generator (layout {name}) and has no tokenizer; leave out --tokenizer")
    if tokenizer is not None and target.facts.image_shape is not None:
        tree["tokenizer"] = _image_tokenizer(tree, tokenizer, target.facts.image_shape[1], scratch)
    n_parameters = sum(value.numel() for value in shapes.values())
    tree["summary"] = f"{CONVERTERS.summary(name).rstrip('.')}; {n_parameters:,} parameters, converted"
    recipe = parse_recipe(tree)
    with torch.device("meta"):
        network = build_network(recipe, target.facts, target.layout)
    check_filled(network, shapes, file)
    _check_tokenizer(recipe, target, file)
    return Plan(found, name, target, recipe, shapes)


def recognised(found: Published, layout: str | None, file: str) -> str:
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


def _check_copied_tokenizer(plan: Plan, given: str | None, file: str) -> None:
    """Hold the tokens against those of a tokenizer that is copied into the checkpoint.

    Raises:
        UserError: it is not there, or has other tokens.
    """
    layout, shape = plan.target.layout, plan.target.facts.image_shape
    if plan.recipe.tokenizer_source is None or layout is None or shape is None:
        return
    try:
        own = load_tokenizer(plan.recipe, shape).layout
    except CheckpointError:
        if given is not None:
            raise
        raise UserError(f"{file} needs its tokenizer; give it by --tokenizer FOLDER_OR_FILE") from None
    if (own.vocab_size, own.shape) != (layout.vocab_size, layout.shape):
        raise UserError(
            f"{file} was trained on {layout.vocab_size:,} tokens in a grid {layout.shape}, but the tokenizer has "
            f"{own.vocab_size:,} in {own.shape}; give its own by --tokenizer"
        )


def _image_tokenizer(tree: Mapping[str, object], given: str, size: int, scratch: Path) -> object:
    """The recipe's `tokenizer` with the given one in place of its own.

    An autoencoder that the recipe names by its source is a folder or hub id; any other one is a checkpoint, made in
    `scratch` of a published one, which may be part of a generator's file (`vqgan.` in MAGE's).

    Raises:
        UserError: the published file is no tokenizer.
    """
    path, spec = local_path(given), tree.get("tokenizer")
    if isinstance(spec, Mapping) and "source" in spec:
        if path.is_file():
            raise UserError(
                f"{given} is a file, this tokenizer is a folder of diffusers; `maskgen convert {given} --output DIR` "
                "makes one of an original checkpoint"
            )
        return {**spec, "source": given}
    if not path.is_file() and (not path.is_dir() or (path / RECIPE).is_file() or newest_in(path) is not None):
        return {"from": given}
    found = read_published(path, image_size=size)
    found = found.part("vqgan.") or found
    name = recognised(found.headers(), None, given)
    plan = planned(found, name, given, None, scratch)
    if plan.recipe.task != "tokenizer":
        raise UserError(f"{given} is a {plan.recipe.task} in the layout {name}, not a tokenizer")
    return {"from": str(_write(plan, str(scratch / "tokenizer"), None, _info(plan, given, None)))}


def _text_tokenizer(plan: Plan, given: str | None, scratch: Path) -> Path | None:
    """A directory with the tokenizer of a text generator; None for other checkpoints.

    Raises:
        UserError: there is none, or its vocabulary is not the network's.
    """
    layout = plan.target.layout
    if plan.recipe.kind != "text" or layout is None:
        return None
    folder = plan.found.folder if given is None else tokenizer_folder(given)
    found = plan.converter.text_tokenizer(replace(plan.found, folder=folder))
    if found is None:
        raise UserError(f"{plan.name} needs its tokenizer: name it with --tokenizer FOLDER_OR_ID")
    if found.vocab_size != layout.vocab_size:
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
    if facts.image_shape is not None:
        sizes = {"image_shape": facts.image_shape}
    if facts.caption_shape is not None:
        sizes["caption_shape"] = facts.caption_shape
    chosen = "" if weights is None else f" --weights {weights}"
    if (digests := source_digests(recipe)) is not None:
        sizes["tokenizer"] = digests
    return {
        "step": 0, "classes": list(plan.target.classes or map(str, range(facts.n_classes))), **sizes, "seconds": 0.0,
        "device": "cpu", "maskgen": importlib.metadata.version("maskgen"), "torch": torch.__version__,
        "command": f"maskgen convert {path.name} --layout {plan.name}{chosen}", "source": source,
        "summary": recipe.summary,
    }  # fmt: skip
