"""One writer for one file: a lock that another process of this program sees, and that dies with its holder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smc_bridge.files import is_stream, resolved, shown

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def holding(path: Path | None, *, argument: str) -> Iterator[None]:
    """Within the block no other process of this program writes the file.

    The lock is `flock` on a file beside it, which is removed at the end. The system releases it when a process ends,
    however it ends, so that a file which was left behind holds nobody up. Where the folder cannot be written to, or its
    file system has no locks, there is none.

    Args:
        path: of the file; None or a stream needs no lock. Its folder is made.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: another process, or another call in this one, holds it.
    """
    if path is None or is_stream(path) or fcntl is None:
        yield
        return
    file = resolved(path)
    lock = file.with_name(f".{file.name[:200]}.lock")
    missing = [folder for folder in file.parents if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number = _take(lock)
    except BlockingIOError as error:
        raise ValueError(
            f"{argument} = {shown(path)}: {error} writes it at the moment; wait for it, or give another file"
        ) from error
    except OSError:
        yield
        return
    try:
        yield
    finally:
        # Removed while it is held: whoever has it open already sees that it has lost its name.
        with suppress(OSError):
            lock.unlink()
            for folder in missing:
                folder.rmdir()  # unless something was written
        os.close(number)


def _take(lock: Path) -> int:
    """The lock's file, open and held; BlockingIOError names who holds it."""
    while True:
        number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(number), os.stat(lock)):
                os.ftruncate(number, 0)
                os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return number
        except BlockingIOError as error:
            holder = os.read(number, 500).decode(errors="replace")
            os.close(number)
            raise BlockingIOError(holder or "another process") from error
        except OSError:
            os.close(number)
            raise
        os.close(number)
