"""Checkpoints: a directory of safetensors and JSON, written whole or not at all; nothing is ever unpickled.

checkpoint-500/
    model.safetensors        weights for use (EMA where the recipe has one)
    recipe.yaml              the resolved recipe
    checkpoint.json          step, classes, image shape, scores, and size and SHA-256 of every other file
    tokenizer/               a copy of an image generator's trained tokenizer, unless the zoo has it
    tokenizer.json           tokenizer of text and captions; tokenizer_config.json: roles of its special tokens
    training.safetensors     raw weights and optimizer state, for --resume
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.checkpoints.adapters import believed, fill_network, has_base
from maskgen.checkpoints.autoencoder import verify_autoencoder
from maskgen.checkpoints.bounds import bounded_build
from maskgen.checkpoints.filling import Where, cast_matrices, on_cpu, without_weights
from maskgen.checkpoints.info import Checkpoint as Checkpoint
from maskgen.checkpoints.locate import MODEL as MODEL
from maskgen.checkpoints.locate import RECIPE as RECIPE
from maskgen.checkpoints.locate import TOKENIZER as TOKENIZER
from maskgen.checkpoints.locate import TRAINING as TRAINING
from maskgen.checkpoints.locate import locate
from maskgen.checkpoints.manifest import CheckpointError as CheckpointError
from maskgen.checkpoints.manifest import checkpoints_in as checkpoints_in
from maskgen.checkpoints.manifest import flush, free_space, sealed, stamps, verify, verify_seal
from maskgen.checkpoints.manifest import newest_in as newest_in
from maskgen.checkpoints.placement import Placement, Spread
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.errors import UserError
from maskgen.core.files import MOST_JSON, obey_umask, read_json, read_regular
from maskgen.core.yaml_reader import read_yaml
from maskgen.recipes.build import AnyTokenizer, System, build_system
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.rows import row_tokenizer
from maskgen.recipes.schema import Recipe, anywhere, merged
from maskgen.recipes.shipped import INFO, zoo_names
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.text.specials import CONFIG
from maskgen.tokenizers.text.tokenizer import TextTokenizer

_OURS = {MODEL, TRAINING, RECIPE, INFO, TOKENIZER, CONFIG, "tokenizer", "README.md"}


def read_checkpoint(source: str | Path) -> Checkpoint:
    """A checkpoint by zoo name, directory, run directory (its newest one) or hub id.

    Raises:
        CheckpointError: nothing there, or not a whole checkpoint.
    """
    path = locate(str(source))
    for name in (INFO, RECIPE, MODEL):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} is not a whole checkpoint: {name} is missing")
    try:
        info = read_json(path / INFO)
        verify_seal(path / INFO, info)
        if RECIPE in info["files"]:
            verify(path / RECIPE, info["files"][RECIPE])
        recipe = parse_recipe(read_yaml(read_regular(path / RECIPE, MOST_JSON).decode()))
        checkpoint = Checkpoint(path, recipe, info)
        _ = checkpoint.step, checkpoint.classes, checkpoint.facts, info["files"]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its {INFO} or {RECIPE} is damaged or of another version ({error})") from None
    return checkpoint


def load_system(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> System:
    """The checkpoint's system: its network in evaluation mode on the CPU, and a generator's tokenizer.

    The weights are in memory once, in float32; those of linear layers and convolutions as `dtype`.

    The network of a tokenizer's checkpoint is the tokenizer.

    Raises:
        CheckpointError: see `Checkpoint.tensors`; also weights that do not fit the recipe.
    """
    stored = checkpoint.stored()
    system = _built(checkpoint, stored)
    _fill_system(checkpoint, system, stored, dtype)
    return system


def load_placed(checkpoint: Checkpoint, spread: Spread, dtype: torch.dtype | None = None) -> tuple[System, Placement]:
    """As `load_system`, the network's blocks spread over devices; the tokenizer is on the CPU.

    Raises:
        CheckpointError: see `load_system`.
        UserError: a network that cannot be spread, or low-rank changes, which are added to weights in memory.
    """
    if checkpoint.recipe.lora is not None:
        raise UserError(
            f"device_map: {checkpoint.path} holds low-rank changes; `maskgen export` it first, which adds them up"
        )
    stored = checkpoint.stored()
    system = _built(checkpoint, stored)
    cast_matrices(system.network, dtype)
    tokenizer = system.tokenizer
    reserved = sum(p.nbytes for p in tokenizer.parameters()) if isinstance(tokenizer, nn.Module) else 0
    placement = spread.place(system.network, reserved)
    _fill_system(checkpoint, system, stored, dtype, placement.where)
    placement.apply(system.network, stored)
    return system, placement


def _fill_system(
    checkpoint: Checkpoint, system: System, stored: StoredTensors, dtype: torch.dtype | None, where: Where = on_cpu
) -> None:
    """Fill the network of a system and make it ready for use."""
    base = checkpoint.info.get("base")
    with bounded_build(believed(stored, checkpoint.recipe, base, checkpoint.path), checkpoint.path):  # of changes
        fill_network(system.network, checkpoint.recipe.lora, stored, base, checkpoint.path, dtype, where)
    system.network.eval().requires_grad_(False)


def _built(checkpoint: Checkpoint, stored: StoredTensors) -> System:
    """The checkpoint's system before its weights are read: see `without_weights`."""
    recipe, facts = merged(anywhere(checkpoint.recipe)), checkpoint.facts
    if checkpoint.recipe.lora is not None and not has_base(checkpoint.path):
        facts = replace(facts, architecture=None)  # the weights below the changes are those of its source
    tokenizer: AnyTokenizer | None = None
    built_on = None
    if recipe.task == "generator" and recipe.kind == "text":
        tokenizer = checkpoint.text_tokenizer()
    elif recipe.task == "generator":
        shape = checkpoint.image_shape
        if (own := f"tokenizer/{INFO}") in checkpoint.info["files"]:  # has the hashes of the tokenizer's other files
            verify(checkpoint.path / own, checkpoint.info["files"][own])
        verify_autoencoder(checkpoint.path, recipe, checkpoint.info.get("tokenizer"))
        tokenizer = images = load_tokenizer(recipe, shape, checkpoint.path)
        if recipe.streams is not None:
            captions = checkpoint.text_tokenizer() if recipe.has_text else None
            tokenizer = row_tokenizer(recipe, facts, images, captions)
        if facts.built_for not in (None, shape):
            built_on = load_tokenizer(recipe, facts.built_for, checkpoint.path).layout
    lora, base = checkpoint.recipe.lora, checkpoint.info.get("base")
    headers = believed(stored, checkpoint.recipe, base, checkpoint.path)
    # transformers ties weights as it builds. A tokenizer's initial weights are drawn, though not used: a generator's
    # come after them in a training, and a seed keeps its run.
    is_empty = lora is None and facts.architecture is None and recipe.task == "generator"
    with bounded_build(headers, checkpoint.path), without_weights(is_empty):
        return build_system(recipe, facts, tokenizer, built_on=built_on)


def usable(checkpoint: Checkpoint) -> tuple[Recipe, dict[str, Tensor]]:
    """Recipe and weights that need nothing else: low-rank changes are added to the weights they belong to."""
    if checkpoint.recipe.lora is None:
        return checkpoint.recipe, checkpoint.tensors()
    return merged(checkpoint.recipe), load_system(checkpoint).network.state_dict()


def load_model(checkpoint: Checkpoint) -> tuple[nn.Module, ImageTokenizer | None]:
    """Network and tokenizer of `load_system` for images, which refuses text; None for a tokenizer or classifier."""
    if checkpoint.recipe.kind == "text":
        raise CheckpointError(f"{checkpoint.path} is a text generator; this needs one of images")
    if checkpoint.recipe.streams is not None:
        names = ", ".join(checkpoint.recipe.streams)
        raise CheckpointError(f"{checkpoint.path} has rows of several streams ({names}); this needs pictures alone")
    system = load_system(checkpoint)
    return system.network, cast(ImageTokenizer | None, system.tokenizer)


def load_text_model(checkpoint: Checkpoint) -> tuple[nn.Module, TextTokenizer]:
    """Network and tokenizer of `load_system` for text, which refuses other checkpoints."""
    if checkpoint.recipe.kind != "text":
        raise CheckpointError(f"{checkpoint.path} is made for images; this needs a text generator")
    system = load_system(checkpoint)
    return system.network, cast(TextTokenizer, system.tokenizer)


def load_tokenizer(recipe: Recipe, image_shape: tuple[int, int, int], home: Path | None = None) -> ImageTokenizer:
    """The tokenizer a generator's recipe names: the copy in directory `home`, a checkpoint, or a new one.

    Raises:
        CheckpointError: it cannot be loaded, needs training, or was trained for images of another shape.
    """
    source = recipe.tokenizer_source
    if source is None:
        built = recipe.build_tokenizer(image_shape)
        if built.has_parameters():
            raise CheckpointError(
                f"tokenizer: {recipe.tokenizer} is not trained; train it by a recipe of its own, then give "
                "tokenizer: {from: CHECKPOINT}"
            )
        return built.eval()
    checkpoint = read_checkpoint(_own_tokenizer(recipe, home) or source)
    if checkpoint.recipe.task != "tokenizer":
        raise CheckpointError(f"tokenizer: {source} is a {checkpoint.recipe.task}, not a tokenizer")
    if checkpoint.image_shape != tuple(image_shape):
        raise CheckpointError(
            f"tokenizer: {source} is for images {checkpoint.image_shape}, the data have {tuple(image_shape)}"
        )
    tokenizer = load_model(checkpoint)[0]
    assert isinstance(tokenizer, ImageTokenizer)
    return tokenizer


Files = Mapping[str, Mapping[str, Tensor]]
"""File name -> its tensors by name."""


def write_checkpoint(
    path: Path,
    recipe: Recipe,
    tensors: Files,
    info: Mapping[str, object],
    home: Path | None = None,
) -> None:
    """Write a checkpoint under another name and rename it: there is a whole one at `path`, or none.

    Args:
        path: the directory to be.
        recipe: stored resolved; the tokenizer checkpoint it names is copied in unless the zoo has it.
        home: a directory whose `tokenizer/` is copied in instead: what the recipe names may have changed since; for
            text the one with its tokenizer.json.
        tensors: file name -> its tensors.
        info: `step`, `classes`, `image_shape` (text: `length`) and whatever else is to be remembered.

    Raises:
        CheckpointError: `path` holds something that is not a checkpoint's; it would be lost.
        OSError: disk full or not writable; nothing is left behind.
    """
    if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - _OURS):
        raise CheckpointError(f"{path} holds other files than a checkpoint's; choose another directory")
    temporary, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, recipe, tensors, info, home)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        flush(path.parent, is_deep=False)
        shutil.rmtree(old, ignore_errors=True)
    except SafetensorError as error:
        raise OSError(errno.EIO if "No space" not in str(error) else errno.ENOSPC, str(error), str(path)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, recipe: Recipe, tensors: Files, info: Mapping[str, object], home: Path | None) -> None:
    """Write the files of a checkpoint into an empty folder, and flush them to the disk."""
    free_space(folder, sum(value.nbytes for values in tensors.values() for value in values.values()))
    for name, values in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, folder / name)
        obey_umask(folder / name)  # safetensors leaves it readable by its owner only
    (folder / RECIPE).write_text(recipe.dump(), encoding="utf-8")
    copy_tokenizer(recipe, folder, home)
    if recipe.has_text and not (folder / TOKENIZER).is_file():
        raise FileNotFoundError(errno.ENOENT, "a generator of text needs its tokenizer", TOKENIZER)
    whole = sealed({**info, "files": stamps(folder, without=INFO)})
    (folder / INFO).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    flush(folder)


def copy_for_use(
    checkpoint: Checkpoint,
    path: Path,
    dtype: torch.dtype | None = None,
    more: Mapping[str, object] | None = None,
    *,
    adds_changes: bool = True,
) -> None:
    """A copy without training state, floating point weights as `dtype` (as they are if None), `more` in its info.

    Low-rank changes are added to the weights below them, or stay as they are.
    """
    recipe, tensors = usable(checkpoint) if adds_changes else (checkpoint.recipe, checkpoint.tensors())
    if recipe.has_text:
        checkpoint.text_tokenizer()
    if dtype is not None:
        tensors = _cast(tensors, dtype)
    left_out = {"files", "training"} | ({"base"} if adds_changes else set())
    info = {key: value for key, value in checkpoint.info.items() if key not in left_out}
    write_checkpoint(path, recipe, {MODEL: tensors}, {**info, **(more or {})}, checkpoint.path)


def _own_tokenizer(recipe: Recipe, home: Path | None) -> Path | None:
    """The tokenizer checkpoint that lies in a checkpoint or run directory; one of the zoo is never copied."""
    if home is None or recipe.tokenizer_source in zoo_names():
        return None
    return home / "tokenizer" if (home / "tokenizer" / INFO).is_file() else None


def copy_tokenizer(recipe: Recipe, target: Path, home: Path | None = None) -> None:
    """Put a generator's tokenizers into `target`, unless the zoo has them: those in `home`, or of the recipe."""
    source = recipe.tokenizer_source
    if recipe.has_text and home is not None:
        for name in (name for name in (TOKENIZER, CONFIG) if (home / name).is_file()):
            shutil.copyfile(home / name, target / name)
    if recipe.kind != "text" and recipe.task == "generator" and source is not None and source not in zoo_names():
        copy_for_use(read_checkpoint(_own_tokenizer(recipe, home) or source), target / "tokenizer")


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating point tensors as `dtype`, the others as they are."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
