"""The one writer of files: links, modes, devices and pipes stay what they are; a write that fails changes nothing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from smc_bridge import files
from smc_bridge.engine.presets import smc
from smc_bridge.files import check_writable, is_stream, write_text
from smc_bridge.result import Result
from tests.toys import toy_pair


@pytest.fixture
def result() -> Result:
    return smc(toy_pair(), 2, window=3, lookahead=4).run([[1]], max_new_tokens=3)[0]


def full_device(folder: Path) -> Path:
    """A device that is always full; of our own where we might replace the system's."""
    own = folder / "full"
    try:
        os.mknod(own, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    except PermissionError:
        return Path("/dev/full")
    return own


def test_a_link_stays_and_its_target_is_written(tmp_path: Path, result: Result) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "r.json"
    target.write_text("old")
    for name in ("r.json", "new.json"):  # of the second there is no target yet
        link = tmp_path / name
        link.symlink_to(Path("folder") / name)
        check_writable(link, "--json")
        result.save(link)
        assert link.is_symlink()
        assert Result.load(tmp_path / "folder" / name) == result
    assert sorted(os.listdir(tmp_path / "folder")) == ["new.json", "r.json"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_mode_of_a_file_is_kept(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "r.json"
    file.touch()
    file.chmod(mode)
    write_text(file, "new")
    assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (mode, "new")


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "r.json", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o640


def test_another_name_of_a_file_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "a", "new")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "old"]


def test_a_pipe_is_written_through(tmp_path: Path, result: Result) -> None:
    pipe, heard = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    check_writable(pipe, "--json")
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    result.save(pipe)
    reader.join(timeout=10)
    assert stat.S_ISFIFO(pipe.stat().st_mode), "it was replaced by a file"
    (tmp_path / "r.json").write_text(heard[0])
    assert Result.load(tmp_path / "r.json") == result


def test_a_device_is_never_replaced_and_a_full_one_is_one_line(tmp_path: Path) -> None:
    device = full_device(tmp_path)
    check_writable(device, "--json")
    with pytest.raises(ValueError, match=r"--json = .*full: cannot be written \(No space left on device\); make room"):
        write_text(device, "new", argument="--json")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_dash_and_the_file_of_standard_output_are_standard_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text("-", "one\n")
    assert capfd.readouterr().out == "one\n"
    assert not Path("-").exists()
    file = tmp_path / "out.txt"
    with file.open("w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        stream.write("printed\n")
        assert is_stream(file)
        write_text(file, "saved\n")
        stream.write("printed again\n")
    assert file.read_text() == "printed\nsaved\nprinted again\n", "the file was replaced below its stream"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.json").write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write_text(tmp_path / "r.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"r.json": "old"}


REFUSED = {
    "": "--json = '': is no name of a file", "a\0b": r"--json = 'a\\x00b': is no name of a file", ".": "is a folder",
    "loop": "Too many levels of symbolic links", "none/r.json": "its folder does not exist", "x" * 300: "File name too",
    "file/r.json": "its folder does not exist", "socket": "it is a socket",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import socket

    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
        with pytest.raises(ValueError, match=REFUSED[name]):
            check_writable(name, "--json")
    assert sorted(os.listdir()) == ["file", "loop", "socket"]


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its folder does not exist") as told:
        check_writable(tmp_path / "a\nb" / "c", "--json")
    assert "\n" not in str(told.value)
    write_text(tmp_path / "κ\n.json", "new")
    assert (tmp_path / "κ\n.json").read_text() == "new"
