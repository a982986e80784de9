"""`PathSearch`: a path through likely tokens of every place, found with an n-gram law (DiffuSpec, arXiv 2510.02358).

A diffusion model's marginals do not know of each other: their likeliest tokens need not make a text. At every place the
fewest likeliest tokens with mass at least .8 are candidates, 15 at most, and ends of sequence always; a beam search
from left to right finds the path y of greatest score

    sum_i  s log q_i(y_i) + (1 - s) log p_ngram(y_i | c, y_<i)

and ends as soon as the best of the beam is an end of sequence; other paths that have ended are left out, so that only
paths of one length are compared. All laws are read at temperature 1 and without truncation. How many places are drafted
follows from the drafts before (`smc_bridge.proposals.adaptive`).

The path is a function of the past: a point mass, exact with every intermediate that dominates (`MostLikelyPath`, which
this is for a beam of one, a single candidate, s = 1 and a fixed length). The published rule at a temperature, `ratio`,
hands kernels the marginals as if y had been drawn from them. That is biased, and says so.

Shapes: R particles, B of one call, K lanes, V window, C candidates, W beam, n order of the n-gram law.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.distributions.point import PointLaw
from smc_bridge.models.arguments import real_between, said, true_or_false, whole_number
from smc_bridge.models.ends import Ends, ends_of, is_end
from smc_bridge.models.host import Index, known, sent
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.adaptive import AdaptiveLength, Floats
from smc_bridge.proposals.mean_field import DLMProposal, MeanFieldState
from smc_bridge.proposals.ngram import NGram
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source


class Candidates(NamedTuple):
    """Tokens that a path may have at each place, on the host.

    Attributes:
        tokens: `[B, V, C]`.
        log_q: their log-probabilities, `[B, V, C]`, -inf for those that are none.
    """

    tokens: Index
    log_q: Floats


def candidates(law: Law, width: int, *, mass: float, most: int, ends: Ends) -> Candidates:
    """The fewest likeliest tokens of each place with so much mass, `most` at most, and all ends of sequence.

    Args:
        law: `[B, V, A]`.
        width: places that are looked at.
    """
    tokens, scores = [], []
    for i in range(width):
        row = law.row(torch.full((law.rows,), i, device=law.device)).double()
        log_q, token = row.topk(min(most, row.shape[-1]))
        before = log_q.exp().cumsum(-1) - log_q.exp()
        log_q = torch.where((before < mass) | is_end(token, ends), log_q, -torch.inf)
        last = torch.tensor(ends, dtype=torch.long, device=law.device)
        known_end = (token[:, None] == last[:, None]).any(-1)
        own = torch.where(known_end, -torch.inf, row[:, last])
        tokens.append(torch.cat([token, last.expand(law.rows, -1)], 1))
        scores.append(torch.cat([log_q, own], 1))
    # Together, for to read is to wait; a float64 holds every token id.
    read = known(torch.stack([torch.stack(tokens, 1).double(), torch.stack(scores, 1)]))
    return Candidates(read[0].astype(np.int64), read[1])


def best_paths(
    found: Candidates, width: Index, ngram: NGram, law: Index, context: Index, *, beam: int, share: float, ends: Ends
) -> tuple[Index, Index]:
    """The best path of each of B rows by beam search (module docstring).

    Args:
        width: places of each row, `[B]`, at least 1.
        ngram, law: which of its laws each row reads, `[B]`.
        context: the last n - 1 tokens of each row, `[B, n - 1]`, negative where there is none.
        beam: W.
        share: s.
    Returns:
        tokens `[B, V]`, `PAD` past the path, and its length `[B]`.
    """
    rows, places, count = found.tokens.shape
    out, length = np.full((rows, places), PAD), np.zeros(rows, dtype=np.int64)
    going, keep = np.arange(rows), context.shape[1]
    # Before the first place all of the beam is one path, and counts once.
    path = np.repeat(context[:, None], beam, 1)
    score = np.full((rows, beam), -np.inf)
    score[:, 0] = 0.0
    for i in range(places):
        token, log_q = found.tokens[going, i][:, None], found.log_q[going, i][:, None]
        gain = np.where(log_q > -np.inf, share * np.where(log_q > -np.inf, log_q, 0.0), -np.inf)
        if share < 1.0:
            before = path[..., path.shape[-1] - keep :]
            gain = gain + (1.0 - share) * ngram.log_prob(law[going, None], before, token)
        each = (score[..., None] + gain).reshape(going.size, -1)  # [B', W * C]
        order = np.argsort(-each, axis=1, kind="stable")[:, :beam]
        score = np.take_along_axis(each, order, 1)
        last = np.take_along_axis(np.repeat(token, beam, 1).reshape(going.size, -1), order, 1)
        parent = np.take_along_axis(path, (order // count)[..., None], 1)
        path = np.concatenate([parent, last[..., None]], -1)
        ended = is_end(last, ends)
        stops = ended[:, 0] | (i + 1 == width[going])
        out[going[stops], : i + 1], length[going[stops]] = path[stops, 0, keep:], i + 1
        score = np.where(ended, -np.inf, score)
        going, path, score = going[~stops], path[~stops], score[~stops]
        if not going.size:
            break
    return out, length


@dataclass
class SearchState(MeanFieldState):
    """State of the proposal: that of the marginals, and what the next lengths follow from.

    Attributes:
        path: last draft of each particle, `[R, V]`.
        drafted: its tokens before an end of sequence, `[R]`.
        averages: of tokens drafted and accepted, `[2, R]` (`AdaptiveLength`).
    """

    path: Index
    drafted: Index
    averages: Floats


@dataclass(frozen=True)
class PathSearch(MostLikelyPath):
    """A path that is found by beam search as a deterministic draft (module docstring; implements `Proposal`).

    Attributes:
        base: gives model, banned ids, lookahead and reuse; its temperatures and truncation are read by `ratio` alone.
        beam: W, paths that are kept.
        share: s, of the diffusion model in the score; 1 asks no n-gram law.
        mass, most: of the likeliest tokens of a place, least and greatest number.
        order: n, of the n-gram law of a row.
        ngram: fitted on texts, instead of one that is fitted on each row's prompt and what it has committed.
        lengths: how many places are drafted; None for as many as the window.
        ratio: hand kernels the marginals in place of the point mass: biased.
    Raises:
        ValueError: an argument out of range, or an n-gram law over another alphabet.
    """

    beam: int = 3
    share: float = 0.5
    mass: float = 0.8
    most: int = 15
    order: int = 3
    ngram: NGram | None = None
    lengths: AdaptiveLength | None = field(default_factory=AdaptiveLength)
    ratio: bool = False

    form = "path search"

    def __post_init__(self) -> None:
        for name in ("beam", "most", "order"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in ("share", "mass"):
            remedy = f"give a {name} in [0, 1]"
            object.__setattr__(self, name, float(real_between(name, getattr(self, name), 0.0, 1.0, remedy=remedy)))
        object.__setattr__(self, "ratio", true_or_false("ratio", self.ratio))
        if self.ngram is not None and not (isinstance(self.ngram, NGram) and self.ngram.size == self.model.vocab_size):
            size = self.model.vocab_size
            raise ValueError(f"ngram = {said(self.ngram)}: give NGram(texts, {size}), ids of the model's alphabet")

    @property
    def proper(self) -> bool:
        """Whether q is the law of the draft: of the point mass, not of marginals that it was not drawn from."""
        return not self.ratio

    @property
    def adaptive(self) -> bool:
        """Whether drafts depend on what became of those before: on how many of their tokens were accepted."""
        return self.lengths is not None

    @property
    def identical_lanes(self) -> bool:
        """Whether q is the same for every lane of a particle; the path is."""
        return not self.ratio or self.base.identical_lanes

    @cached_property
    def plain(self) -> DLMProposal:
        """The marginals that a path is found by: at temperature 1, without truncation."""
        base = self.base
        return DLMProposal(base.model, banned_ids=base.banned_ids, lookahead=base.lookahead, reuse=base.reuse)

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        lengths = None if self.lengths is None else vars(self.lengths)
        given = {} if self.ngram is None else {"ngram": f"of {self.ngram.laws} texts"}
        return {
            "form": self.form, **(self.base if self.ratio else self.plain).settings(), "beam": self.beam,
            "share": self.share, "mass": self.mass, "most": self.most, "order": self.order, **given,
            "lengths": lengths, "ratio": self.ratio,
        }

    def open(self, prefix: Prefix, *, particles: int) -> Any:
        """The state of R = P * N particles before their first draft (`Proposal.open`)."""
        rows = prefix.length.numel()
        nothing = np.zeros(rows, dtype=np.int64)
        held = self.plain.open(prefix, particles=particles)
        return SearchState(
            held.session, held.marginals, particles, np.full((rows, 0), PAD), nothing, np.full((2, rows), np.nan)
        )

    def draft(self, state: Any, asked: Asked, *, source: Source | None) -> Draft:
        """The best path of every particle, K times, `[B * K, V]` (`Proposal.draft`); nothing is drawn."""
        rows, device = known(asked.rows), asked.rows.device
        asked = self._within(state, asked)
        found = self.plain.draft(state, asked._replace(lanes=1), source=None)
        path, length = self._search(found.q, known(found.width), asked)
        ended = is_end(np.take_along_axis(path, length[:, None] - 1, 1)[:, 0], ends_of(self.model.eos_id))
        state.path, state.drafted = np.full((state.drafted.size, asked.window), PAD), state.drafted.copy()
        state.path[rows], state.drafted[rows] = path, length - ended
        tokens = sent(path.repeat(asked.lanes, 0), device)
        if self.ratio:
            q = self.base.draft(state, asked, source=None).q
        else:
            q = PointLaw(tokens, self.model.vocab_size, found.q, asked.chunks)
        return Draft(tokens, q, sent(length.repeat(asked.lanes), device), found.cost)

    def commit(
        self, state: Any, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let marginals and lengths follow the survivors (`Proposal.commit`). What a block has in common with the path
        is what was accepted: a refused token is not drawn again."""
        self.plain.commit(state, ancestors, block, length, whole)
        if ancestors is not None:
            own = known(ancestors)
            state.path, state.drafted, state.averages = state.path[own], state.drafted[own], state.averages[:, own]
        count, tokens = known(length), known(block)
        if self.lengths is not None and count.any():
            columns = min(tokens.shape[1], state.path.shape[1])
            same = (tokens == state.path[:, :columns])[:, :columns] & (np.arange(columns) < count[:, None])
            accepted = same.cumprod(1).sum(1)
            after = self.lengths.after(state.averages, state.drafted, accepted)
            state.averages = np.where(count > 0, after, state.averages)

    def reseat(self, state: Any, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes, before their first draft (`Proposal.reseat`)."""
        self.plain.reseat(state, length, rows, fresh)
        state.averages = state.averages.copy()
        state.averages[:, known(rows)] = np.nan

    def _within(self, state: SearchState, asked: Asked) -> Asked:
        """What is asked for, in no more places than the drafts before allow: masks of the forward, and tokens."""
        if self.lengths is None:
            return asked
        most = self.lengths.places(state.averages)
        room, reach = (np.minimum(known(x), most) for x in (asked.room, asked.reach))
        return asked._replace(room=sent(room, asked.room.device), ahead=sent(reach, asked.room.device))

    def _search(self, q: Law, width: Index, asked: Asked) -> tuple[Index, Index]:
        """Path and length of each of B particles, `[B, V]` and `[B]`, from `q: [B, V, A]`."""
        rows, ends = known(asked.rows), ends_of(self.model.eos_id)
        text, count = known(asked.prefix.tokens)[rows], known(asked.prefix.length)[rows]
        ngram, law = self.ngram, np.zeros(rows.size, dtype=np.int64)
        if ngram is None:
            ngram = NGram.of_rows(text, count, self.model.vocab_size, order=self.order)
            law = np.arange(rows.size)
        keep = ngram.order - 1
        place = count[:, None] + np.arange(-keep, 0)
        padded = np.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
        context = np.where(place >= 0, np.take_along_axis(padded, place.clip(min=0), 1), PAD)
        found = candidates(q, int(width.max()), mass=self.mass, most=self.most, ends=ends)
        path, length = best_paths(
            found, width, ngram, law, context, beam=self.beam, share=self.share, ends=ends,
        )
        return np.pad(path, ((0, 0), (0, asked.window - path.shape[1])), constant_values=PAD), length
