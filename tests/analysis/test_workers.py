"""`map_cells`: the values of one process, whatever happens to the processes that compute them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smc_bridge.analysis.workers import import_ray, map_cells
from tests.analysis.jobs import Square, die, give, killer, refuse, threads

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two CPUs that is there before the map, and stays."""
    ray = import_ray()
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    assert ray.is_initialized(), "a map ends no cluster that it did not start"
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


def test_one_worker_is_this_process_and_keeps_the_order() -> None:
    found = list(map_cells(Square, range(5)))
    assert found == [(i, (i * i, os.getpid(), i + 1)) for i in range(5)]


def test_nothing_to_do_makes_no_job() -> None:
    assert list(map_cells(partial(refuse, 0), [])) == []  # type: ignore[arg-type]


def test_missing_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^workers = 2 needs ray: pip install -e '\.\[ray\]' in a clone$"):
        map_cells(Square, [1], workers=2)


@pytest.mark.parametrize("option", [{"workers": 0}, {"threads": 0}, {"retries": -1}])
def test_bad_number_is_refused(option: dict[str, int]) -> None:
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"{name} = {value}: give a whole number"):
        map_cells(Square, [1], **option)  # type: ignore[arg-type]


@needs_ray
@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "nowhere"])
def test_address_without_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises((ValueError, ConnectionError), match=rf"^RAY_ADDRESS = {address}: .* or unset it$"):
        list(map_cells(Square, [1], workers=2))


@needs_ray
def test_killed_worker_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    with killer(tmp_path) as killed:
        found = dict(map_cells(partial(Square, tmp_path), range(8), workers=2))
    assert {i: value[0] for i, value in found.items()} == {i: i * i for i in range(8)}
    [victim] = killed
    pids = {value[1] for value in found.values()}
    assert os.getpid() not in pids
    assert found[3][1] != victim, "another process has taken the cell over"
    for pid in pids - {victim}:
        calls = sorted(value[2] for value in found.values() if value[1] == pid)
        assert calls == list(range(1, len(calls) + 1)), "a process makes its job once"


@needs_ray
def test_cell_that_kills_every_worker_is_one_line(cluster: Any) -> None:
    words = r"^cell 1 of 1: its worker died at every attempt, of 1 \(.*\); give fewer workers, .*$"
    with pytest.raises(ChildProcessError, match=words):
        list(map_cells(partial(give, die), [5], workers=2, retries=0))


@needs_ray
def test_error_of_a_job_is_what_it_raised(cluster: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        list(map_cells(partial(give, refuse), [7], workers=2))
    assert str(caught.value) == "file = 7: is not there"
    assert "in refuse" in caught.value.__notes__[0], "the worker's traceback is a note"


@needs_ray
def test_stopping_early_ends_the_workers(cluster: Any) -> None:
    with closing(map_cells(Square, range(1000), workers=2)) as found:
        pids = {next(found)[1][1] for _ in range(4)}
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@needs_ray
def test_threads_of_a_worker_are_limited(cluster: Any) -> None:
    other = 1 if os.environ.get("OMP_NUM_THREADS") == "2" else 2
    assert list(map_cells(threads, [0], workers=2, threads=other)) == [(0, other)]


@needs_ray
def test_cluster_that_is_too_small_is_refused(cluster: Any) -> None:
    with pytest.raises(ValueError, match=r"workers = 3: with threads = 1 they need 3 CPUs, the cluster has 2"):
        list(map_cells(Square, range(3), workers=3, threads=1))
