"""The benchmark scripts run, and say what is so."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.core.errors import UserError
from maskgen.strategies import STRATEGIES
from tests.tiny import text_checkpoint, text_tree

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    script(name).main()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, name, "--help")
    assert stop.value.code == 0
    assert f"usage: {name}" in capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in (script(name).__doc__ or "")


def test_bounds_of_the_oracle_are_exact_and_its_samplers_near(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "oracle", "--num", "400", "--steps", "8", "--output", tmp_path / "oracle.json")
    found = json.loads((tmp_path / "oracle.json").read_text())
    for name, value, exact, _ in found["toy"]:
        assert value == pytest.approx(exact, abs=1e-9), name
    for name, value, exact, _ in found["genmd4"]:
        assert value == pytest.approx(exact, abs=1e-4), name
    drift = found["tree"][0]
    assert abs(drift[1]) < 4 * drift[3]
    distances = {name: value for name, value, _, _ in found["samplers"]}
    for name, _, _, floor in found["samplers"][:2]:
        assert distances[name] < 4 * floor, name
    assert distances["ancestral, steps 8"] > distances["first_hitting"]  # 0.62 / 8 of it is the law's own


def test_a_compressor_that_stores_needs_eight_bits_a_byte() -> None:
    bits_per_char = script("compressors").bits_per_char
    assert bits_per_char(bytes, "of the rest", "abcd") == 8
    assert bits_per_char(bytes, "of the rest", "äöüß") == 16
    assert bits_per_char(len_once, "ab" * 50, "ab" * 50) == 0
    assert bits_per_char(len_once, "ab" * 50, "cd" * 50) > 0


def len_once(raw: bytes) -> bytes:
    """Keeps each value once."""
    return bytes(sorted(set(raw)))


def test_compressors_see_all_of_a_text_but_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "".join(f"{number} is written here.\n" for number in range(400))
    (tmp_path / "text.txt").write_text(text)
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "found.json"
    recipe.write_text(json.dumps(text_tree(tmp_path / "text.txt")))
    for split in ("validation", "test"):
        rest, part = script("compressors").texts(str(recipe), split)
        assert len(rest) + len(part) == len(text)
        assert part in text
    run(monkeypatch, "compressors", recipe, "--output", output)
    found = json.loads(output.read_text())
    assert found["characters"] == len(part)
    assert all(0 < bits < 8 for bits in found["bits_per_char"].values())


def test_compressors_refuse_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not of one text"):
        run(monkeypatch, "compressors", "image/digits-maskgit")


@pytest.mark.slow
def test_sampler_rows_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "model")
    text_checkpoint(tmp_path / "judge", "ar")
    output, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    models: list[str | Path] = [tmp_path / "model", "--scorer", tmp_path / "judge"]
    call = [*models, "--length", "6", "--output", output, "--plot", plot]
    run(monkeypatch, "samplers", *call, "--num", "2", "--steps", "2")
    first = json.loads(output.read_text())["rows"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    run(monkeypatch, "samplers", *call, "--num", "2", "--steps", "2", "3")
    second = json.loads(output.read_text())["rows"]
    assert len(second) > len(first)
    assert {name: second[name] for name in first} == first  # seconds included
    assert {row["evaluations"] for name, row in second.items() if name in ("first-hitting", "left to right")} == {6.0}
    assert second["ancestral, steps 2"]["evaluations"] <= 2
    with pytest.raises(UserError, match="choose another --output"):
        run(monkeypatch, "samplers", *call, "--num", "3", "--steps", "2")


def test_a_step_of_mdt_is_timed_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    run(monkeypatch, "mdt_step", "--size", "tiny", "--batch-size", "2", "--repeats", "2", "--output", output)
    found = json.loads(output.read_text())
    assert set(found["seconds"]) == {"maskgen", "matrix product"}
    assert found["gflop"] == pytest.approx(found["gflops"] * found["seconds"]["maskgen"][0])
    assert "ratio" not in found  # nothing to hold it against


def test_dropping_tokens_saves_what_its_products_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "deferred.json"
    small = ["--width", "32", "--heads", "2", "--depth", "2", "--tokens", "16", "--rows-of-256", "1", "--repeats", "1"]
    run(monkeypatch, "deferred", *small, "--keep", "0.5", "0.25", "--mixer", "0.1", "0.5", "--output", output)
    rows = json.loads(output.read_text())["rows"]
    light, heavy = ([row for row in rows if row["mixer_width"] == width] for width in (8, 32))
    for half, quarter, plain in (light, heavy):
        assert (half["arm"], quarter["arm"], plain["arm"]) == ("keep 0.5", "keep 0.25", "plain")
        assert 1 < half["of_macs"] < quarter["of_macs"]
        assert plain["of_macs"] == pytest.approx(1 + plain["mixer"], abs=2e-3)
    assert light[1]["of_macs"] > heavy[1]["of_macs"]  # a mixer that costs more leaves less to save
    assert heavy[0]["beats_plain_by_macs"] < light[0]["beats_plain_by_macs"]


def test_a_folder_is_timed_until_its_first_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "folder", "--files", "60", "--classes", "3", "--output", tmp_path / "folder.json")
    seconds = json.loads((tmp_path / "folder.json").read_text())["seconds"]
    for clock in (0, 1):
        parts = [values[clock] for name, values in seconds.items() if name != "all"]
        assert seconds["all"][clock] == pytest.approx(sum(parts))


def test_the_parts_of_a_step_are_no_more_than_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = ["image/digits-maskgit", "model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=4"]
    threads = torch.get_num_threads()
    try:
        run(monkeypatch, "step_profile", *small, "--threads", "1", "--steps", "2", "--output", tmp_path / "step.json")
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "step.json").read_text())
    assert {"forward", "backward", "optimizer", "average", "data", "logging"} <= set(found["share_of"])
    assert 0 < sum(found["share_of"].values()) <= 1
    assert 0 < found["products_of_operators"] < 1
    assert found["mfu"] == pytest.approx(found["gflop"] / found["seconds"] / found["peak_gflops"])


def test_an_encoder_of_visible_patches_does_a_quarter_of_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "visible.json"
    small = ["--size", "fashion", "--tokens", "49", "--token-width", "16", "--batch-size", "2", "--repeats", "1"]
    run(monkeypatch, "visible", *small, "--output", output)
    rows = {row["arm"]: row for row in json.loads(output.read_text())["rows"]}
    for name in ("MAE", "CrossMAE", "CrossMAE, a third"):
        assert rows[name]["encoder_of_full"] == pytest.approx(0.25, rel=0.05)
    assert rows["SimMIM"]["encoder_of_full"] == rows["full + decoder"]["encoder_of_full"] == 1
    order = [rows[name]["by_macs"] for name in ("full + decoder", "SimMIM", "MAE", "CrossMAE", "CrossMAE, a third")]
    assert order == sorted(order)


@pytest.mark.slow
def test_every_mask_strategy_is_timed_and_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "masks", "--steps", "1", "--batch-size", "2", "--output", tmp_path / "masks.png")
    said = capsys.readouterr().out
    for name in STRATEGIES.names():
        assert f"\n{name}: " in said
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")


def test_a_power_law_is_found_again_and_two_sizes_are_too_few() -> None:
    scaling: Any = script("scaling")
    law = scaling.PowerLaw(0.2, 1.5, 0.5)
    costs = [10.0, 20.0, 40.0]
    found = scaling.fit(costs, [law(cost) for cost in costs])
    assert found(80.0) == pytest.approx(law(80.0), rel=1e-3)
    with pytest.raises(ValueError, match="at least three sizes, got 2"):
        scaling.fit(costs[:2], [1.0, 0.9])


def test_solvers_of_a_head_are_compared_at_equal_evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "head_solvers", "--steps", "2", "--num", "20", "--output", tmp_path / "head.json")
    rows = json.loads((tmp_path / "head.json").read_text())["rows"]
    assert [row["evaluations"] for row in rows] == [8, 8, 8, 14, 14, 14]
    assert all(row["error"] >= 0 for row in rows)
