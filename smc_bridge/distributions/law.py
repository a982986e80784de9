"""`Law`: from logits to the one normalised law that is sampled, accepted against, and scored.

Temperature, top-k, top-p and banned ids are part of the law (design 2.1, condition C4): they are applied here and
nowhere else, in this order: banned ids, temperature, top-k, top-p. Probabilities are float32 or better whatever the
model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.arguments import real_number, whole_number


def check_no_nan(log_probs: Tensor, name: str) -> None:
    """Raise ValueError naming row and position if `log_probs: [..., A]` has a NaN."""
    bad = log_probs.isnan().any(-1)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has NaN at (row, ..., position) {where}: check the model's logits there")


#: What top-p can be.
TOP_P = "give a mass in (0, 1]; 1 keeps every token"


@dataclass(frozen=True)
class Law:
    """Temperature and truncation of a model's conditionals.

    Attributes:
        temperature: divides the logits; positive.
        top_p: keep the smallest set of likeliest tokens with at least this mass, in (0, 1]; 1 keeps all.
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
        set_once(self, "top_p", real_number("top_p", self.top_p, remedy=TOP_P))
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p = {self.top_p}: {TOP_P}")
        if self.top_k is not None:
            set_once(self, "top_k", whole_number("top_k", self.top_k, remedy="keep at least 1 token, or None for all"))

    @property
    def truncates(self) -> bool:
        """Whether tokens that the model gives mass to can have probability zero."""
        return self.top_p < 1.0 or self.top_k is not None

    def log_probs(self, logits: Tensor, temperature: Tensor | None = None) -> Tensor:
        """Normalised log-probabilities, `[..., A]` -> `[..., A]`.

        Args:
            logits: of any float dtype; -inf is legal.
            temperature: overrides the law's own, broadcast against `logits` (one per lane: `[K, 1, 1]`).
        Raises:
            ValueError: a NaN in the logits, or a row without any token left.
        """
        scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        if self.banned_ids:
            index = torch.tensor(self.banned_ids, device=scores.device)
            scores = scores.index_fill(-1, index, -math.inf)
        if temperature is not None:
            scores = scores / temperature.to(scores.dtype)
        elif self.temperature != 1.0:
            scores = scores / self.temperature
        log_probs = torch.log_softmax(scores, -1)
        check_no_nan(log_probs, "log_probs")
        if self.truncates:
            value, last, log_mass = kept_boundary(log_probs, top_p=self.top_p, top_k=self.top_k)
            kept = within_boundary(log_probs, torch.arange(log_probs.shape[-1], device=log_probs.device), value, last)
            log_probs = torch.where(kept, log_probs - log_mass, -math.inf)
        return log_probs


#: Likeliest tokens among which the boundary of top-p is sought before all of them are sorted.
LIKELIEST = 1024


def kept_boundary(log_probs: Tensor, *, top_p: float, top_k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What top-k, then top-p, keep of normalised `log_probs: [..., A]`: see `within_boundary`.

    Among tokens of equal probability those of smaller id are kept.

    Returns:
        log-probability of the least likely token that is kept, its id, and the log-mass of all that are, `[..., 1]`.
    """
    size = log_probs.shape[-1]
    if top_k is not None and top_k < size:
        ordered = log_probs.topk(top_k, dim=-1).values
        count = _within_mass(ordered - ordered.logsumexp(-1, keepdim=True), top_p)
    else:
        some = size > 4 * LIKELIEST
        ordered = log_probs.topk(LIKELIEST, dim=-1).values if some else log_probs.sort(dim=-1, descending=True).values
        count = _within_mass(ordered, top_p)
        if some and bool((count == LIKELIEST).any()):
            ordered = log_probs.sort(dim=-1, descending=True).values
            count = _within_mass(ordered, top_p)
    value = ordered.gather(-1, count - 1)
    equal = log_probs == value
    wanted = count - (log_probs > value).sum(-1, keepdim=True)
    last = (equal.cumsum(-1) >= wanted).to(torch.uint8).argmax(-1, keepdim=True)
    kept = within_boundary(log_probs, torch.arange(size, device=log_probs.device), value, last)
    return value, last, log_probs.masked_fill(~kept, -math.inf).logsumexp(-1, keepdim=True)


def _within_mass(ordered: Tensor, top_p: float) -> Tensor:
    """How many of the likeliest tokens make up the mass `top_p`, of log-probabilities in falling order, `[..., 1]`."""
    if top_p >= 1.0:
        return torch.full_like(ordered[..., :1], ordered.shape[-1], dtype=torch.long)
    probs = ordered.exp()
    before = probs.cumsum(-1) - probs
    return (before < top_p).sum(-1, keepdim=True)


def within_boundary(log_probs: Tensor, token: Tensor, value: Tensor, last: Tensor) -> Tensor:
    """Whether tokens are kept by `kept_boundary`: likelier than its last token, or as likely and of no larger id."""
    return (log_probs > value) | ((log_probs == value) & (token <= last))


def check_temperature(temperature: Any) -> float:
    """The temperature as a number; ValueError unless it is positive and finite."""
    found = real_number("temperature", temperature, remedy="give a positive number")
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"temperature = {temperature}: give a positive number")
    return found


def as_ids(banned_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Sorted, distinct ids; ValueError if one is outside the alphabet or none would be left."""
    ids = tuple(sorted(set(int(i) for i in banned_ids)))
    if ids and (ids[0] < 0 or ids[-1] >= vocab_size):
        raise ValueError(f"banned_ids = {list(ids)}: ids lie in 0..{vocab_size - 1}")
    if len(ids) >= vocab_size:
        raise ValueError(f"banned_ids bans all {vocab_size} tokens: leave at least one")
    return ids
