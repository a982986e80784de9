"""From the engine's state to what users look at: the tensors of a step become `StepRecord`s, a seat becomes a `Result`.

During the run a step is kept as the tensors that it left, one set for all prompts that took part. They are turned into
lists when somebody reads a trace; only the counts of forwards are needed for every result.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smc_bridge.engine.state import SMCState, growing
from smc_bridge.engine.steps import Reduced
from smc_bridge.engine.watch import uncovered_reason
from smc_bridge.engine.weights import log_mean
from smc_bridge.kernels.importance import Lanes
from smc_bridge.plugins import texts_of
from smc_bridge.result import Forwards, Result
from smc_bridge.trace import StepRecord, Trace

if TYPE_CHECKING:
    from smc_bridge.engine.sampler import Sampler


class StepTensors:
    """What one step did to all prompts that took part.

    Args:
        active: their seats, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`.
        lanes: the moves; tokens are kept only if `keep`.
        increments: `[B, K]`.
        reduced: the survivors.
        served: seat of every row that the DLM scored, `[U]`.
        ar_rows: rows that the AR model scored per particle.
        ar_tokens: drafted tokens or tree nodes that it scored for each, `[B]`.
        drafts: `[B, K, V]`, or None.
        keep: whether drafts and blocks are kept.
    """

    def __init__(
        self, active: Tensor, growing: Tensor, lanes: Lanes, increments: Tensor, reduced: Reduced, *, served: Tensor,
        ar_rows: int, ar_tokens: Tensor, drafts: Tensor | None, keep: bool,
    ) -> None:
        self.seats: list[int] = active.tolist()
        self.growing, self.increments, self.reduced, self.served = growing, increments, reduced, served
        self.length, self.accepted = lanes.move.length, lanes.move.accepted
        self.ar_rows, self.ar_tokens, self.keep = ar_rows, ar_tokens, keep
        self.window = lanes.horizon.window
        self.blocks = lanes.move.block if keep else None
        self.drafts = drafts if keep else None

    @cached_property
    def forwards(self) -> dict[int, Forwards]:
        """Of each seat in this step."""
        particles = self.reduced.survivors.shape[1]
        prompts = len(self.seats)
        owner = self.growing // particles
        grew = torch.bincount(owner, minlength=prompts).tolist()
        tokens = torch.zeros(prompts, dtype=torch.long, device=owner.device).index_add_(0, owner, self.ar_tokens)
        scored = torch.bincount(self.served, minlength=max(self.seats, default=0) + 1).tolist()
        return {
            seat: Forwards(int(scored[seat] > 0), scored[seat], int(count > 0), count * self.ar_rows, own)
            for seat, count, own in zip(self.seats, grew, tokens.tolist(), strict=True)
        }

    @cached_property
    def records(self) -> dict[int, StepRecord]:
        """What the trace of each seat says of this step, by seat."""
        with torch.inference_mode():
            return self._records()

    def _records(self) -> dict[int, StepRecord]:
        reduced, lanes = self.reduced, self.increments.shape[1]
        length, accepted = self._spread(self.length), self._spread(self.accepted)
        earned = self._spread(self.increments.double())
        ancestors, chosen = (reduced.survivors // lanes).tolist(), (reduced.survivors % lanes).tolist()
        log_weights, evidence = reduced.log_weights.tolist(), log_mean(reduced.log_weights).tolist()
        sizes, resampled = reduced.ess.tolist(), reduced.resampled.tolist()
        blocks = None if self.blocks is None else self._ragged(self.blocks)
        drafts = None if self.drafts is None else self._ragged(self.drafts)
        return {
            seat: StepRecord(
                ancestors=ancestors[i], lanes=chosen[i], length=length[i], accepted=accepted[i],
                log_increments=earned[i], log_weights=log_weights[i], ess=sizes[i], resampled=resampled[i],
                log_evidence=evidence[i], dlm_rows=self.forwards[seat].dlm_rows, ar_rows=self.forwards[seat].ar_rows,
                drafts=([] if drafts is None else drafts[i]) if self.keep else None,
                blocks=None if blocks is None else blocks[i],
            )
            for i, seat in enumerate(self.seats)
        }

    def _spread(self, values: Tensor) -> list[list[list[Any]]]:
        """Values `[B, K]` of the particles that took part as lists `[P'][N][K]`, 0 for the others."""
        prompts, particles = self.reduced.survivors.shape
        whole = values.new_zeros(prompts * particles, values.shape[1])
        whole[self.growing] = values
        out: list[list[list[Any]]] = whole.reshape(prompts, particles, -1).tolist()
        return out

    def _ragged(self, tokens: Tensor) -> list[list[list[list[int]]]]:
        """Token lists `[P'][N][K][..]` of `tokens: [B, K, V]`: blocks to their length, drafts to their window."""
        prompts, particles = self.reduced.survivors.shape
        count = tokens.shape[1]
        out: list[list[list[list[int]]]] = [
            [[[] for _ in range(count)] for _ in range(particles)] for _ in range(prompts)
        ]
        rows = zip(self.growing.tolist(), self.window.tolist(), tokens.tolist(), strict=True)
        for place, window, lanes in rows:
            out[place // particles][place % particles] = [[t for t in row[:window] if t >= 0] for row in lanes]
        return out


def record_step(
    state: SMCState, active: Tensor, growing: Tensor, lanes: Lanes, increments: Tensor, reduced: Reduced, *,
    served: Tensor, ar_rows: int, ar_tokens: Tensor, drafts: Tensor | None, keep: bool,
) -> None:
    """Append the step to the trace of every prompt that took part; arguments as `StepTensors`."""
    step = StepTensors(
        active, growing, lanes, increments, reduced, served=served, ar_rows=ar_rows, ar_tokens=ar_tokens,
        drafts=drafts, keep=keep,
    )
    for seat in step.seats:
        state.records[seat] += (step,)


def result_of(sampler: Sampler, state: SMCState, seat: int, settings: dict[str, Any]) -> Result:
    """The `Result` of the prompt in a seat, as far as it has come; the prompt's seed is added to the run's settings."""
    request, particles = state.seated(seat), state.log_weights.shape[1]
    rows = torch.arange(seat * particles, (seat + 1) * particles, device=state.prefix.length.device)
    sequences = [sequence[len(request.prompt) :] for sequence in state.prefix.select(rows).lists()]
    steps = state.records[seat]
    reasons = sampler.why_improper()
    if seat in state.uncovered:
        reasons.append(uncovered_reason(sampler, state.uncovered[seat]))
    parts = [step.forwards[seat] for step in steps]
    return Result(
        prompt=request.prompt, sequences=sequences, log_weights=state.log_weights[seat].tolist(),
        texts=texts_of(sampler.detokenize, sequences),
        method=sampler.name, proper=not reasons, reasons=reasons,
        has_potential=sampler.target.potential is not None, forwards=Forwards.total(parts),
        seconds=time.perf_counter() - state.entered[seat],
        trace=Trace(len(steps), lambda: [step.records[seat] for step in steps]),
        complete=not bool(growing(state.prefix, state.log_weights)[seat].any()),
        settings={**settings, **request.settings()},
    )
