"""Tables that fit the width they are printed in: text is wrapped between words, and no number is ever cut.

Where the columns do not fit side by side, the table goes on below itself, each part with the column that names the
rows, or with numbers of the rows where two have one name.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text, TextType

#: What a column that may be cut anywhere (`overflow = "fold"`) needs, columns of the terminal.
FOLDED = 12
#: What surrounds a column: a line and a blank on either side.
FRAME = 3


def print_table(console: Console, table: Table) -> None:
    """Print a table, in as many parts as the width of the console asks for.

    Args:
        table: its first column names the rows; cells are text.
    """
    parts = fit(table, console.width)
    names = _texts(table.columns[0])
    if len(parts) > 1 and len(set(names)) < len(names):
        parts = fit(_numbered(table), console.width)
    for part in parts:
        console.print(part)
    if len(parts) > 1 and table.caption:  # the last part may be a narrow one
        console.print(table.caption, style="table.caption")


def fit(table: Table, width: int) -> list[Table]:
    """The table as one that is at most `width` wide, or as several."""
    needed = [_least(column) for column in table.columns]
    name, *others = range(len(table.columns))
    parts: list[list[int]] = [[]]
    used = free = needed[name] + FRAME + 1
    for index in others:
        if parts[-1] and used + needed[index] + FRAME > width:
            parts.append([])
            used = free
        parts[-1].append(index)
        used += needed[index] + FRAME
    return [
        _part(table, [name, *part], needed, width, first=place == 0, only=len(parts) == 1)
        for place, part in enumerate(parts)
    ]


def _numbered(table: Table) -> Table:
    """The table with numbers of its rows as their names."""
    numbered = _like(table, title=table.title, caption=table.caption)
    numbered.add_column("#", justify="right")
    for column in table.columns:
        numbered.add_column(
            column.header, justify=column.justify, style=column.style, overflow=column.overflow,
            no_wrap=column.no_wrap,
        )
    for row, cells in enumerate(zip(*(column.cells for column in table.columns), strict=True), start=1):
        numbered.add_row(str(row), *cells)
    return numbered


def _like(table: Table, *, title: TextType | None, caption: TextType | None) -> Table:
    """A table of the same looks without columns."""
    return Table(
        title=title, title_justify=table.title_justify, title_style=table.title_style, caption=caption,
        caption_justify=table.caption_justify, box=table.box, padding=table.padding, pad_edge=table.pad_edge,
        show_header=table.show_header,
    )


def _part(
    table: Table, chosen: Sequence[int], needed: Sequence[int], width: int, *, first: bool, only: bool
) -> Table:
    """Some columns of a table, each as wide as its longest line if there is room, and as its longest word at least."""
    part = _like(table, title=table.title if first else None, caption=table.caption if only else None)
    widths = _widths([needed[i] for i in chosen], [_most(table.columns[i]) for i in chosen], width)
    for index, own in zip(chosen, widths, strict=True):
        column = table.columns[index]
        part.add_column(
            column.header, justify=column.justify, style=column.style, overflow="fold", width=own,
        )
    cells = [[*table.columns[index].cells] for index in chosen]
    for row in zip(*cells, strict=True):
        part.add_row(*row)
    return part


def _widths(least: Sequence[int], most: Sequence[int], width: int) -> list[int]:
    """Widths between both ends that fill `width`, the narrowest columns served first."""
    widths = [*least]
    room = width - 1 - sum(each + FRAME for each in widths)
    for index in sorted(range(len(widths)), key=lambda i: most[i] - least[i]):
        more = max(0, min(room, most[index] - least[index]))
        widths[index] += more
        room -= more
    return widths


def _texts(column: Column) -> list[str]:
    return [cell.plain if isinstance(cell, Text) else str(cell) for cell in (column.header, *column.cells)]


def _least(column: Column) -> int:
    """Width of the longest word, or of the longest line where a column is not to be wrapped."""
    if column.no_wrap:
        return _most(column)
    words = [Text(word).cell_len for text in _texts(column) for word in text.split()]
    return min(max(words, default=1), FOLDED) if column.overflow == "fold" else max(words, default=1)


def _most(column: Column) -> int:
    """Width of the longest line."""
    return max((Text(line).cell_len for text in _texts(column) for line in text.splitlines()), default=1)
