"""`BridgeProgram`: the sample sites of one step, and the state that goes from step to step.

The two sides differ in the base of their block site only (package docstring). State is a dictionary of tensors whose
first dimension is the particle, as `SMCFilter` wants it.

Shapes: N particles, V window, M positions of marginals, A alphabet size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor

from smc_bridge.blocks import Horizon, log1mexp
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.importance import BalanceHeuristic, OwnWeights
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.models.ends import Ends, ends_of
from smc_bridge.models.host import known
from smc_bridge.models.protocols import ABSENT, MASKED, within_block
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.marginals import PER_FORWARD
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.pyro_program.block import Block, LastCall, intermediate_block, proposal_block
from smc_bridge.pyro_program.stopped import StoppedPrefix, stopped_length
from smc_bridge.result import Forwards


class ProgramState(NamedTuple):
    """What a step reads and writes.

    Attributes:
        tokens, length, done: the `Prefix`es, `[N, S]`, `[N]`, `[N]`.
        log_potential: `log phi` so far, `[N]` float64.
        logits: DLM logits that particles still draw from, `[N, M, A]`.
        width, offset: positions that each has in all and has used, `[N]`.
        refusals: of each since its forward, `[N]`.
    """

    tokens: Tensor
    length: Tensor
    done: Tensor
    log_potential: Tensor
    logits: Tensor
    width: Tensor
    offset: Tensor
    refusals: Tensor

    @property
    def prefix(self) -> Prefix:
        """The sequences as a `Prefix` of N rows."""
        return Prefix(self.tokens, self.length, self.done)


class Laws(NamedTuple):
    """The three laws of the next block of N particles, where it must end, and the marginals that q was read from.

    Attributes:
        proposal, intermediate, target: q, pi and p of the next V tokens.
        horizon: where blocks must end, `window: [N]`.
        logits: DLM logits behind q, `[N, M, A]`.
        width, offset: positions that each particle has in all and has used, `[N]`.
        refusals: of each since its forward, `[N]`.
    """

    proposal: Block
    intermediate: Block
    target: Block
    horizon: Horizon
    logits: Tensor
    width: Tensor
    offset: Tensor
    refusals: Tensor


class BridgeProgram:
    """Pyro model and guide of a sampler on one prompt (package docstring).

    Args:
        sampler: with one lane, a kernel that has a stopping law, and plain importance weights.
        prompt: token ids.
        max_new_tokens: length limit of a continuation.
    Raises:
        ValueError: the sampler cannot be written as model and guide, or an argument is out of range.
    """

    def __init__(self, sampler: Sampler, prompt: Sequence[int], *, max_new_tokens: int = 256) -> None:
        if sampler.lanes != 1:
            raise ValueError(
                f"lanes = {sampler.lanes}: the Pyro program has one lane per particle; use lanes = 1 and more "
                "particles, or Sampler.run"
            )
        if not isinstance(sampler.kernel, StoppingKernel) or not isinstance(
            sampler.weight, OwnWeights | BalanceHeuristic
        ):
            raise ValueError(
                f"kernel {type(sampler.kernel).__name__} with weight {type(sampler.weight).__name__}: the Pyro program "
                "needs a kernel with a stopping law and proper weights"
            )
        if not isinstance(sampler.proposal, DLMProposal):
            raise ValueError(
                f"proposal {type(sampler.proposal).__name__}: the Pyro program is one of marginals; use DLMProposal"
            )
        if sampler.experts:
            raise ValueError(
                f"experts has {len(sampler.experts)} models: the Pyro program knows proposal and target alone; use "
                "Sampler.run"
            )
        if sampler.bonus:
            raise ValueError("bonus = True: the Pyro program has no place for it; leave it out, or use Sampler.run")
        self.sampler = sampler
        self.kernel = sampler.kernel
        self.proposal = sampler.proposal
        #: Calls of the models so far.
        self.meter = Forwards()
        #: Particles that the last step's marginals are fresh for, bool `[N]`.
        self.fresh = torch.zeros(0, dtype=torch.bool)
        first = replace(sampler, particles=1).start([prompt], max_new_tokens=max_new_tokens)
        self.prompt_prefix = first.prefix
        self.limit = first.limit
        self.model = ProgramSide(self, is_target=True)
        self.guide = ProgramSide(self, is_target=False)
        self._laws: dict[int, tuple[ProgramState, Laws]] = {}

    @property
    def ends(self) -> Ends:
        """Tokens that end a sequence."""
        return ends_of(self.sampler.target.model.eos_id)

    def start(self, particles: int) -> ProgramState:
        """N copies of the prompt, without marginals."""
        zeros = torch.zeros(particles, dtype=torch.long, device=self.limit.device)
        prefix = self.prompt_prefix.select(zeros)
        logits = torch.zeros(particles, 0, self.sampler.target.model.vocab_size, device=zeros.device)
        return ProgramState(*prefix, zeros.double(), logits, zeros, zeros, zeros)

    def laws(self, state: ProgramState, step: int) -> Laws:
        """Laws of the next block; the guide and the model of one step share them."""
        known = self._laws.get(step)
        if known is None or not all(torch.equal(a, b) for a, b in zip(known[0], state, strict=True)):
            known = (state, self._build(state))
            self._laws[step] = known
        return known[1]

    def forget(self) -> None:
        """Let go of the laws of past steps."""
        self._laws.clear()

    def _build(self, state: ProgramState) -> Laws:
        state = self._refresh(state)
        left = torch.minimum(state.width - state.offset, self.limit - state.length)
        window = torch.where(state.done, 0, left.clamp_max(self.sampler.window))
        place = state.offset[:, None] + torch.arange(self.sampler.window, device=window.device)
        place = place.clamp_max(state.logits.shape[1] - 1)
        rows = torch.arange(window.numel(), device=window.device)
        q = proposal_block(self.proposal.log_probs(state.logits[rows[:, None], place], 1)[:, 0])
        session = self.sampler.target.model.session(state.tokens.clamp_min(0), state.length)

        def conditional(rows: Tensor, block: Tensor) -> Tensor:
            """`log p` along the blocks of these rows, one metered forward."""
            scored = Forwards(ar_forwards=1, ar_rows=block.shape[0], ar_tokens=block.numel())
            self.meter = Forwards.total([self.meter, scored])
            return self.sampler.target.log_probs(session.score(rows, block))

        p = Block(LastCall(conditional), rows, window=q.window, vocab_size=q.vocab_size)
        pi = intermediate_block(self.sampler.intermediate, q, p)
        return Laws(q, pi, p, Horizon(window, self.ends), state.logits, state.width, state.offset, state.refusals)

    def _refresh(self, state: ProgramState) -> ProgramState:
        """Give marginals to the growing particles that have none left: one forward on their unique prefixes."""
        self.fresh = ~state.done & (state.offset >= state.width)
        needy = self.fresh.nonzero().flatten()
        if needy.numel() == 0:
            return state
        scored, group = (torch.from_numpy(x).to(needy.device) for x in state.prefix.unique(known(needy)))
        width = (self.limit - state.length[scored]).clamp_max(self.proposal.lookahead)
        width = within_block(self.proposal.model, state.length[scored], width)
        column = torch.arange(int(width.max()), device=width.device)
        canvas = torch.where(column < width[:, None], MASKED, ABSENT)
        session = self.proposal.model.session(state.tokens[scored].clamp_min(0), state.length[scored])
        fresh = session.score(torch.arange(scored.numel(), device=width.device), canvas)
        self.meter = Forwards.total([self.meter, Forwards(dlm_forwards=1, dlm_rows=scored.numel())])
        size = max(fresh.shape[1], state.logits.shape[1])
        fresh, old = (
            torch.nn.functional.pad(x, (0, 0, 0, size - x.shape[1])) for x in (fresh, state.logits.to(fresh.dtype))
        )
        return state._replace(
            logits=old.index_copy(0, needy, fresh[group]), width=state.width.index_copy(0, needy, width[group]),
            offset=state.offset.index_fill(0, needy, 0), refusals=state.refusals.index_fill(0, needy, 0),
        )

    def sites(self, laws: Laws, step: int, *, is_target: bool) -> tuple[Tensor, Tensor]:
        """The sample sites of one step: the padded blocks `[N, V]`, and `accepted`, `[N]` of 0 or 1."""
        base = laws.target if is_target else laws.intermediate
        law = StoppedPrefix(base, self.kernel, laws.proposal, laws.intermediate, laws.horizon)
        block = pyro.sample(f"block_{step}", law)
        last = law.log_last_accepted(block)
        accepted = pyro.sample(f"accepted_{step}", Categorical(logits=torch.stack([log1mexp(last), last], -1)))
        return block, accepted

    def advance(self, state: ProgramState, laws: Laws, block: Tensor, accepted: Tensor) -> tuple[ProgramState, Tensor]:
        """The state after the blocks are committed, and what the potential adds to each log weight, `[N]` nats."""
        length = stopped_length(block)
        prefix = state.prefix.extend(block, length, ends=self.ends, limit=self.limit.expand(length.shape))
        # Marginals past a block serve on if all of its window was the draft's own.
        whole = (accepted > 0) & (length == laws.horizon.window)
        log_potential = self._potential(state, prefix)
        dead = state.log_potential == -torch.inf
        gain = torch.where(dead, -torch.inf, log_potential - torch.where(dead, 0.0, state.log_potential))
        used, refused = laws.offset + length, ~whole & ~prefix.done
        good = whole | self._reused(laws, used, refused)
        offset, refusals = torch.where(good, used, laws.width), laws.refusals + refused
        return ProgramState(*prefix, log_potential, laws.logits, laws.width, offset, refusals), gain

    def _reused(self, laws: Laws, used: Tensor, refused: Tensor) -> Tensor:
        """Particles that were `refused` a token and go on with their stale marginals past `used` of them, `[N]`."""
        if not self.proposal.reuse:
            return torch.zeros_like(refused)
        slot = known(refused & (laws.refusals < PER_FORWARD) & (used < laws.width)).nonzero()[0]
        good = np.zeros(refused.numel(), dtype=bool)
        good[slot] = self.proposal.confident(laws.logits, slot, known(used)[slot], known(laws.width)[slot])
        return torch.from_numpy(good).to(refused.device)

    def _potential(self, state: ProgramState, prefix: Prefix) -> Tensor:
        """`log phi` after the step, `[N]`; particles that were done keep theirs."""
        if self.sampler.target.potential is None:
            return state.log_potential
        growing = (~state.done).nonzero().flatten()
        start = self.prompt_prefix.length.expand(growing.shape)
        log_phi = self.sampler.target.log_potential(prefix.select(growing), start=start)
        return state.log_potential.index_copy(0, growing, log_phi)

    def step(self, state: ProgramState, step: int, *, is_target: bool) -> ProgramState:
        """The particles after one step of the guide, or of the model if `is_target`."""
        laws = self.laws(state, step)
        after, gain = self.advance(state, laws, *self.sites(laws, step, is_target=is_target))
        if is_target and self.sampler.target.potential is not None:
            pyro.factor(f"potential_{step}", gain)
        return after

    def unrolled(self, *, is_target: bool) -> Callable[[], Tensor]:
        """The whole program of one particle as a function: its sites until the sequence ends; it returns the tokens,
        `[S]`."""

        def run() -> Tensor:
            state, step = self.start(1), 0
            with pyro.plate("particles", 1):
                while not bool(state.done.all()):
                    state = self.step(state, step, is_target=is_target)
                    step += 1
            return state.tokens[0, int(self.prompt_prefix.length) :]

        return run


class ProgramSide:
    """Model or guide as `SMCFilter` wants it: `init` and `step` on a dictionary of particles."""

    def __init__(self, program: BridgeProgram, *, is_target: bool) -> None:
        self.program = program
        self.is_target = is_target

    def init(self, state: Any) -> None:
        """Before the first step: no sample sites; the model writes the prompts into the state."""
        if self.is_target:
            state.update(self.program.start(state._num_particles)._asdict())

    def step(self, state: Any, step: int) -> None:
        """The sample sites of one step; the model writes the state that follows."""
        current = ProgramState(**state)
        if not self.is_target:
            self.program.sites(self.program.laws(current, step), step, is_target=False)
            return
        for name, value in self.program.step(current, step, is_target=True)._asdict().items():
            state[name] = value
        self.program.forget()
