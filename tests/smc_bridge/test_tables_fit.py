"""Tables of the command line at any width: no line is too long, and no word or number is cut."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smc_bridge.analysis.comparison.table import Row, render
from smc_bridge.estimate import Estimate
from smc_bridge.tables import print_table


def interval(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 200, "bootstrap-t")


RIGHT = interval(0.9345, 0.8912, 0.9666)
ROWS = [
    Row(
        "dlm-12-confidence", 200, 1, "DLM", False, RIGHT, interval(15.612, 15.104, 16.01), None, None, None, 1043.22,
        None, None, None,
    ),
    Row(
        "smc-4", 200, 4, "AR", True, RIGHT, interval(5.612, 5.434, 5.803), 12.3, 0.21, 14.3, 43.22, 3.216,
        interval(-0.0123, -0.0456, 0.0213), interval(-1.23e-5, -4.56e-5, 2e-5),
    ),
]


def printed(table: Table, width: int) -> str:
    stream = io.StringIO()
    print_table(Console(file=stream, width=width, markup=False), table)
    return stream.getvalue()


def shown(table: Table, width: int) -> str:
    """The table at a prompt in a terminal of this width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        return repr(table)


@pytest.mark.parametrize("show", [printed, shown])
@pytest.mark.parametrize("width", [176, 120, 80, 60, 40])
def test_the_table_of_a_comparison_fits_with_every_number_whole(width: int, show: Callable[[Table, int], str]) -> None:
    table = render(ROWS, title="arithmetic: 200 problems, target temperature 0.2, w = 0.3, seed 0")
    text = show(table, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    found = text.replace("│", " ").split()
    for column in table.columns:
        for cell in column.cells:
            assert set(str(cell).split()) <= set(found), f"{cell} is cut at width {width}:\n{text}"
    assert text.count("smc-4") == text.count("┡"), "every part names its rows"


def test_a_table_that_fits_is_one_table() -> None:
    assert printed(render(ROWS), 176).count("┡") == 1


def test_text_that_may_be_cut_takes_what_is_left() -> None:
    table = Table("particle", "weight")
    table.add_column("text", overflow="fold")
    table.add_row("0", "1.0000", Text("x" * 200))
    text = printed(table, 50)
    assert max(map(len, text.splitlines())) == 50
    assert text.count("x") == 200 + 1  # of the header
    assert text.count("┡") == 1


def test_rows_of_one_name_are_numbered_where_a_table_goes_on_below_itself() -> None:
    table = Table("method", "N", "log evidence", "tokens", caption="what it all means, in a line of its own")
    for row in range(3):
        table.add_row("smc", str(row), f"{row}.12345", str(40 + row))
    assert "#" not in printed(table, 60)
    text = printed(table, 26)
    assert max(map(len, text.splitlines())) <= 26
    assert text.count("┡") == 2
    for row in range(3):
        own = " ".join(line for line in text.splitlines() if line.startswith(f"│ {row + 1} │"))
        assert own.replace("│", " ").split() == [
            f"{row + 1}", "smc", f"{row}", f"{row + 1}", f"{row}.12345", f"{40 + row}"
        ], text
    assert text.split()[-10:] == table.caption.split(), "below the parts, not in one of them"
