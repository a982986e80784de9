"""One thread for each core that this process may use and that is idle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from smc_bridge.cli import main
from smc_bridge.commands import threads
from smc_bridge.models import pairs
from tests.toys import LIMIT, toy_pair

#: Ticks of three cores: user nice system idle iowait irq softirq steal guest guest_nice.
BEFORE = "cpu  9 9 9 9 9 9 9 9 9 9\n" + "".join(f"cpu{i} 5 0 0 9 1 0 0 0 0 0\n" for i in range(3)) + "intr 7\n"
AFTER = (
    "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 6 0 0 28 1 0 0 0 0 0\ncpu1 25 0 0 9 1 0 0 0 0 0\ncpu2 5 0 0 9 21 0 0 0 0 0\n"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three cores of which the second is busy, without a quota."""
    counters = tmp_path / "stat"
    counters.write_text(BEFORE)
    monkeypatch.setattr(threads, "COUNTERS", counters)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads.time, "sleep", lambda _: counters.write_text(AFTER))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "quota", "free"),
    [({0, 1, 2}, None, 2), ({0, 2}, None, 2), ({1}, None, 1), ({0, 1}, None, 1), ({0, 1, 2}, "max 100000", 2),
     ({0, 1, 2}, "100000 100000", 1), ({0, 1, 2}, "50000 100000", 1)],
)
def test_busy_and_forbidden_cores_are_left_alone(
    machine: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], quota: str | None, free: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    if quota is not None:
        (machine / "cpu.max").write_text(quota)
    assert threads.free_cores() == free


def test_without_counters_every_allowed_core_counts(machine: Path) -> None:
    (machine / "stat").unlink()
    assert threads.free_cores() == 3


def test_the_users_own_number_of_threads_stands(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.use_free_cores() == torch.get_num_threads()
    assert given == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.use_free_cores()
    assert given == [2]


@pytest.mark.parametrize("prompts", [["1"], ["--prompts", "p.jsonl"]])
def test_decode_takes_free_cores_for_a_prompt_and_for_a_file(
    machine: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str]
) -> None:
    (machine / "p.jsonl").write_text('{"prompt": "1"}\n')
    monkeypatch.chdir(machine)
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert main(["decode", *prompts, "--pair", "toy", "--max-new-tokens", str(LIMIT)], commands=[]) == 0
    assert given == [2]
