"""Plug-ins that let the real engine run on prescribed randomness: every prompt of a batch is one outcome of a step.

A `Script` says, for every prompt, what each lane commits, which lane each particle keeps, and which uniforms the
resampler sees. The engine's own code does everything else (propose, branch, verify, the laws, the weights, reduce,
commit); the probability of what was prescribed is read from the real kernel's `log_density` *at the laws that the
engine hands to it*. That the kernels' random paths have these laws is proved by enumeration in the kernel tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, truncate
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.views import Placed
from smc_bridge.engine.resampling import UniformResampler
from smc_bridge.kernels.protocol import Kernel, StoppingKernel
from smc_bridge.kernels.tree import Tree, TreeWalk
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, Source, Stream
from smc_bridge.sampling import Drawable


@dataclass
class Script:
    """Prescribed outcomes of one step of P prompts with J = N * K lanes, and what the engine showed of itself.

    Attributes:
        block, length, accepted: what each lane commits, `[P, J, V]`, `[P, J]`, `[P, J]`.
        split: `[P, J]`: +1 (-1) if the outcome is that the draft was (not) accepted whole at the window's end, which
            decides whether marginals are kept; 0 where both are one outcome.
        choice: lane that each particle keeps, `[P, N]`.  uniforms: what the resampler draws, `[P, D]`.
        pinned: uniforms of the retained lane, `[P, V + 1]`, and its place `pinned_lane: [P]`, -1 for none.
        log_prob: recorded log-probability of each lane's outcome, `[P, J]`, 0 for lanes that were not asked.
        log_weights: recorded weights that the resampler was given, `[P, J]`; `resampled: [P]` says where.
        within: recorded log-law of the choice among own lanes, `[P, N, K]`.
    """

    block: Tensor
    length: Tensor
    accepted: Tensor
    split: Tensor
    choice: Tensor
    uniforms: Tensor
    pinned: Tensor | None = None
    pinned_lane: Tensor | None = None
    log_prob: Tensor = field(init=False)
    log_weights: Tensor = field(init=False)
    resampled: Tensor = field(init=False)
    within: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.log_prob = torch.zeros(self.length.shape, dtype=torch.float64)
        self.log_weights = torch.zeros_like(self.log_prob)
        self.resampled = torch.zeros(self.length.shape[0], dtype=torch.bool)

    def select(self, prompts: Tensor, *, choice: Tensor, uniforms: Tensor) -> Script:
        """A new script for some prompts (with repetition) with these choices and uniforms."""
        return replace(
            self, block=self.block[prompts], length=self.length[prompts], accepted=self.accepted[prompts],
            split=self.split[prompts], choice=choice, uniforms=uniforms,
            pinned=None if self.pinned is None else self.pinned[prompts],
            pinned_lane=None if self.pinned_lane is None else self.pinned_lane[prompts],
        )

    def source(self, prompts: Tensor, rows: int) -> PromptScript:
        """What the engine's `_source` returns instead of generators."""
        return PromptScript(self, prompts, rows)


class PromptScript:
    """The script as a `Source` of some prompts."""

    def __init__(self, script: Script, prompts: Tensor, rows: int) -> None:
        self.script, self.prompts, self.rows = script, prompts, rows

    def select(self, rows: Tensor) -> LaneScript:
        """The lanes that grow."""
        return LaneScript(self.script, self.prompts[rows // self.rows], rows % self.rows)

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """The retained lane's uniforms (the engine draws them first), else the resampler's."""
        pinned = self.script.pinned
        if pinned is not None and size == pinned.shape[1:] and size != self.script.uniforms.shape[1:]:
            return pinned[self.prompts]
        assert size == self.script.uniforms.shape[1:], f"the resampler draws {size} uniforms"
        return self.script.uniforms[self.prompts]

    def categorical(self, log_probs: Tensor) -> Tensor:
        """The choice among own lanes."""
        if self.script.within is None:
            shape = (*self.script.choice.shape, log_probs.shape[-1])
            self.script.within = torch.full(shape, torch.nan, dtype=torch.float64)
        self.script.within[self.prompts] = log_probs.reshape(self.prompts.numel(), -1, log_probs.shape[-1])
        return self.script.choice[self.prompts].flatten()


class LaneScript:
    """The script as a `Source` of lanes; scripted kernels read it."""

    def __init__(self, script: Script, prompts: Tensor, lanes: Tensor) -> None:
        self.script, self.at = script, (prompts, lanes)

    def move(self) -> Move:
        """What the lanes commit."""
        length = self.script.length[self.at]
        return Move(truncate(self.script.block[self.at], length), length, self.script.accepted[self.at])

    def drafted(self, size: int) -> Tensor:
        """The proposal's draft: its accepted tokens are the block's and the others are not."""
        move = self.move()
        kept = torch.arange(move.block.shape[1]) < move.accepted[:, None]
        return torch.where(kept, move.block, (move.block.clamp_min(0) + 1) % size)

    def categorical(self, log_probs: Drawable) -> Tensor:
        """A draft that is drawn at once; a bonus token is none of it."""
        return self.drafted(log_probs.shape[-1])[:, : log_probs.shape[-2]]

    def categorical_stream(self, steps: int) -> Stream:
        """A draft that is drawn place by place; tree walks are forced, and throw it away."""
        place = iter(range(steps))

        def draw(
            log_probs: Tensor | Drawable, rows: Tensor | None = None, places: Tensor | None = None
        ) -> Tensor:
            drafted = self.drafted(log_probs.shape[-1])
            if places is not None:
                own = torch.arange(drafted.shape[0]) if rows is None else rows
                return drafted[own.view(-1, *(1,) * (places.dim() - 1)), places]
            column = drafted[:, next(place)]
            return (column if rows is None else column[rows]).reshape(log_probs.shape[:-1])

        return draw

    def record(self, kernel: StoppingKernel, q: Law, pi: Law, horizon: Horizon) -> None:
        """Note the probability of `move` under the real kernel, at laws along the block; a retained lane's tokens are
        given, so that only its stop is random."""
        move = self.move()
        log_prob = kernel.log_density(q, pi, move.block, move.length, horizon=horizon)
        if self.script.pinned_lane is not None:
            stop = kernel.log_stop(q, pi, move.block, move.length, horizon=horizon)
            log_prob = torch.where(self.script.pinned_lane[self.at[0]] == self.at[1], stop, log_prob)
        onward = kernel.log_continue(q, pi, move.block, horizon=horizon).double()
        onward = onward.gather(1, (move.length - 1)[:, None])[:, 0]
        split = self.script.split[self.at]
        log_prob = log_prob + torch.where(split > 0, onward, 0.0)
        log_prob = log_prob + torch.where(split < 0, torch.log1p(-onward.exp().clamp_max(1.0)), 0.0)
        self.script.log_prob[self.at] = log_prob


class ScriptedDraftKernel(StoppingKernel):
    """A kernel of linear drafts that commits what the script says."""

    def __init__(self, real: StoppingKernel) -> None:
        self.real = real

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        return self.real.log_continue(q, pi, block, horizon=horizon)

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        assert isinstance(source, LaneScript)
        source.record(self.real, draft.q, pi, horizon)
        return source.move()


class ScriptedTreeWalk(TreeWalk):
    """A tree walk along prescribed tokens: the real walk, forced."""

    def __init__(self, real: TreeWalk) -> None:
        super().__init__(real.nodes, min_probability=real.min_probability, exponent=real.exponent)
        self.real = real

    def tree(self, q: Law, *, horizon: Horizon | None = None) -> Tree:
        self.q = q
        return super().tree(q, horizon=horizon)

    def walk(
        self, tree: Tree, pi: Law, *, walks: int, source: Randomness, window: int, horizon: Horizon,
        forced: Tensor | None = None,
    ) -> tuple[Move, Tensor]:
        assert isinstance(source, LaneScript)
        script = source.move()
        prescribed = script.block if forced is None else torch.where(forced >= 0, forced, script.block)
        move, before = super().walk(
            tree, pi, walks=walks, source=source, window=window, horizon=horizon, forced=prescribed,
        )
        owner = torch.arange(pi.rows).repeat_interleave(walks)[:, None].expand_as(before)
        lane_horizon = Horizon(horizon.window.repeat_interleave(walks), horizon.ends)
        source.record(self.real, self.q.of_rows(owner[:, 0]), Placed(pi, owner, before), lane_horizon)
        # A prescribed length at which the walk does not stop has probability zero; a retained lane has its own tokens.
        obeyed = ((script.block == prescribed) | (script.block < 0)).all(1)
        wrong = obeyed & (move.length != script.length)
        assert bool((source.script.log_prob[source.at][wrong] == -torch.inf).all()), (move, script)
        return move, before


class Recorded:
    """The real resampler on scripted uniforms, with its weights noted."""

    def __init__(self, real: UniformResampler) -> None:
        self.real, self.proper = real, real.proper

    def __call__(self, log_weights: Tensor, count: int, *, source: Source) -> Tensor:
        assert isinstance(source, PromptScript)
        source.script.log_weights[source.prompts] = log_weights
        source.script.resampled[source.prompts] = True
        return self.real(log_weights, count, source=source)  # type: ignore[arg-type]


def scripted_kernel(kernel: Kernel) -> Kernel:
    """The scripted counterpart of a proper kernel."""
    if isinstance(kernel, TreeWalk):
        return ScriptedTreeWalk(kernel)
    assert isinstance(kernel, StoppingKernel)
    return ScriptedDraftKernel(kernel)
