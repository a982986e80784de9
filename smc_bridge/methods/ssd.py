"""SSD (arXiv 2510.04147): the diffusion model checks its own guesses, losslessly for its step-wise greedy decoder."""

from __future__ import annotations

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.self_speculation import SelfSpeculation
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "ssd", role="baseline", targets="greedy DLM", proper=False, reference="arXiv 2510.04147, 2510.00294",
    why="greedy: the DLM's, and no law",
    published="up to 3.46x over step-wise decoding, Dream and LLaDA, length 256, blocks of 8, with a dual cache",
)
def ssd(
    pair: ModelPair, *, draft: int = 4, span: int | None = 32, lookahead: int | None = 256, anchors: str = "",
    cut_at_end: bool = False,
) -> SelfSpeculation:
    """Self-speculation of the diffusion model: its greedy decoder, one token per step, in fewer forwards.

    A forward ranks the open places; the surest N with their likeliest tokens are guesses of the next N greedy steps.
    One batched forward reads the states with 0 .. N of them filled, one row each: guess j + 1 stands iff the state
    after j fills itself chooses that place and that token. The guesses that stand are filled, with the choice of the
    last state reached, whose row is the next draft. Role: an exact form of the greedy decoder, token by token, that
    trades forwards for rows. Greedy decoding has no law, so the results carry no weights. The model is taken without an
    approximate cache, under which the two could part.

    Args:
        pair: the models, of which the diffusion model decodes.
        draft: N, guesses that are verified per forward by a row each, 0 for the step-wise decoder itself.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range.
    """
    greedy = canvas_of(
        pair, Ranked(), name="ssd", span=span, lookahead=lookahead, temperature=0.0, anchors=anchors, recompute=True,
        cut_at_end=cut_at_end,
    )
    return SelfSpeculation(greedy, draft, "ssd", greedy.detokenize)
