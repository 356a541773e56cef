"""`maskgen precompute`: encodes tokens and latents with many processes before a training, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from maskgen.checkpoints.checkpoint import load_tokenizer
from maskgen.core.devices import pick_device
from maskgen.core.errors import UserError
from maskgen.data.base import ImageSource, ImageSplit
from maskgen.data.cache import TokenData, default_cache_dir, token_data
from maskgen.data.image.latents import LatentData, latent_data
from maskgen.data.shards import PartSplit
from maskgen.data.text.answers import text_rows
from maskgen.recipes.load import load_recipe
from maskgen.recipes.schema import Recipe
from maskgen.tokenizers import ImageTokenizer
from maskgen.tokenizers.image.latent import KLTokenizer

from .parts import SPLITS, to_encode
from .subprocesses import Failed, maskgen


def run(
    source: str,
    overrides: Sequence[str] = (),
    *,
    parts: int = 1,
    part: int | None = None,
    processes: int = 1,
    device: str = "auto",
) -> str:
    """Fill the cache; returns a summary for the user.

    Args:
        parts: pieces; each is a file of its own until all are there and are put together.
        part: make this piece only.
        processes: pieces made side by side.

    Raises:
        UserError: a recipe whose data are not encoded, a part out of range, or a piece that cannot be made.
    """
    recipe = load_recipe(source, overrides)
    if recipe.task != "generator":
        raise UserError(f"{source} is a {recipe.task}: it trains on the data themselves; nothing is precomputed")
    if part is not None and part >= parts:
        raise UserError(f"--part {part} must be below --parts {parts}: parts count from 0")
    if recipe.kind == "text":
        return _text(recipe)
    if parts > 1 and part is None and processes > 1:
        _side_by_side(source, overrides, parts, processes, device)
    image_source = recipe.build_data()
    tokenizer = load_tokenizer(recipe, image_source.image_shape)
    if not tokenizer.has_discrete_tokens and not isinstance(tokenizer, KLTokenizer):
        raise UserError(f"{source}: its tokens take no time to make, so they are not kept; nothing to do")
    counts = _encode_splits(recipe, image_source, tokenizer, device, part, parts)
    what = "all" if part is None else f"part {part} of {parts}"
    return f"{what} of {' and '.join(counts)} images is in {default_cache_dir()}"


def _encode_splits(
    recipe: Recipe, source: ImageSource, tokenizer: ImageTokenizer, device: str, part: int | None, parts: int
) -> list[str]:
    """Encode both splits, or a part of each; the number of images of each."""
    counts = []
    for name in SPLITS:
        split = to_encode(recipe, source, name)
        counts.append(f"{len(split):,} {name}")
        if not len(split):  # held-out images that no validation needs
            continue
        if part is not None:
            _data(recipe, PartSplit(split, part, parts), tokenizer, device)
        else:
            _whole(recipe, split, tokenizer, device, parts)
    return counts


def _whole(recipe: Recipe, split: ImageSplit, tokenizer: ImageTokenizer, device: str, parts: int) -> None:
    """A split from the cache, or joined from its parts, which are then removed."""
    pieces: list[TokenData | LatentData] = []

    def make() -> list[TokenData | LatentData]:
        pieces.extend(_data(recipe, PartSplit(split, index, parts), tokenizer, device) for index in range(parts))
        return pieces

    _data(recipe, split, tokenizer, device, **({} if parts == 1 else {"parts": make}))
    for piece in pieces:
        piece.file.unlink()
        piece.file.with_suffix(".json").unlink()


def _text(recipe: Recipe) -> str:
    """Text is read once, in order, by one process."""
    source = recipe.build_text()
    tokenizer = recipe.build_text_tokenizer(source)
    rows = len(text_rows(source, "train", tokenizer))
    return f"{rows:,} rows of text are in {default_cache_dir()}"


def _side_by_side(source: str, overrides: Sequence[str], parts: int, processes: int, device: str) -> None:
    """Encode every part in a separate process; parts in the cache are kept."""

    def make(index: int) -> None:
        piece = ["--parts", str(parts), "--part", str(index), "--device", device]
        maskgen("precompute", source, *overrides, *piece, threads=1)

    try:
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(make, range(parts)))
    except Failed as error:
        raise UserError(f"{error}; what was made is kept, run it again") from None


def _data(
    recipe: Recipe, split: ImageSplit, tokenizer: ImageTokenizer, device: str, **options: Any
) -> TokenData | LatentData:
    """Tokens or moments of a split: from the cache, encoded now, or joined from `parts`."""
    options["device"] = pick_device(device)
    if isinstance(tokenizer, KLTokenizer):
        return latent_data(split, tokenizer, has_flips=recipe.train.flip, **options)
    return token_data(split, tokenizer, **options)
