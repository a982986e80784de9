"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smc_bridge.commands.base import console, tell

#: Told how much is done, what it was, and details that only a plain line has room for.
Show = Callable[[int, str, str], None]
#: What a bar shows of the time that is left, for callers that know better than the bar.
Left = Callable[[], str]


@contextmanager
def progress(total: int, *, left: Left | None = None) -> Iterator[Show]:
    """Within the block, show progress toward `total`.

    Args:
        total: of what is counted.
        left: words for the time that is left; by default a bar takes every part to be as long.
    """
    if not sys.stderr.isatty():

        def line(done: int, name: str, details: str) -> None:
            rest = "" if left is None or done == total else left()
            tell(f"{done}/{total} {name}: {details}{f', {rest}' if rest else ''}")

        yield line
        return
    remaining = TimeRemainingColumn() if left is None else TextColumn("{task.fields[left]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), remaining)
    with Progress(*columns, console=console(sys.stderr)) as bar:
        task = bar.add_task("loading", total=total, left="")
        yield lambda done, name, details: bar.update(
            task, completed=done, description=name, left="" if left is None or done == total else left()
        )
