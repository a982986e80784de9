"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smc_bridge.commands.base import console, tell

#: Told how much is done, what it was, and details that only a plain line has room for.
Show = Callable[[int, str, str], None]


@contextmanager
def progress(total: int) -> Iterator[Show]:
    """Within the block, show progress toward `total`."""
    if not sys.stderr.isatty():

        def line(done: int, name: str, details: str) -> None:
            tell(f"{done}/{total} {name}: {details}")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr)) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda done, name, details: bar.update(task, completed=done, description=name)
