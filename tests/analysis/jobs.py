"""Jobs for workers that do little, or die in the middle of it. Nothing heavy is imported here: each worker does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0


def wait_to_be_killed(folder: Path) -> None:
    """Leave this process's id in the folder and sleep; at every call but the first, return at once."""
    try:
        handle = os.open(folder / "victim", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(handle, str(os.getpid()).encode())
    time.sleep(PATIENCE)
    raise AssertionError("nobody came")


@contextmanager
def killer(folder: Path) -> Iterator[list[int]]:
    """Within the block, kill whoever leaves its id in the folder; the list names whom."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            file = folder / "victim"
            if file.exists() and (text := file.read_text()):
                killed.append(int(text))
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


class Square:
    """Squares, with the process that computed them and its calls so far; with a folder, 3 waits to be killed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, x: int) -> tuple[int, int, int]:
        self.calls += 1
        if self.folder is not None and x == 3:
            wait_to_be_killed(self.folder)
        return x * x, os.getpid(), self.calls


def threads() -> Callable[[int], int]:
    """A job that tells how many threads torch has."""
    import torch

    return lambda x: torch.get_num_threads()


def refuse(x: int) -> int:
    """Raise an error that names x."""
    raise FileNotFoundError(f"file = {x}: is not there")


def die(x: int) -> int:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def give(job: Callable[[int], int]) -> Callable[[int], int]:
    """Make a job that needs no making."""
    return job
