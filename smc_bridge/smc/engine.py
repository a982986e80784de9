"""The engine: `Sampler` runs the program of design 2.4, batched over prompts, particles and lanes.

    propose -> branch -> verify -> move -> reweight -> reduce -> commit

Every particle is a prefix of its own length with a log weight. `E[Z_hat * sum_k W_k f(x_k)] = E_p[f]` exactly, for
every f, number of particles and lanes, and resampling rule, if every part is proper. The engine is the only place that
holds state; the parts are functions (`smc_bridge.smc.steps`).

Order of a prompt's draws in a step (its generator is its own, so the batch does not matter): pinned lane and stop
(conditional SMC only); draft, `N * K` rows; the kernel's own, `N * K` rows; then either N choices among own lanes
(K > 1) or one resampling. Rows of particles that are done are drawn and thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts, dominates
from smc_bridge.distributions.proposal import DLMProposal
from smc_bridge.distributions.target import ARTarget
from smc_bridge.kernels.importance import AcceptAll, Lanes, OwnWeights, WeightRule
from smc_bridge.kernels.protocol import DraftKernel, Kernel, Move
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.prefix import Prefix
from smc_bridge.randomness import PromptSource, Source, prompt_generator
from smc_bridge.result import Result
from smc_bridge.smc import steps
from smc_bridge.smc.conditional import Pinned, check_whole, pin
from smc_bridge.smc.record import record_step, results
from smc_bridge.smc.resampling import Multinomial, Resampler, Systematic
from smc_bridge.smc.state import Counters, Marginals, Retained, SMCState
from smc_bridge.smc.tree_step import move_tree
from smc_bridge.smc.weights import EssBelow, Trigger

#: Called after every step with the number of prompts that are finished.
Progress = Callable[[int], None]


@dataclass
class Sampler:
    """PoE-Bridge as a sequential Monte Carlo program.

    Attributes:
        proposal, target, intermediate: the three laws.
        kernel: moves a lane from the proposal to the intermediate.
        weight: the importance step from the intermediate to the target.
        resampler, trigger: how and when particles interact.
        particles: N.  lanes: K drafts per particle.  window: V tokens verified at once.
        name: for tables.
        tokenize, detokenize: between a prompt's text and ids, and a continuation's ids and text.
    """

    proposal: DLMProposal
    target: ARTarget
    intermediate: Intermediate = field(default_factory=ProductOfExperts)
    kernel: Kernel = field(default_factory=Rejection)
    weight: WeightRule = field(default_factory=OwnWeights)
    resampler: Resampler = field(default_factory=Systematic)
    trigger: Trigger = field(default_factory=EssBelow)
    particles: int = 1
    lanes: int = 1
    window: int = 32
    name: str = "smc"
    tokenize: Callable[[str], Sequence[int] | Tensor] | None = None
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        for field_name in ("particles", "lanes", "window"):
            value = getattr(self, field_name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field_name} = {value}: give a whole number of at least 1")
        for field_name in ("kernel", "weight", "resampler", "intermediate"):
            value = getattr(self, field_name)
            if isinstance(value, type):
                raise ValueError(f"{field_name} = {value.__name__} is a class: give an object, {value.__name__}()")
            if field_name != "intermediate" and not isinstance(getattr(value, "proper", None), bool):
                raise ValueError(f"{field_name} = {value!r} does not say if it is proper: give it a bool `proper`")
        q, p = self.proposal, self.target
        if q.model.vocab_size != p.model.vocab_size or q.model.eos_id != p.model.eos_id:
            raise ValueError(
                f"the models' alphabets differ: {q.model.vocab_size} tokens ending with {q.model.eos_id} against "
                f"{p.model.vocab_size} ending with {p.model.eos_id}; use a pair that shares its tokenizer"
            )
        if q.law.banned_ids != p.law.banned_ids:
            raise ValueError(
                f"banned_ids differ: {q.law.banned_ids} in the proposal, {p.law.banned_ids} in the target; ban the same"
            )
        if q.lane_temperatures is not None and len(q.lane_temperatures) != self.lanes:
            raise ValueError(
                f"temperature has {len(q.lane_temperatures)} entries for lanes = {self.lanes}: give one per lane"
            )
        if not isinstance(self.kernel, DraftKernel | TreeWalk):
            raise ValueError(f"kernel = {self.kernel!r}: give a DraftKernel or a TreeWalk")
        if isinstance(self.kernel, AcceptAll):
            flat = torch.log_softmax(torch.arange(4.0), -1)
            if not torch.equal(self.intermediate.log_prob(flat, flat.flip(0)), flat):
                raise ValueError(
                    f"intermediate = {self.intermediate!r} with AcceptAll, which commits the proposal's own draft: use "
                    "Proposal()"
                )

    def why_improper(self) -> list[str]:
        """Reasons for which the weights are not proper, one line each; empty for a proper program."""
        reasons = [
            f"{part} {type(value).__name__} is not proper"
            for part, value in (("kernel", self.kernel), ("weight", self.weight), ("resampler", self.resampler))
            if not value.proper
        ]
        if self.proposal.law.truncates and not dominates(self.intermediate):
            reasons.append(
                "the truncated proposal leaves out tokens that the target may draw: wrap the intermediate in Defensive"
            )
        return reasons

    @property
    def proper(self) -> bool:
        """Whether `E[Z_hat sum W f] = E_p[f]` holds for this program."""
        return not self.why_improper()

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
        keep_drafts: bool = False, progress: Progress | None = None,
        retained: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """Decode prompts, each with N weighted particles.

        Args:
            prompts: token ids of each prompt.
            seed: one for all, or one per prompt; the same (prompt, seed) gives the same draws in every batch.
            max_new_tokens: length limit of a continuation; the target is the AR law cut there.
            keep_drafts: keep drafts and blocks of all lanes in the trace.
            progress: told the number of finished prompts after every step.
            retained: conditional SMC: a continuation for each prompt that particle 0 follows. Resampling is then
                multinomial, whatever `resampler`.
        Returns:
            one `Result` per prompt.
        Raises:
            ValueError: an argument out of range, or NaN logits from a model.
        """
        state = self.start(prompts, seed=seed, max_new_tokens=max_new_tokens, retained=retained)
        while (active := state.active()).numel():
            self.step(state, active, keep_drafts=keep_drafts)
            if progress is not None:
                progress(len(prompts) - state.active().numel())
        return results(self, state)

    def decode(
        self, text: str, *, seed: int = 0, max_new_tokens: int = 256, keep_drafts: bool = False
    ) -> Result:
        """Decode one prompt given as text; arguments as `run`.

        Raises:
            ValueError: the sampler knows no tokenizer, the prompt is empty or too long, or an argument is out of range.
        """
        if self.tokenize is None:
            raise ValueError("tokenize is None: give the sampler a tokenizer, or call run with token ids")
        prompt = [int(token) for token in self.tokenize(text)]
        return self.run([prompt], seed=seed, max_new_tokens=max_new_tokens, keep_drafts=keep_drafts)[0]

    def start(
        self, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
        retained: Sequence[Sequence[int]] | None = None,
    ) -> SMCState:
        """The state before the first step: N copies of every prompt with weight one. Arguments as `run`."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {max_new_tokens}: allow at least 1 token")
        size = self.target.model.vocab_size
        check_tokens(prompts, size, "prompts")
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"seed has {len(seeds)} entries for {len(prompts)} prompts: give one, or one per prompt")
        device = self.target.model.device
        single = Prefix.of(prompts, device=device)
        rows = torch.arange(len(prompts), device=device).repeat_interleave(self.particles)
        prefix = single.select(rows)
        zeros = torch.zeros(rows.numel(), dtype=torch.long, device=device)
        tokens = prefix.tokens.clamp_min(0)
        return SMCState(
            prefix=prefix,
            log_weights=torch.zeros(len(prompts), self.particles, dtype=torch.float64, device=device),
            log_potential=zeros.double(),
            prompt_length=single.length,
            limit=prefix.length + max_new_tokens,
            generators=[prompt_generator(s, p) for s, p in zip(seeds, prompts, strict=True)],
            dlm=self.proposal.model.session(tokens, prefix.length),
            ar=self.target.model.session(tokens, prefix.length),
            marginals=Marginals(torch.empty(0, 0, size, device=device), zeros[:0], zeros - 1, zeros.clone()),
            counters=Counters.zeros(len(prompts)),
            retained=self._retain(prompts, retained, max_new_tokens),
            records=[[] for _ in prompts],
            seconds=[0.0] * len(prompts),
        )

    def step(self, state: SMCState, active: Tensor, *, keep_drafts: bool = False) -> None:
        """Advance the prompts `active: [P']` by one step (module docstring)."""
        n, k = self.particles, self.lanes
        everyone = (active[:, None] * n + torch.arange(n, device=active.device)).flatten()  # rows of these prompts
        growing = (~state.prefix.done[everyone]).nonzero().flatten()
        rows = everyone[growing]  # [B]
        source = self._source(state, active, n * k).select(steps.lane_rows(growing, k))
        pinned, pinned_lane = None, None
        if state.retained is not None:
            pinned, pinned_lane = pin(
                state, active, rows, lanes=k, window=self.window, source_of=lambda at: self._source(state, at, 1)
            )

        served = steps.propose(state, rows, self.proposal)
        at = steps.branch(state, rows, self.proposal, lanes=k, window=self.window)
        lanes, drafts, work = self._move(state, rows, at, source=source, pinned=pinned)
        increments = self.weight(lanes, kernel=self.kernel, intermediate=self.intermediate)
        log_potential, gain = self._potential(state, rows, lanes.move)
        increments = increments + gain

        log_weights = state.log_weights[active][..., None].repeat(1, 1, k) - math.log(k)
        log_weights.reshape(-1, k)[growing] += increments
        after = self._done_after(state, everyone, growing, lanes.move)
        reduced = steps.reduce_lanes(
            log_weights, trigger=self.trigger,
            resampler=self.resampler if state.retained is None else Multinomial(),
            source_of=lambda index, per: self._source(state, active[index.to(active.device)], per),
            allowed=~after | (k > 1), pick=~state.prefix.done[everyone].reshape(-1, n),
            pinned_lane=pinned_lane,
        )
        self._count(state, active, rows, served, work)
        record_step(
            state, active, growing, lanes, increments, reduced, rows=rows, served=served, ar_rows=k, drafts=drafts,
            keep=keep_drafts,
        )
        # A score that is not a weight is not carried.
        kept = reduced if self.weight.proper else reduced._replace(log_weights=torch.zeros_like(reduced.log_weights))
        steps.commit(state, active, growing, lanes, kept, log_potential, eos_id=self.target.model.eos_id)

    def _move(
        self, state: SMCState, rows: Tensor, at: steps.Branch, *, source: Source, pinned: Pinned | None
    ) -> tuple[Lanes, Tensor | None, int]:
        """Verify and move; also the drafts (if linear) and how many tokens the AR model scored per particle."""
        if isinstance(self.kernel, TreeWalk):
            shared = self.proposal.identical_lanes and not getattr(self.intermediate, "per_lane", False)
            lanes, nodes = move_tree(
                state, rows, at, kernel=self.kernel, target=self.target, intermediate=self.intermediate,
                source=source, pinned=pinned, shared=shared,
            )
            return lanes, None, nodes
        assert isinstance(self.kernel, DraftKernel)
        lanes, drafts = steps.move_drafts(
            state, rows, at, kernel=self.kernel, target=self.target, intermediate=self.intermediate, source=source,
            pinned=pinned,
        )
        return lanes, drafts, self.lanes * self.window

    def _potential(self, state: SMCState, rows: Tensor, move: Move) -> tuple[Tensor | None, Tensor]:
        """`log phi` of every lane's extended prefix `[B, K]`, and what it adds to the log weight."""
        if self.target.potential is None:
            return None, torch.zeros((), dtype=torch.float64, device=rows.device)
        extended = self._extended(state, rows, move)
        log_phi = self.target.potential(extended).double().reshape(move.length.shape)
        if bool(log_phi.isnan().any()) or bool((log_phi == math.inf).any()):
            raise ValueError("potential returned NaN or +inf: return a finite log-potential, or -inf")
        before = state.log_potential[rows][:, None]
        dead = before == -math.inf
        return log_phi, torch.where(dead, -math.inf, log_phi - torch.where(dead, 0.0, before))

    def _extended(self, state: SMCState, rows: Tensor, move: Move) -> Prefix:
        """The B * K prefixes that the lanes would leave."""
        lanes = move.length.shape[1]
        owner = rows.repeat_interleave(lanes)
        return state.prefix.select(owner).extend(
            move.block.reshape(owner.numel(), -1), move.length.reshape(-1), eos_id=self.target.model.eos_id,
            limit=state.limit[owner],
        )

    def _done_after(self, state: SMCState, everyone: Tensor, growing: Tensor, move: Move) -> Tensor:
        """Prompts of which every lane is done after this step, `[P']`.

        With K = 1 resampling would then only lose information, so it is not done.
        """
        done = state.prefix.done[everyone].clone()
        done[growing] = self._extended(state, everyone[growing], move).done.reshape(move.length.shape).all(1)
        return done.reshape(-1, self.particles).all(1)

    def _source(self, state: SMCState, prompts: Tensor, rows: int) -> Source:
        """Draws of these prompts, so many rows each."""
        return PromptSource(
            [state.generators[i] for i in prompts.tolist()], rows, device=state.prefix.length.device
        )

    def _count(self, state: SMCState, active: Tensor, rows: Tensor, served: Tensor, work: int) -> None:
        prompts = state.log_weights.shape[0]
        dlm = torch.bincount(served, minlength=prompts).cpu()
        particles = torch.bincount(rows // self.particles, minlength=prompts).cpu()
        counters = state.counters
        counters.dlm_forwards.add_((dlm > 0).long())
        counters.dlm_rows.add_(dlm)
        counters.ar_forwards.add_((particles > 0).long())
        counters.ar_rows.add_(particles * self.lanes)
        counters.ar_tokens.add_(particles * work)
        now = time.perf_counter() - state.started
        for i in active.tolist():
            state.seconds[i] = now

    def _retain(
        self, prompts: Sequence[Sequence[int]], retained: Sequence[Sequence[int]] | None, max_new_tokens: int
    ) -> Retained | None:
        """Check and pad the retained continuations."""
        if retained is None:
            return None
        if not self.proper or not isinstance(self.weight, OwnWeights):
            raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
        if len(retained) != len(prompts):
            raise ValueError(f"retained has {len(retained)} sequences for {len(prompts)} prompts: give one per prompt")
        check_tokens(retained, self.target.model.vocab_size, "retained")
        check_whole(retained, eos_id=self.target.model.eos_id, max_new_tokens=max_new_tokens)
        whole = Prefix.of(retained, device=self.target.model.device)
        return Retained(whole.tokens.clamp_min(0), whole.length)


def check_tokens(sequences: Sequence[Sequence[int]], vocab_size: int, name: str) -> None:
    """Raise ValueError if a token lies outside the alphabet."""
    for i, sequence in enumerate(sequences):
        if any(not 0 <= token < vocab_size for token in sequence):
            raise ValueError(
                f"{name}[{i}] has a token outside 0..{vocab_size - 1}: encode it with the pair's tokenizer"
            )
