"""Laws of all registered layouts: what `maskgen convert --list` says, and facts that hold each to the public code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskgen.checkpoints.convert.converter import CONVERTERS
from maskgen.checkpoints.convert.published import Published

FACTS = sorted((Path(__file__).parents[1] / "golden" / "parity").glob("*.json"))
CONFIGURED = {
    "dream": {"model_type": "dream"}, "mdlm": {"model_type": "mdlm"}, "bd3": {"model_type": "bd3lm", "block_size": 4}
}  # fmt: skip
"""What config.json says of layouts whose names and shapes others have too."""


@pytest.mark.parametrize("name", CONVERTERS.names())
def test_a_layout_says_its_sizes_its_licence_and_a_page(name: str) -> None:
    entry = CONVERTERS.build(name)
    assert any(unit in entry.parameters for unit in (" M", " B"))
    assert entry.licence
    assert entry.page.split("/")[0] in ("arxiv.org", "github.com")


@pytest.mark.parametrize("name", [name for name in CONVERTERS.names() if name not in ("amused", "md4", "sedd")])
def test_some_facts_of_the_public_code_are_in_this_layout(name: str) -> None:
    def fits(path: Path) -> bool:
        shapes = json.loads(path.read_text())["tensors"]
        state = {key.removeprefix("model."): torch.empty(shape, device="meta") for key, shape in shapes.items()}
        return CONVERTERS.build(name).recognises(Published(state, CONFIGURED.get(name, {})))

    assert any(fits(path) for path in FACTS)
