"""The device check in its CPU form: every part runs, what goes wrong is told, a device that draws otherwise fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import device_check
from benchmarks.device_check import SMALL, cells, run_part, told_by_tests, watch_part
from benchmarks.device_equal import Equality, Given, Kept, equality
from benchmarks.device_tables import sheets
from benchmarks.random_pair import SHAPES, random_pair
from benchmarks.replay import Observed
from smc_bridge.engine.presets import smc
from smc_bridge.models.huggingface import HuggingFaceCausalLM

CPU = torch.device("cpu")
PROMPTS = [[1, 2, 3], [4, 5]]


@pytest.fixture(scope="module")
def pair() -> Any:
    return random_pair("tiny", CPU, seed=0)


def run(there: Any, here: Any, build: Callable[[Any], Any] = lambda p: smc(p, 2, window=4, lookahead=4)) -> Equality:
    return equality(build, here, there, PROMPTS, dtype=torch.bfloat16, seed=3, max_new_tokens=6)


@pytest.mark.parametrize("name", ["tiny"])
def test_random_pair_has_the_sizes_it_says_and_comes_from_its_seed(name: str, pair: Any) -> None:
    dlm, ar = pair.dlm.model, pair.ar.model
    assert sum(each.numel() for each in ar.parameters()) == SHAPES[name].parameters
    assert {each.dtype for each in ar.parameters()} == {torch.bfloat16}
    again, other = random_pair(name, CPU, seed=0), random_pair(name, CPU, seed=1)
    assert torch.equal(ar.lm_head.weight, again.ar.model.lm_head.weight)
    assert not torch.equal(ar.lm_head.weight, other.ar.model.lm_head.weight)
    assert not torch.equal(ar.lm_head.weight, dlm.lm_head.weight)


def test_sizes_are_those_of_qwen() -> None:
    """0.494 and 7.616 thousand million, as their cards say."""
    assert [round(SHAPES[name].parameters / 1e9, 3) for name in ("0.5 B", "7 B")] == [0.494, 7.616]


def test_a_device_is_equal_to_itself(pair: Any) -> None:
    found = run(pair, pair)
    assert found.equal
    assert (found.places, found.nats, found.flips) == (0.0, 0.0, 0)
    assert found.tokens == 12


def test_a_device_whose_scores_are_off_is_caught(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen places of the greatest logit are twice what round-off explains."""
    other = random_pair("tiny", CPU, seed=0)
    scores = HuggingFaceCausalLM.scores
    step = 16 * torch.finfo(torch.bfloat16).eps

    def off(self: Any, out: torch.Tensor) -> torch.Tensor:
        found = scores(self, out)
        if self is not other.ar:
            return found
        found = found.clone()
        found[..., 0] += step * found.abs().max()
        return found

    monkeypatch.setattr(HuggingFaceCausalLM, "scores", off)
    found = run(other, pair)
    assert found.apart is None
    assert found.places > found.allowed
    assert not found.equal


def test_a_device_whose_program_decides_otherwise_is_caught(pair: Any) -> None:
    """The same models, but the program on the device is at another temperature."""
    there = random_pair("tiny", CPU, seed=0)

    def build(given: Any) -> Any:
        of = given.ar._inner if isinstance(given.ar, Observed) else given.ar
        return smc(given, 2, window=4, lookahead=4, temperature=0.7 if of is there.ar else 1.0)

    found = run(there, pair, build)
    assert found.apart is not None or found.nats > found.allowed_nats
    assert not found.equal


def test_scores_within_round_off_that_turn_a_decision_are_a_flip_and_no_fault(pair: Any) -> None:
    """Weights that differ by a place: the scores stay within round-off, and whoever draws others is counted."""
    there = random_pair("tiny", CPU, seed=0)
    with torch.no_grad():
        for weight in there.ar.model.parameters():
            weight.mul_(1 + torch.finfo(torch.bfloat16).eps)
    flips = []
    for seed in range(6):
        found = equality(
            lambda p: smc(p, 4, window=4, lookahead=4), pair, there, PROMPTS, dtype=torch.bfloat16, seed=seed,
            max_new_tokens=12,
        )
        assert found.apart is None, found
        assert 0 < found.places <= found.allowed, found
        assert found.equal
        flips.append(found.flips)
    assert sum(flips) > 0, flips


def test_answers_are_given_to_the_same_calls_only(pair: Any) -> None:
    kept = Kept()
    kept.record("ar", 0, "crop", lambda length: None, (torch.tensor([1, 2]),))
    with pytest.raises(Exception, match="other arguments"):
        Given(kept).record("ar", 0, "crop", lambda length: None, (torch.tensor([1, 3]),))
    with pytest.raises(Exception, match=r"call 0 is dlm.crop, and was ar.crop"):
        Given(kept).record("dlm", 0, "crop", lambda length: None, (torch.tensor([1, 2]),))


@pytest.mark.parametrize("part", ["equal", "embedded", "0.5 B"])
def test_every_cell_of_a_part_is_measured_on_a_cpu(part: str) -> None:
    records = list(run_part(part, CPU, SMALL, 0))
    assert [record["cell"] for record in records] == cells(part, SMALL)
    assert {record["state"] for record in records} == {"ok"}
    if part != "equal":
        for record in records:
            assert record["rate"] > 0
            assert record["seconds"] > 0
            assert record["over_networks"] > 0
            assert record["waits"] > 0
    text = sheets({part: records}, SMALL.shapes)[0].markdown()
    assert all(record["cell"] in text for record in records)


def test_memory_that_is_not_there_is_told_and_the_next_cell_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, prompts: int, **__: Any) -> Any:
        if prompts == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"state": "ok"}

    monkeypatch.setattr(device_check, "_speed", full)
    states = [record["state"] for record in run_part("7 B", CPU, SMALL, 0)]
    assert states == ["out of memory"] * 4 + ["ok"] * 4


def test_a_device_without_room_for_the_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "lacking", lambda shape, device: "needs 36 GiB of memory, 20 GiB are free")
    records = list(run_part("7 B", CPU, SMALL, 0))
    assert len(records) == len(cells("7 B", SMALL))
    assert {record["state"] for record in records} == {"needs 36 GiB of memory, 20 GiB are free"}


@pytest.mark.parametrize(
    ("code", "end"),
    [("import time; time.sleep(60)", "out of time"), ("raise ValueError('no')", "failed: ValueError: no"), ("", None)],
)
def test_a_part_that_does_not_end_or_fails_keeps_what_it_has(code: str, end: str | None, tmp_path: Path) -> None:
    line = json.dumps({"cell": "a", "state": "ok"})
    start = f"import pathlib; pathlib.Path({str(tmp_path / '7B.jsonl')!r}).write_text({line + chr(10) + '{'!r}); "
    records, told = watch_part(
        [sys.executable, "-c", start + code], tmp_path, "7 B", 5.0 if end == "out of time" else 60.0, lambda _: None
    )
    assert records == [{"cell": "a", "state": "ok"}]
    assert told == end


@pytest.mark.parametrize(
    ("log", "end", "state"),
    [
        ("tests/a.py::t[cuda] PASSED [ 50%]\ntests/a.py::u[cuda] FAILED [100%]", "failed: 1 failed", "1 failed"),
        ("[gw0] [ 50%] PASSED tests/a.py::t[cuda] \n[gw1] [100%] PASSED tests/a.py::u[cuda] ", None, "ok"),
        ("tests/a.py::t[cuda] PASSED [ 50%]", "out of time", "out of time"),
        ("collected 0 items", "failed: no tests ran", "failed: no tests ran"),
    ],
)
def test_what_pytest_told_is_read(log: str, end: str | None, state: str) -> None:
    assert told_by_tests(log, end)["state"] == state


@pytest.mark.parametrize(
    ("found", "well"),
    [
        ({"tests": ["ok"], "7 B": ["ok", "out of time", "out of memory", "needs 36 GiB of memory"]}, True),
        ({"tests": ["out of time"]}, False),
        ({"equal": ["not equal"]}, False),
        ({"tests": ["ok"], "7 B": ["failed: RuntimeError: no"]}, False),
    ],
)
def test_a_measurement_may_lack_time_or_memory_and_nothing_else(found: dict[str, list[str]], well: bool) -> None:
    records = {part: [{"cell": "a", "state": state} for state in states] for part, states in found.items()}
    assert device_check.passed(records) is well


def places(kept: float, own: float) -> float:
    """What is told of two runs whose one call gave `[1, kept]` and `[1, own]`."""
    first = Kept()
    first.record("ar", 0, "score", lambda: torch.tensor([1.0, kept]), ())
    second = Given(first)
    second.record("ar", 0, "score", lambda: torch.tensor([1.0, own]), ())
    return second.places


def test_scores_that_are_no_numbers_on_one_device_alone_are_apart() -> None:
    inf = float("inf")
    assert [places(bad, 2.0) for bad in (float("nan"), inf, -inf)] == [inf] * 3
    assert places(2.0, float("nan")) == inf
    assert places(-inf, -inf) == 0.0
    assert places(1.5, 2.0) == 0.25


def test_without_the_device_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device_check.main([])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "no CUDA device" in out


@pytest.mark.parametrize("broken", [False, True])
def test_command_writes_json_and_a_table_and_fails_with_the_tests(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_check, "BUDGET", dict.fromkeys(device_check.BUDGET, 300))
    if broken:
        told = "print('tests/a.py::t[cpu] FAILED [100%]'); raise SystemExit(1)"
        monkeypatch.setattr(device_check, "pytest_command", lambda *_: [sys.executable, "-c", told])
    arguments = ["--device", "cpu", "--tiny", "--parts", "tests" if broken else "tests,7 B", "--out", str(tmp_path)]
    if broken:
        with pytest.raises(SystemExit) as stop:
            device_check.main(arguments)
        assert stop.value.code == 1
    else:
        device_check.main(arguments)
    data = json.loads((tmp_path / "device_check.json").read_text())
    assert data["passed"] is not broken
    assert data["parts"]["tests"][0]["state"] == ("1 failed" if broken else "ok")
    assert ("passed" if not broken else "FAILED") in capsys.readouterr().out
    if not broken:
        assert [record["state"] for record in data["parts"]["7 B"]] == ["ok"] * 8
        assert "smc-4, P = 2" in (tmp_path / "device_check.md").read_text()
