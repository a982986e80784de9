"""The engine: `Sampler` runs the program of docs/theory, section 5, batched over prompts, particles and lanes.

    propose -> branch -> verify -> move -> reweight -> reduce -> commit

Every particle is a prefix of its own length with a log weight. `E[Z_hat * sum_k W_k f(x_k)] = E_p[f]` exactly, for
every f, number of particles and lanes, and resampling rule, if every part is proper. The engine is the only place that
holds state; the parts are functions (`smc_bridge.engine.steps`).

Order of a prompt's draws in a step (its generator is its own, so the batch does not matter): pinned lane and stop
(conditional SMC only); draft, `N * K` rows; the kernel's own, `N * K` rows; then either N choices among own lanes
(K > 1) or one resampling. Rows of particles that are done are drawn and thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from smc_bridge.decode import OnResult, Progress, serve
from smc_bridge.describe import sampler_settings, sampler_text
from smc_bridge.distributions.intermediate import (
    Intermediate,
    ProductOfExperts,
    dominates,
    is_target,
    log_ratio_bound,
)
from smc_bridge.distributions.lazy import Chunks
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine import steps
from smc_bridge.engine.conditional import Pinned, check_possible, pin
from smc_bridge.engine.parts import in_parts
from smc_bridge.engine.record import record_step, result_of
from smc_bridge.engine.resampling import Multinomial, Resampler, Systematic
from smc_bridge.engine.state import Marginals, Retained, SMCState
from smc_bridge.engine.tree_step import move_tree
from smc_bridge.engine.validation import check_sampler, make_requests, probed
from smc_bridge.engine.watch import watch
from smc_bridge.engine.weights import EssBelow, Trigger
from smc_bridge.kernels.importance import BalanceHeuristic, Lanes, OwnWeights, WeightRule, checked_increments
from smc_bridge.kernels.protocol import DraftKernel, Kernel, Move
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import said
from smc_bridge.models.prompts import ids_of_prompt
from smc_bridge.models.protocols import LanguageModel
from smc_bridge.prefix import Prefix, ends
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.requests import Request, check_limit, prompts_of
from smc_bridge.result import Result
from smc_bridge.streams import Role

#: Bound of `log p - log pi` at a token, nats, from which on its weight may be missing from a thousand runs.
VISIBLE = math.log(1000.0)


@dataclass(repr=False)
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
        max_logit_bytes: cap of the AR model's logits of one call (K * V scores of A tokens per particle, or one per
            tree node): particles are scored in parts, at least one at a time, and each part is a forward of its own.
            None for no cap. The draws do not depend on it. The DLM's logits are not capped here: give its adapter
            its own `max_logit_bytes`.
        compile: run the arithmetic of laws through `torch.compile`.
        pair: name of the pair of models, for the settings of results.
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
    max_logit_bytes: int | None = None
    compile: bool = False
    pair: str | None = None

    def __post_init__(self) -> None:
        check_sampler(self)

    def __repr__(self) -> str:
        return sampler_text(self)

    def why_improper(self) -> list[str]:
        """Reasons for which the weights are not proper, one line each; empty for a proper program."""
        return [reason for _, reason in self.faults()]

    def faults(self) -> list[tuple[str, str]]:
        """Parts for which the weights are not proper, by their names here, each with the reason in one line."""
        faults = [
            (part, f"{part} {type(value).__name__} is not proper")
            for part, value in (("kernel", self.kernel), ("weight", self.weight), ("resampler", self.resampler))
            if not value.proper
        ]
        faults += [("intermediate", reason) for reason in probed(self)]
        if self.proposal.law.truncates and not dominates(self.intermediate):
            reason = "the truncated proposal leaves out tokens that the target may draw"
            faults.append(("proposal", f"{reason}: wrap the intermediate in Defensive"))
        return faults

    def notes(self) -> list[str]:
        """What is true of a proper program and easily overlooked, one line each; results carry it in their settings."""
        bound = log_ratio_bound(self.intermediate)
        if not VISIBLE < bound < math.inf:
            return []
        return [
            f"p / pi is bounded, but by e^{bound:.3g} at each token: so large a weight may be missing from all runs, "
            "and then Z is seen below 1; Defensive(..., eps) bounds it by 1 / eps"
        ]

    @property
    def proper(self) -> bool:
        """Whether `E[Z_hat sum W f] = E_p[f]` holds for this program."""
        return not self.why_improper()

    @property
    def exact(self) -> bool:
        """Whether every weight is one by construction: a proper program whose intermediate is its target.

        Weights that are one in all runs that were seen are no proof of it.
        """
        # A rule derived from these may weigh otherwise. The heuristic's lanes have one law here, which cancels.
        plain = type(self.weight) in (OwnWeights, BalanceHeuristic) and self.target.potential is None
        return plain and is_target(self.intermediate) and self.proper

    @property
    def role(self) -> Role:
        """The stream of free runs; conditional ones have another (`run`)."""
        return Role.SMC

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The two models, by kind."""
        return {"diffusion": self.proposal.model, "autoregressive": self.target.model}

    def run(
        self, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
        batch: int | None = None, on_result: OnResult | None = None, keep_drafts: bool = False,
        progress: Progress | None = None, retained: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """Decode prompts, each with N weighted particles.

        Args:
            prompts: token ids of each prompt.
            seed: one for all, or one per prompt; a whole number of any size. The same (prompt, seed) gives the same
                draws in every batch, up to round-off of the models' forwards: where a model's logits depend on the
                batch in their last bits (most visibly in bfloat16), a draw at the edge of two tokens may fall on the
                other. Samplers share their draws under one seed (common random numbers); conditional runs,
                `ar_sampling`, `diffusion` and `Result.sample` have streams of their own. A prompt that repeats under
                one seed is told by a warning: its runs are one and the same.
            max_new_tokens: length limit of a continuation; the target is the AR law cut there.
            batch: prompts that are decoded at a time; when one finishes, the next takes its rows. None: all at once.
            on_result: called with (place in `prompts`, result) as soon as a prompt is finished.
            keep_drafts: keep drafts and blocks of all lanes in the trace.
            progress: told the number of finished prompts after every step.
            retained: conditional SMC: a continuation for each prompt that particle 0 follows. Resampling is then
                multinomial, whatever `resampler`.
        Returns:
            one `Result` per prompt, in their order.
        Raises:
            ValueError: an argument out of range, NaN logits from a model, or a retained sequence of probability 0.
            Interrupted: a KeyboardInterrupt that carries what is done, also of prompts that are not finished. Any other
                error during the run carries the same in an attribute `results`.
        """
        max_new_tokens = check_limit(max_new_tokens)
        requests = make_requests(
            self, prompts, seed=seed, max_new_tokens=max_new_tokens, retained=retained, keep_drafts=keep_drafts
        )
        return serve(
            self, requests, max_new_tokens=max_new_tokens, batch=batch, on_result=on_result, progress=progress
        )

    def decode(
        self, text: str, *, seed: int = 0, max_new_tokens: int = 256, keep_drafts: bool = False
    ) -> Result:
        """Decode one prompt given as text; arguments as `run`.

        Raises:
            ValueError: the sampler knows no tokenizer, the prompt is empty or too long, or an argument is out of range.
        """
        if self.tokenize is None:
            raise ValueError("tokenize is None: give the sampler a tokenizer, or call run with token ids")
        if not isinstance(text, str):
            raise ValueError(f"text = {said(text)}: give a string, or call run with token ids")
        prompt = ids_of_prompt(self.tokenize(text), "tokenize")
        return self.run([prompt], seed=seed, max_new_tokens=max_new_tokens, keep_drafts=keep_drafts)[0]

    def start(
        self, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
        retained: Sequence[Sequence[int]] | None = None,
    ) -> SMCState:
        """The state before the first step: N copies of every prompt with weight one. Arguments as `run`."""
        max_new_tokens = check_limit(max_new_tokens)
        requests = make_requests(self, prompts, seed=seed, max_new_tokens=max_new_tokens, retained=retained)
        return self.open(requests, max_new_tokens)

    def open(self, requests: Sequence[Request | None], limit: int) -> SMCState:
        """See `Decoder.open`: N copies of every prompt with weight one."""
        check_sampler(self)
        device = self.target.model.device
        single = prompts_of(requests, device=device)
        prefix = single.select(torch.arange(len(requests), device=device).repeat_interleave(self.particles))
        zeros = torch.zeros_like(prefix.length)
        tokens = prefix.tokens.clamp_min(0)
        retained = [None if request is None else request.retained for request in requests]
        now = time.perf_counter()
        return SMCState(
            prefix=prefix,
            log_weights=torch.zeros(len(requests), self.particles, dtype=torch.float64, device=device),
            log_potential=zeros.double(),
            prompt_length=single.length,
            limit=prefix.length + limit,
            generators=[torch.Generator() if request is None else request.generator() for request in requests],
            dlm=self.proposal.model.session(tokens, prefix.length),
            ar=self.target.model.session(tokens, prefix.length),
            marginals=Marginals.empty(zeros, self.target.model.vocab_size),
            retained=Retained.of(Prefix.of([own or [] for own in retained], device=device)) if any(retained) else None,
            requests=list(requests), records=[()] * len(requests), entered=[now] * len(requests),
        )

    def finished(self, state: SMCState) -> list[int]:
        """See `Decoder.finished`: seats whose particles are all done or of weight zero."""
        return state.finished()

    def result(self, state: SMCState, seat: int) -> Result:
        """See `Decoder.result`: the N weighted continuations of the prompt in a seat."""
        return result_of(self, state, seat, sampler_settings(self, max_new_tokens=state.max_new_tokens))

    def reseat(self, state: SMCState, seats: Sequence[int], requests: Sequence[Request | None]) -> SMCState:
        """See `Decoder.reseat`."""
        return state.reseat(seats, requests)

    def step(self, state: SMCState) -> SMCState:
        """See `Decoder.step`: advances all prompts with a particle that still grows (module docstring)."""
        active, state = state.active(), state.copy()
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
        at = steps.branch(state, rows, self.proposal, lanes=k, window=self.window, chunks=self._chunks)
        lanes, increments, drafts, work = in_parts(
            rows, at, partial(self._move, state), partial(self._weigh, state), source=source, pinned=pinned,
            max_logit_bytes=self.max_logit_bytes, scores=self._scores,
        )
        if pinned is not None:
            check_possible(state, rows, pinned, increments, truncates=self.target.law.truncates)
        log_potential, gain = self._potential(state, rows, lanes.move)
        increments = increments + gain

        log_weights = state.log_weights[active][..., None].repeat(1, 1, k) - math.log(k)
        log_weights.reshape(-1, k)[growing] += increments
        allowed = torch.ones_like(active, dtype=torch.bool)
        if k == 1:  # where every particle is done after this step, resampling would only lose information
            allowed = ~self._done_after(state, everyone, growing, lanes.move)
        reduced = steps.reduce_lanes(
            log_weights, trigger=self.trigger,
            resampler=self.resampler if state.retained is None else Multinomial(),
            source_of=lambda index, per: self._source(state, active[index.to(active.device)], per),
            allowed=allowed, pick=~state.prefix.done[everyone].reshape(-1, n),
            pinned_lane=pinned_lane,
        )
        record_step(
            state, active, growing, lanes, increments, reduced, served=served, ar_rows=k, ar_tokens=work,
            drafts=drafts, keep=state.keep_drafts,
        )
        # A score that is not a weight is not carried.
        kept = reduced if self.weight.proper else reduced._replace(log_weights=torch.zeros_like(reduced.log_weights))
        steps.commit(state, active, growing, lanes, kept, log_potential, eos_id=self.target.model.eos_id)
        return state

    def _weigh(self, state: SMCState, rows: Tensor, lanes: Lanes) -> Tensor:
        """Log-weight increments of the lanes of particles `rows: [B]`, `[B, K]`, and a look at condition C3."""
        watch(self, state, rows, lanes)
        return checked_increments(self.weight, lanes, kernel=self.kernel, intermediate=self.intermediate)

    @property
    def _shared(self) -> bool:
        """Whether the lanes of a particle have one law, so that they can walk on one tree."""
        return self.proposal.identical_lanes and not getattr(self.intermediate, "per_lane", False)

    @property
    def _scores(self) -> int:
        """Positions that the AR model scores for one particle at most."""
        if isinstance(self.kernel, TreeWalk):
            return (self.kernel.nodes + 1) * (1 if self._shared else self.lanes)
        return self.lanes * self.window

    @property
    def _chunks(self) -> Chunks:
        """How much of a law is computed at a time."""
        standard = Chunks(compile=self.compile)
        cap = self.max_logit_bytes
        return standard if cap is None else replace(standard, bytes=min(standard.bytes, cap))

    def _move(
        self, state: SMCState, rows: Tensor, at: steps.Branch, source: Source, pinned: Pinned | None
    ) -> tuple[Lanes, Tensor | None, Tensor]:
        """Verify and move; also the drafts (if linear) and how many tokens the AR model scored for each particle."""
        if isinstance(self.kernel, TreeWalk):
            lanes, nodes = move_tree(
                state, rows, at, kernel=self.kernel, target=self.target, intermediate=self.intermediate,
                source=source, pinned=pinned, shared=self._shared,
            )
            return lanes, None, nodes
        assert isinstance(self.kernel, DraftKernel)
        lanes, drafts = steps.move_drafts(
            state, rows, at, kernel=self.kernel, target=self.target, intermediate=self.intermediate, source=source,
            pinned=pinned,
        )
        return lanes, drafts, torch.full_like(rows, self.lanes * self.window)

    def _potential(self, state: SMCState, rows: Tensor, move: Move) -> tuple[Tensor | None, Tensor]:
        """`log phi` of every lane's extended prefix `[B, K]`, and what it adds to the log weight."""
        if self.target.potential is None:
            return None, torch.zeros((), dtype=torch.float64, device=rows.device)
        owner = rows.repeat_interleave(move.length.shape[1])
        extended = state.prefix.select(owner).extend(
            move.block.reshape(owner.numel(), -1), move.length.reshape(-1), eos_id=self.target.model.eos_id,
            limit=state.limit[owner],
        )
        log_phi = self.target.log_potential(extended).reshape(move.length.shape)
        before = state.log_potential[rows][:, None]
        dead = before == -math.inf
        return log_phi, torch.where(dead, -math.inf, log_phi - torch.where(dead, 0.0, before))

    def _done_after(self, state: SMCState, everyone: Tensor, growing: Tensor, move: Move) -> Tensor:
        """Prompts of which every particle's only lane is done after this step, `[P']`."""
        done, rows = state.prefix.done[everyone], everyone[growing]
        done[growing] = ends(
            state.prefix.length[rows], move.block[:, 0], move.length[:, 0], eos_id=self.target.model.eos_id,
            limit=state.limit[rows],
        )
        return done.reshape(-1, self.particles).all(1)

    def _source(self, state: SMCState, prompts: Tensor, rows: int) -> Source:
        """Draws of these prompts, so many rows each."""
        return PromptSource(
            [state.generators[i] for i in prompts.tolist()], rows, device=state.prefix.length.device
        )
