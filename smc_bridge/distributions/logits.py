"""Laws of a model: from logits that exist to `log q` and `log p` where they are read.

`LogitLaw` keeps two numbers per cell, peak and log-total, in place of the A log-probabilities; `TruncatedLaw` keeps the
boundary of top-k and top-p besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law, Selected
from smc_bridge.distributions.normaliser import Normaliser
from smc_bridge.distributions.point import GreedyLaw
from smc_bridge.distributions.shaping import Shaping, inverse_temperature, kept_boundary, within_boundary
from smc_bridge.distributions.table import Table, is_small, settled
from smc_bridge.distributions.views import Patched
from smc_bridge.models.checks import refuse
from smc_bridge.models.host import places
from smc_bridge.sampling import Scores, compiled_softmax, is_one, softmax


class LogitLaw(Law):
    """`log softmax(logits / temperature)`, some ids banned: a `Shaping` without truncation.

    Args:
        logits: `[U, M, A]`, of any float dtype.
        source: LongTensor `[R, V]`, which of the `U * M` places each cell reads; None if each reads its own.
        temperature: a number, or one per row `[R]`.
        banned_ids: tokens of probability zero.
        chunks: see `Chunks`.
        lowest: keep the least logit of cells, which `lower_bound` needs: one more pass over each.
    """

    def __init__(
        self, logits: Tensor, source: Tensor | None, *, temperature: float | Tensor = 1.0,
        banned_ids: tuple[int, ...] = (), chunks: Chunks | None = None, lowest: bool = False,
    ) -> None:
        cells = logits.shape[:2] if source is None else source.shape
        super().__init__((*cells, logits.shape[-1]), logits, chunks)
        if self.dtype != torch.float64:
            self.dtype = torch.float32
        self.model_logits = logits
        self.flat = logits.view(-1, logits.shape[-1]) if logits.is_contiguous() else None
        self.source = source
        #: What scores are multiplied by: a number, or `[R, 1]`.
        self.factor: float | Tensor = (
            inverse_temperature(temperature, self.dtype)[:, None] if isinstance(temperature, Tensor)
            else 1.0 / temperature
        )
        self._normalise = compiled_softmax() if self.chunks.compile else softmax
        #: What is added to scores: 0, and -inf at banned tokens, `[A]`; None for nothing.
        self.ban: Tensor | None = None
        if banned_ids:
            self.banned_ids, self.ban = ban(banned_ids, logits.shape[-1], self.dtype, logits.device)
        self._lowest = lowest

    @cached_property
    def normaliser(self) -> Normaliser:
        """Of each cell, as far as it was read."""
        return Normaliser(self.rows, self.shape[-2], self)

    @cached_property
    def lowest(self) -> Tensor | None:
        """Least logit of each cell that was read, but for banned tokens, `[R, V]`; None if it is not wanted."""
        if not self._lowest:
            return None
        return torch.full(self.shape[:-1], -math.inf, dtype=self.dtype, device=self.device)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities and probabilities, `[R, V, A]` each (`Law.whole`)."""
        scores = self.model_logits if self.source is None else self._gathered().view(self.shape)
        scores = scores.to(self.dtype)
        if self.ban is not None:
            scores = scores + self.ban
        scores = scores - scores.amax(-1, keepdim=True)
        if not is_one(self.factor):
            scores *= self.factor[:, None] if isinstance(self.factor, Tensor) else self.factor
        probs = torch.softmax(scores, -1)
        log_total = probs.amax(-1, keepdim=True).log_()  # minus the normaliser: the greatest score is 0
        refuse(log_total.isnan(), _not_a_law)
        return scores.add_(log_total), probs

    def _gathered(self) -> Tensor:
        """Logits of all cells, `[R * V, A]`."""
        assert self.source is not None
        place = self.source.flatten()
        if self.flat is not None:
            return self.flat.index_select(0, place)
        width = self.model_logits.shape[1]
        return self.model_logits[place // width, place % width]

    def least(self, log_probs: Tensor) -> Tensor:
        """Least log-probability of each cell, but for banned tokens, `[R, V]` (`Law.least`)."""
        if self.ban is not None:
            log_probs = log_probs.index_fill(-1, self.banned_ids, math.inf)
        return log_probs.amin(-1)

    def _place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Which of the places of the logits cells read."""
        return rows * self.shape[-2] + positions if self.source is None else self.source[rows, positions]

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """`factor * (logit - peak) - log_total` of n cells: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        return self.scores(rows, positions, tokens).log_probs()

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """The logits of n cells, `[n, A]` or `[n, 1]`, as scores (`Law.scores`); reading all tokens makes the
        normaliser known."""
        raw = self.raw(rows, positions, tokens)
        if tokens is None and self.normaliser.read(rows, positions)[1] is not None:
            self._note(rows, positions, raw)
        normaliser = self._ensure(rows, positions)
        return Scores(raw, self._factor(rows), normaliser[:, :1], normaliser[:, 1:])

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Softmax of n cells, `[n, A]`; their normalisers are kept (`Law.probs`)."""
        return self._note(rows, positions, self.raw(rows, positions))

    def raw(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The logits of cells, float32 or better, -inf where banned; `[n, A]` or `[n, 1]`, perhaps the model's own."""
        place = self._place(rows, positions)
        if tokens is not None:
            raw = self._single(place, tokens).to(self.dtype)
            return raw if self.ban is None else raw + self.ban[tokens, None]
        if self.flat is None:
            raw = self.model_logits[place // self.model_logits.shape[1], place % self.model_logits.shape[1]]
        elif place.numel() == 1 and self.ban is None:
            raw = self.flat.narrow(0, int(place), 1)
        else:
            raw = self.flat.index_select(0, place)
        raw = raw.to(self.dtype)
        return raw if self.ban is None else raw.index_fill_(-1, self.banned_ids, -math.inf)  # in a copy of its own

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """The model's logits at one token of each of n cells, `[n]`, before temperature and bans (`Law.raw_at`)."""
        return self._single(self._place(rows, positions), tokens)[:, 0].to(self.dtype)

    def _single(self, place: Tensor, tokens: Tensor) -> Tensor:
        if self.flat is not None:
            return self.flat[place, tokens][:, None]
        width = self.model_logits.shape[1]
        return self.model_logits[place // width, place % width, tokens][:, None]

    def _factor(self, rows: Tensor) -> float | Tensor:
        return self.factor[rows] if isinstance(self.factor, Tensor) else self.factor

    def _ensure(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Peak and log-total of these cells, `[n, 2]`."""
        values, missing = self.normaliser.read(rows, positions)
        if missing is None:
            return values
        width = self.shape[-2]
        cell = torch.unique((rows * width + positions)[missing])
        for span in self.spans(cell.numel()):
            r, i = cell[span] // width, cell[span] % width
            self._note(r, i, self.raw(r, i))
        return self.normaliser.read(rows, positions)[0]

    def _note(self, rows: Tensor, positions: Tensor, raw: Tensor) -> Tensor:
        """Keep the normalisers of cells whose logits are at hand; returns their probabilities."""
        probs, peak, log_total = self._normalise(raw, self._factor(rows))
        refuse(~log_total.isfinite(), lambda at: _not_a_law((int(rows[at[0]]), int(positions[at[0]]))))
        self.normaliser.write(rows, positions, peak, log_total)
        if self.lowest is not None:
            if self.ban is not None:  # then `raw` is a copy, and it is -inf at banned tokens
                raw.index_fill_(-1, self.banned_ids, math.inf)
            self.lowest[rows, positions] = raw.amin(-1)
            if self.ban is not None:
                raw.index_fill_(-1, self.banned_ids, -math.inf)
        return probs

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Log-probability of the least logit of each cell, `[n]`, nats; -inf where it was not kept
        (`Law.lower_bound`)."""
        if self.lowest is None:
            return super().lower_bound(rows, positions)
        peak, log_total = self.normaliser.values[rows, positions].unbind(-1)
        factor = self.factor[rows, 0] if isinstance(self.factor, Tensor) else self.factor
        return factor * (self.lowest[rows, positions] - peak) - log_total


class TruncatedLaw(Law):
    """A law cut by top-k and top-p, and normalised again.

    Args:
        base: the law before the cut.
        shaping: gives `top_k` and `top_p`; its temperature and banned ids are not looked at.
    """

    def __init__(self, base: Law, shaping: Shaping) -> None:
        super().__init__(base.shape, base, base.chunks)
        self.base, self.shaping = base, shaping
        cells = (base.rows, base.shape[-2])
        self.known = torch.zeros(cells, dtype=torch.bool, device=base.device)
        #: Score and id of the last token that is kept, and the log-mass of all that are.
        self.value, self.log_mass = (torch.zeros(cells, dtype=base.dtype, device=base.device) for _ in range(2))
        self.last = torch.zeros(cells, dtype=torch.long, device=base.device)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities after the cut, -inf outside of it: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        self._ensure(rows, positions)
        found = self.base.scores(rows, positions, tokens)
        token = torch.arange(self.shape[-1], device=self.device) if tokens is None else tokens[:, None]
        kept = within_boundary(
            found.values, token, self.value[rows, positions][:, None], self.last[rows, positions][:, None]
        )
        return torch.where(kept, found.log_probs() - self.log_mass[rows, positions][:, None], -math.inf)

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """The model's logits at one token of each of n cells, `[n]`, as if nothing were cut (`Law.raw_at`)."""
        return self.base.raw_at(rows, positions, tokens)

    def _ensure(self, rows: Tensor, positions: Tensor) -> None:
        known = self.known[rows, positions]
        if bool(known.all()):
            return
        width = self.shape[-2]
        cell = torch.unique((rows * width + positions)[~known])
        for span in self.spans(cell.numel()):
            r, i = cell[span] // width, cell[span] % width
            found = self.base.scores(r, i)
            value, last, log_mass = kept_boundary(
                found.values, found.log_probs(), top_p=self.shaping.top_p, top_k=self.shaping.top_k
            )
            self.value[r, i], self.last[r, i], self.log_mass[r, i] = value[:, 0], last[:, 0], log_mass[:, 0]
            self.known[r, i] = True


def _not_a_law(at: tuple[int, ...]) -> str:
    """The message about a cell without a law."""
    return f"log_probs has NaN at (row, position) {list(at[:2])}: check the model's logits there"


@lru_cache(maxsize=64)
def ban(banned_ids: tuple[int, ...], size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Banned ids as a tensor, and what bans them when it is added to scores: 0, and -inf at these ids, `[A]`."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        ids = torch.tensor(banned_ids, device=device)
        return ids, torch.zeros(size, dtype=dtype, device=device).index_fill_(0, ids, -math.inf)


def truncated(base: Law, shaping: Shaping, *, width: int | None = None) -> Law:
    """`base` under the truncation of `shaping`; rows that share a row of the base go on sharing it.

    Args:
        width: V, if the base has but W positions (`model_law`).
    """
    if not shaping.truncates:
        return base
    if isinstance(base, Selected):
        return Selected(truncated(base.base, shaping), base.chosen, tuple(base.shape[:-2]))
    width = base.shape[-2] if width is None else width
    # Tokens are ranked by scores that no arithmetic has touched: those that a table was made from.
    return settled(TruncatedLaw(base.law if isinstance(base, Table) else base, shaping), width=width)


def model_law(
    logits: Tensor, source: Tensor | None, shaping: Shaping, *, temperature: Tensor | None = None,
    greedy: Tensor | None = None, chunks: Chunks | None = None, lowest: bool = False, width: int | None = None,
    kind: Callable[..., LogitLaw] = LogitLaw,
) -> Law:
    """The law `shaping.log_probs` of logits, computed where it is read, or at once if it is small.

    Args:
        logits, source, lowest: see `LogitLaw`.
        temperature: overrides the shaping's own, one per row `[R]`.
        greedy: which of these are 0, rows `[Q]`, in order; None for none.
        width: V, if the source has but the first W positions: the last one then stands for those after it.
        kind: makes the law of the logits before any cut, as `LogitLaw` does.
    """
    rows, given = logits.shape[:2] if source is None else source.shape
    chunks = Chunks() if chunks is None else chunks
    size = 8 if logits.dtype is torch.float64 else 4  # bytes of a log-probability
    if width is not None and given < width and not is_small((rows, given, logits.shape[-1]), size, chunks):
        own = torch.arange(rows * given, device=logits.device).view(rows, given) if source is None else source
        source = own.index_select(1, places(width, logits.device).clamp_max(given - 1))

    plain = partial(kind, logits, banned_ids=shaping.banned_ids, chunks=chunks)
    if temperature is None and shaping.temperature == 0.0:  # nothing is left to cut
        return settled(GreedyLaw(plain(source)), width=width)
    if temperature is None or greedy is None:
        warm = plain(source, temperature=shaping.temperature if temperature is None else temperature, lowest=lowest)
        return settled(truncated(warm, shaping, width=width), width=width)
    own = torch.arange(rows * given, device=logits.device).view(rows, given) if source is None else source
    cold = GreedyLaw(plain(own[greedy]))
    if greedy.numel() == rows:
        return settled(cold, width=width)
    warm = plain(source, temperature=temperature.index_fill(0, greedy, 1.0), lowest=lowest)
    return settled(Patched(truncated(warm, shaping), greedy, cold), width=width)
