"""`Shaping`: from logits to the one normalised law that is sampled, accepted against, and scored.

Temperature, top-k, top-p and banned ids are part of the law (docs/theory, sections 1 and 6, condition C4): they are
applied here and nowhere else, in this order: banned ids, temperature, top-k, top-p. Probabilities are float32 or better
whatever the model's dtype. At temperature 0 the law is the point mass at the greatest logit, the smallest id of equal
ones: the limit of small temperatures where one logit is the greatest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.models.arguments import real_between, real_number, said, whole_number, whole_numbers
from smc_bridge.models.ends import ends_of
from smc_bridge.models.host import known
from smc_bridge.sampling import Scores, softmax


def check_no_nan(log_probs: Tensor, name: str) -> None:
    """Raise ValueError naming row and position if `log_probs: [..., A]` has a NaN."""
    bad = log_probs.isnan().any(-1)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has NaN at (row, ..., position) {where}: check the model's logits there")


#: What top-p can be.
TOP_P = "give a mass in (0, 1]; 1 keeps every token"


@dataclass(frozen=True)
class Shaping:
    """From logits to a law: temperature and truncation of a model's conditionals.

    Attributes:
        temperature: divides the logits; 0 leaves the likeliest token alone (greedy).
        top_p: keep the smallest set of likeliest tokens with at least this mass, in (0, 1], up to round-off
            (`ROUND_OFF`); 1 keeps all.
        top_k: keep this many likeliest tokens; None keeps all.
        banned_ids: tokens of probability zero.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        set_once = object.__setattr__  # the class is frozen
        set_once(self, "temperature", check_temperature(self.temperature))
        set_once(self, "top_p", check_top_p(self.top_p))
        if self.top_k is not None:
            set_once(self, "top_k", whole_number("top_k", self.top_k, remedy="keep at least 1 token, or None for all"))

    @property
    def truncates(self) -> bool:
        """Whether tokens that the model gives mass to can have probability zero."""
        return self.top_p < 1.0 or self.top_k is not None

    @property
    def is_point(self) -> bool:
        """Whether every law is a point mass: temperature 0, or a top-k of 1."""
        return self.temperature == 0.0 or self.top_k == 1

    def settings(self) -> dict[str, Any]:
        """Temperature and truncation as plain data, for saved results."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    def log_probs(self, logits: Tensor, temperature: Tensor | None = None) -> Tensor:
        """Normalised log-probabilities, `[..., A]` -> `[..., A]`.

        Args:
            logits: of any float dtype; -inf is legal.
            temperature: overrides the law's own, expanded to the shape of `logits` (one per lane: `[K, 1, 1]`).
        Raises:
            ValueError: a NaN in the logits, or a row without any token left.
        """
        scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        if self.banned_ids:
            index = torch.tensor(self.banned_ids, device=scores.device)
            scores = scores.index_fill(-1, index, -math.inf)
        greedy = None
        if temperature is not None:
            greedy = temperature == 0.0 if bool((known(temperature) == 0.0).any()) else None
            warm = temperature if greedy is None else temperature.masked_fill(greedy, 1.0)
            factor: float | Tensor = inverse_temperature(warm, scores.dtype)
        elif self.temperature == 0.0:
            return point_mass(scores)
        else:
            factor = 1.0 / self.temperature
        _, peak, log_total = softmax(scores, factor)
        log_probs = Scores(scores, factor, peak, log_total).log_probs()
        check_no_nan(log_probs, "log_probs")
        if self.truncates:
            value, last, log_mass = kept_boundary(scores, log_probs, top_p=self.top_p, top_k=self.top_k)
            kept = within_boundary(scores, torch.arange(scores.shape[-1], device=scores.device), value, last)
            log_probs = torch.where(kept, log_probs - log_mass, -math.inf)
        return log_probs if greedy is None else torch.where(greedy, point_mass(scores), log_probs)


def inverse_temperature(temperature: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor of the scores, `1 / temperature` rounded once to their dtype: `[...]` -> `[...]`."""
    return temperature.double().reciprocal().to(dtype)


def point_mass(scores: Tensor) -> Tensor:
    """Log-probabilities of the first token of greatest score alone, `[..., A]` -> `[..., A]`.

    Raises:
        ValueError: NaN, +inf, or no token left.
    """
    peak, token = scores.max(-1, keepdim=True)
    law = torch.full_like(scores, -math.inf).scatter_(-1, token, 0.0)
    check_no_nan(law.masked_fill_(~peak.isfinite(), math.nan), "log_probs")
    return law


#: Likeliest tokens among which the boundary of top-p is sought before all of them are sorted.
LIKELIEST = 1024
#: Round-off of a mass C, as a share of C (1 - C), within which it counts as `top_p`. Relative errors of at most d in
#: the probabilities move C by at most 2 d C (1 - C); float32 rounds a log-probability three times, so that d = 5e-6
#: covers all tokens within 25 nats of the likeliest one.
ROUND_OFF = 1e-5


def kept_boundary(
    scores: Tensor, log_probs: Tensor, *, top_p: float, top_k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What top-k, then top-p, keep of the law `log_probs: [..., A]`: see `within_boundary`.

    Tokens are ranked by their scores, which no arithmetic has touched, and masses are added up in float64 and compared
    with `top_p` up to round-off: paths that compute the law differently, or in another dtype, keep the same tokens.
    Among tokens of equal score those of smaller id are kept.

    Args:
        scores: what the law is an increasing function of, `[..., A]`.
        log_probs: the law, normalised up to round-off.
    Returns:
        score of the least likely token that is kept, its id, and the log-mass of all that are, `[..., 1]`.
    """
    size, probs = scores.shape[-1], log_probs.exp()
    if top_k is not None and top_k < size:
        ordered, count = _likeliest(scores, probs, top_k, top_p, None)
    else:
        some = LIKELIEST if size > 4 * LIKELIEST else size
        total = probs.sum(-1, keepdim=True, dtype=torch.float64)
        ordered, count = _likeliest(scores, probs, some, top_p, total)
        if some < size and bool((count == some).any()):
            ordered, count = _likeliest(scores, probs, size, top_p, total)
    value = ordered.gather(-1, (count - 1).clamp_min(0))  # of NaN nothing is counted
    equal = scores == value
    wanted = count - (scores > value).sum(-1, keepdim=True)
    last = (equal.cumsum(-1) >= wanted).to(torch.uint8).argmax(-1, keepdim=True)
    kept = within_boundary(scores, torch.arange(size, device=scores.device), value, last)
    mass = torch.where(kept, probs, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
    return value, last, mass.log().to(log_probs.dtype)


def _likeliest(
    scores: Tensor, probs: Tensor, some: int, top_p: float, total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores of the `some` likeliest tokens in falling order, and how many of them make up `top_p`, `[..., 1]`.

    Args:
        total: the mass that `top_p` is a share of, `[..., 1]`; None for that of the `some` tokens.
    """
    ordered, index = scores.topk(some, dim=-1) if some < scores.shape[-1] else scores.sort(dim=-1, descending=True)
    if top_p >= 1.0:
        return ordered, torch.full_like(index[..., :1], some)
    mass = probs.gather(-1, index).double()
    reached = mass.cumsum(-1)
    total = reached[..., -1:] if total is None else total
    enough = top_p - ROUND_OFF * top_p * (1.0 - top_p)
    return ordered, (reached - mass < enough * total).sum(-1, keepdim=True)


def within_boundary(scores: Tensor, token: Tensor, value: Tensor, last: Tensor) -> Tensor:
    """Whether each token is kept by `kept_boundary`, a BoolTensor of the shape of `scores: [..., A]` or `[..., 1]`.

    A token is kept if its score is greater than that of the last one kept, or equal and its id no larger.
    """
    return (scores > value) | ((scores == value) & (token <= last))


#: Positive temperatures between which 1 / temperature is a normal number in float32 (1.2e-38 to 3.4e38).
COLDEST, HOTTEST = 3e-39, 8e37


def check_temperature(temperature: Any, *, name: str = "temperature") -> float:
    """The temperature as a number; ValueError unless it is 0 or float32 holds its inverse."""
    remedy = (
        f"give 0 for the likeliest token alone, or a number between {COLDEST:g} and {HOTTEST:g}, so that float32 holds "
        "1 / temperature"
    )
    found = real_number(name, temperature, remedy=remedy)
    return abs(found) if found == 0 else real_between(name, temperature, COLDEST, HOTTEST, remedy=remedy)


def check_top_p(top_p: Any, *, name: str = "top_p") -> float:
    """The mass as a number; ValueError unless it lies in (0, 1]."""
    found = real_between(name, top_p, 0.0, 1.0, remedy=TOP_P)
    if found == 0.0:
        raise ValueError(f"{name} = {said(top_p)}: {TOP_P}")
    return found


def check_model(model: Any, kind: str) -> None:
    """Raise ValueError unless this is a model of a pair; `kind` for the message."""
    for name in ("vocab_size", "eos_id", "banned_ids", "device", "max_length", "min_length", "session"):
        if not hasattr(model, name):
            raise ValueError(f"model = {said(model)} has no {name}: give the {kind} model of a pair")
    ends_of(model.eos_id, model.vocab_size)


def as_ids(banned_ids: Iterable[int], vocab_size: int, *, also: Iterable[int] = ()) -> tuple[int, ...]:
    """Sorted, distinct ids, those of a user and `also` those of a model.

    Raises:
        ValueError: one is no whole number or outside the alphabet, or none would be left.
    """
    given = sorted(banned_ids) if isinstance(banned_ids, Set) else banned_ids
    more = whole_numbers("banned_ids", given, remedy=f"give a list of ids in 0..{vocab_size - 1}")
    ids = tuple(sorted({*map(int, also), *more}))
    if ids and (ids[0] < 0 or ids[-1] >= vocab_size):
        raise ValueError(f"banned_ids = {said(list(ids))}: ids lie in 0..{vocab_size - 1}")
    if len(ids) >= vocab_size:
        raise ValueError(f"banned_ids bans all {vocab_size} tokens: leave at least one")
    return ids
