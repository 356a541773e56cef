"""Names of public tensors: patterns for lists of blocks, renaming, counts of blocks, heads of a width."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from maskgen.core.errors import UserError

_LAYERS = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.contract",
}
"""Of a block of timm: names there and here."""


def block_names(theirs: str, ours: str, others: Mapping[str, str]) -> dict[str, str]:
    """Patterns of all tensors of a list of blocks, theirs -> ours: the layers of timm, and `others` of a block."""
    return {
        rf"{theirs}\.(\d+)\.{re.escape(part)}\.(weight|bias)": rf"{ours}.\1.{name}.\2"
        for part, name in {**_LAYERS, **others}.items()
    }


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], computed: tuple[str, ...], kind: str
) -> dict[str, Tensor]:
    """All tensors but the `computed` ones, under the names that `names` has for them.

    Args:
        state: public tensors by name.
        names: patterns of public names -> ours, with `\\1` for their groups.
        computed: ends of the names of tensors that our network computes itself.
        kind: the public network, for the message.

    Raises:
        UserError: a key that is in neither.
    """
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if any(key.endswith(name) for name in computed):
            continue
        found = [re.sub(theirs, name, key) for theirs, name in names.items() if re.fullmatch(theirs, key)]
        if not found:
            raise UserError(f"{key} is no tensor of a {kind}; is the file of another network?")
        ours[found[0]] = value
    return ours


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks a list of that name has."""
    return len({key.removeprefix(f"{prefix}.").split(".")[0] for key in state if key.startswith(f"{prefix}.")})


def heads_of(width: int, known: Mapping[int, int]) -> int:
    """Heads of a published width, which the weights do not determine.

    Raises:
        UserError: it was never published.
    """
    if width not in known:
        raise UserError(f"a width of {width} was never published, so its heads are unknown; published: {[*known]}")
    return known[width]
