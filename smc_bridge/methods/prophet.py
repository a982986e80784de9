"""Prophet (arXiv 2508.19982): decoding stops as soon as the answer is decided."""

from __future__ import annotations

from collections.abc import Sequence

from smc_bridge.canvas.anchors import read_anchors
from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.early_commit import EarlyCommit
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "prophet", role="baseline", targets="DLM", proper=False, reference="arXiv 2508.19982",
    why="the rest by argmax at once",
    published=(
        "LLaDA-8B, 256 steps, blocks of 32: MMLU 2.34x, GSM8K 1.63x (77.1 -> 77.9), HumanEval 1.20x; Dream Sudoku 3.40x"
    ),
)
def prophet(
    pair: ModelPair, *, answer_start: int | None = None, places: int | None = None,
    gaps: Sequence[float] = (7.5, 5.0, 2.5), tokens: int = 1, span: int | None = 32,
    lookahead: int | None = 256, temperature: float = 1.0, anchors: str = "",
    cut_at_end: bool = False,
) -> Canvas:
    """Early commit by the gap of the two greatest logits: all masks are filled once the answer's region is decided.

    Before each commit the gap `l_(1) - l_(2)` is averaged over the answer's region, places that are filled included. At
    7.5, 5.0 or 2.5 nats and more, while less than 1/3, less than 2/3, or more of the canvas is filled, every mask gets
    its likeliest token and the row is done; until then the surest places are filled, a few per forward. Anchors tell
    where the answer stands. Role: a biased baseline and a stopping rule; what is filled at the end are point masses.
    Progress is the share of places filled, which is the share of steps where each forward fills as many. Without
    `answer_start` the region follows the last anchor, or without anchors it is all that is shown (a reading of the
    paper for free text). On the embedded pair, whose answers stand at no fixed place and whose digits are less certain
    than its words, that loses nearly all (docs/benchmarks/field.md, beside `low-confidence`).

    Args:
        pair: the models, of which the diffusion model decodes.
        answer_start: first place of the answer's region, before the length limit; none for that behind the last anchor.
        places: of a region that begins somewhere, 5 unless it is given.
        gaps: mean gaps that suffice in the three stages, nats.
        tokens: places filled per forward until then.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range.
    """
    held = read_anchors(anchors, getattr(pair, "tokenizer", None))
    start = max(held) + 1 if answer_start is None and held else answer_start
    if places is not None and start is None:
        raise ValueError(f"places = {said(places)} without answer_start or anchors: the region is all that is shown")
    rule = EarlyCommit(Ranked(tokens=tokens), start, 5 if places is None else places, tuple(gaps))
    return canvas_of(
        pair, rule, name="prophet", span=span, lookahead=lookahead, temperature=temperature, anchors=held,
        cut_at_end=cut_at_end,
    )
