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

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.decode import OnResult, Progress, serve
from smc_bridge.describe import copied
from smc_bridge.engine import steps, survivors
from smc_bridge.engine.conditional import check_possible, pin
from smc_bridge.engine.pace import note
from smc_bridge.engine.program import Program
from smc_bridge.engine.record import StepTensors, result_of
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.state import Retained, SMCState
from smc_bridge.engine.validation import check_program, make_requests
from smc_bridge.engine.watch import may_leave_out
from smc_bridge.models.arguments import said
from smc_bridge.models.checks import Checks, gathered
from smc_bridge.models.ends import ends_of
from smc_bridge.models.host import known, sent
from smc_bridge.models.prompts import ids_of_prompt
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.protocol import Asked
from smc_bridge.randomness import Reserve, ReservedSource, Source
from smc_bridge.requests import Request, check_limit, limit_that_fits, prompts_of
from smc_bridge.result import Result
from smc_bridge.streams import Role

#: Where weights are looked at and survivors are drawn.
HOST = torch.device("cpu")
#: Attributes that a step does not read.
UNREAD = ("particles", "proposal", "target", "experts", "name", "tokenize", "detokenize", "pair")


@dataclass(repr=False)
class Sampler(Program):
    """PoE-Bridge as a sequential Monte Carlo program, and what runs it (implements `Decoder`).

    Its attributes are those of `Program`: the three laws, the kernels, and the sizes.

    Raises:
        ValueError: a part is none, or the parts do not fit together.
    """

    def __post_init__(self) -> None:
        check_program(self)
        self._read = tuple(item.name for item in fields(self) if item.name not in UNREAD)

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
        self, text: str, *, seed: int = 0, max_new_tokens: int | None = None, keep_drafts: bool = False
    ) -> Result:
        """Decode one prompt given as text; arguments as `run`, but for the length limit.

        Args:
            text: the prompt.
            max_new_tokens: length limit of the continuation. Default: 256, or the positions that the models have behind
                the prompt if those are fewer, as for the rest of a row of a table.
        Raises:
            ValueError: the sampler knows no tokenizer, the prompt is empty or too long, or an argument is out of range.
        """
        if self.tokenize is None:
            raise ValueError("tokenize is None: give the sampler a tokenizer, or call run with token ids")
        if not isinstance(text, str):
            raise ValueError(f"text = {said(text)}: give a string, or call run with token ids")
        prompt = ids_of_prompt(self.tokenize(text), "tokenize")
        limit = limit_that_fits(max_new_tokens, [prompt], self.models.values(), default=256)
        return self.run([prompt], seed=seed, max_new_tokens=limit, keep_drafts=keep_drafts)[0]

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
        program = self._resolved()
        device = self.target.model.device
        single = prompts_of(requests, device=device)
        prefix = single.select(sent(np.arange(len(requests)).repeat(self.particles), device))
        retained = [None if request is None else request.retained for request in requests]
        now = time.perf_counter()
        return SMCState(
            prefix=prefix,
            log_weights=sent(np.zeros((len(requests), self.particles)), device),
            log_potential=torch.zeros(prefix.length.numel(), dtype=torch.float64, device=device),
            prompt_length=single.length,
            limit=sent(known(prefix.length) + limit, device),
            reserve=Reserve([torch.Generator() if request is None else request.generator() for request in requests]),
            drafts=self.proposal.open(prefix, particles=self.particles),
            ar=self.target.model.session(prefix.tokens.clamp_min(0), prefix.length),
            experts=tuple(each.model.session(prefix.tokens.clamp_min(0), prefix.length) for each in self.experts),
            retained=Retained.of(Prefix.of([own or [] for own in retained], device=device)) if any(retained) else None,
            requests=list(requests), records=[()] * len(requests), entered=[now] * len(requests),
            watched=may_leave_out(self), walks=self.walks, chunks=self.chunks, parts=self._parts(), program=program,
            seen=np.zeros((len(requests), 2, self.window), dtype=np.int64),
        )

    def _resolved(self) -> Sampler:
        """The program as a run has it: its pace knows what forwards cost, its trees end where no other node pays."""
        if self.pace is None:
            return self
        found = copy.copy(self)
        found.pace = self.pace.measured(self)
        found.kernel = found.pace.kernel(self.kernel, self.sizes)
        return found

    def _parts(self) -> tuple[Any, ...]:
        """What may be set on a sampler; the first four may not change during a run."""
        fixed = self.particles, self.proposal, self.target, self.experts
        return (*fixed, *(getattr(self, name) for name in self._read))

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
        for name, other in zip(("particles", "proposal", "target", "experts"), changed, strict=False):
            if other:
                raise ValueError(f"{name} = {said(getattr(self, name))} is not what the run began with: start anew")
        return replace(
            state, watched=may_leave_out(self), walks=self.walks, chunks=self.chunks, parts=self._parts(),
            program=self._resolved(),
        )

    def finished(self, state: SMCState) -> list[int]:
        """See `Decoder.finished`: seats whose particles are all done or of weight zero."""
        return state.finished()

    def result(self, state: SMCState, seat: int) -> Result:
        """See `Decoder.result`: the N weighted continuations of the prompt in a seat."""
        now = self._parts()
        if state.shown is None or any(a is not b for a, b in zip(state.shown[0], now, strict=True)):
            program = self if state.program is None else state.program
            state.shown = now, program.settings(max_new_tokens=state.max_new_tokens), self.why_improper()
        _, settings, reasons = state.shown
        return result_of(self, state, seat, copied(settings), reasons)

    def reseat(self, state: SMCState, seats: Sequence[int], requests: Sequence[Request | None]) -> SMCState:
        """See `Decoder.reseat`; a seat that nobody takes gives its memory back."""
        return state.reseat(seats, requests, self.proposal)

    def step(self, state: SMCState) -> SMCState:
        """See `Decoder.step`: advances all prompts with a particle that still grows (module docstring)."""
        state = self._fitted(state).copy()
        program = self if state.program is None else state.program
        with torch.no_grad(), gathered() as checks:
            found: SMCState = program._step(state, checks)
        return found

    def _step(self, state: SMCState, checks: Checks) -> SMCState:
        active, device = state.active(), state.prefix.length.device
        if not active.numel():
            return state
        n, k = self.particles, self.lanes
        everyone = (known(active)[:, None] * n + np.arange(n)).ravel()  # rows of these prompts
        growing = (~known(state.prefix.done)[everyone]).nonzero()[0]
        rows = sent(everyone[growing], device)  # [B]
        source = self._source(state, active, n * k).select(sent(steps.lane_rows(growing, k), device))
        pinned, pinned_lane = None, None
        if state.retained is not None:
            pinned, pinned_lane = pin(
                state, active, rows, lanes=k, window=self.places, source_of=lambda at: self._source(state, at, 1)
            )

        room, ahead = self._room(state, active)
        asked = Asked(rows, state.prefix, room, k, self.window, state.chunks, ahead)
        draft = steps.draft_lanes(self, state, asked, source=source, pinned=pinned)
        moved = steps.move_lanes(self, state, rows, draft, source=source, pinned=pinned)
        if pinned is not None:
            check_possible(state, rows, pinned, moved.increments, law=self.target.shaping)
        log_potential, gain = self._potential(state, rows, moved)
        if gain is not None:
            moved = moved._replace(increments=moved.increments + gain)

        seen = survivors.look(self, state, rows, moved, checks)
        log_weights = np.repeat(known(state.log_weights)[known(active), :, None], k, -1) - math.log(k)
        log_weights.reshape(-1, k)[growing] += seen.increments
        done = known(state.prefix.done)[everyone]
        after = done.copy()
        after[growing] = seen.ended.all(1)
        # Where every particle's only lane is done after this step, resampling would only lose information.
        allowed = ~(after.reshape(-1, n).all(1) & (k == 1))

        def source_of(prompts: Tensor, rows: int) -> Source:
            """Draws of some of the prompts of this step, on the host."""
            return self._source(state, sent(known(active)[known(prompts)], prompts.device), rows, on_host=True)

        reduced = survivors.reduce_lanes(
            torch.from_numpy(log_weights), trigger=self.trigger,
            resampler=self.resampler if state.retained is None else Multinomial(),
            source_of=source_of, allowed=sent(allowed, HOST), pick=sent(~done.reshape(-1, n), HOST),
            pinned_lane=pinned_lane,
        )
        checks.read()  # of what was drawn here: what follows cannot be undone
        linear = not self.kernel.reads_marginals
        state.note(StepTensors(
            active, growing, draft, seen, reduced, call=moved.call, each=k if linear else k // state.walks,
            linear=linear, keep=state.keep_drafts, causal=len(state.causal),
        ))
        if self.pace is not None:
            drafted = seen.width if draft.bonus is None else seen.width - (known(draft.bonus) >= 0).reshape(-1, k)
            # A bonus token is no trial of the draft.
            note(
                state.seen, known(rows) // n, np.minimum(seen.length, drafted), seen.accepted,
                seen.ended & (seen.length <= drafted),
            )
        survivors.commit(self, state, active, growing, seen, reduced, log_potential)
        return state

    def _room(self, state: SMCState, active: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens that each particle's next block may have, and places to look ahead at (`Asked`), `[R]` each."""
        room, device = known(state.limit) - known(state.prefix.length), active.device
        if self.pace is None or not (self.pace.window or self.pace.lookahead):
            return sent(room, device), None
        seats = known(active)
        most = np.ones((2, state.log_weights.shape[0]), dtype=np.int64)
        most[:, seats] = self.pace.plan(state.seen[seats], self.sizes)
        window, ahead = np.minimum(most.repeat(self.particles, 1), room)
        return sent(window, device), sent(ahead, device)

    def _potential(self, state: SMCState, rows: Tensor, moved: steps.Moved) -> tuple[Tensor | None, Tensor | None]:
        """`log phi` of every lane's extended prefix `[B, K]`, and what it adds to the log weight; None without one."""
        if self.target.potential is None:
            return None, None
        before = state.log_potential[rows][:, None]
        if moved.log_phi is not None:  # of the tokens' own probabilities: known since the lanes were weighed
            return before + moved.log_phi, moved.log_phi
        move = moved.move
        owner = sent(known(rows).repeat(move.length.shape[1]), rows.device)
        extended = state.prefix.select(owner).extend(
            move.block.reshape(owner.numel(), -1), move.length.reshape(-1), ends=ends_of(self.target.model.eos_id),
            limit=state.limit[owner],
        )
        log_phi = self.target.log_potential(extended).reshape(move.length.shape)
        dead = before == -math.inf
        return log_phi, torch.where(dead, -math.inf, log_phi - torch.where(dead, 0.0, before))

    def _source(self, state: SMCState, prompts: Tensor, rows: int, *, on_host: bool = False) -> Source:
        """Draws of these prompts, so many rows each; on the state's device, or on the host."""
        device = HOST if on_host else state.prefix.length.device
        return ReservedSource(state.reserve, known(prompts).tolist(), rows, device=device)
