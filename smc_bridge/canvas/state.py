"""The canvases that `smc_bridge.methods.canvas` fills, and what the diffusion model sees of them.

A session with a cache is given the places that are filled without a gap, so that a forward is over what is new and
the masks behind it. The session of a model without a cache holds the prompts alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.decode import Seat
from smc_bridge.models.ends import Ends, is_end
from smc_bridge.models.protocols import ABSENT, MASKED, DiffusionSession, MaskedDiffusionLM, within_block
from smc_bridge.requests import Request


class CanvasState(NamedTuple):
    """P seats of one row each.

    Attributes:
        seats: who sits there, None for nobody; `tokens` are those that are filled without a gap.
        generators: of each seat's draws, None for nobody.
        session: holds the prompts, and behind them the first `kept` places of each canvas.
        canvas: what is filled of every continuation, `[P, T]`, `MASKED` elsewhere, and `ABSENT` where a row was cut;
            T is the length limit.
        kept: places of each canvas that the session holds, `[P]`.
        memory: what the decoder keeps of earlier forwards, `[P, T, A]` (`Credit`); None for nothing.
    """

    seats: tuple[Seat | None, ...]
    generators: tuple[torch.Generator | None, ...]
    session: DiffusionSession
    canvas: Tensor
    kept: Tensor
    memory: Tensor | None = None


def with_prompts(state: CanvasState, places: Iterable[int], requests: Sequence[Request | None]) -> CanvasState:
    """The state with prompts before their first forward in some seats; session and canvas are left as they are."""
    seats, generators = list(state.seats), list(state.generators)
    for place, request in zip(places, requests, strict=True):
        seats[place] = Seat.of(request)
        generators[place] = None if request is None else request.generator()
    return state._replace(seats=tuple(seats), generators=tuple(generators))


def open_places(
    canvas: Tensor, lookahead: int, span: int | None, *, model: MaskedDiffusionLM, prompt: Tensor
) -> tuple[Tensor, Tensor]:
    """What the model is shown of `canvas: [R, T]`, and where tokens may be filled in, both `[R, width]`.

    A block-causal model is shown no more than the block that the first gap stands in.

    Args:
        lookahead: masks behind what is filled without a gap, at most.
        span: consecutive places that are open at a time; None for all that are shown.
        prompt: tokens before each canvas, `[R]`.
    """
    masked = canvas == MASKED
    first = masked.to(torch.uint8).argmax(1)  # filled without a gap, [R]
    places = (canvas != ABSENT).sum(1)
    end = first + within_block(model, prompt + first, (places - first).clamp_max(lookahead))
    width = int(end.max())
    place = torch.arange(width, device=canvas.device)
    visible = place < end[:, None]
    reach = end if span is None else first // span * span + span
    return torch.where(visible, canvas[:, :width], ABSENT), masked[:, :width] & visible & (place < reach[:, None])


def extent(canvas: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """How many tokens of each continuation of `canvas: [R, T]` are filled without a gap, up to the first end of
    sequence, and whether that is all of it; a row that was cut ends where its places do."""
    columns = (canvas != ABSENT).sum(1)
    gap = torch.where((canvas == MASKED).any(1), (canvas == MASKED).to(torch.uint8).argmax(1), columns)
    if not ends:
        return gap, gap == columns
    ended = is_end(canvas, ends)
    stop = torch.where(ended.any(1), ended.to(torch.uint8).argmax(1) + 1, columns)
    return torch.minimum(gap, stop), gap >= stop


def score(state: CanvasState, rows: Tensor, shown: Tensor) -> Tensor:
    """Logits `[R, T, A]` of the places `shown: [R, T]`; of those that the session holds, which no one reads, others."""
    place, kept = torch.arange(shown.shape[1], device=rows.device), state.kept[rows, None]
    behind = place[: shown.shape[1] - int(kept.min())] + kept
    rest = torch.where(behind < len(place), shown.gather(1, behind.clamp_max(len(place) - 1)), ABSENT)
    logits = state.session.score(rows, rest)
    return logits.take_along_dim((place - kept).clamp(0, rest.shape[1] - 1)[..., None], 1)


def keep(state: CanvasState, rows: Tensor) -> CanvasState:
    """Let the session hold all that is filled without a gap in these rows."""
    gap, _ = extent(state.canvas, ())
    count = torch.zeros_like(gap).index_copy(0, rows, (gap - state.kept)[rows])
    place = state.kept[:, None] + torch.arange(int(count.max()), device=rows.device)
    state.session.commit(state.canvas.gather(1, place.clamp_max(state.canvas.shape[1] - 1)).clamp_min(0), count)
    return state._replace(kept=state.kept + count)
