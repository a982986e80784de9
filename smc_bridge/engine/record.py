"""From the engine's state to what users look at: the tensors of a step become `StepRecord`s, a seat becomes a `Result`.

During the run a step is kept as the tensors that it left, one set for all prompts that took part. They are turned into
lists when somebody reads a trace; only the counts of forwards are needed for every result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from smc_bridge.engine.program import Program
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.survivors import Reduced, Seen
from smc_bridge.engine.watch import uncovered_reason
from smc_bridge.engine.weights import ess, log_mean
from smc_bridge.models.host import Array, Index, known, sent
from smc_bridge.plugins import texts_of
from smc_bridge.proposals.protocol import Draft
from smc_bridge.result import Forwards, Result
from smc_bridge.trace import StepRecord, Trace


class StepTensors:
    """What one step did to all prompts that took part.

    Args:
        active: their seats, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`.
        draft: of their lanes; what it says of the proposal's forwards is kept, its tokens only if `keep`.
        seen: what became of them; blocks are kept only if `keep`.
        reduced: the survivors.
        call: in which call of the target each particle was scored, `[B]`.
        each: rows of a particle in it.
        linear: whether the draft has tokens.
        keep: whether drafts and blocks are kept.
        causal: causal models that were asked: the target's, and those of further experts.
    """

    def __init__(
        self, active: Tensor, growing: Index, draft: Draft, seen: Seen, reduced: Reduced, *, call: Index, each: int,
        linear: bool, keep: bool, causal: int = 1,
    ) -> None:
        self.seats: list[int] = known(active).tolist()
        self.causal = causal
        self.growing, self.reduced, self.cost, self.keep = growing, reduced, draft.cost, keep
        self.call, self.each = call, each
        self.seen = seen if keep else seen._replace(block=seen.block[..., :0])
        self.drafts = known(draft.tokens).reshape(seen.block.shape) if keep and linear else None

    @cached_property
    def forwards(self) -> dict[int, Forwards]:
        """Forwards, rows and tokens of the models in this step, for each seat that took part; those of further experts
        are the AR model's."""
        particles = self.reduced.survivors.shape[1]
        prompts = len(self.seats)
        owner = self.growing // particles
        grew = np.bincount(owner, minlength=prompts).tolist()
        tokens = np.bincount(owner, self.seen.scored.sum(1), minlength=prompts).astype(np.int64)
        served = np.unique(np.stack([owner, self.call]), axis=1)[0]  # a call serves a prompt once
        forwards = np.bincount(served, minlength=prompts).tolist()
        seats = max(self.seats, default=0) + 1
        none = [0] * seats
        calls, scored = (none, none) if self.cost is None else self.cost.per_prompt(seats)
        drafting = None if self.cost is None else self.cost.causal
        asked, drafted, read = (none, none, none) if drafting is None else drafting.per_prompt(seats)
        return {
            seat: Forwards(
                calls[seat], scored[seat], self.causal * served + asked[seat],
                self.causal * count * self.each + drafted[seat], self.causal * own + read[seat],
            )
            for seat, served, count, own in zip(self.seats, forwards, grew, tokens.tolist(), strict=True)
        }

    @cached_property
    def records(self) -> dict[int, StepRecord]:
        """The `StepRecord` of this step for each seat that took part."""
        reduced, lanes = self.reduced, self.seen.length.shape[1]
        length, accepted = self._spread(self.seen.length), self._spread(self.seen.accepted)
        earned = self._spread(self.seen.increments)
        ancestors, chosen = (reduced.survivors // lanes).tolist(), (reduced.survivors % lanes).tolist()
        log_weights, evidence = reduced.log_weights.tolist(), log_mean(reduced.log_weights).tolist()
        sizes, resampled = ess(reduced.before).tolist(), reduced.resampled.tolist()
        blocks = self._ragged(self.seen.block) if self.keep else None
        drafts = None if self.drafts is None else self._ragged(self.drafts)
        fresh = self._fresh()
        return {
            seat: StepRecord(
                ancestors=ancestors[i], lanes=chosen[i], length=length[i], accepted=accepted[i],
                log_increments=earned[i], log_weights=log_weights[i], ess=sizes[i], resampled=resampled[i],
                log_evidence=evidence[i], dlm_rows=self.forwards[seat].dlm_rows, ar_rows=self.forwards[seat].ar_rows,
                fresh=None if fresh is None else fresh[i],
                drafts=([] if drafts is None else drafts[i]) if self.keep else None,
                blocks=None if blocks is None else blocks[i],
            )
            for i, seat in enumerate(self.seats)
        }

    def _fresh(self) -> list[list[bool]] | None:
        """Which particles were drafted by a forward of this step, `[P'][N]`, if the proposal says so."""
        if self.cost is None or self.cost.fresh is None:
            return None
        particles = self.reduced.survivors.shape[1]
        rows = np.array(self.seats)[:, None] * particles + np.arange(particles)
        out: list[list[bool]] = np.isin(rows, known(self.cost.fresh)).tolist()
        return out

    def _spread(self, values: Array) -> list[list[list[Any]]]:
        """Values `[B, K]` of the particles that took part as lists `[P'][N][K]`, 0 for the others."""
        prompts, particles = self.reduced.survivors.shape
        whole = np.zeros((prompts * particles, values.shape[1]), dtype=values.dtype)
        whole[self.growing] = values
        out: list[list[list[Any]]] = whole.reshape(prompts, particles, -1).tolist()
        return out

    def _ragged(self, tokens: Index) -> list[list[list[list[int]]]]:
        """Token lists `[P'][N][K][..]` of `tokens: [B, K, V]`: blocks to their length, drafts to their window."""
        prompts, particles = self.reduced.survivors.shape
        count = tokens.shape[1]
        out: list[list[list[list[int]]]] = [
            [[[] for _ in range(count)] for _ in range(particles)] for _ in range(prompts)
        ]
        rows = zip(self.growing.tolist(), self.seen.width.max(1).tolist(), tokens.tolist(), strict=True)
        for place, window, lanes in rows:
            out[place // particles][place % particles] = [[t for t in row[:window] if t >= 0] for row in lanes]
        return out


def result_of(
    program: Program, state: SMCState, seat: int, settings: dict[str, Any], reasons: Sequence[str]
) -> Result:
    """The `Result` of the prompt in a seat, as far as it has come; the prompt's seed is added to the run's settings.

    Args:
        reasons: why the weights of the program are not proper.
    """
    request, particles = state.seated(seat), state.log_weights.shape[1]
    rows = sent(np.arange(seat * particles, (seat + 1) * particles), state.prefix.length.device)
    sequences = [sequence[len(request.prompt) :] for sequence in state.prefix.select(rows).lists()]
    steps = state.records[seat]
    reasons = [*reasons, *([uncovered_reason(program, state.uncovered[seat])] if seat in state.uncovered else [])]
    parts = [step.forwards[seat] for step in steps]
    log_weights, done = known(state.log_weights)[seat], known(state.prefix.done)[seat * particles :][:particles]
    return Result(
        prompt=request.prompt, sequences=sequences, log_weights=log_weights.tolist(),
        texts=texts_of(program.detokenize, sequences, request.prompt),
        method=program.name, proper=not reasons, reasons=reasons,
        has_potential=program.target.potential is not None, forwards=Forwards.total(parts),
        seconds=time.perf_counter() - state.entered[seat],
        trace=Trace(len(steps), lambda: [step.records[seat] for step in steps]),
        complete=bool((done | (log_weights == -np.inf)).all()),
        settings={**settings, **request.settings()},
    )
