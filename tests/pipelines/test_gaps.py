"""Gaps of unknown length take the number of tokens that fits the text after them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import maskgen
from maskgen.core.errors import UserError
from maskgen.core.predictions import Categorical
from maskgen.core.traits import NetworkTraits
from maskgen.pipelines.gaps import LONGEST, with_lengths

V = 10


class Digits(nn.Module):
    """The token at place n is n modulo 10, with probability near 1."""

    traits = NetworkTraits(objectives=("masked_tokens",), tokens=("discrete",), streams=("text",))

    def forward(self, x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        logits = 9 * nn.functional.one_hot(torch.arange(x_t.shape[1]) % V, V).double().expand(*x_t.shape, V)
        return Categorical(logits if where is None else logits[where], where)


def tokens(text: str) -> Tensor:
    return torch.tensor([-1 if one == "_" else int(one) for one in text], dtype=torch.int64)


def filled(infill: str) -> str:
    return with_lengths(infill, tokens, Digits(), V)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_a_gap_takes_the_length_at_which_the_text_after_it_is_probable(n: int) -> None:
    after = "".join(str((2 + n + i) % V) for i in range(4))
    assert filled("01_{1,9}" + after) == "01" + "_" * n + after


def test_several_gaps_are_chosen_from_left_to_right_beside_those_of_a_given_length() -> None:
    assert filled("0__3_{1,6}678_{1,9}34") == "0__3__678____34"


def test_the_choice_is_the_same_every_time_and_a_text_without_ranges_stays() -> None:
    assert filled("0_{2,8}45") == filled("0_{2,8}45") == "0___45"
    assert filled("0__3") == "0__3"


@pytest.mark.parametrize(
    ("infill", "message"),
    [
        ("01_{0,3}4", "lengths are 1 to"), ("01_{5,3}4", "smaller first"), (f"01_{{1,{LONGEST + 1}}}4", "lengths are"),
        ("01_{2,5}", "needs text after it"), ("01_{2,5}_4", "needs text after it"),
    ],
)  # fmt: skip
def test_impossible_ranges_are_refused(infill: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filled(infill)


def test_a_checkpoint_fills_a_gap_of_unknown_length_and_a_causal_one_refuses() -> None:
    writer = maskgen.load_text("kjv-md4", device="cpu")
    made = writer(1, infill="And God said, Let there _{2,4}light", steps=2).texts[0]
    assert made.startswith("And God said, Let there ")
    assert made.endswith("light")
    assert len(made) - len("And God said, Let there light") in (2, 3, 4)
    with pytest.raises(UserError, match="masked checkpoint"):
        maskgen.load_text("kjv-ar", device="cpu")(1, infill="In the _{2,4} God")
