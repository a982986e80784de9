"""Commit rules: which places of a canvas a diffusion model's decoder fills after a forward (see `Canvas`).

A rule is a function from a `Look` to a `Commit`. It may read the law that tokens are drawn from, or the model's own;
decide before tokens are drawn, or see one for every place; and mask filled places again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from smc_bridge.models.arguments import said, true_or_false, whole_number
from smc_bridge.models.checks import refuse
from smc_bridge.plugins import check_tensor, foreign
from smc_bridge.sampling import entropy

#: In which order a diffusion model's decoder commits positions.
Order = Literal["left_to_right", "entropy", "confidence"]
#: The order of greatest top probability.
SUREST_FIRST: Order = "confidence"


@dataclass(frozen=True)
class Look:
    """What a rule sees after a forward: R rows, the first T places of their canvases that the model was shown.

    Attributes:
        log_q: the law that tokens are drawn from, `[R, T, A]`.
        plain: computes `log_q_plain` when it is first asked for: the model's own law, at temperature 1 and without
            truncation, `[R, T, A]`.
        canvas: what stands in each place, `[R, T]`: a token, `MASKED`, or `ABSENT` where a row has no place.
        open: places that may be filled now, BoolTensor `[R, T]`; at least one in each row.
        step: forwards of each row before this one, `[R]`.
        tokens: a token drawn for every place, `[R, T]`, or None for a rule that decides before.
        noise: uniforms on [0, 1) of each prompt's own generator, float64 `[R, T]`, for a rule that is `noisy`.
        held: places whose token was planted and stays, BoolTensor `[R, T]`; None for none.
        limit: places of the whole canvas, of which T are shown; None for T.
        anchors: places of the whole canvas whose token was planted, whether they are shown or not.
    """

    log_q: Tensor
    plain: Callable[[], Tensor]
    canvas: Tensor
    open: Tensor
    step: Tensor
    tokens: Tensor | None = None
    noise: Tensor | None = None
    held: Tensor | None = None
    limit: int | None = None
    anchors: int = 0

    @cached_property
    def log_q_plain(self) -> Tensor:
        """The model's own law, at temperature 1 and without truncation, `[R, T, A]`."""
        return self.plain()

    @property
    def filled(self) -> Tensor:
        """Places that hold a token which was not planted, BoolTensor `[R, T]`: those that may be masked again."""
        return self.canvas >= 0 if self.held is None else (self.canvas >= 0) & ~self.held


class Commit(NamedTuple):
    """What a rule decides after a forward.

    Attributes:
        places: that are filled now, BoolTensor `[R, T]`: open ones, at least one in each row.
        remask: that are masked again, BoolTensor `[R, T]`: filled ones; None for none.
        edit: whose token gives way to the likeliest one of the model's own law, BoolTensor `[R, T]`: filled ones; None
            for none.
        finish: rows of which every mask is filled by the likeliest token of the model's own law, whatever `places`
            says, BoolTensor `[R]`; None for none.
        cut: first place of each row that is no more from now on, LongTensor `[R]`, behind all that is filled now and
            all that was planted; T cuts off nothing. None for no row.
    """

    places: Tensor
    remask: Tensor | None = None
    edit: Tensor | None = None
    finish: Tensor | None = None
    cut: Tensor | None = None


class CommitRule(Protocol):
    """Decides which places of a canvas are filled after a forward.

    A rule may also have `noisy` (whether it reads `Look.noise`; False without it), `looks_back` (whether it reads
    laws of places that are filled; True without it), `check_limit` (raises ValueError if a canvas of so many places is
    too short for it), and `fill(look, commit, uniform, law)`, by which it draws the tokens of `commit.places` itself
    where they are not drawn from each place's own law, `[R, T]`: `uniform: [R, T]` are the draws of each place, and
    `law` makes logits `[n, A]` log-probabilities at the decoder's temperature and truncation. It may leave places
    `MASKED`, though not all of a row.
    """

    @property
    def before_sampling(self) -> bool:
        """Whether it decides before tokens are drawn (from the laws alone), or sees a token for every place."""
        ...

    def __call__(self, look: Look) -> Commit:
        """The places to fill, and those to mask again."""
        ...


def foremost(eager: Tensor, among: Tensor, count: int | Tensor) -> Tensor:
    """The `count` greatest of `eager` in each row, as far as there are so many; the earlier of equal ones first.

    Args:
        eager: `[R, T]`.
        among: the places that count, BoolTensor `[R, T]`.
        count: of each row, `[R]`, or of all.
    Returns:
        BoolTensor `[R, T]`.
    """
    order = eager.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # Of what is not among them, and of masses of zero, both -inf, the former go last.
    order = order.take_along_dim((~among).take_along_dim(order, 1).to(torch.uint8).argsort(dim=1, stable=True), 1)
    many = torch.as_tensor(count, device=eager.device).reshape(-1, 1)
    rank = order.argsort(dim=1)
    return among & (rank < many)


@dataclass(frozen=True)
class Ordered:
    """Fill the first `tokens` open places in some order of their laws.

    Attributes:
        order: "entropy", least first; "confidence", greatest top probability first; "left_to_right", by place.
        tokens: how many per forward.
        tempered: whether entropy and confidence are those of the law that tokens are drawn from, after temperature and
            truncation, or those of the model's own law.
    """

    order: Order = "left_to_right"
    tokens: int = 1
    tempered: bool = False
    before_sampling: ClassVar[bool] = True
    looks_back: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order = {said(self.order)}: give one of {', '.join(get_args(Order))}")
        tokens = whole_number("tokens", self.tokens, remedy="commit at least 1, a whole number")
        object.__setattr__(self, "tokens", tokens)  # the class is frozen
        object.__setattr__(self, "tempered", true_or_false("tempered", self.tempered))

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        log_q = look.log_q if self.tempered or self.order == "left_to_right" else look.log_q_plain
        eager = self.eagerness(log_q).masked_fill(~look.open, -torch.inf)
        first = eager.topk(min(look.open.shape[1], self.tokens))
        return Commit(torch.zeros_like(look.open).scatter(1, first.indices, first.values > -torch.inf))

    def eagerness(self, log_q: Tensor) -> Tensor:
        """How eagerly each place is filled, `[R, T, A]` -> `[R, T]`; the greatest first."""
        if self.order == "entropy":
            return -entropy(log_q)
        if self.order == SUREST_FIRST:
            return log_q.amax(-1)
        return -torch.arange(log_q.shape[1], device=log_q.device, dtype=log_q.dtype).expand(log_q.shape[:2])


@dataclass(frozen=True)
class AllAtOnce:
    """Commit rule that fills every open place after one forward."""

    before_sampling: ClassVar[bool] = True

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        return Commit(look.open)


class ByAnother:
    """What a rule that goes by another one says of itself; it has the other as `rule`."""

    rule: CommitRule

    @property
    def before_sampling(self) -> bool:
        """Whether `rule` decides before tokens are drawn."""
        return self.rule.before_sampling

    @property
    def noisy(self) -> bool:
        """Whether `rule` reads noise."""
        return is_noisy(self.rule)


@dataclass(frozen=True)
class Reconsider(ByAnother):
    """Fill places by `rule`, and mask the least sure tokens again during a row's first forwards.

    A token is as sure as its probability in the model's own law, with all the canvas in view.

    Attributes:
        rule: fills places.
        tokens: how many are masked again per forward.
        forwards: of a row in which this happens; afterwards the rule goes on alone, so that the canvas fills.
    """

    rule: CommitRule = Ordered(SUREST_FIRST, 2)
    tokens: int = 1
    forwards: int = 8

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)
        tokens = whole_number("tokens", self.tokens, remedy="mask at least 1 again, a whole number")
        forwards = whole_number("forwards", self.forwards, remedy="reconsider in at least 1 forward, a whole number")
        object.__setattr__(self, "tokens", tokens)  # the class is frozen
        object.__setattr__(self, "forwards", forwards)

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        sure = look.log_q_plain.gather(-1, look.canvas.clamp_min(0)[..., None])[..., 0]
        doubt = (-sure).masked_fill(~look.filled | (look.step >= self.forwards)[:, None], -torch.inf)
        least = doubt.topk(min(look.open.shape[1], self.tokens))
        again = torch.zeros_like(look.open).scatter(1, least.indices, least.values > -torch.inf)
        return Commit(self.rule(look).places, again)


def is_noisy(rule: CommitRule) -> bool:
    """Whether a rule reads `Look.noise`."""
    return bool(getattr(rule, "noisy", False))


def looks_back(rule: CommitRule) -> bool:
    """Whether a rule may read the laws of places that are filled."""
    return bool(getattr(rule, "looks_back", True))


def check_limit(rule: CommitRule, limit: int) -> None:
    """Raise ValueError if a canvas of `limit` places is too short for a rule, or for one that it goes by."""
    check, inner = getattr(rule, "check_limit", None), getattr(rule, "rule", None)
    if check is not None:
        check(limit)
    if inner is not None:
        check_limit(inner, limit)


def check_rule(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a commit rule."""
    if isinstance(value, type) or not callable(value) or not hasattr(value, "before_sampling"):
        raise ValueError(f"{name} = {said(value)}: give a commit rule, such as Ordered()")


def _from_outside(rule: CommitRule) -> bool:
    """Whether a rule, or one that it goes by (`Reconsider.rule`), comes from outside of this package."""
    inner = getattr(rule, "rule", None)
    return foreign(rule) or (inner is not None and _from_outside(inner))


def _copied(look: Look) -> Look:
    """The same, in memory of its own."""
    tensors = ("log_q", "canvas", "open", "step", "tokens", "noise", "held")
    own: dict[str, Any] = {name: None if (x := getattr(look, name)) is None else x.clone() for name in tensors}
    return replace(look, plain=lambda: look.log_q_plain.clone(), **own)


def checked(rule: CommitRule, look: Look) -> Commit:
    """What a rule decides, if it keeps its word. One from outside of this package sees copies: it may write to them.

    Raises:
        ValueError: it returned anything but what `Commit` says.
    """
    name = f"rule {type(rule).__name__}"
    commit: Any = rule(_copied(look) if _from_outside(rule) else look)
    if not isinstance(commit, Commit):
        raise ValueError(f"{name} returned {said(commit)}: return a Commit")
    places, again, edit, _, cut = commit
    for field, found in zip(Commit._fields, commit, strict=True):
        if found is not None or field == "places":
            shape = tuple(look.open.shape[: 1 if field in ("finish", "cut") else 2])
            check_tensor(found, f"{field} of {name}", shape, "int64" if field == "cut" else "bool", look.open.device)
    closed, nowhere = places & ~look.open, torch.zeros_like(look.open)
    empty = nowhere if again is None else again & ~look.filled
    blank = nowhere if edit is None else edit & ~(look.filled if again is None else look.filled & ~again)
    none, lost = ~places.any(1, keepdim=True), nowhere
    if cut is not None:
        kept = places if look.held is None else places | look.held
        lost = kept & (torch.arange(places.shape[1], device=cut.device) >= cut[:, None])
    if bool((closed | empty | blank | none | lost).any()):  # one read from the device
        for bad, said_of in (
            (closed, "fills place {1} of row {0}, which is not open: keep to look.open"),
            (empty, "masks place {1} of row {0}, which holds no token: keep to look.filled"),
            (blank, "edits place {1} of row {0}, which keeps no token: keep to look.filled and off remask"),
            (none, "fills no place of row {0}: fill at least one open place of each row"),
            (lost, "cuts off place {1} of row {0}, which is filled now or was planted: cut behind it"),
        ):
            refuse(bad, lambda at, text=said_of: f"{name} {text.format(*at)}")  # type: ignore[misc]
    return commit
