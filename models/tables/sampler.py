"""Rows of a diffusion of numbers and categories, from noise: the stochastic sampler of TabDiff (arXiv 2410.20626).

A step from time t to s first goes back a little: numbers get noise up to `sigma_j' = (1 + gamma) sigma_j(t)`, and with
`t' = min_j sigma_j^-1(sigma_j')` categories are masked again with probability `1 - (1 - m(t')) / (1 - m(t))` (churn, of
both kinds; none where t' is beyond 1). Then numbers follow `dx / dsigma = (x - D(x)) / sigma` from `sigma'` to
`sigma(s)`, by Euler's step that Heun's corrects (Karras et al. 2022), and a mask is lifted with probability
`(m(t') - m(s)) / m(t')`, its category drawn from the network's law. Both calls of Heun's step see what was masked
before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.models.arguments import real_between, said, true_or_false, whole_number
from smc_bridge.models.tables.noise import HIGH, LOW, Noise
from smc_bridge.models.tables.skipping import Skipping

#: Numbers, their noise, and categories, as the network sees them.
Seen = tuple[Tensor, Tensor, Tensor]
#: Most that a step goes back, as a share of its noise (Karras et al. 2022).
MOST_CHURN = 2**0.5 - 1
#: Greatest churn and guidance.
MOST_GIVEN = 1000.0


class Denoiser(Protocol):
    """What is drawn from: `TabDiff`."""

    noise: Noise

    @property
    def masks(self) -> Tensor:
        """Ids of the masks of the columns of categories, `[Cc]`."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Clean numbers and logits of categories."""
        ...

    def tokens(self, x: Tensor, sigma: Tensor, categories: Tensor) -> Tensor:
        """Features of the columns of numbers, then of categories; read where some steps are forecast."""
        ...

    def clean(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """Clean numbers of features of their columns."""
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of categories of features of their columns."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn.

    Attributes:
        steps: from noise to rows, at least 2.
        churn: how far a step goes back, as a share `churn / steps` of its noise.
        heun: whether a second call of the network corrects each step of the numbers.
        skipping: steps that are forecast rather than computed (`Skipping`). Default: none.
    Raises:
        ValueError: a value out of range.
    """

    steps: int = 50
    churn: float = 1.0
    heun: bool = True
    skipping: Skipping | None = None

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, least=2)
        real_between("churn", self.churn, 0.0, MOST_GIVEN, remedy=f"give a number from 0 to {MOST_GIVEN:g}")
        true_or_false("heun", self.heun)
        if not isinstance(self.skipping, Skipping | None):
            raise ValueError(f"skipping = {said(self.skipping)}: give Skipping(), or None")


def check_guidance(guidance: float) -> None:
    """Raise ValueError unless this is a weight of guidance, a number from 0 to `MOST_GIVEN`."""
    real_between("guidance", guidance, 0.0, MOST_GIVEN, remedy=f"give a number from 0 to {MOST_GIVEN:g}")


@dataclass(frozen=True)
class Known:
    """What is known of the rows to draw.

    Attributes:
        scores, categories: of the rows, `[R, Cn]` and `[R, Cc]`; read where known.
        numbers, others: which columns are known, `[Cn]` and `[Cc]`.
        guidance: w of `(1 + w) l_all - w l_y`.
        condition: how the network sees what is known: "clean", or through the noise of each step.
        rounds: times that each step is taken.
    """

    scores: Tensor
    categories: Tensor
    numbers: Tensor
    others: Tensor
    guidance: float = 0.0
    condition: Literal["clean", "noised"] = "clean"
    rounds: int = 1

    def over(self, seen: Seen, drawn: Seen) -> Seen:
        """What is `seen` of the known columns, beside the drawn ones."""
        return (
            torch.where(self.numbers, seen[0], drawn[0]), torch.where(self.numbers, seen[1], drawn[1]),
            torch.where(self.others, seen[2], drawn[2]),
        )

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        if self.condition not in ("clean", "noised"):
            raise ValueError(f"condition = {said(self.condition)}: give 'clean' or 'noised'")
        whole_number("rounds", self.rounds)


class Source:
    """Where draws come from: one generator for all rows, or one for each, in whose draws no other row has a part."""

    def __init__(self, generators: tuple[torch.Generator, ...], rows: int) -> None:
        self.generators, self.rows = generators, rows

    def normal(self, columns: int, like: Tensor) -> Tensor:
        """Normal numbers, `[R, columns]`."""
        return self._stack(torch.randn, columns, like)

    def uniform(self, columns: int, like: Tensor) -> Tensor:
        """Numbers from 0 to 1, `[R, columns]`."""
        return self._stack(torch.rand, columns, like)

    def _stack(self, make: Callable[..., Tensor], columns: int, like: Tensor) -> Tensor:
        each = self.rows // len(self.generators)
        return torch.cat([make(each, columns, generator=g) for g in self.generators]).to(like)


class Moment(NamedTuple):
    """How far rows are gone.

    Attributes:
        time: of the masks, from 1 to 0.
        sigma: noise of the columns of numbers, `[Cn]`.
    """

    time: float
    sigma: Tensor


class Drawn(NamedTuple):
    """Rows, and what they cost.

    Attributes:
        scores, categories: `[R, Cn]` and `[R, Cc]`.
        calls: of the network, with all rows.
    """

    scores: Tensor
    categories: Tensor
    calls: int


@torch.no_grad()
def draw(model: Denoiser, source: Source, sampling: Sampling, known: Known | None = None) -> Drawn:
    """Rows from noise, `source.rows` of them; what is `known` of them is not drawn."""
    noise, steps = model.noise, sampling.steps
    if sampling.skipping is not None and known is not None:
        raise ValueError("skipping of steps in rows of which some columns are known: leave it out")
    like = noise.rho.detach()
    see = _Sight(model, source, known, sampling)
    x, c = HIGH * source.normal(len(like), like), model.masks.expand(source.rows, -1)
    gamma, held = min(sampling.churn / steps, MOST_CHURN), 1.0  # the time that the masks of c are of
    for step, is_called in enumerate(see.plan):
        t, s = (_moment(noise, 1 - gone / steps, like) for gone in (step, step + 1))
        back = _back(noise, t, gamma)
        for again in range(rounds := known.rounds if known else 1):
            x = _noised(x, t, back, source)
            if is_called:
                c = _masked(noise, c, held, max(held, back.time), model.masks, source)
                x, c = _step(see, x, c, back, s, max(held, back.time))
                held = s.time
            else:
                x = _moved(see, x, back, s, see.forecast)
            if again < rounds - 1:
                x, c, held = _noised(x, s, t, source), _masked(noise, c, s.time, t.time, model.masks, source), t.time
    if known is not None:
        x, c = torch.where(known.numbers, known.scores, x), torch.where(known.others, known.categories, c)
    return Drawn(x, c, see.calls)


def _step(see: _Sight, x: Tensor, c: Tensor, t: Moment, s: Moment, held: float) -> tuple[Tensor, Tensor]:
    """Rows at s of rows at t, whose masks are of the time `held`: x `[R, Cn]`, c `[R, Cc]`."""
    noise, source = see.model.noise, see.source
    clean, logits = see(x, c, t)
    m, left = _chance(noise, held, x), _chance(noise, s.time, x)
    is_lifted = (c == see.model.masks) & (source.uniform(c.shape[1], x) < (m - left) / m)
    drawn = torch.where(is_lifted, _categories(logits, source.uniform(c.shape[1], x)), c)
    return _moved(see, x, t, s, lambda y, at: clean if at is t else see(y, c, at)[0]), drawn


def _moved(see: _Sight, x: Tensor, t: Moment, s: Moment, clean: Callable[[Tensor, Moment], Tensor]) -> Tensor:
    """Numbers at s of those at t, `[R, Cn]`, by what tells the clean ones; Heun's step if it is wanted."""
    slope = (x - clean(x, t)) / t.sigma
    y = x + (s.sigma - t.sigma) * slope
    if see.sampling.heun and s.time > 0 and x.shape[1]:
        y = x + (s.sigma - t.sigma) * (slope + (y - clean(y, s)) / s.sigma) / 2
    return y


class _Sight:
    """The network on rows of which some columns are known, with guidance; counts its calls, and forecasts others."""

    def __init__(self, model: Denoiser, source: Source, known: Known | None, sampling: Sampling) -> None:
        self.model, self.source, self.known, self.sampling, self.calls = model, source, known, sampling, 0
        skipping, steps = sampling.skipping, sampling.steps
        self.plan = [True] * steps if skipping is None else skipping.calls(steps)
        self.past = None if skipping is None else skipping.forecast()

    def forecast(self, x: Tensor, at: Moment) -> Tensor:
        """Clean numbers of rows at a moment, from the features of earlier calls."""
        assert self.past is not None, "no step is forecast"
        return self.model.clean(x, at.sigma, self.past.at(1 - at.time))

    def __call__(self, x: Tensor, c: Tensor, at: Moment) -> tuple[Tensor, Tensor]:
        """Clean numbers and logits of rows at a moment."""
        sigma, known = at.sigma.expand_as(x), self.known
        if self.past is not None:
            self.calls += 1
            tokens, cut = self.model.tokens(x, sigma, c), x.shape[1]
            self.past.add(1 - at.time, tokens[:, :cut])
            return self.model.clean(x, sigma, tokens[:, :cut]), self.model.logits(tokens[:, cut:])
        if known is None:
            return self._call(x, sigma, c)
        masks, rows = self.model.masks, self.source
        if known.condition == "clean":
            seen = known.scores, torch.full_like(sigma, LOW), known.categories
        else:
            seen = (
                _noised(known.scores, _moment(self.model.noise, 0.0, x), at, rows), sigma,
                _masked(self.model.noise, known.categories, 0.0, at.time, masks, rows),
            )
        clean, logits = self._call(*known.over(seen, (x, sigma, c)))
        if known.guidance:
            hidden = torch.zeros_like(x), torch.full_like(sigma, HIGH), masks.expand_as(c)
            without, fewer = self._call(*known.over(hidden, (x, sigma, c)))
            clean = clean + known.guidance * (clean - without)
            more = known.guidance * (logits - fewer)
            logits = logits + more.masked_fill(logits.isneginf(), 0.0)
        return clean, logits

    def _call(self, x: Tensor, sigma: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.model(x, sigma, c)


def _moment(noise: Noise, t: float, like: Tensor) -> Moment:
    """A time with its noise: none at 0, where rows are done."""
    return Moment(t, noise.sigma(torch.as_tensor(t).to(like)) if t > 0 else torch.zeros_like(noise.rho))


def _back(noise: Noise, at: Moment, gamma: float) -> Moment:
    """The moment that a step goes back to: more noise of every column, and the least time that a column has it at."""
    sigma = (1 + gamma) * at.sigma
    t = float(noise.time(sigma).amin()) if gamma and sigma.numel() else 2.0
    return at if t > 1 else Moment(t, sigma)


def _chance(noise: Noise, t: float, like: Tensor) -> Tensor:
    """Probability of a mask at time t, `[Cc]`."""
    return noise.masked(torch.as_tensor(t).to(like))


def _noised(x: Tensor, t: Moment, later: Moment, source: Source) -> Tensor:
    """Numbers at a later moment of those at t, `[R, Cn]`."""
    more = later.sigma**2 - t.sigma**2
    return x + more.clamp_min(0).sqrt() * source.normal(x.shape[1], x)


def _masked(noise: Noise, c: Tensor, t: float, later: float, masks: Tensor, source: Source) -> Tensor:
    """Categories at a later time of those at t, `[R, Cc]`."""
    like = noise.rho.detach()
    before, after = _chance(noise, t, like), _chance(noise, later, like)
    chance = 1 - (1 - after) / (1 - before).clamp_min(1e-12)
    return torch.where(source.uniform(c.shape[1], like) < chance, masks, c)


def _categories(logits: Tensor, uniform: Tensor) -> Tensor:
    """Ids drawn from logits `[R, Cc, A]` by one number of 0 to 1 each, `[R, Cc]`."""
    if not logits.shape[1]:
        return uniform.long()
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = (cumulative < uniform.double()[..., None] * cumulative[..., -1:]).sum(-1)
    return drawn.clamp_max(logits.shape[-1] - 1)
