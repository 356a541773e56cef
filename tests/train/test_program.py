"""The training program from end to end, on networks of a few hundred weights."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskgen.checkpoints.checkpoint import load_model, read_checkpoint
from maskgen.checkpoints.manifest import sealed
from maskgen.core.errors import UserError
from maskgen.data.loader import permutation
from maskgen.train.program import run
from tests.tiny import TOKENIZER, tokenizer_checkpoint, tree

TINY = [
    *("model.width=8", "model.depth=1", "model.heads=2", "model.dropout=0.1", "sampler.steps=2"),
    *("train.steps=6", "train.batch_size=4", "train.accumulate=2", "train.warmup=2", "train.ema=0.9"),
    *("train.checkpoint_every=3", "train.log_every=1", "train.preview_every=0", "train.validation_rows=8"),
    *("train.tensorboard=false", "train.keep_ratio=0.5"),
]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def digits(output: Path, *overrides: str, resume: bool = False) -> Path:
    return run("image/digits-maskgit", [*TINY, *overrides], str(output), resume, "cpu")


def lines(directory: Path) -> list[dict[str, float]]:
    """The metrics without speeds and times."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clocks = ("samples/s", "seconds", "mfu", "data_wait")
    return [{key: value for key, value in line.items() if not key.endswith(clocks)} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps in one go."""
    directory = tmp_path_factory.mktemp("whole")
    assert digits(directory) == directory / "checkpoint-6"
    return directory


def test_three_steps_and_three_more_are_six_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    torch.manual_seed(1234)
    digits(tmp_path / "run", resume=True)
    first, second = (read_checkpoint(path) for path in (whole, tmp_path / "run"))
    assert second.step == 6
    for name in ("model.safetensors", "training.safetensors"):
        assert first.info["files"][name] == second.info["files"][name]
    assert lines(tmp_path / "run") == lines(whole)


def test_a_damaged_newer_checkpoint_is_set_aside_and_outlived(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-6" / "training.safetensors").write_bytes(b"half")
    short = ("train.steps=4", "train.keep_checkpoints=1")
    path = digits(tmp_path / "run", *short, resume=True)
    assert read_checkpoint(tmp_path / "run").path == path == tmp_path / "run" / "checkpoint-4"
    assert (tmp_path / "run" / ".bad-checkpoint-6").is_dir()


def test_other_data_and_another_optimizer_are_refused_at_a_resume(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-6" / "checkpoint.json"
    known = json.loads(file.read_text())
    assert known["data"]["rows"] == 1500
    with pytest.raises(UserError, match=r"was trained with another train.optimizer"):
        digits(tmp_path / "run", "train.optimizer=muon", "train.steps=7", resume=True)
    file.write_text(json.dumps(sealed({**known, "data": {**known["data"], "rows": 1501}})))
    with pytest.raises(UserError, match=r"on other data \(1,501 rows then, 1,500 now\): resume with the same"):
        digits(tmp_path / "run", "train.steps=7", resume=True)
    file.write_text(json.dumps(sealed({key: value for key, value in known.items() if key != "data"})))
    assert digits(tmp_path / "run", "train.steps=7", resume=True).name == "checkpoint-7"  # an older one is believed


def test_rows_go_on_in_one_order_after_a_change_of_the_batch_size(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    taken: list[int] = []

    def recorded(dataset: Any, order: Any, *_: Any, **__: Any) -> Any:
        for index in itertools.count():
            rows = order.indices(index)
            taken.extend(rows)
            yield dataset.__getitems__(rows)

    monkeypatch.setattr("maskgen.train.run.batches", recorded)
    digits(tmp_path / "run", "train.batch_size=10", "train.steps=7", resume=True)
    digits(tmp_path / "run", "train.batch_size=2", "train.steps=9", resume=True)
    assert taken == permutation(0, 0, 1500)[24 : 24 + 10 + 4].tolist()


def test_a_value_to_keep_by_that_no_validation_has_is_said_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the validation has no 'lost'; choose from .*loss.*goes on from checkpoint-3"):
        digits(tmp_path, "train.keep_best={metric: lost}")
    assert read_checkpoint(tmp_path).step == 3


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    constant = "train.lr_schedule=constant"
    digits(tmp_path / "a", constant)
    digits(tmp_path / "b", constant, "train.steps=3")
    digits(tmp_path / "b", constant, resume=True)
    first, second = (read_checkpoint(tmp_path / name) for name in "ab")
    assert first.info["files"] == second.info["files"]


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    digits(tmp_path, "seed=1")
    assert read_checkpoint(tmp_path).info["files"] != read_checkpoint(whole).info["files"]


def test_a_run_leaves_recipe_metrics_and_checkpoints_that_load(whole: Path) -> None:
    assert {"recipe.yaml", "metrics.jsonl", "checkpoint-3", "checkpoint-6"} <= {path.name for path in whole.iterdir()}
    checkpoint = read_checkpoint(whole)
    assert checkpoint.classes == tuple("0123456789")
    network, tokenizer = load_model(checkpoint)
    assert tokenizer is not None
    assert tokenizer.vocab_size == 17
    assert network(torch.full((1, 64), 17), torch.ones(1)).logits.shape == (1, 64, 17)
    assert [line["step"] for line in lines(whole) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(whole) if "validation/loss" in line] == [3, 6]


def test_a_run_is_neither_overwritten_nor_resumed_unasked(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds checkpoint-6; continue it with --resume"):
        digits(whole)
    with pytest.raises(UserError, match=r"nothing to resume"):
        digits(tmp_path, resume=True)
    with pytest.raises(UserError, match=r"was trained with another model"):
        digits(whole, "model.width=16", resume=True)


def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file"):
        digits(tmp_path / "file" / "run")


def test_a_preview_is_drawn_for_the_last_step(tmp_path: Path) -> None:
    digits(tmp_path, "train.preview_every=100", "train.steps=1", "train.validation_rows=0")
    assert (tmp_path / "samples" / "step-00000001.png").is_file()


def small(path: Path, **content: Any) -> str:
    settings = {"steps": 2, "batch_size": 4, "preview_every": 2, "validation_rows": 8, "tensorboard": False}
    path.write_text(yaml.safe_dump(content | {"train": settings}))
    return str(path)


@pytest.mark.parametrize(
    "content",
    [TOKENIZER, {"data": "digits", "model": {"type": "classifier", "width": 8}, "objective": "classification"}],
    ids=["tokenizer", "classifier"],
)
def test_tokenizers_and_classifiers_train_by_the_same_program(tmp_path: Path, content: dict[str, Any]) -> None:
    path = run(small(tmp_path / "r.yaml", **content), output=str(tmp_path / "run"), device="cpu")
    assert read_checkpoint(path).step == 2
    load_model(read_checkpoint(path))


def test_a_run_keeps_the_tokenizer_it_began_with(tmp_path: Path) -> None:
    wanted = tokenizer_checkpoint(tmp_path / "vq").state_dict()
    source = small(tmp_path / "r.yaml", **tree(tokenizer={"from": str(tmp_path / "vq")}))
    run(source, output=str(tmp_path / "run"), device="cpu")
    tokenizer_checkpoint(tmp_path / "vq")  # trained further meanwhile
    run(source, ["train.steps=4"], str(tmp_path / "run"), resume=True, device="cpu")
    tokenizer = load_model(read_checkpoint(tmp_path / "run"))[1]
    assert tokenizer is not None
    assert all(torch.equal(value, wanted[name]) for name, value in tokenizer.state_dict().items())


def test_a_tokenizer_without_weights_is_not_trained(tmp_path: Path) -> None:
    source = small(tmp_path / "r.yaml", **(TOKENIZER | {"tokenizer": "pixels"}))
    with pytest.raises(UserError, match="nothing to train; choose one that learns"):
        run(source, output=str(tmp_path / "run"), device="cpu")


def test_seconds_are_counted_on_by_a_resumed_run(tmp_path: Path) -> None:
    digits(tmp_path, "train.steps=3")
    first = read_checkpoint(tmp_path)
    (tmp_path / "checkpoint-3" / "checkpoint.json").write_text(
        json.dumps(sealed({**first.info, "seconds": 5000.0, "cpu_seconds": 7000.0}))
    )
    digits(tmp_path, "train.steps=4", resume=True)
    second = read_checkpoint(tmp_path)
    assert 0 <= first.info["cpu_seconds"] < 60
    assert 5000 <= second.info["seconds"] < 5060
    assert 7000 <= second.info["cpu_seconds"] < 7060
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    spent = [line["validation/cpu_seconds"] for line in found if "validation/loss" in line]
    assert spent[0] < 60
    assert 7000 <= spent[1] < 7060


def test_a_metrics_line_that_a_kill_cut_short_is_dropped_on_resume(tmp_path: Path) -> None:
    digits(tmp_path, "train.steps=3")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    digits(tmp_path, "train.steps=4", resume=True)
    assert lines(tmp_path)[-1]["step"] == 4
