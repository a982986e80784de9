"""What the plots share: size, colours, lines with bands, legends beside the data.

The colours are those of Okabe & Ito (2008) and a grey, which people with any of the common colour deficiencies tell
apart; markers and dashes say the same again, and tell lines of one colour apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smc_bridge.models.extras import need

#: Inches.
SIZE = (6.4, 3.6)

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, FAINT, MUTED = "#1f2933", "#616e7c", "#9aa5b1"

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, INK, MUTED)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
_DASHES: tuple[Any, ...] = (
    "-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (9, 2)), (0, (7, 2, 1, 2, 1, 2, 1, 2)),
    (0, (3, 3)), (0, (1, 4)), (0, (12, 2, 3, 2)), (0, (2, 1, 2, 5)), (0, (8, 5)),
)
#: Lines that can be told apart.
MOST = len(_COLOURS) * len(_MARKERS)
#: Inches of a legend's character, and characters that an entry's line and gaps are worth.
_CHARACTER, _ENTRY = 0.068, 9
#: Rows of a legend that a figure of its usual height has room for, and inches of each one more.
ROWS, _ROW = 3, 0.2
#: Marks figures that `new_axes` made, which may grow.
OURS = "smc-bridge"


class Look(NamedTuple):
    """The looks of one line of a plot.

    Attributes:
        color: of line and marker.
        marker: of points.
        linestyle: kind of dash.
    """

    color: str
    marker: str
    linestyle: Any


def new_axes(ax: Any = None, *, size: tuple[float, float] = SIZE) -> Any:
    """The given axes, or new ones.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    need("matplotlib.pyplot", "plots", extra="analysis")
    import matplotlib.pyplot as plt

    figure, own = plt.subplots(figsize=size, layout="constrained")
    figure.set_gid(OURS)
    return own


def looks(count: int) -> list[Look]:
    """So many looks, of which no two have both one colour and one marker, nor both one colour and one kind of dash.

    So lines differ whether they have markers or not, and points that no line joins do as well.

    Raises:
        ValueError: more than there are.
    """
    if count > MOST:
        raise ValueError(f"it gives {count} lines, of which {MOST} can be told apart: draw fewer rows at once")
    size, kinds = len(_COLOURS), len(_MARKERS)
    turns = [(i % size, (i % size + i // size) % kinds) for i in range(count)]
    return [Look(_COLOURS[colour], _MARKERS[kind], _DASHES[kind]) for colour, kind in turns]


def line(ax: Any, x: npt.NDArray[Any], y: npt.NDArray[Any], look: Look, name: str, *, size: float = 5) -> None:
    """Draw a line of that look with a marker of `size` points at each value; `name` is for the legend."""
    ax.plot(x, y, color=look.color, linestyle=look.linestyle, marker=look.marker, markersize=size, label=name)


def band(ax: Any, x: npt.NDArray[Any], low: npt.NDArray[Any], high: npt.NDArray[Any], color: str) -> None:
    """Shade an interval around a line, where there is one."""
    if np.isfinite(low).any() or np.isfinite(high).any():
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def legend(ax: Any, *, handles: Sequence[Any] | None = None) -> None:
    """Above the axes, where it covers no data, in as many columns as fit."""
    chosen = list(ax.get_legend_handles_labels()[0]) if handles is None else list(handles)
    labels = [handle.get_label() for handle in chosen]
    if not labels:
        return
    # A legend may reach over the axes' sides, as far as the labels of their ticks.
    inches = 1.25 * ax.get_position().width * ax.get_figure().get_size_inches()[0]
    columns = max(1, min(len(labels), int(inches / _CHARACTER / (max(map(len, labels)) + _ENTRY))))
    rows = -(-len(labels) // columns)
    if ax.get_figure().get_gid() == OURS and rows > ROWS:
        # The axes keep their height.
        ax.get_figure().set_figheight(ax.get_figure().get_figheight() + _ROW * (rows - ROWS))
    ax.legend(
        handles=chosen, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9,
        handlelength=2.6, columnspacing=1.4,
    )


def integer_ticks(*axes: Any) -> None:
    """Whole numbers only on the given x or y axes."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def plain_ticks(axis: Any, values: npt.NDArray[Any]) -> None:
    """Ticks of a logarithmic axis at the values that were measured, written as numbers; every other one if many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    every = np.unique(values)
    shown = every[:: max(1, -(-every.size // 10))]
    axis.set_major_locator(FixedLocator(list(shown)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
