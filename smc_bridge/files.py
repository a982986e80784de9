"""Files that are written whole or not at all: the one writer of results, studies, comparisons and pictures.

A destination is the path of a file, or `-` for standard output. What is there decides how it is written:

- a file, or nothing yet: through a temporary file in the same folder, which is on the disk before it takes the place
  of the old one. Links stay and their target is written; an old file keeps its mode, a new one follows the umask;
- a character device, a pipe, a file that is standard output or standard error at the moment: written through, never
  replaced;
- a folder, a block device, a socket, a circle of links: refused.

`check_writable` finds out what can be known before any work is done.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from smc_bridge.models.arguments import said

#: The destination that is standard output.
STANDARD_OUTPUT = "-"


def check_path(path: object, argument: str = "path") -> None:
    """Raise ValueError unless this is a path: a number would be taken for an open file."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{argument} = {said(path)}: give the path of a file")


def shown(path: str | Path) -> str:
    """A path as messages show it: on one line."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def is_standard_output(path: str | Path) -> bool:
    """Whether the destination is `-`, or the file or pipe that standard output goes to (as `/dev/stdout`)."""
    return str(path) == STANDARD_OUTPUT or _goes_to(path, sys.stdout)


def is_stream(path: str | Path) -> bool:
    """Whether the destination is written through: standard output, a device, a pipe. It can be neither read again nor
    replaced."""
    if is_standard_output(path) or _goes_to(path, sys.stderr):
        return True
    with suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def resolved(path: str | Path) -> Path:
    """The file that a path names, behind all links; a stream as it is."""
    return Path(path) if is_stream(path) else Path(os.path.realpath(path))


def write_text(path: str | Path, text: str, *, argument: str = "path") -> None:
    """Write a text in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode(), argument=argument)


def write_bytes(path: str | Path, data: bytes, *, argument: str = "path") -> None:
    """Write a file whole or not at all; a stream is written through.

    Args:
        path: of the file, or `-` for standard output.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: it cannot be written; what was there is as it was.
        OSError: standard output is full, or whoever read it has left (BrokenPipeError).
    """
    check_path(path, argument)
    if is_standard_output(path):
        _print(data)
        return
    with refusing(path, argument):
        if is_stream(path):
            _refuse_kind(os.stat(path).st_mode)
            _write_through(path, data)
        else:
            _replace(resolved(path), data)


def check_writable(path: str | Path, argument: str = "path", *, make_folder: bool = False) -> None:
    """Refuse a destination that could not be written, before any work is done; what is there is not touched.

    Args:
        path: of the file, or `-`.
        argument: what the user typed before the path, for messages.
        make_folder: whether a missing folder is fine, because the caller makes it, if it is to be below the working
            directory.
    Raises:
        ValueError: the path is a folder, its folder is missing, or nothing can be written there.
    """
    check_path(path, argument)
    if str(path) == STANDARD_OUTPUT:
        return
    if not str(path) or "\0" in str(path):
        raise ValueError(f"{argument} = {str(path)!r}: is no name of a file; give a file, or - for standard output")
    if os.path.isdir(path):
        raise ValueError(f"{argument} = {shown(path)}: is a folder; give a file")
    with refusing(path, argument):
        with suppress(FileNotFoundError, NotADirectoryError):  # both are told of the folder, below
            _refuse_kind(os.stat(path).st_mode)
        file = resolved(path)
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if is_stream(path):
            return
        folder = file.parent
        if make_folder and not folder.exists() and folder.is_relative_to(Path.cwd().resolve()):
            folder = next(parent for parent in folder.parents if parent.exists())
        if not folder.is_dir():
            raise ValueError(
                f"{argument} = {shown(path)}: its folder does not exist; make it, or give another file"
            )
        number, probe = _temporary(folder, None)
        os.close(number)
        probe.unlink()


@contextmanager
def refusing(path: str | Path, argument: str) -> Iterator[None]:
    """Within the block, what the operating system refuses about `path` becomes one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, or give a file elsewhere" if full else "give a file that you may write"
        raise ValueError(
            f"{argument} = {shown(path)}: cannot be written ({error.strerror or error}); {remedy}"
        ) from error


def _goes_to(path: str | Path, stream: TextIO) -> bool:
    """Whether a stream of this process goes to the file: were that replaced, the stream's text would be lost."""
    with suppress(OSError, ValueError):  # no such file, or a stream that is no file
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    return False


def _refuse_kind(mode: int) -> None:
    """Raise OSError for what is not for writing results into."""
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "it is a block device" if stat.S_ISBLK(mode) else "it is a socket")


def _print(data: bytes) -> None:
    """Write to standard output, which may be a text stream without bytes below (a notebook's, a test's)."""
    sys.stdout.flush()
    below = getattr(sys.stdout, "buffer", None)
    if below is None:
        sys.stdout.write(data.decode())
    else:
        below.write(data)
    sys.stdout.flush()


def _write_through(path: str | Path, data: bytes) -> None:
    # What was printed before stands before.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    # Appending: a file that is standard error as well is not cut.
    with open(path, "ab", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left):]


def _replace(file: Path, data: bytes) -> None:
    old = None
    with suppress(FileNotFoundError):
        old = os.stat(file)
    number, temporary = _temporary(file.parent, old)
    try:
        with open(number, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def _temporary(folder: Path, like: os.stat_result | None) -> tuple[int, Path]:
    """A new file, opened, with mode and owner of an old one; nobody may read it who could not read that."""
    path = folder / f".smc-bridge-{secrets.token_hex(8)}.tmp"
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if like is None else 0o600)
    if like is not None:
        with suppress(PermissionError):  # only root may give a file away
            os.fchown(number, like.st_uid, like.st_gid)
        os.fchmod(number, stat.S_IMODE(like.st_mode))
    return number, path


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
