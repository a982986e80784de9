"""Labels of points that lie close together: each beside its point, none over another one, or over a point.

Places are tried on rings around a point, the nearest first; a label that stands farther off has a line to its point,
which crosses no other label. Points in a crowd choose first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Radii of the rings, points; places on each.
RADII = (5, 8, 12, 17, 23, 30, 38, 48, 60, 74, 90, 110, 135, 165, 200, 240, 290, 350)
AROUND = 32
#: Orders of the labels that are tried besides two good ones.
ORDERS = 6
#: Free space around a label, and around a point; farther than this a label has a line; all in points.
GAP, CLEAR, NEAR = 2.0, 3.0, 14


class Box(NamedTuple):
    """A rectangle of the picture, points.

    Attributes:
        left, bottom, right, top: its sides.
    """

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, centre: Array, size: Array) -> Box:
        """The rectangle of this middle and size."""
        low, high = (centre - size / 2).tolist(), (centre + size / 2).tolist()
        return cls(low[0], low[1], high[0], high[1])

    def meets(self, other: Box, gap: float = 0.0) -> bool:
        """Whether the two overlap, or come closer than a gap."""
        return (
            self.left < other.right + gap and other.left < self.right + gap
            and self.bottom < other.top + gap and other.bottom < self.top + gap
        )

    def inside(self, other: Box) -> bool:
        """Whether it lies within another one."""
        return (
            self.left >= other.left and self.right <= other.right
            and self.bottom >= other.bottom and self.top <= other.top
        )


def crosses(start: Array, end: Array, box: Box) -> bool:
    """Whether a line meets a rectangle, looked at every two points of its length."""
    steps = max(2, int(np.hypot(*(end - start)) / 2))
    along = start + np.linspace(0, 1, steps)[:, None] * (end - start)
    inside = (
        (along[:, 0] > box.left) & (along[:, 0] < box.right) & (along[:, 1] > box.bottom) & (along[:, 1] < box.top)
    )
    return bool(inside.any())


def places(points: Array, sizes: Array, frame: Box) -> list[Box]:
    """Where the labels go: no two overlap, none covers a point, and, where there is room, no line meets a label.

    Args:
        points: `[n, 2]`, of the picture.
        sizes: of the labels, `[n, 2]`.
        frame: none leaves it.
    Raises:
        ValueError: there is no room for all of them.
    """
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    crowded = np.argsort(-(np.exp(-distance / 40)).sum(1), kind="stable")
    longest = np.argsort(-sizes[:, 0], kind="stable")
    rng = np.random.default_rng(0)
    for free in (True, False):
        for order in (crowded, longest, *(rng.permutation(len(points)) for _ in range(ORDERS))):
            if (found := _placed(points, sizes, frame, order.tolist(), free_lines=free)) is not None:
                return found
    raise ValueError(f"{len(points)} labels have no room: make the picture larger")


def _placed(
    points: Array, sizes: Array, frame: Box, order: Sequence[int], *, free_lines: bool
) -> list[Box] | None:
    """The labels in this order, each at the first place that is free; None if one has none."""
    found: dict[int, Box] = {}
    lines: list[tuple[Array, Array]] = []
    for i in order:
        taken = [*found.values()]
        for radius, centre in _rings(points[i], sizes[i]):
            box = Box.around(centre, sizes[i])
            if not box.inside(frame) or any(box.meets(other, GAP) for other in taken):
                continue
            if (_between(points, box)).any():
                continue
            if free_lines and any(crosses(a, b, box) for a, b in lines):
                continue
            if free_lines and radius > NEAR and any(crosses(points[i], _end(points[i], box), each) for each in taken):
                continue
            break
        else:
            return None
        found[i] = box
        if radius > NEAR:
            lines.append((points[i], _end(points[i], box)))
    return [found[i] for i in range(len(points))]


def _rings(point: Array, size: Array) -> Iterator[tuple[float, Array]]:
    for radius in RADII:
        for k in range(AROUND):
            angle = 2 * math.pi * k / AROUND
            direction = np.array([math.cos(angle), math.sin(angle)])
            yield radius, point + direction * (radius + size / 2)


def _between(points: Array, box: Box) -> npt.NDArray[np.bool_]:
    """Which points a box covers, or comes close to."""
    low, high = np.array([box.left, box.bottom]) - CLEAR, np.array([box.right, box.top]) + CLEAR
    return np.asarray(((points > low) & (points < high)).all(1))


def _end(point: Array, box: Box) -> Array:
    """The point of a box that is nearest to a point."""
    x, y = point.tolist()
    return np.array([min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)])


def label_points(ax: Any, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str], size: float) -> list[Box]:
    """Write a label at each point of a picture whose axes have their limits; where they stand, points of the picture.

    Args:
        ax: axes of matplotlib.
        xs, ys: where the points are, in the units of the axes.
        texts: a label for each.
        size: of the letters, points.
    Raises:
        ValueError: there is no room for all of them.
    """
    from matplotlib.textpath import TextPath

    figure = ax.get_figure()
    figure.draw_without_rendering()  # so that the layout is final
    scale = 72 / figure.dpi
    points = scale * np.asarray(ax.transData.transform(np.column_stack([xs, ys])), dtype=np.float64)
    widths = [TextPath((0, 0), text, size=size).get_extents().width + 1 for text in texts]
    sizes = np.column_stack([widths, np.full(len(texts), 1.15 * size)])
    corners = scale * np.asarray(ax.bbox.extents, dtype=np.float64)
    boxes = places(points, sizes, Box(*corners.tolist()))
    for point, box, text, x, y in zip(points, boxes, texts, xs, ys, strict=True):
        middle = np.array([(box.left + box.right) / 2, (box.bottom + box.top) / 2])
        written = ax.annotate(
            text, (x, y), xytext=tuple(middle - point), textcoords="offset points", ha="center", va="center",
            fontsize=size, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.3},
        )
        written.set_in_layout(False)
        end = _end(point, box)
        if np.hypot(*(end - point)) > NEAR:
            line = ax.annotate(
                "", (x, y), xytext=tuple(end - point), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )
            line.set_in_layout(False)
    return boxes
