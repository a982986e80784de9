"""Draw one step of the program: `python docs/draw_step.py [--png FILE]` writes `docs/step.svg`.

Two particles with two lanes each and a window of five tokens go through draft, verify, move, reweight, reduce and
commit, one row each. It is a worked example: weights and survivors are computed from the numbers below.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

HERE = Path(__file__).parent

INK, MUTED, LINE, BAND = "#1f2933", "#52606d", "#9aa5b1", "#f5f7fa"
COMMITTED, DRAFT, ACCEPTED, CORRECTED, REFUSED = "#e4e7eb", "#d6e6fa", "#b7e4c7", "#ffd97d", "#fbd5d5"
STRIKE, BAR = "#c0392b", "#7b8794"
LANE_COLOURS = ("#4c78a8", "#9ecae9", "#8c6bb1", "#c9b3dd")

#: Prefix of each particle, and its carried log weight (nats).
PREFIX = (("3", "+", "4"), ("so", "3", "+", "4"))
CARRIED = (0.0, -0.4)
#: Per lane: the draft, the AR probability of each of its tokens, how many are accepted, the correction (or None), and
#: the log weight earned, nats.
LANES = (
    (("=", "7", ".", "He", "has"), (0.9, 0.95, 0.9, 0.55, 0.5), 5, None, 0.3),
    (("=", "8", ".", "So", "he"), (0.9, 0.04, 0.85, 0.3, 0.6), 1, "7", -0.5),
    (("is", "7", ".", "Then", "now"), (0.35, 0.9, 0.9, 0.08, 0.1), 3, "He", -0.9),
    (("=", "7", ",", "and", "he"), (0.9, 0.95, 0.12, 0.4, 0.45), 2, ".", 0.2),
)
#: Offset of systematic resampling, in [0, 1).
OFFSET = 0.6

WIDTH, HEIGHT = 900.0, 676.0
CELL, GAP, TALL = 34.0, 3.0, 25.0
LANE_X = tuple(150.0 + 188.0 * lane for lane in range(4))
ROWS = (  # name, explanation, top, height
    (
        "draft", "proposal: K lanes of each\nparticle, and their law q\n(DLM: one forward,\nindependent marginals)",
        8.0, 170.0,
    ),
    ("verify", "AR: p along every draft,\none batched forward", 178.0, 78.0),
    ("move", "kernel: keep, correct,\nstop; law π between q, p", 256.0, 78.0),
    ("reweight", "log w += Σ log p − log π\n(and − log K)", 334.0, 82.0),
    ("reduce", "N survivors by weight,\nunbiased resampling", 416.0, 104.0),
    ("commit", "append the blocks;\nlog Z = log mean weight", 520.0, 104.0),
)


def lane_log_weights() -> list[float]:
    """Carried + earned - log K of the four lanes, nats."""
    return [CARRIED[lane // 2] + LANES[lane][4] - math.log(2) for lane in range(4)]


def lane_shares() -> list[float]:
    """Their normalised weights."""
    raw = [math.exp(value) for value in lane_log_weights()]
    return [value / sum(raw) for value in raw]


def points() -> list[float]:
    """Two equally spaced points with one common offset."""
    return [(i + OFFSET) / 2 for i in range(2)]


def survivors() -> list[int]:
    """The lane under each point."""
    shares = lane_shares()
    return [next(lane for lane in range(4) if point < sum(shares[: lane + 1])) for point in points()]


def log_mean_weight() -> float:
    """Log weight of every survivor: the mean over the N particles of the sums over their lanes."""
    return math.log(sum(math.exp(value) for value in lane_log_weights()) / 2)


def block(lane: int) -> list[tuple[str, str]]:
    """Committed tokens of a lane with their colours."""
    draft, _, accepted, correction, _ = LANES[lane]
    own = [(token, ACCEPTED) for token in draft[:accepted]]
    return own if correction is None else [*own, (correction, CORRECTED)]


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{value:+.2f}".replace("-", "−")


class Canvas:
    """A drawing in points, with the origin at the top left."""

    def __init__(self) -> None:
        self.figure = plt.figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="white")
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(HEIGHT, 0)
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, *, size: float = 12, colour: str = INK, **options: Any) -> None:
        """Text, vertically centred unless told otherwise."""
        self.axes.text(x, y, text, fontsize=size, color=colour, **{"va": "center", **options})

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A plain rectangle."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, linewidth=0))

    def cell(self, x: float, y: float, token: str, fill: str, *, dashed: bool = False) -> None:
        """One token, centred on `y`; refused ones are struck out."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y - TALL / 2), CELL - GAP, TALL, boxstyle="round,pad=0,rounding_size=4", facecolor=fill,
                edgecolor=LINE, linewidth=0.9, linestyle=(0, (2, 2)) if dashed else "solid",
            )
        )
        size = 11 if len(token) < 4 else 9.5
        self.text(x + (CELL - GAP) / 2, y, token, size=size, ha="center", colour=MUTED if fill == REFUSED else INK)
        if fill == REFUSED:
            self.axes.plot([x + 3, x + CELL - GAP - 3], [y, y], color=STRIKE, linewidth=1.3)

    def cells(self, x: float, y: float, tokens: list[tuple[str, str]]) -> float:
        """Tokens side by side; returns where they end."""
        for i, (token, fill) in enumerate(tokens):
            self.cell(x + i * CELL, y, token, fill)
        return x + len(tokens) * CELL

    def arrow(self, start: tuple[float, float], end: tuple[float, float], *, colour: str = LINE) -> None:
        """A straight arrow."""
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=10, color=colour, linewidth=1.3, shrinkA=0, shrinkB=0
            )
        )


def draw() -> Any:
    """The diagram, as a figure."""
    canvas = Canvas()
    for i, (name, explanation, top, height) in enumerate(ROWS):
        if i % 2 == 0:
            canvas.box(0, top, WIDTH, height, BAND)
        canvas.text(12, top + 19, f"{i + 1}  {name}", size=13.5, fontweight="bold")
        canvas.text(12, top + 30, explanation, size=9.8, colour=MUTED, va="top", linespacing=1.3)
    _draft(canvas)
    _verify_and_move(canvas)
    _reweight(canvas)
    _reduce_and_commit(canvas)
    _legend(canvas)
    return canvas.figure


def _draft(canvas: Canvas) -> None:
    y_prefix, y_draft = ROWS[0][2] + 54, ROWS[0][2] + 140
    for n, prefix in enumerate(PREFIX):
        x = LANE_X[2 * n]
        canvas.text(x, ROWS[0][2] + 22, f"particle {n}", fontweight="bold")
        canvas.text(x + 74, ROWS[0][2] + 22, f"log weight {signed(CARRIED[n])}", size=11, colour=MUTED)
        right = canvas.cells(x, y_prefix, [(token, COMMITTED) for token in prefix])
        for i in range(5):
            canvas.cell(right + i * CELL, y_prefix, "?", "white", dashed=True)
        for k in range(2):
            centre = LANE_X[2 * n + k] + 2.5 * CELL
            canvas.arrow((right + 2.5 * CELL - 8 + 16 * k, y_prefix + 16), (centre, y_draft - 30))
    for lane, x in enumerate(LANE_X):
        canvas.text(x, ROWS[0][2] + 116, f"lane {lane % 2}", size=10.5, colour=MUTED)
        canvas.cells(x, y_draft, [(token, DRAFT) for token in LANES[lane][0]])


def _verify_and_move(canvas: Canvas) -> None:
    base, y = ROWS[1][2] + 56, ROWS[2][2] + 40
    for lane, x in enumerate(LANE_X):
        draft, probabilities, accepted, _, _ = LANES[lane]
        for i, probability in enumerate(probabilities):
            canvas.box(x + i * CELL + 8, base - 42 * probability, CELL - GAP - 16, 42 * probability, BAR)
            middle = x + i * CELL + (CELL - GAP) / 2
            canvas.text(middle, base + 10, f"{probability:.2f}"[1:], size=9.5, colour=MUTED, ha="center")
        canvas.axes.plot([x, x + 5 * CELL - GAP], [base, base], color=LINE, linewidth=1)
        right = canvas.cells(x, y, block(lane))
        canvas.cells(right, y, [(token, REFUSED) for token in draft[len(block(lane)) :]])
        canvas.text(x, y + 26, f"L = {len(block(lane))}, accepted {accepted}", size=10.5, colour=MUTED)


def _reweight(canvas: Canvas) -> None:
    top = ROWS[3][2]
    for lane, (x, share) in enumerate(zip(LANE_X, lane_shares(), strict=True)):
        total = signed(lane_log_weights()[lane])
        canvas.text(x, top + 20, f"{signed(CARRIED[lane // 2])} {signed(LANES[lane][4])} − log 2", size=10.5)
        canvas.text(x, top + 39, f"= {total} nats", size=10.5)
        canvas.box(x, top + 54, 165 * share / max(lane_shares()) * 0.68, 14, LANE_COLOURS[lane])
        canvas.text(x + 165 * share / max(lane_shares()) * 0.68 + 6, top + 61, f"W = {share:.2f}", size=10.5)


def _reduce_and_commit(canvas: Canvas) -> None:
    top, left, width = ROWS[4][2], LANE_X[0], LANE_X[3] + 5 * CELL - LANE_X[0]
    reached = 0.0
    for lane, share in enumerate(lane_shares()):
        canvas.box(left + width * reached, top + 34, width * share - 1.5, 22, LANE_COLOURS[lane])
        label = f"particle {lane // 2}, lane {lane % 2}" if share > 0.15 else f"{lane // 2}, {lane % 2}"
        colour = "white" if lane % 2 == 0 else INK
        canvas.text(left + width * (reached + share / 2), top + 45, label, size=10.5, ha="center", colour=colour)
        reached += share
    y = ROWS[5][2] + 56
    for n, (lane, point) in enumerate(zip(survivors(), points(), strict=True)):
        x = left + width * point
        canvas.arrow((x, top + 12), (x, top + 33), colour=INK)
        old, new = [(token, COMMITTED) for token in PREFIX[lane // 2]], block(lane)
        start = LANE_X[2 * n]
        canvas.arrow((x, top + 57), (start + (len(old) + len(new) / 2) * CELL, y - 17), colour=INK)
        canvas.cells(canvas.cells(start, y, old), y, new)
        canvas.text(start, y + 29, f"log weight {signed(log_mean_weight())}", size=11, colour=MUTED)
    note = "systematic resampling: two points, one offset"
    canvas.text(left + width * points()[0] + 10, top + 18, note, size=10.5, colour=MUTED)


def _legend(canvas: Canvas) -> None:
    y, x = HEIGHT - 24, 12.0
    for fill, label, step in (
        (COMMITTED, "committed before", 152), ("white", "masked", 96), (DRAFT, "draft", 86),
        (ACCEPTED, "accepted", 110), (CORRECTED, "corrected", 116), (REFUSED, "refused", 100),
    ):
        canvas.cell(x, y, "", fill, dashed=fill == "white")
        canvas.text(x + CELL + 3, y, label, size=11)
        x += step + 10
    canvas.box(x + 8, y - 11, CELL - GAP - 16, 22, BAR)
    canvas.text(x + CELL - 2, y, "p of the token", size=11)


def save(path: Path, figure: Any) -> None:
    """Write the figure; the same bytes every time."""
    with matplotlib.rc_context({"svg.hashsalt": "step", "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None, dpi=144)


def main() -> None:
    """Command line (module docstring)."""
    parser = argparse.ArgumentParser(description="Draw docs/step.svg.")
    parser.add_argument("--svg", type=Path, default=HERE / "step.svg")
    parser.add_argument("--png", type=Path, help="also write a bitmap, to look at")
    options = parser.parse_args()
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = draw()
    save(options.svg, figure)
    if options.png:
        save(options.png, figure)
    plt.close(figure)


if __name__ == "__main__":
    main()
