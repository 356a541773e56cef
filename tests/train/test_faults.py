"""The quick part of the fault suite; `make faults` runs all of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from maskgen.recipes.cost import matmul_peak
from tests.faults import FAULTS, QUICK, Lab, whole_run
from tests.launch import PRELOAD


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in PRELOAD:
        importlib.import_module(name)
    matmul_peak(torch.device("cpu"))  # measured once for all the forks
    return whole_run(tmp_path_factory.mktemp("whole"))


def test_the_suite_has_its_faults() -> None:
    assert len(FAULTS) >= 25
    assert set(QUICK) <= set(FAULTS)
    assert all(fault.__doc__ for fault in FAULTS.values())


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost(name: str, whole: Path, tmp_path: Path) -> None:
    assert FAULTS[name](Lab(tmp_path, whole))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAULTS) - set(QUICK)))
def test_nothing_is_lost_by_the_others(name: str, whole: Path, tmp_path: Path) -> None:
    assert FAULTS[name](Lab(tmp_path, whole))
