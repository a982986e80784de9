"""The engine: `Sampler` runs the program of docs/theory, section 5, batched over prompts, particles and lanes.

    draft -> verify -> move -> reweight -> reduce -> commit

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
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Move
from smc_bridge.decode import OnResult, Progress, serve
from smc_bridge.engine import steps
from smc_bridge.engine.conditional import check_possible, pin
from smc_bridge.engine.pace import note
from smc_bridge.engine.program import Program
from smc_bridge.engine.record import StepTensors, result_of
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.state import Retained, SMCState
from smc_bridge.engine.validation import check_program, make_requests
from smc_bridge.engine.watch import may_leave_out
from smc_bridge.models.arguments import said
from smc_bridge.models.prompts import ids_of_prompt
from smc_bridge.prefix import Prefix, ends
from smc_bridge.proposals.protocol import Asked
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.requests import Request, check_limit, prompts_of
from smc_bridge.result import Result
from smc_bridge.streams import Role

#: Attributes that a step does not read.
UNREAD = ("particles", "proposal", "target", "name", "tokenize", "detokenize", "pair")


@dataclass(repr=False)
class Sampler(Program):
    """PoE-Bridge as a sequential Monte Carlo program, and what runs it (implements `Decoder`).

    Its attributes are those of `Program`: the three laws, the kernels, and the sizes.

    Raises:
        ValueError: a part is none, or the parts do not fit together.
    """

    def __post_init__(self) -> None:
        check_program(self)

    @property
    def stream(self) -> Role:
        """The stream of random numbers of free runs; conditional ones have another (`run`)."""
        return Role.SMC

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
        Example:
            >>> from smc_bridge import smc
            >>> from smc_bridge.testing import tabular_pair
            >>> sampler = smc(tabular_pair(), particles=2)
            >>> one, other = sampler.run([[0], [0, 0]], seed=[7, 8], max_new_tokens=2)
            >>> one.sequences == sampler.run([[0]], seed=7, max_new_tokens=2)[0].sequences
            True
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
        check_program(self)
        if self.pace is not None:
            self.pace = self.pace.measured(self)
            self.kernel = self.pace.kernel(self.kernel, self.sizes)
        device = self.target.model.device
        single = prompts_of(requests, device=device)
        prefix = single.select(torch.arange(len(requests), device=device).repeat_interleave(self.particles))
        retained = [None if request is None else request.retained for request in requests]
        now = time.perf_counter()
        return SMCState(
            prefix=prefix,
            log_weights=torch.zeros(len(requests), self.particles, dtype=torch.float64, device=device),
            log_potential=torch.zeros_like(prefix.length).double(),
            prompt_length=single.length,
            limit=prefix.length + limit,
            generators=[torch.Generator() if request is None else request.generator() for request in requests],
            drafts=self.proposal.open(prefix, particles=self.particles),
            ar=self.target.model.session(prefix.tokens.clamp_min(0), prefix.length),
            retained=Retained.of(Prefix.of([own or [] for own in retained], device=device)) if any(retained) else None,
            requests=list(requests), records=[()] * len(requests), entered=[now] * len(requests),
            watched=may_leave_out(self), walks=self.walks, chunks=self.chunks, parts=self._parts(),
            seen=np.zeros((len(requests), 2, self.window), dtype=np.int64),
        )

    def _parts(self) -> tuple[Any, ...]:
        """What may be set on a sampler; the first three may not change during a run."""
        fixed = self.particles, self.proposal, self.target
        return (*fixed, *(getattr(self, item.name) for item in fields(self) if item.name not in UNREAD))

    def _fitted(self, state: SMCState) -> SMCState:
        """The state for the parts as they are now: a user may set them between two steps.

        Raises:
            ValueError: they do not fit together, or are others that a run cannot change.
        """
        now = self._parts()
        changed = [a is not b and not (isinstance(a, int) and a == b) for a, b in zip(state.parts, now, strict=False)]
        if not any(changed):
            return state
        check_program(self)
        for name, other in zip(("particles", "proposal", "target"), changed, strict=False):
            if other:
                raise ValueError(f"{name} = {said(getattr(self, name))} is not what the run began with: start anew")
        return replace(
            state, watched=may_leave_out(self), walks=self.walks, chunks=self.chunks, parts=self._parts()
        )

    def finished(self, state: SMCState) -> list[int]:
        """See `Decoder.finished`: seats whose particles are all done or of weight zero."""
        return state.finished()

    def result(self, state: SMCState, seat: int) -> Result:
        """See `Decoder.result`: the N weighted continuations of the prompt in a seat."""
        return result_of(self, state, seat, self.settings(max_new_tokens=state.max_new_tokens))

    def reseat(self, state: SMCState, seats: Sequence[int], requests: Sequence[Request | None]) -> SMCState:
        """See `Decoder.reseat`; a seat that nobody takes gives its memory back."""
        return state.reseat(seats, requests, self.proposal)

    def step(self, state: SMCState) -> SMCState:
        """See `Decoder.step`: advances all prompts with a particle that still grows (module docstring)."""
        active, state = state.active(), self._fitted(state).copy()
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

        room, ahead = self._room(state, active)
        asked = Asked(rows, state.prefix, room, k, self.window, state.chunks, ahead)
        draft = steps.draft_lanes(self, state, asked, source=source, pinned=pinned)
        moved = steps.move_lanes(self, state, rows, draft, source=source, pinned=pinned)
        if pinned is not None:
            check_possible(state, rows, pinned, moved.increments, truncates=self.target.shaping.truncates)
        log_potential, gain = self._potential(state, rows, moved.move)
        moved = moved._replace(increments=moved.increments + gain)
        if self.pace is not None and not self.kernel.reads_marginals:
            moved = moved._replace(scored=moved.width.sum(1))  # not all V places were asked for

        log_weights = state.log_weights[active][..., None].repeat(1, 1, k) - math.log(k)
        log_weights.reshape(-1, k)[growing] += moved.increments
        allowed = torch.ones_like(active, dtype=torch.bool)
        if k == 1:  # where every particle is done after this step, resampling would only lose information
            allowed = ~self._done_after(state, everyone, growing, moved.move)
        reduced = steps.reduce_lanes(
            log_weights, trigger=self.trigger,
            resampler=self.resampler if state.retained is None else Multinomial(),
            source_of=lambda index, per: self._source(state, active[index.to(active.device)], per),
            allowed=allowed, pick=~state.prefix.done[everyone].reshape(-1, n),
            pinned_lane=pinned_lane,
        )
        step = StepTensors(
            active, growing, draft, moved, reduced, linear=not self.kernel.reads_marginals, keep=state.keep_drafts
        )
        state.note(step)
        if self.pace is not None:
            self._note(state, rows, moved.move)
        steps.commit(self, state, active, growing, moved, reduced, log_potential)
        return state

    def _room(self, state: SMCState, active: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens that each particle's next block may have, and places to look ahead at (`Asked`), `[R]` each."""
        room = state.limit - state.prefix.length
        if self.pace is None or not (self.pace.window or self.pace.lookahead):
            return room, None
        own, device = active.cpu().numpy(), room.device
        plan = self.pace.plan(state.seen[own], self.sizes)
        most = torch.ones(2, state.log_weights.shape[0], dtype=torch.long)
        most[:, own] = torch.tensor(plan)
        window, ahead = torch.minimum(most.to(device).repeat_interleave(self.particles, 1), room)
        return window, ahead

    def _note(self, state: SMCState, rows: Tensor, move: Move) -> None:
        """Let the pace know what became of the drafts of particles `rows: [B]`; the state is that before the step."""
        block, length, accepted = (x.cpu().numpy() for x in move)
        room = (state.limit - state.prefix.length)[rows].cpu().numpy()
        last = np.take_along_axis(block, length[..., None] - 1, axis=2)[..., 0]
        ended = (last == self.target.model.eos_id) | (length == room[:, None])
        note(state.seen, rows.cpu().numpy() // self.particles, length, accepted, ended)

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
