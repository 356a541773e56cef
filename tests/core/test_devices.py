"""Laws of devices, on a machine with or without CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from maskgen.core.devices import from_first_rank, pick_device, pick_precision, sum_over_ranks


def test_the_processor_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_process_takes_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 3)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device cuda .* use cpu or auto"):
        pick_device("cuda")


def test_an_unknown_device_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'; choose from auto, cpu, cuda, cuda:N, mps"):
        pick_device("tpu")


@pytest.mark.parametrize("wanted", ["auto", "no", "fp16", "bf16"])
def test_a_processor_computes_in_float32(wanted: Literal["auto", "no", "fp16", "bf16"]) -> None:
    assert pick_precision(wanted, torch.device("cpu")) == "no"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_takes_bf16_by_itself_only_where_it_has_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    gpu = torch.device("cuda", 0)
    assert pick_precision("auto", gpu) == ("bf16" if has_bf16 else "no")
    assert pick_precision("fp16", gpu) == "fp16"
    assert pick_precision("no", gpu) == "no"


@pytest.mark.parametrize("exchange", [sum_over_ranks, from_first_rank])
def test_one_process_exchanges_nothing(exchange: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.arange(3.0)
    assert exchange(x) is x
