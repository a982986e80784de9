"""A decode trace as a grid of lanes: what became of every token that was drafted.

A row is a lane, a column a position of the window. The draft's own tokens that were kept, the token that the kernel put
in the place of the first one refused, and the rest of the draft have a colour each (refused ones are struck out as
well); lanes that survive selection are framed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smc_bridge.analysis.plots.style import FAINT, INK, MUTED, RED, SIZE, legend, new_axes
from smc_bridge.result import Result
from smc_bridge.trace import StepRecord

#: Ids to text.
Decode = Callable[[list[int]], str]
#: Indices into a trace.
Steps = int | Sequence[int] | Literal["all"]
Kind = Literal["accepted", "corrected", "refused"]

FILL: dict[Kind, str] = {"accepted": "#a6d3ef", "corrected": "#ffd166", "refused": "#f1f3f5"}
#: Characters of a row, and of one token, that are shown.
WIDTH, TOKEN = 92, 9
#: Inches of a row, and around the grid.
ROW, AROUND = 0.24, 1.05
#: Width of a monospaced character over its height.
ASPECT = 0.602


@dataclass(frozen=True)
class Lane:
    """A row of the grid: the drafted tokens of one lane of a step.

    Attributes:
        step, particle, lane: which lane it is, from 0.
        survivors: how many survivors took it.
        tokens: text of each from the window's start, with what became of it.
    """

    step: int
    particle: int
    lane: int
    survivors: int
    tokens: tuple[tuple[str, Kind], ...]

    @property
    def block(self) -> int:
        """How many tokens the lane committed."""
        return sum(kind != "refused" for _, kind in self.tokens)


def plot_trace_grid(
    result: Result, steps: Steps = "all", decode: Decode | None = None, ax: Any = None
) -> Any:
    """One step or all steps of a run as a coloured grid of lanes.

    Rows that are longer than the axes end with the number of tokens that are not shown.

    Args:
        result: of a run with `keep_drafts=True`.
        steps: index into its trace, negative from the end, or several, or "all".
        decode: turns token ids into text; by default the texts that the result was saved with (`decode --trace --json`
            keeps them), else ids.
        ax: where to draw; by default axes that are as high as the number of lanes needs.
    Raises:
        ValueError: no such step, or the run kept no drafts.
    """
    chosen = _steps(result, steps)
    decode = decode or saved_decode(result)
    lanes = [lane for step in chosen for lane in _lanes(step, result.trace[step], decode)]
    widths = _widths(lanes)
    gaps = len(chosen) - 1
    ax = new_axes(ax, size=(SIZE[0], max(2.0, ROW * (len(lanes) + 0.6 * gaps) + AROUND)))
    from matplotlib.patches import Patch

    size = _font_size(ax, sum(widths))
    centres, heights = _columns(widths), list[float]()
    height, before = 0.0, lanes[0].step
    for lane in lanes:
        if lane.step != before:
            ax.axhline(height + 0.3, color=MUTED, linewidth=0.6)
            height, before = height + 0.6, lane.step
        heights.append(height + 0.5)
        _draw_lane(ax, lane, height, widths, size)
        height += 1
    ax.set_xlim(0, max(1, sum(widths)) + 4)
    ax.set_ylim(height + 0.1, -0.1)
    shown = range(0, len(centres), max(1, -(-len(centres) // 20)))
    ax.set_xticks([centres[i] for i in shown], [str(i + 1) for i in shown])
    many = len(chosen) > 1
    ax.set_yticks(heights, [_name(lane, many) for lane in lanes], fontsize=7)
    for label, lane in zip(ax.get_yticklabels(), lanes, strict=True):
        label.set_fontweight("bold" if lane.survivors else "normal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="position in the window (tokens)", ylabel="step, particle, lane" if many else "particle, lane")
    legend(ax, handles=[
        *(Patch(facecolor=FILL[kind], edgecolor=MUTED, label=kind) for kind in FILL),
        Patch(facecolor="white", edgecolor=INK, linewidth=1.6, label="chosen lane (× survivors)"),
    ])
    return ax


def saved_decode(result: Result) -> Decode | None:
    """Text of single tokens from `settings["tokens"]`, if it is there (`smc_bridge.commands.trace_rendering`)."""
    texts = result.settings.get("tokens")
    if not isinstance(texts, dict):
        return None
    return lambda ids: "".join(str(texts.get(str(token), "")) for token in ids)


def _steps(result: Result, steps: Steps) -> list[int]:
    count = len(result.trace)
    if not count:
        raise ValueError("result has no steps in its trace: give a run with at least one")
    if isinstance(steps, str):
        wanted = list(range(count)) if steps == "all" else []
    else:
        wanted = [steps] if isinstance(steps, int) else list(steps)
    if not wanted or any(not -count <= step < count for step in wanted):
        raise ValueError(f"steps = {steps!r}: the trace has {count} steps; give their indices, or 'all'")
    chosen = [step % count for step in wanted]
    if any(result.trace[step].blocks is None for step in chosen):
        raise ValueError("result has no drafts in its trace: run with keep_drafts=True")
    return chosen


def _lanes(step: int, record: StepRecord, decode: Decode | None) -> list[Lane]:
    """Rows of one step; a particle that was finished has a single one without tokens."""
    survivors = list(zip(record.ancestors, record.lanes, strict=True))
    rows = []
    for n, blocks in enumerate(record.blocks or []):
        if not any(blocks):
            rows.append(Lane(step, n, 0, record.ancestors.count(n), ()))
            continue
        for k, block in enumerate(blocks):
            accepted = record.accepted[n][k]
            draft = record.drafts[n][k] if record.drafts else []
            # The correction stands in the place of the draft's token.
            parts: Sequence[tuple[list[int], Kind]] = (
                (block[:accepted], "accepted"), (block[accepted:], "corrected"),
                (draft[len(block) :] if len(block) > accepted else [], "refused"),
            )
            tokens = tuple((_word(token, decode), kind) for ids, kind in parts for token in ids)
            rows.append(Lane(step, n, k, survivors.count((n, k)), tokens))
    return rows


def _word(token: int, decode: Decode | None) -> str:
    """A token in a cell: blanks around it go, line ends and tokens without text are shown by a sign."""
    if decode is None:
        return str(token)
    text = decode([token])
    word = text.strip(" ").replace("\n", "↵").replace("\t", "→") or ("␣" if text else f"#{token}")
    return word if len(word) <= TOKEN else word[: TOKEN - 1] + "…"


def _widths(lanes: Sequence[Lane]) -> list[int]:
    """Characters of every column that fits, its widest token and a margin."""
    widths = list[int]()
    for i in range(max(len(lane.tokens) for lane in lanes)):
        width = 1 + max(len(lane.tokens[i][0]) for lane in lanes if i < len(lane.tokens))
        if sum(widths) + max(width, 3) > WIDTH:
            break
        widths.append(max(width, 3))
    return widths


def _columns(widths: Sequence[int]) -> list[float]:
    """Middle of every column."""
    return [sum(widths[:i]) + width / 2 for i, width in enumerate(widths)]


def _font_size(ax: Any, characters: int) -> float:
    """Points at which so many characters fill the width of the axes, labels taken off; 8 at most."""
    inches = ax.get_figure().get_size_inches()[0] * ax.get_position().width * 1.1
    return float(min(8.0, 72 * inches / (max(characters, 1) + 4) / ASPECT))


def _draw_lane(ax: Any, lane: Lane, height: float, widths: Sequence[int], size: float) -> None:
    from matplotlib.patches import Rectangle

    def write(x: float, text: str, **options: Any) -> None:
        ax.text(x, height + 0.5, text, va="center", parse_math=False, **{"fontsize": size, **options})

    if not lane.tokens:
        write(0.2, f"finished{_times(lane)}", color=MUTED, style="italic")
        return
    left = 0
    for (word, kind), width in zip(lane.tokens, widths, strict=False):
        ax.add_patch(
            Rectangle((left, height + 0.1), width, 0.8, facecolor=FILL[kind], edgecolor="white", label=f"_{kind}")
        )
        colour = FAINT if kind == "refused" else INK
        write(left + width / 2, word, ha="center", family="monospace", color=colour)
        if kind == "refused":
            reach = len(word) / 2 + 0.3
            middle = left + width / 2
            ax.plot([middle - reach, middle + reach], [height + 0.5] * 2, color=RED, linewidth=0.6, alpha=0.7)
        left += width
    hidden = len(lane.tokens) - len(widths)
    if hidden > 0:
        write(left + 0.3, f"+{hidden}", color=MUTED)
    if lane.survivors:
        framed = sum(widths[: lane.block])
        frame: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 1.5, "zorder": 3}
        ax.add_patch(Rectangle((0, height + 0.1), framed, 0.8, label="_chosen", **frame))


def _name(lane: Lane, step: bool) -> str:
    """A row's label."""
    place = f"{lane.step}, " if step else ""
    return f"{place}{lane.particle}, {lane.lane}{_times(lane)}"


def _times(lane: Lane) -> str:
    return f" ×{lane.survivors}" if lane.survivors > 1 else ""
