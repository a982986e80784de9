"""The exact law of the sampler: every outcome of every step of the real engine, with its probability.

The frontier is a set of distinct states of *one* prompt's particles. Each round turns all joint outcomes of one step
from all of them into the prompts of one batch and lets `Sampler.step` run on it (see `tests.smc_bridge.scripted`):

    pass 0   every outcome of every lane, to learn its probability; they sum to one for each lane
    pass 1   every joint outcome of the N * K lanes, to learn the weights
    pass 2   every joint outcome with every choice of own lanes, or every cell of the resampler's uniforms

Equal states are merged (`smc_bridge.testing.frontier`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.engine.resampling import Multinomial, UniformResampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import Retained
from smc_bridge.engine.weights import normalised
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.testing.frontier import PROBABILITY, Enumeration, Frontier, finish, joined, relative, step, unique_rows
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.scripted import Recorded, Script, scripted_kernel

#: Joint outcomes that one batch may hold before the frontier is split.
BATCH = 40_000


class Program:
    """A sampler whose randomness is prescribed."""

    def __init__(self, sampler: Sampler, limit: int, retained: list[oracle.Sequence] | None) -> None:
        self.real, self.limit = sampler, limit
        self.sampler = copy.copy(sampler)
        self.sampler.kernel = scripted_kernel(sampler.kernel)
        assert isinstance(sampler.resampler, UniformResampler)
        self.resampler = sampler.resampler if retained is None else Multinomial()
        self.sampler.resampler = Recorded(self.resampler)
        self.tree = isinstance(sampler.kernel, TreeWalk)
        self.lanes = sampler.particles * sampler.lanes
        eos = sampler.target.model.eos_id
        self.ends = eos if isinstance(eos, tuple) else (eos,)
        self.size = sampler.target.model.vocab_size
        self.retained = None
        if retained is not None:
            whole = Prefix.of(retained)
            self.retained = Retained(whole.tokens.clamp_min(0), whole.length)

    def run(self, states: Frontier, script: Script) -> Frontier:
        """One step of the real engine on all states at once; the measure is left as it was."""
        return step(self.sampler, states, self.limit, script.source, retained=self.retained)

    def start(self, retained_law: list[float] | None) -> Frontier:
        """The state before the first step; one for each retained sequence."""
        places = 0 if self.real.pace is None else self.real.window
        return Frontier.start(self.real.particles, self.limit, self.size, retained=retained_law, places=places)

    def candidates(self, states: Frontier) -> tuple[Tensor, list[Tensor]]:
        """What each particle's lanes may commit.

        Returns:
            which outcomes exist, `[F, N, O]`, and block `[F, N, O, V]`, length, accepted and split, `[F, N, O]`.
        """
        left, room = states.remaining(), self.limit - states.length
        most, ahead = torch.tensor([[self.real.window], [self.real.proposal.lookahead]])[..., None]
        if self.real.pace is not None:
            plan = self.real.pace.plan(states.seen.reshape(states.states, 2, -1).numpy(), self.real.sizes)
            most, ahead = torch.tensor(plan)[..., None]
        block = getattr(self.real.proposal.model, "block_size", None)
        if block is not None:  # nothing is drafted past the end of a block
            ahead = torch.minimum(ahead, block - states.length % block)
        left = torch.where(left > 0, left, torch.minimum(room, ahead))
        window = torch.where(states.done, 0, torch.minimum(torch.minimum(left, room), most))
        bonus = ~states.done & (window == left) & (window < room) & self.real.bonus
        kinds = torch.stack([window + bonus, torch.where(states.done, 0, room), bonus], -1)
        distinct, kind = unique_rows(kinds.reshape(-1, 3))
        tables = [list(self._outcomes(w, r, bool(b))) for w, r, b in distinct.tolist()]
        most = max(map(len, tables))
        filler = ((0,) * self.real.places, 0, 0, 0)
        exists = torch.tensor([[o < len(t) for o in range(most)] for t in tables])[kind]
        columns = zip(*([*t, *[filler] * (most - len(t))] for t in tables), strict=True)
        rows = list(zip(*columns, strict=True))
        shape = (*states.length.shape, most)
        parts = [torch.tensor([[o[i] for o in row] for row in rows])[kind] for i in range(4)]
        return exists.reshape(shape), [p.reshape(*shape, *p.shape[2:]) for p in parts]

    def _outcomes(self, window: int, room: int, bonus: bool) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
        """Block, length, accepted, split of every outcome of a lane, whose last token may be a bonus."""
        if window == 0:
            yield (0,) * self.real.places, 0, 0, 0  # done: nothing to draw
        for length in range(1, window + 1):
            for tokens in itertools.product(range(self.size), repeat=length):
                if any(token in self.ends for token in tokens[:-1]):
                    continue
                block = tokens + (PAD,) * (self.real.places - length)
                ended = tokens[-1] in self.ends or length == room
                if self.tree or ended:
                    yield block, length, length, 0
                elif length == window and not bonus:
                    yield block, length, length, 1
                    yield block, length, length - 1, -1
                else:
                    yield block, length, length - 1, 0

    def script(self, states: Frontier, parts: list[Tensor], pick: Tensor, pinned_lane: Tensor | None) -> Script:
        """Lanes commit outcome `pick: [F, J]`; no choice made yet, all uniforms one half."""
        owner = torch.arange(self.lanes) // self.real.lanes
        row = torch.arange(states.states)[:, None]
        block, length, accepted, split = (p[row, owner, pick] for p in parts)
        script = Script(
            block, length, accepted, split, torch.zeros_like(states.length),
            torch.full((states.states, self.resampler.dimension(self.lanes, self.real.particles)), 0.5).double(),
        )
        if pinned_lane is not None:
            # The retained lane goes on before its last token, and after it only if the draft is accepted whole.
            stop = length.gather(1, pinned_lane.clamp_min(0)[:, None])
            onward = torch.arange(1, self.real.places + 1) < stop
            whole = (split.gather(1, pinned_lane.clamp_min(0)[:, None]) > 0) & (
                torch.arange(1, self.real.places + 1) == stop)
            lane = (pinned_lane.clamp_min(0)[:, None] + 0.5) / self.real.lanes
            script.pinned = torch.cat([lane, torch.where(onward | whole, 0.0, 1.0 - 2.0**-53)], dim=1).double()
            script.pinned_lane = pinned_lane
        return script


def combinations(possible: Tensor) -> tuple[Tensor, Tensor]:
    """All ways to take one possible option in each of J places: `[F, J, O]` -> state `[R]` and options `[R, J]`."""
    row = torch.arange(possible.shape[0])
    picks = torch.empty(row.numel(), 0, dtype=torch.long)
    for j in range(possible.shape[1]):
        where, option = possible[row, j].nonzero(as_tuple=True)
        row, picks = row[where], torch.cat([picks[where], option[:, None]], dim=1)
    return row, picks


def resampling_outcomes(resampler: UniformResampler, log_weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ancestors of each weight vector `[R, M]`: row `[Q]`, uniforms that give them `[Q, D]`, probability.

    The cells come from the scheme's definition; that the real code is constant on each is checked at both ends.
    """
    if not log_weights.shape[0]:
        uniforms = torch.empty(0, resampler.dimension(log_weights.shape[1], count), dtype=torch.float64)
        return torch.empty(0, dtype=torch.long), uniforms, torch.empty(0, dtype=torch.float64)
    top = log_weights.max(-1, keepdim=True).values
    weights = torch.exp(log_weights - top).numpy()
    weights = weights / weights.sum(-1, keepdims=True)
    cells_of = getattr(resampler, "cells", None) or oracle.SCHEMES[type(resampler).__name__]
    cells = cells_of(weights, count)
    volume = cells.volume
    assert np.abs(volume.sum(-1) - 1.0).max() < 1e-12, f"cells have volume {volume.sum(-1)}"
    row, cell = (volume > 0).nonzero()
    real = normalised(log_weights)[torch.from_numpy(row)]

    def ancestors(fraction: float) -> np.ndarray:
        drawn = resampler.ancestors(real, count, torch.from_numpy(cells.at(fraction)[row, cell]))
        code = np.zeros(row.size, dtype=np.int64)
        for column in drawn.numpy().T:
            code = code * log_weights.shape[1] + column
        return code

    code, large = ancestors(0.5), volume[row, cell] > 1e-9
    for fraction in (1e-5, 1 - 1e-5):
        differs = large & (ancestors(fraction) != code)
        assert not differs.any(), f"{type(resampler).__name__} is not constant on {cells.at(0.5)[row, cell][differs]}"
    order = np.lexsort([-volume[row, cell], code, row])
    new = np.concatenate([[True], (np.diff(row[order]) != 0) | (np.diff(code[order]) != 0)])
    mass = np.add.reduceat(volume[row, cell][order], new.nonzero()[0])
    chosen = order[new]
    return tuple(map(torch.from_numpy, (row[chosen], cells.at(0.5)[row[chosen], cell[chosen]], mass)))  # type: ignore


def enumerate_program(sampler: Sampler, limit: int, *, retained: oracle.Law | None = None) -> Enumeration:
    """Run every outcome of the sampler on the empty prompt with at most `limit` new tokens.

    Args:
        sampler: with a tabular pair, a stopping kernel and a resampler that is a function of uniforms.
        retained: conditional SMC: the law of the retained sequence.
    """
    program = Program(sampler, limit, None if retained is None else list(retained))
    total = Enumeration()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(mock.patch("smc_bridge.engine.sampler.StepTensors"))
        stack.enter_context(mock.patch("smc_bridge.engine.sampler.Multinomial", return_value=Recorded(Multinomial())))
        frontier = program.start(None if retained is None else list(retained.values()))
        while frontier.states:
            after = [_advance(program, part, total) for part in _parts(program, frontier)]
            whole = joined(after)
            frontier = finish(whole.merged() if whole.states else whole, total, limit, retained=program.retained)
    assert abs(total.probability - 1.0) < 1e-12, f"probabilities of all outcomes sum to {total.probability}"
    return total


def _parts(program: Program, frontier: Frontier) -> Iterator[Frontier]:
    """The frontier in parts of about `BATCH` joint outcomes."""
    exists, _ = program.candidates(frontier)
    joint = exists.sum(-1).double().prod(-1) ** program.real.lanes
    part = (joint.cumsum(0) / BATCH).long()
    for index in part.unique().tolist():
        yield frontier.select((part == index).nonzero().flatten())


def _advance(program: Program, states: Frontier, total: Enumeration) -> Frontier:
    """All states that one step can lead to (module docstring); their measure is not merged."""
    pinned_lane = None
    if program.retained is not None:
        # The retained particle's lane is uniform; a finished one has none.
        lanes = torch.where(states.done[:, :1], torch.tensor([-1] + [-2] * (program.real.lanes - 1)),
                            torch.arange(program.real.lanes))
        row, lane = (lanes > -2).nonzero(as_tuple=True)
        pinned_lane = lanes[row, lane]
        share = torch.where(pinned_lane < 0, 1.0, 1.0 / program.real.lanes).double()
        states = states.select(row)
        states = states.scaled(share)
    exists, parts = program.candidates(states)
    owner = torch.arange(program.lanes) // program.real.lanes
    exists = exists[:, owner]  # [F, J, O]
    # Pass 0: probability of every outcome of every lane.
    row, option = exists.any(1).nonzero(as_tuple=True)
    pick = torch.where(exists[row, :, option], option[:, None], 0)
    script = program.script(
        states.select(row), [p[row] for p in parts], pick, None if pinned_lane is None else pinned_lane[row])
    with mock.patch.object(program.sampler, "weight", _NoWeight()):  # impossible outcomes have no weight
        program.run(states.select(row), script)
    lane_probability = torch.zeros(exists.shape, dtype=torch.float64)
    lane_probability[row, :, option] = script.log_prob.exp()
    lane_probability *= exists
    if pinned_lane is not None:
        lane_probability = _retained_only(program, states, parts, lane_probability, pinned_lane)
    sums = lane_probability.sum(-1)
    assert (sums - 1.0).abs().max() < 1e-12, f"a lane's outcomes have probabilities that sum to {sums}"
    # Pass 1: weights of every joint outcome.
    row, pick = combinations(lane_probability > 0)
    joint = states.select(row)
    script = program.script(joint, [p[row] for p in parts], pick, None if pinned_lane is None else pinned_lane[row])
    probability = lane_probability[row[:, None], torch.arange(program.lanes), pick].prod(-1)
    program.run(joint, script)
    alone = lane_probability[row[:, None], torch.arange(program.lanes), pick]
    assert (script.log_prob.exp() - alone).abs().max() < 1e-12, "a lane's law depends on the other lanes (C8)"
    # Pass 2: every choice of own lanes, or every cell of the resampler's uniforms.
    stay, mix = (~script.resampled).nonzero().flatten(), script.resampled.nonzero().flatten()
    choices = torch.zeros(joint.states, program.real.particles, program.real.lanes, dtype=torch.float64)
    choices[..., 0] = 1.0
    if script.within is not None:
        drawn = ~joint.done & ~script.within.isnan().any(-1)
        choices = torch.where(drawn[..., None], script.within.exp(), choices)
    of_stay, choice = combinations(choices[stay] > 0)
    share = choices[stay][of_stay[:, None], torch.arange(program.real.particles), choice].prod(-1)
    of_mix, uniforms, mass = resampling_outcomes(program.resampler, script.log_weights[mix], program.real.particles)
    source = torch.cat([stay[of_stay], mix[of_mix]])
    weight = probability[source] * torch.cat([share, mass])
    final = script.select(
        source, choice=torch.cat([choice, torch.zeros(of_mix.numel(), program.real.particles, dtype=torch.long)]),
        uniforms=torch.cat([torch.full((of_stay.numel(), uniforms.shape[1]), 0.5).double(), uniforms]),
    )
    after = program.run(joint.select(source), final).scaled(weight)
    total.outcomes += source.numel()
    total.resampled += float(after.measure[of_stay.numel():, PROBABILITY].sum())
    total.kept += float(after.measure[: of_stay.numel(), PROBABILITY].sum())
    return relative(after, total)


class _NoWeight:
    proper = lanewise = True

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        return torch.zeros(lanes.move.length.shape, dtype=torch.float64)


def _retained_only(
    program: Program, states: Frontier, parts: list[Tensor], lane_probability: Tensor, pinned_lane: Tensor
) -> Tensor:
    """Probability zero for outcomes of the retained lane with other tokens than its own."""
    assert program.retained is not None
    block, length = parts[0][:, 0], parts[1][:, 0]  # [F, O, V], [F, O]
    column = states.length[:, :1] + torch.arange(program.real.places)
    own = program.retained.tokens[states.retained].gather(
        1, column.clamp_max(program.retained.tokens.shape[1] - 1))  # [F, V]
    inside = torch.arange(program.real.places) < length[..., None]
    agrees = ((block == own[:, None]) | ~inside).all(-1)
    pinned = pinned_lane[:, None] == torch.arange(program.lanes)
    return torch.where(pinned[..., None] & ~agrees[:, None], 0.0, lane_probability)


def assert_exact_around_retained(sampler: Sampler, limit: int) -> None:
    """The program's measure is the target's law by its kernel's closed form, and so is its output around retained
    sequences of that law, to 1e-12; also of a kernel whose draws cannot be listed."""
    law = target_law(sampler, limit)
    gap, where = worst(enumerate_program(sampler, limit).proper, law)
    assert gap < 1e-12, where
    found = enumerate_program(sampler, limit, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where
