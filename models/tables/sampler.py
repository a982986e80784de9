"""Rows of a diffusion of numbers and categories, from noise: the stochastic sampler of TabDiff (arXiv 2410.20626).

A step from time t to s first goes back a little, to `t' = t + gamma t`: numbers get the noise that is missing,
categories are masked again with probability `1 - (1 - m(t')) / (1 - m(t))` (churn, of both kinds). Then numbers follow
`dx / dsigma = (x - D(x)) / sigma` from `sigma(t')` to `sigma(s)`, by Euler's step that Heun's corrects (Karras et al.
2022), and a mask is lifted with probability `(m(t') - m(s)) / m(t')`, its category drawn from the network's law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.models.arguments import real_number, said, true_or_false, whole_number
from smc_bridge.models.tables.noise import HIGH, LOW, Noise
from smc_bridge.models.tables.skipping import Skipping

#: Numbers, their noise, and categories, as the network sees them.
Seen = tuple[Tensor, Tensor, Tensor]
#: Most that a step goes back, as a share of its time (Karras et al. 2022).
MOST_CHURN = 2**0.5 - 1


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
        churn: how far a step goes back, as a share `churn / steps` of its time.
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
        if real_number("churn", self.churn, remedy="give a number of at least 0") < 0:
            raise ValueError(f"churn = {said(self.churn)}: give a number of at least 0")
        true_or_false("heun", self.heun)
        if not isinstance(self.skipping, Skipping | None):
            raise ValueError(f"skipping = {said(self.skipping)}: give Skipping(), or None")


def check_guidance(guidance: float) -> None:
    """Raise ValueError unless this is a weight of guidance, a number of at least 0."""
    remedy = "give a number of at least 0"
    if real_number("guidance", guidance, remedy=remedy) < 0:
        raise ValueError(f"guidance = {said(guidance)}: {remedy}")


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
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        for again in range(rounds := known.rounds if known else 1):
            back = min(t * (1 + gamma), 1.0)
            x = _noised(noise, x, t, back, source)
            if is_called:
                c = _masked(noise, c, held, max(held, back), model.masks, source)
                x, c = _step(see, x, c, back, s, max(held, back))
                held = s
            else:
                x = _moved(see, x, back, s, see.forecast)
            if again < rounds - 1:
                x, c, held = _noised(noise, x, s, t, source), _masked(noise, c, s, t, model.masks, source), t
    if known is not None:
        x, c = torch.where(known.numbers, known.scores, x), torch.where(known.others, known.categories, c)
    return Drawn(x, c, see.calls)


def _step(see: _Sight, x: Tensor, c: Tensor, t: float, s: float, held: float) -> tuple[Tensor, Tensor]:
    """Rows at time s of rows at t, whose masks are of the time `held`: x `[R, Cn]`, c `[R, Cc]`."""
    noise, source = see.model.noise, see.source
    clean, logits = see(x, c, t)
    m, left = _chance(noise, held, x), _chance(noise, s, x)
    is_lifted = (c == see.model.masks) & (source.uniform(c.shape[1], x) < (m - left) / m)
    c = torch.where(is_lifted, _categories(logits, source.uniform(c.shape[1], x)), c)
    return _moved(see, x, t, s, lambda y, time: clean if time == t else see(y, c, time)[0]), c


def _moved(see: _Sight, x: Tensor, t: float, s: float, clean: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Numbers at time s of those at t, `[R, Cn]`, by what tells the clean ones; Heun's step if it is wanted."""
    sigma, below = _sigma(see.model.noise, t, x), _sigma(see.model.noise, s, x)
    slope = (x - clean(x, t)) / sigma
    y = x + (below - sigma) * slope
    if see.sampling.heun and s > 0 and x.shape[1]:
        y = x + (below - sigma) * (slope + (y - clean(y, s)) / below) / 2
    return y


class _Sight:
    """The network on rows of which some columns are known, with guidance; counts its calls, and forecasts others."""

    def __init__(self, model: Denoiser, source: Source, known: Known | None, sampling: Sampling) -> None:
        self.model, self.source, self.known, self.sampling, self.calls = model, source, known, sampling, 0
        skipping, steps = sampling.skipping, sampling.steps
        self.plan = [True] * steps if skipping is None else skipping.calls(steps)
        self.past = None if skipping is None else skipping.forecast()

    def forecast(self, x: Tensor, t: float) -> Tensor:
        """Clean numbers of rows at time t, from the features of earlier calls."""
        assert self.past is not None, "no step is forecast"
        return self.model.clean(x, _sigma(self.model.noise, t, x), self.past.at(1 - t))

    def __call__(self, x: Tensor, c: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Clean numbers and logits of rows at time t."""
        sigma, known = _sigma(self.model.noise, t, x).expand_as(x), self.known
        if self.past is not None:
            self.calls += 1
            tokens, cut = self.model.tokens(x, sigma, c), x.shape[1]
            self.past.add(1 - t, tokens[:, :cut])
            return self.model.clean(x, sigma, tokens[:, :cut]), self.model.logits(tokens[:, cut:])
        if known is None:
            return self._call(x, sigma, c)
        masks, rows = self.model.masks, self.source
        if known.condition == "clean":
            seen = known.scores, torch.full_like(sigma, LOW), known.categories
        else:
            seen = (
                _noised(self.model.noise, known.scores, 0.0, t, rows), sigma,
                _masked(self.model.noise, known.categories, 0.0, t, masks, rows),
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


def _sigma(noise: Noise, t: float, like: Tensor) -> Tensor:
    """Level of noise at time t, `[Cn]`: none at 0, where rows are done."""
    return noise.sigma(torch.as_tensor(t).to(like)) if t > 0 else torch.zeros_like(noise.rho)


def _chance(noise: Noise, t: float, like: Tensor) -> Tensor:
    """Probability of a mask at time t, `[Cc]`."""
    return noise.masked(torch.as_tensor(t).to(like))


def _noised(noise: Noise, x: Tensor, t: float, later: float, source: Source) -> Tensor:
    """Numbers at a later time of those at t, `[R, Cn]`."""
    more = _sigma(noise, later, x) ** 2 - _sigma(noise, t, x) ** 2
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
