"""All states of a program after so many steps, each with its probability: what an enumeration advances step by step.

The frontier is a set of distinct states of *one* prompt's particles. States that are equal up to the scale of their
weights are merged. Where the dynamics do not depend on the scale, four numbers of a state are enough, all sums over its
histories: the probability, and E[scale], E[1 / scale], E[log scale].

Shapes: F states, N particles, S tokens at most, U slots of marginals, M positions of each, A alphabet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import Retained, SMCState
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.marginals import Marginals
from smc_bridge.proposals.mean_field import MeanFieldState
from smc_bridge.randomness import Reserve, Source

#: Probability of every complete sequence.
SequenceLaw = dict[tuple[int, ...], float]

PROBABILITY, SCALE, INVERSE, LOG = range(4)


@dataclass
class Enumeration:
    """Exact expectations over everything the sampler draws.

    Attributes:
        proper: `E[Z_hat sum_k W_k 1{x_k = s}]` of every complete sequence s.
        output: the law r of one sequence drawn from the final weights.
        evidence, log_evidence, inverse_evidence: `E[Z_hat]`, `E[log Z_hat]`, `E[1 / Z_hat]`, where Z_hat > 0.
        probability: of all outcomes that were met.
        dead: probability of those with `Z_hat = 0`.
        resampled, kept: probability-weighted number of steps with and without resampling.
        outcomes: joint outcomes that were executed.
        retained_first: probability that particle 0 ends as the retained sequence.
    """

    proper: SequenceLaw = field(default_factory=dict)
    output: SequenceLaw = field(default_factory=dict)
    evidence: float = 0.0
    log_evidence: float = 0.0
    inverse_evidence: float = 0.0
    probability: float = 0.0
    dead: float = 0.0
    resampled: float = 0.0
    kept: float = 0.0
    outcomes: int = 0
    retained_first: float = 0.0


@dataclass
class Frontier:
    """F distinct states of N particles, as `SMCState` has them, with their masses.

    Attributes:
        tokens: `[F, N, S]`, padded.
        length, done: of each particle, `[F, N]`.
        log_weights, log_potential: of each particle, `[F, N]` nats.
        slot, offset, refusals: place in `logits`, positions used of it, and refusals since, `[F, N]`
            (`smc_bridge.proposals.marginals`).
        logits: marginals of the proposal, `[U, M, A]`.
        features: what it keeps beside them, `[U, M, D]`, or of none `[0, 0, 0]`.
        width: positions of each slot, `[U]`.
        retained: index of the retained sequence, `[F]`, -1 for none.
        seen: what a pace has counted (`SMCState.seen`), `[F, 2 * V]`; `[F, 0]` without one.
        measure: expectations that each state carries, `[F, 4]`.
    """

    tokens: Tensor  # [F, N, S]
    length: Tensor  # [F, N], as the next six
    done: Tensor
    log_weights: Tensor
    log_potential: Tensor
    slot: Tensor
    offset: Tensor
    refusals: Tensor
    logits: Tensor  # [U, M, A]
    features: Tensor  # [U, M, D]
    width: Tensor  # [U]
    retained: Tensor
    seen: Tensor
    measure: Tensor

    @classmethod
    def start(
        cls, particles: int, limit: int, size: int, *, retained: Sequence[float] | None = None, places: int = 0
    ) -> Frontier:
        """The states before the first step, on the empty prompt: one, or one for each retained sequence of these
        masses. A pace counts at `places` places: V, or 0 without one."""
        count = len(retained or [1.0])
        zeros = torch.zeros(count, particles, dtype=torch.long)
        measure = torch.tensor(retained or [1.0], dtype=torch.float64)[:, None] * torch.tensor([1.0, 1.0, 1.0, 0.0])
        follows = torch.arange(count) if retained else torch.full((count,), -1)
        return cls(
            torch.full((count, particles, limit), PAD), zeros, zeros.bool(), zeros.double(), zeros.double(), zeros - 1,
            zeros, zeros, torch.empty(0, 0, size), torch.empty(0, 0, 0), zeros[:0, 0], follows,
            follows.new_zeros(count, 2 * places), measure.double(),
        )

    @property
    def states(self) -> int:
        """F, the number of distinct states."""
        return self.measure.shape[0]

    def select(self, index: Tensor) -> Frontier:
        """The states that `index: [F']` picks, in that order."""
        shared = ("logits", "features", "width")
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in shared})

    def remaining(self) -> Tensor:
        """Positions of its marginals that each particle has left, `[F, N]`."""
        return torch.from_numpy(self.marginals().remaining()).reshape(self.slot.shape)

    def marginals(self) -> Marginals:
        """What the particles draw from, of arrays that may be written to."""
        held = (self.width, self.slot, self.offset, self.refusals)
        width, slot, offset, refusals = (x.flatten().numpy().copy() for x in held)
        return Marginals(
            self.logits, width, slot, offset, refusals, features=self.features if self.features.numel() else None
        )

    def scaled(self, probability: Tensor) -> Frontier:
        """Every state with its measure times `probability: [F]`."""
        self.measure = self.measure * probability[:, None]
        return self

    def merged(self) -> Frontier:
        """Equal states become one. Weights are rounded as a key only: what is merged differs by round-off."""
        states = self.states
        drawn_from = self.remaining() > 0
        kept = [torch.where(drawn_from, x + 1, 0) for x in (self.offset, self.refusals)]
        kept = kept if bool(self.refusals.any()) else kept[:1]
        digits = torch.cat([self.tokens.reshape(states, -1) + 1, *kept, self.retained[:, None] + 1, self.seen], dim=1)
        base = int(digits.max()) + 1
        assert base ** digits.shape[1] < 2**62, "the states do not fit into one integer"
        code = np.zeros(states, dtype=np.int64)
        for column in digits.numpy().T:
            code = code * base + column
        weights = self.log_weights.clamp_min(-1e4).numpy()
        order = np.lexsort([code, *(np.rint(w * 1e11) for w in weights.T)])
        same = code[order][1:] == code[order][:-1]
        for w in weights.T:
            same &= np.rint(w[order] * 1e11)[1:] == np.rint(w[order] * 1e11)[:-1]
        group = np.concatenate([[0], np.cumsum(~same)])
        first = np.concatenate([[True], ~same])
        out = self.select(torch.from_numpy(order[first]))
        out.measure = torch.zeros(out.states, 4, dtype=torch.float64)
        out.measure.index_add_(0, torch.from_numpy(group), self.measure[torch.from_numpy(order)])
        return out


def step(
    sampler: Sampler, states: Frontier, limit: int, source_of: Callable[[Tensor, int], Source], *,
    retained: Retained | None = None,
) -> Frontier:
    """One step of the real engine on all F states at once; the measure is left as it was.

    Args:
        sampler: its draws are replaced.
        limit: greatest length of a sequence.
        source_of: the draws of some of the F states, so many rows each.
        retained: sequences that states follow.
    """
    particles = states.length.shape[1]
    tokens, length = states.tokens.reshape(-1, limit), states.length.flatten()
    prefix, marginals = Prefix(tokens.clone(), length.clone(), states.done.flatten()), states.marginals()
    drafts = sampler.proposal.open(prefix, particles=particles)
    if isinstance(drafts, MeanFieldState):  # others leave nothing for the next step
        drafts.marginals = marginals
    state = SMCState(
        prefix=prefix,
        log_weights=states.log_weights.clone(), log_potential=states.log_potential.flatten().clone(),
        prompt_length=torch.zeros(states.states, dtype=torch.long), limit=torch.full_like(length, limit),
        reserve=Reserve([]),
        drafts=drafts,
        ar=sampler.target.model.session(tokens.clamp_min(0), length),
        experts=tuple(each.model.session(tokens.clamp_min(0), length) for each in sampler.experts),
        retained=None if retained is None else Retained(*(x[states.retained] for x in retained)),
        records=[()] * states.states, told=True, walks=sampler.walks, chunks=sampler.chunks,
        seen=states.seen.reshape(states.states, 2, -1).numpy().copy(),
    )
    assert torch.equal(state.active(), torch.arange(states.states))
    sampler._source = lambda state, prompts, rows, **_: source_of(prompts, rows)  # type: ignore[method-assign]
    state = sampler.step(state)
    after = state.prefix
    padded = torch.nn.functional.pad(after.tokens, (0, limit - after.tokens.shape[1]), value=PAD)
    found = {
        "length": after.length, "done": after.done, "log_weights": state.log_weights,
        "log_potential": state.log_potential, "slot": torch.from_numpy(marginals.slot),
        "offset": torch.from_numpy(marginals.offset), "refusals": torch.from_numpy(marginals.refusals),
    }
    return replace(
        states, tokens=padded.reshape(states.states, particles, -1), logits=marginals.logits,
        features=states.features[:0, :0, :0] if marginals.features is None else marginals.features,
        seen=torch.from_numpy(state.seen).reshape(states.states, -1), width=torch.from_numpy(marginals.width),
        **{name: each.reshape(states.states, particles) for name, each in found.items()},
    )


def joined(parts: Sequence[Frontier]) -> Frontier:
    """The states of all parts, their slots in one table of marginals."""
    columns = max(p.logits.shape[1] for p in parts)
    first = np.cumsum([0, *(p.logits.shape[0] for p in parts)])
    slots = [torch.where(p.slot >= 0, p.slot + int(start), -1) for p, start in zip(parts, first, strict=False)]
    own = {"slot": slots} | {
        name: [torch.nn.functional.pad(x, (0, 0, 0, columns - x.shape[1])) for p in parts if len(x := getattr(p, name))]
        for name in ("logits", "features")
    }
    return Frontier(**{
        f.name: torch.cat(own.get(f.name) or [getattr(p, f.name) for p in parts]) for f in fields(Frontier)
    })


def relative(states: Frontier, total: Enumeration, *, rescale: bool = True) -> Frontier:
    """Bring the weights of every state to mean one, their scale into its measure; states of weight zero end here.

    Args:
        rescale: False keeps the weights as they are, where the dynamics may depend on the scale.
    """
    log_scale = states.log_weights.logsumexp(-1) - math.log(states.log_weights.shape[1])
    alive = log_scale > -math.inf
    lost = float(states.measure[~alive, PROBABILITY].sum())
    total.dead, total.probability = total.dead + lost, total.probability + lost
    states, log_scale = states.select(alive.nonzero().flatten()), log_scale[alive]
    if rescale:
        states.log_weights = states.log_weights - log_scale[:, None]
        measure = states.measure
        states.measure = torch.stack([
            measure[:, PROBABILITY], measure[:, SCALE] * log_scale.exp(), measure[:, INVERSE] * (-log_scale).exp(),
            measure[:, LOG] + measure[:, PROBABILITY] * log_scale,
        ], dim=1)
    return states


def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.unique(rows, dim=0, return_inverse=True)` of whole numbers of at least 0, `[R, C]`; by one number a row
    where it fits into 64 bits, which is many times as fast."""
    base = int(rows.max()) + 1 if rows.numel() else 1
    if base ** rows.shape[1] >= 2**62:
        found: tuple[Tensor, Tensor] = torch.unique(rows, dim=0, return_inverse=True)
        return found
    place = base ** torch.arange(rows.shape[1] - 1, -1, -1)
    code, group = torch.unique(rows @ place, return_inverse=True)
    return code[:, None] // place % base, group


def finish(states: Frontier, total: Enumeration, limit: int, *, retained: Retained | None = None) -> Frontier:
    """Take finished states out, and add what they contribute to the expectations in `total`."""
    growing = (~states.done & (states.log_weights > -math.inf)).any(1)
    ended = relative(states.select((~growing).nonzero().flatten()), total)
    weights = ended.log_weights.exp() / ended.log_weights.shape[1]
    names = ("probability", "evidence", "inverse_evidence", "log_evidence")
    for name, column in zip(names, ended.measure.sum(0).tolist(), strict=True):
        setattr(total, name, getattr(total, name) + column)
    digits = (ended.tokens + 1).reshape(-1, limit)
    sequences, group = unique_rows(digits)
    for law, measure in ((total.output, PROBABILITY), (total.proper, SCALE)):
        share = (weights * ended.measure[:, measure, None]).flatten()
        mass = torch.zeros(sequences.shape[0], dtype=torch.float64).index_add_(0, group, share)
        for row, value in zip((sequences - 1).tolist(), mass.tolist(), strict=True):
            sequence = tuple(token for token in row if token != PAD)
            if value != 0.0:
                law[sequence] = law.get(sequence, 0.0) + value
    if retained is not None and ended.states:
        own = retained.tokens[ended.retained]
        inside = torch.arange(own.shape[1]) < retained.length[ended.retained, None]
        own = torch.nn.functional.pad(torch.where(inside, own, PAD), (0, limit - own.shape[1]), value=PAD)
        same = (ended.tokens[:, 0] == own).all(-1)
        total.retained_first += float(ended.measure[same, PROBABILITY].sum())
    return states.select(growing.nonzero().flatten())
