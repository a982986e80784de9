"""What an approximate cache of the diffusion model costs: its marginals against those of recomputation.

A *meter* stands before a diffusion model with a cache. It scores every canvas twice, and hands on what the cache gives.
At the places that are used (a token of the forward's law was committed there) it notes, under the law that is drawn
from, `q` of the cache and `q*` of recomputation,

    KL(q || q*) = sum_x q log(q / q*)   and   sum_x min(q, q*) = 1 - TV(q, q*),

the share of draws that one law's speculative decoding would accept of the other's. No weight is wrong for it, since the
density of a draft is that of the very logits it was drawn from (docs/theory, condition C4); what is lost is acceptance,
and the last columns say how much: tokens per forward of the diffusion model with the cache, and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import numpy as np
import torch
from rich import box
from torch import Tensor

from smc_bridge.decode import decode
from smc_bridge.display import PrintedTable
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import said
from smc_bridge.models.caches import CachePolicy
from smc_bridge.models.host import listed
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import MASKED, Scored
from smc_bridge.registry import spelled


@dataclass
class _Scored:
    """A row of a forward: what the laws of its places differ by, and which were used, `[M]` each."""

    length: int
    masked: np.ndarray
    kl: np.ndarray
    overlap: np.ndarray
    used: np.ndarray


@dataclass
class CacheMeter:
    """A diffusion model whose sessions compare their marginals with those of recomputation.

    Attributes:
        model: with the cache that is measured; it has `with_cache` (`HuggingFaceMaskedLM`).
        temperature: at which both laws are compared.
        scored: a row of each forward that was made.
    """

    model: Any
    temperature: float = 1.0
    scored: list[_Scored] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def session(self, tokens: Tensor, length: Tensor) -> _Session:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count."""
        return _Session(self, tokens, length)

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """KL, nats, and overlap at all places that were used, `[n]` each."""
        kl, overlap = (
            np.concatenate([np.zeros(0), *(getattr(row, name)[row.used] for row in self.scored)])
            for name in ("kl", "overlap")
        )
        return kl, overlap


class _Session:
    """Session of a meter: that of the cache, and one that recomputes beside it."""

    def __init__(self, meter: CacheMeter, tokens: Tensor, length: Tensor) -> None:
        self.meter = meter
        self.kept = meter.model.session(tokens, length)
        self.exact = meter.model.with_cache("none").session(tokens, length)
        self.has_history = self.kept.has_history
        self._last: list[_Scored | None] = [None] * len(length)

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Logits of the cache, `[B, M, A]`, with its features if they are wanted."""
        scored = self.kept.score(rows, canvas, hidden=True) if hidden else None
        found: Tensor = self.kept.score(rows, canvas) if scored is None else scored.logits
        law = Shaping(self.meter.temperature, banned_ids=self.meter.model.banned_ids)
        q, exact = law.log_probs(found), law.log_probs(self.exact.score(rows, canvas))
        gap = torch.where(q > -torch.inf, q - exact, 0.0)
        kl = (q.exp() * gap).sum(-1).clamp_min(0.0).double().cpu().numpy()
        overlap = torch.minimum(q, exact).exp().sum(-1).double().cpu().numpy()
        index, shown = listed(rows, canvas)
        for b, r in enumerate(index):
            masked, n = np.array(shown[b]) == MASKED, self.kept.lengths[r]
            if (last := self._last[r]) is not None:  # what is known by now was drawn from the last forward
                place = last.length + np.arange(len(last.used)) - n
                inside = (place >= 0) & (place < len(masked))
                last.used[inside] |= last.masked[inside] & ~masked[place[inside]]
            row = _Scored(n, masked, kl[b], overlap[b], np.zeros(len(masked), dtype=bool))
            self.meter.scored.append(row)
            text = self.kept.texts[r, :n]
            for other, length in enumerate(self.kept.lengths):  # equal rows are served by one forward
                if length == n and (self.kept.texts[other, :n] == text).all() and other not in index[b + 1 :]:
                    self._last[other] = row
        return found if scored is None else scored

    @property
    def computed(self) -> np.ndarray | None:
        """Rows of the last `score` that the cache computed a forward for; None for all."""
        found: np.ndarray | None = getattr(self.kept, "computed", None)
        return found

    def commit(self, block: Tensor, length: Tensor) -> None:
        """See `Session`; what is committed was drawn from the forward before."""
        [counts] = listed(length)
        for row, n, count in zip(self._last, self.kept.lengths, counts, strict=True):
            if row is not None and count:
                first = n - row.length
                row.used[first : first + count] |= row.masked[first : first + count]
        self.kept.commit(block, length)
        self.exact.commit(block, length)

    def gather(self, ancestors: Tensor) -> None:
        """See `Session`."""
        [source] = listed(ancestors)
        self._last = [self._last[a] for a in source]
        self.kept.gather(ancestors)
        self.exact.gather(ancestors)

    def crop(self, length: Tensor) -> None:
        """See `Session`."""
        [lengths] = listed(length)
        self._last = [
            None if row is not None and n < row.length else row for row, n in zip(self._last, lengths, strict=True)
        ]
        self.kept.crop(length)
        self.exact.crop(length)


@dataclass(frozen=True)
class CacheError:
    """One policy under one method.

    Attributes:
        cache, method: which.
        places: that were used, of all prompts.
        kl, kl_max: `KL(q || q*)` at them, mean and greatest, nats per place.
        acceptance: mean of `sum_x min(q, q*)` there.
        tokens_per_forward, tokens_per_forward_exact: of the diffusion model, with the cache and without.
    """

    cache: str
    method: str
    places: int
    kl: float
    kl_max: float
    acceptance: float
    tokens_per_forward: float
    tokens_per_forward_exact: float


class CacheErrors(tuple[CacheError, ...]):
    """Policies and methods, a row each; its text is the table."""

    __slots__ = ()

    def table(self) -> PrintedTable:
        """The table, which can be printed."""
        table = PrintedTable(
            box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False,
            caption="KL in nats per place that was used; tokens per forward of the diffusion model",
        )
        table.add_column("method, cache", no_wrap=True)
        for name in ("places", "KL, mean", "KL, max", "acceptance", "tokens /\nforward", "without", "ratio"):
            table.add_column(name, justify="right")
        for row in self:
            with_it, without = row.tokens_per_forward, row.tokens_per_forward_exact
            table.add_row(
                f"{row.method}, {row.cache}", str(row.places), f"{row.kl:.2g}", f"{row.kl_max:.2g}",
                f"{row.acceptance:.4f}", f"{with_it:.2f}", f"{without:.2f}", f"{with_it / without:.3f}",
            )
        return table

    def __repr__(self) -> str:
        return repr(self.table())


def cache_error(
    pair: Pair, cache: str | CachePolicy | Sequence[str | CachePolicy], prompts: Sequence[Sequence[int]], *,
    method: str | Sequence[str], temperature: float = 0.2, seed: int = 0, max_new_tokens: int = 256,
    batch: int | None = None,
) -> CacheErrors:
    """What caches of the diffusion model cost, on the places that methods use.

    Args:
        pair: its diffusion model can have a cache (`HuggingFaceMaskedLM`).
        cache: a policy or its name (`smc_bridge.models.caches`), or several.
        prompts: token ids.
        method: a method as the registry spells it, without a temperature, or several.
        temperature: of the method, and of the laws that are compared.
        seed, max_new_tokens, batch: as of `decode`.
    Returns:
        For each method and cache a `CacheError`; the whole prints as a table.
    Raises:
        ValueError: there is no prompt, a diffusion model without caches, or a policy or method that is not known.
    Example:
        >>> from smc_bridge import load_pair
        >>> pair = load_pair("arithmetic", device="cpu")
        >>> prompts = [pair.encode("Ann has 3 apples. Ann buys 4. How many has Ann now?").tolist()]
        >>> error = cache_error(pair, "freecache:8", prompts, method="smc-1", max_new_tokens=12)[0]
        >>> error.places > 0 and error.kl >= 0
        True
    """
    if not len(prompts):
        raise ValueError("prompts is empty: give at least one, as token ids")
    dlm: Any = pair.dlm
    if not hasattr(dlm, "with_cache"):
        raise ValueError(f"pair = {said(pair)}: {type(dlm).__name__} has no cache; give a pair of transformers models")
    caches = [cache] if isinstance(cache, str | CachePolicy) else list(cache)
    found: list[CacheError] = []
    for name in [method] if isinstance(method, str) else method:
        chosen = spelled(f"{name},temperature={temperature:g}")

        def tokens_per_forward(model: Any, chosen: Any = chosen) -> float:
            """Tokens by forwards of the diffusion model, over all prompts."""
            decoder = chosen.make(replace(pair, dlm=model))
            results = decode(decoder, prompts, seed=seed, max_new_tokens=max_new_tokens, batch=batch)
            forwards = sum(r.forwards.dlm_forwards for r in results)
            if not forwards:
                raise ValueError(f"method = {chosen.text!r}: it runs no forward of the diffusion model; give another")
            return sum(r.tokens for r in results) / forwards

        without = tokens_per_forward(dlm.with_cache("none"))
        for each in caches:
            meter = CacheMeter(dlm.with_cache(each), temperature)
            with_it = tokens_per_forward(meter)
            kl, overlap = meter.used()
            found.append(CacheError(
                meter.model.cache, name, kl.size, float(kl.mean()), float(kl.max()), float(overlap.mean()), with_it,
                without,
            ))
    return CacheErrors(found)
