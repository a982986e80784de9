"""From the engine's state to what users look at: a `StepRecord` after every step, a `Result` at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smc_bridge.kernels.importance import Lanes
from smc_bridge.result import Forwards, Result
from smc_bridge.smc.state import SMCState
from smc_bridge.smc.steps import Reduced
from smc_bridge.smc.weights import log_mean
from smc_bridge.trace import StepRecord

if TYPE_CHECKING:
    from smc_bridge.smc.engine import Sampler


def record_step(
    state: SMCState, active: Tensor, growing: Tensor, lanes: Lanes, increments: Tensor, reduced: Reduced, *,
    rows: Tensor, served: Tensor, ar_rows: int, drafts: Tensor | None, keep: bool,
) -> None:
    """Append one record to each active prompt's trace.

    Args:
        active: prompts of this step, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`; `rows` are the same among all R.
        increments: `[B, K]`.
        served: prompt of every row that the DLM scored, `[U]`.
        ar_rows: rows that the AR model scored per particle.
        drafts: `[B, K, V]`, or None.
        keep: whether drafts and blocks are kept.
    """
    prompts, particles = active.numel(), state.particles
    lane_count = increments.shape[1]

    def spread(values: Tensor, fill: float) -> list[list[list[float]]]:
        whole = torch.full((prompts * particles, lane_count), fill, dtype=values.dtype, device=values.device)
        whole[growing] = values
        out: list[list[list[float]]] = whole.reshape(prompts, particles, lane_count).tolist()
        return out

    length, accepted = spread(lanes.move.length, 0), spread(lanes.move.accepted, 0)
    earned = spread(increments.double(), 0.0)
    survivors = reduced.survivors
    ancestors, chosen = (survivors // lane_count).tolist(), (survivors % lane_count).tolist()
    log_weights, evidence = reduced.log_weights.tolist(), log_mean(reduced.log_weights).tolist()
    sizes, resampled = reduced.ess.tolist(), reduced.resampled.tolist()
    total = state.log_weights.shape[0]
    dlm = torch.bincount(served, minlength=total).tolist()
    ar = (torch.bincount(rows // particles, minlength=total) * ar_rows).tolist()
    drafted = _ragged(drafts, lanes, growing, prompts, particles) if keep and drafts is not None else None
    blocks = _ragged(lanes.move.block, lanes, growing, prompts, particles) if keep else None
    for i, prompt in enumerate(active.tolist()):
        state.records[prompt].append(
            StepRecord(
                ancestors=ancestors[i], lanes=chosen[i], length=[[int(x) for x in row] for row in length[i]],
                accepted=[[int(x) for x in row] for row in accepted[i]], log_increments=earned[i],
                log_weights=log_weights[i], ess=sizes[i], resampled=resampled[i], log_evidence=evidence[i],
                dlm_rows=dlm[prompt], ar_rows=ar[prompt],
                drafts=([] if drafted is None else drafted[i]) if keep else None,
                blocks=None if blocks is None else blocks[i],
            )
        )


def _ragged(tokens: Tensor, lanes: Lanes, growing: Tensor, prompts: int, particles: int) -> list[list[list[list[int]]]]:
    """Token lists `[P'][N][K][..]` of `tokens: [B, K, V]`: blocks to their length, drafts to their window."""
    count = tokens.shape[1]
    out: list[list[list[list[int]]]] = [[[[] for _ in range(count)] for _ in range(particles)] for _ in range(prompts)]
    window = lanes.horizon.window.tolist()
    for b, place in enumerate(growing.tolist()):
        for k in range(count):
            row = tokens[b, k, : window[b]].tolist()
            out[place // particles][place % particles][k] = [token for token in row if token >= 0]
    return out


def results(sampler: Sampler, state: SMCState) -> list[Result]:
    """One `Result` per prompt of a finished state."""
    particles = state.particles
    sequences = state.prefix.lists()
    log_weights = state.log_weights.tolist()
    out = []
    for i, start in enumerate(state.prompt_length.tolist()):
        own = sequences[i * particles : (i + 1) * particles]
        continuations = [sequence[start:] for sequence in own]
        out.append(
            Result(
                prompt=own[0][:start], sequences=continuations, log_weights=log_weights[i],
                texts=None if sampler.detokenize is None else [sampler.detokenize(c) for c in continuations],
                method=sampler.name, proper=sampler.proper, reasons=sampler.why_improper(),
                has_potential=sampler.target.potential is not None,
                forwards=Forwards(*(int(counter[i]) for counter in state.counters)), seconds=state.seconds[i],
                trace=state.records[i],
            )
        )
    return out
