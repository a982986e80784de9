"""How things show themselves: a head line with a few lines below it, and tables that can be printed.

Results, samplers and tables hold models, traces and thousands of numbers; what a prompt shows of them are the few that
a reader asks for first.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from smc_bridge.tables import print_table

#: Columns of a printed table where the output is no terminal, and of a line of a repr.
WIDE, LINE = 176, 100


class PrintedTable(Table):
    """A rich table whose text is the table, as wide as the terminal: at a prompt, under `print` and in a log."""

    def __repr__(self) -> str:
        stream = io.StringIO()
        width = shutil.get_terminal_size((WIDE, 24)).columns
        print_table(Console(file=stream, width=width, color_system=None, highlight=False), self)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


    def markdown(self) -> str:
        """The table for a page, without its title; numbers stand at the right."""
        heads = [str(column.header) for column in self.columns]
        marks = ["---:" if column.justify == "right" else "---" for column in self.columns]
        rows = zip(*([str(cell) for cell in column.cells] for column in self.columns), strict=True)
        return "\n".join(f"| {' | '.join(row)} |" for row in (heads, marks, *rows))


def cut(text: str, width: int = LINE) -> str:
    """The text on one line of at most `width` characters."""
    line = " ".join(text.splitlines())
    return line if len(line) <= width else line[: width - 3] + "..."


def headed(head: str, lines: Iterable[str]) -> str:
    """A head line with indented lines below it, each cut to fit."""
    return "\n".join([cut(head, 2 * LINE), *(f"  {cut(line)}" for line in lines)])
