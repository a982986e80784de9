"""`CausalProposal`: a cheap causal model that drafts token by token, such as the target's own without some layers.

    q_i(. | c, y_<i) = the model's conditional,    drafted until its confidence in a token falls below a threshold

A chain: the conditionals along the draft are those that it was drawn from, and along a given block they take one
forward (Draft & Verify: Zhang et al. 2023, arXiv 2309.08168; speculative decoding with a smaller model: Leviathan et
al. 2023, arXiv 2211.17192).

*Where a draft ends.* After each token it ends if the model gave that token less than `threshold`, untempered. That is
decided by the draft up to and with the token, which itself is verified. So whether place i is drafted is known before
y_i is drawn, and where the draft was accepted so far it is a function of what was committed: an end of the kind that an
end of sequence is. Every kernel stays exact (it goes on after x_i with its own c_i, and with 0 where the draft ends).
To draw a token and take it back would not do: then place i would be verified only where its token is likely.

*The threshold* follows each particle's past, so that a share `target` of the tokens that are verified is accepted:

    m <- .5 m + .5 accepted / verified;   t' = t + .01 if m < target, else t - .01;   t <- .9 t + .1 t'

`verified` counts up to the first refusal: what was drafted after it is not a function of what was committed, and a
conditional run could not know it. (The authors' code divides by all that was drafted.)

Shapes: R particles, B of one call, K lanes, V window, Q lanes, A alphabet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.distributions.shaping import Shaping, as_ids, check_model, check_top_p
from smc_bridge.models.arguments import real_between, true_or_false, whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.host import known, sent
from smc_bridge.models.protocols import CausalLM, CausalSession
from smc_bridge.models.rows import reseat
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.lanes import lane_law, lane_temperatures_of
from smc_bridge.proposals.protocol import Asked, Cost, Draft
from smc_bridge.randomness import Source, Stream

#: Weights of the past in the two moving averages: of the acceptance, and of the threshold.
ACCEPTANCE_KEPT, THRESHOLD_KEPT = 0.5, 0.9


@dataclass
class CausalState:
    """State of the proposal: the drafting model's session, and how far each particle trusts it.

    Attributes:
        session: of R particles.
        particles: N, consecutive rows of each prompt.
        threshold: of each particle, `[R]`.
        acceptance: moving average of each particle's accepted share, `[R]`.
    """

    session: CausalSession
    particles: int
    threshold: npt.NDArray[np.float64]
    acceptance: npt.NDArray[np.float64]


class CausalProposal:
    """Drafts of a causal model (module docstring; implements `Proposal`).

    Args:
        model: drafts; `model.without(...)` of a Hugging Face model, or any causal model of the target's alphabet.
        temperature: one for all lanes, or one per lane; 0 drafts the likeliest tokens, as point masses.
        top_p: truncation; see `DLMProposal`.
        banned_ids: tokens of probability zero besides those that the model itself bans.
        lookahead: places that are drafted at most.
        threshold: the draft ends with a token that the model gave less than this, in [0, 1]; 0 for never.
        adapt: let the threshold follow the past.
        target: share of accepted tokens that it is adapted to, in [0, 1].
        step: how much it is moved before averaging, in [0, 1].
    Raises:
        ValueError: an argument out of range.
    """

    kind = "drafting"
    factorised = False

    def __init__(
        self, model: CausalLM, *, temperature: float | Sequence[float] = 1.0, top_p: float = 1.0,
        banned_ids: Sequence[int] = (), lookahead: int = 8, threshold: float = 0.5, adapt: bool = True,
        target: float = 0.9, step: float = 0.01,
    ) -> None:
        check_model(model, "drafting")
        self.model = model
        first, self.lane_temperatures = lane_temperatures_of(temperature)
        banned = as_ids(banned_ids, model.vocab_size, also=model.banned_ids)
        self.shaping = Shaping(first, check_top_p(top_p, name="top_p of the proposal"), None, banned)
        self.lookahead = whole_number("lookahead", lookahead, remedy="draft at least 1 position, a whole number")
        share = "give a number in [0, 1]"
        self.threshold = float(real_between("threshold", threshold, 0.0, 1.0, remedy=share))
        self.target = float(real_between("target", target, 0.0, 1.0, remedy=share))
        self.step = float(real_between("step", step, 0.0, 1.0, remedy=share))
        self.adapt = true_or_false("adapt", adapt)
        #: What confidences are read from: the model's law without temperature and truncation.
        self.plain = Shaping(banned_ids=banned)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens of probability zero: the user's and the model's own."""
        return self.shaping.banned_ids

    @property
    def covers(self) -> bool:
        """Whether nothing is cut off, by top-p or by a temperature of 0."""
        return not (self.shaping.truncates or 0.0 in (self.lane_temperatures or (self.shaping.temperature,)))

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane draws from the same law."""
        return self.lane_temperatures is None or len(set(self.lane_temperatures)) == 1

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data for saved results."""
        lanes = {} if self.lane_temperatures is None else {"temperature": list(self.lane_temperatures)}
        adapted = {"target": self.target, "step": self.step} if self.adapt else {}
        return {"form": "causal chain", **self.shaping.settings(), **lanes, "threshold": self.threshold, **adapted}

    def check(self, lanes: int) -> None:
        """Raise ValueError unless there is one temperature for all lanes, or one for each of that many."""
        if self.lane_temperatures is not None and len(self.lane_temperatures) != lanes:
            raise ValueError(
                f"temperature of the proposal has {len(self.lane_temperatures)} entries for lanes = {lanes}: give one "
                "per lane"
            )

    def open(self, prefix: Prefix, *, particles: int) -> CausalState:
        """The state of R = P * N particles, N consecutive rows of each prompt (`Proposal.open`)."""
        rows = prefix.length.numel()
        session = self.model.session(prefix.tokens.clamp_min(0), prefix.length)
        return CausalState(session, particles, np.full(rows, self.threshold), np.full(rows, self.target))

    def draft(self, state: CausalState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by one forward per token (`Proposal.draft`).

        A forward is of the rows that go on; the first serves all lanes of a particle.

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        if source is None:
            raise ValueError("source = None: a chain has no law without a draft; give draws")
        k, device = asked.lanes, asked.rows.device
        total, most = self._most(asked)
        threshold = sent(state.threshold, device)[total]
        draw, ends = source.categorical_stream(asked.window), ends_of(self.model.eos_id)
        tokens = torch.zeros(total.numel(), asked.window, dtype=torch.long, device=device)
        width, scores, scored = most.clone(), None, list[Tensor]()
        going = torch.arange(total.numel(), device=device)
        for i in range(asked.window):
            going = going[most[going] > i]
            if not going.numel():
                break
            # Nothing is drafted yet: the lanes of a particle share a row.
            first = going[going % k == 0] if i == 0 else going
            fresh = state.session.score(total[first], tokens[first, : i + 1])[:, i]
            fresh = fresh.repeat_interleave(k, 0) if i == 0 else fresh
            if scores is None:
                scores = fresh.new_zeros(total.numel(), asked.window, fresh.shape[-1])
            scores[going, i] = fresh
            token = self.drawn(self._law(scores[going, i : i + 1], asked, going), draw, going).flatten()
            tokens[going, i] = token
            scored.append(total[first] // state.particles)
            stops = self.confidence(fresh, token) < threshold[going]
            if ends:
                stops |= is_end(token, ends)
            width[going[stops]] = i + 1
            going = going[~stops]
        assert scores is not None
        everyone = torch.arange(total.numel(), device=device)
        cost = Cost(torch.cat(scored), torch.cat([torch.full_like(p, i) for i, p in enumerate(scored)]))
        return Draft(tokens, self._law(scores, asked, everyone), width, cost)

    def drawn(self, law: Law, draw: Stream, rows: Tensor) -> Tensor:
        """The next token of rows `[n]`, drawn from their law `[n, 1, A]`: `[n, 1]`."""
        return draw(law, rows)

    def confidence(self, logits: Tensor, token: Tensor) -> Tensor:
        """What the model gives a token by logits `[..., A]`, without temperature and truncation: `[...]`."""
        return self.plain.log_probs(logits).gather(-1, token[..., None])[..., 0].exp()

    def along(self, state: CausalState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by one forward (`Proposal.along`)."""
        return self.follow(state, asked, lane, block)[0]

    def follow(self, state: CausalState, asked: Asked, lane: Tensor, block: Tensor) -> tuple[Law, Tensor]:
        """q along given blocks, `[Q, V, A]`, and where a draft of these tokens ends, `[Q]` (`Proposal.along`)."""
        total, most = self._most(asked)
        own, known_tokens = most[lane], block.clamp_min(0)
        scores: Tensor | None = None
        for width in sorted(set(own.tolist())):  # a row may have no positions where others have
            at = (own == width).nonzero().flatten()
            found = state.session.score(total[lane[at]], known_tokens[at, :width])
            if scores is None:
                scores = found.new_zeros(*block.shape, found.shape[-1])
            scores[at, :width] = found
        assert scores is not None
        place = torch.arange(1, block.shape[1] + 1, device=block.device)
        threshold = sent(state.threshold, block.device)[total[lane]]
        stops = self.confidence(scores, known_tokens) < threshold[:, None]
        first = torch.where(stops, place, block.shape[1]).amin(-1)
        return self._law(scores, asked, lane), torch.minimum(first, own)

    def commit(
        self, state: CausalState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the session follow the survivors and append their blocks, and adapt thresholds (`Proposal.commit`)."""
        if ancestors is not None:
            state.session.gather(ancestors)
            origin = known(ancestors)
            state.threshold, state.acceptance = state.threshold[origin], state.acceptance[origin]
        state.session.commit(block, length)
        if not self.adapt:
            return
        count = known(length)
        took = count > 0
        accepted = (count - ~known(whole))[took] / count[took]
        mean = ACCEPTANCE_KEPT * state.acceptance[took] + (1 - ACCEPTANCE_KEPT) * accepted
        moved = state.threshold[took] + np.where(mean < self.target, self.step, -self.step)
        state.threshold, state.acceptance = state.threshold.copy(), state.acceptance.copy()
        state.acceptance[took] = mean
        state.threshold[took] = THRESHOLD_KEPT * state.threshold[took] + (1 - THRESHOLD_KEPT) * moved.clip(0.0, 1.0)

    def reseat(self, state: CausalState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes, with the threshold of the beginning (`Proposal.reseat`)."""
        reseat(state.session, length, rows, fresh.tokens, fresh.length)
        state.threshold[known(rows)], state.acceptance[known(rows)] = self.threshold, self.target

    def _most(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Of every lane: its particle, and places that it may draft at most, `[B * K]` each."""
        total = asked.rows.repeat_interleave(asked.lanes)
        return total, asked.room[total].clamp_max(min(asked.window, self.lookahead))

    def _law(self, scores: Tensor, asked: Asked, lane: Tensor) -> Law:
        """The law of logits `[n, V, A]` of lanes `[n]`."""
        return lane_law(scores, lane, asked.lanes, self.shaping, self.lane_temperatures, asked.chunks)
