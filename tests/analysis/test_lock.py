"""One writer for one file: another process is told who it is, and whoever dies leaves nothing in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from smc_bridge.analysis.lock import holding
from smc_bridge.analysis.study import study

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, pathlib
from smc_bridge.analysis.lock import holding
with holding(pathlib.Path(sys.argv[1]), argument="--out"):
    print("held", flush=True)
    sys.stdin.read()
"""
STUDY = {"methods": ["ar"], "windows": 3, "tabular": {"alphabets": 2, "lengths": 2, "runs": 2}}


def holder(file: Path) -> subprocess.Popen[str]:
    """Another process that writes the file; it has begun."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_two_studies_on_one_file(tmp_path: Path) -> None:
    file, link = tmp_path / "s.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(file)
    child = holder(file)
    try:
        for path in (file, link):
            said = rf"--out = {path}: process {child.pid} on \S+ writes it at the moment; wait for it"
            with pytest.raises(ValueError, match=said):
                study(STUDY, path=path)
        assert not file.exists()
    finally:
        child.kill()
        child.wait()
    assert os.listdir(tmp_path).count(".s.jsonl.lock") == 1, "it could not clean up"
    assert len(study(STUDY, path=file)) == 1, "the lock of a dead process holds nobody up"
    assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "s.jsonl"]


def test_two_calls_in_one_process(tmp_path: Path) -> None:
    def again(*_: object) -> None:
        study(STUDY, path=tmp_path / "s.jsonl")

    with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        study(STUDY, path=tmp_path / "s.jsonl", report=again)
    assert len(study(STUDY, path=tmp_path / "s.jsonl")) == 1


def test_work_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with holding(tmp_path / "a" / "b" / "s.jsonl", argument="--out"):
        assert os.listdir(tmp_path / "a" / "b") == [".s.jsonl.lock"]
    assert os.listdir(tmp_path) == []


def test_where_no_lock_can_be_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entered = []
    for path in (None, Path("-"), Path(os.devnull), Path("/proc/s.jsonl")):
        with holding(path, argument="--out"), holding(path, argument="--out"):  # a lock would refuse the second
            entered.append(path)
    with tempfile.TemporaryFile() as file, holding(Path(f"/dev/fd/{file.fileno()}"), argument="--out"):
        entered.append(None)
    assert len(entered) == 5
    assert os.listdir(tmp_path) == []
    assert not Path(os.devnull).with_name(".null.lock").exists()
