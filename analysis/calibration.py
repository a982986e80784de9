"""Rank test: is an exact sample of the target exchangeable with what the program draws?

*Conditional* (proper programs). A conditional SMC run that retains x, followed by a draw from its final weights, is a
Markov step `x -> x'`. Given the run's randomness, x and x' are two draws of the same weighted set, so the step is
*reversible* with respect to p (Andrieu, Doucet & Holenstein 2010; Chopin & Singh 2015). Start from an exact sample,
walk m steps "backwards" and M - m forwards, m uniform on 0..M: the chain is then an exact stationary path with the
exact sample at a uniform place in it, and for any statistic its rank among all M + 1 is uniform (Besag & Clifford
1989). No bias of order 1/N enters: the test is exact for every number of particles, and it runs on real models. With
one particle and one lane the step stays where it is: the test then says nothing.

*Direct* (any decoder). The exact sample stands at random among M independent outputs of the decoder. Its rank is
uniform only if the output law is p itself, so a proper program of few particles fails it too, given enough trials: this
is the test for decoders that have no conditional form, such as `released`.

Ties are broken at random. Uniformity of the ranks is judged by Pearson's chi-square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from smc_bridge.analysis.reverse import multinomial
from smc_bridge.analysis.runs import require_proper
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.requests import check_prompts
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed, numpy_generator

#: A number of a value: text, or token ids where the sampler knows no tokenizer.
Statistic = Callable[[Any], float]


@dataclass(frozen=True)
class RankTest:
    """Result of a rank test, with the ranks of the exact samples.

    Attributes:
        ranks: of every trial, 0 to `places - 1`.
        places: M + 1.
        statistic: Pearson's chi-square against the uniform law.
        p_value: probability of a statistic at least so large if the ranks are uniform.
    """

    ranks: npt.NDArray[np.int64]
    places: int
    statistic: float
    p_value: float

    def __str__(self) -> str:
        return f"ranks of {self.ranks.size} exact samples in {self.places} places: p = {self.p_value:.3g}"


def rank_test(
    sampler: Sampler, prompts: Sequence[Sequence[int]], statistic: Statistic, *, steps: int = 7,
    kind: Literal["conditional", "direct"] = "conditional", seed: int = 0, max_new_tokens: int = 256,
) -> RankTest:
    """Rank test with one trial per prompt (repeat a prompt for more: its place in the list changes its draws).

    Args:
        sampler: for the conditional test a proper program without potential whose lanes have their own weights.
        prompts: token ids, T of them.
        statistic: what is ranked; best one that takes many values.
        steps: M, comparisons per trial. The chi-square wants five trials per place and more: T >= 5 (M + 1).
        kind: see the module docstring.
        seed: of all draws.
        max_new_tokens: length limit.
    Raises:
        ValueError: fewer than 5 (M + 1) prompts, no steps, another kind, a potential, an improper program for the
            conditional test, or a statistic that is NaN.
    """
    steps = whole_number("steps", steps, remedy="compare with a whole number of draws, at least 1")
    if kind not in ("conditional", "direct"):
        raise ValueError(f"kind = {said(kind)}: choose 'conditional' or 'direct'")
    prompts = check_prompts(prompts, sampler.models, max_new_tokens=max_new_tokens)
    if len(prompts) < 5 * (steps + 1):
        raise ValueError(
            f"{len(prompts)} prompts for {steps + 1} places: give at least {5 * (steps + 1)}, or fewer steps"
        )
    if sampler.target.potential is not None:
        raise ValueError("the target has a potential: exact samples of it are not at hand")
    if kind == "conditional" and not sampler.proper:
        raise ValueError(
            f"method {sampler.name!r} has no conditional form ({'; '.join(sampler.why_improper())}): use kind='direct'"
        )
    rng = numpy_generator(Role.RANK, seed)
    exact = ar_sampling(
        sampler.target, prompts, seed=_seeds(seed, len(prompts), 0), max_new_tokens=max_new_tokens,
        detokenize=sampler.detokenize,
    )
    started = np.array([statistic(result.values[0]) for result in exact])
    chain = _conditional if kind == "conditional" else _direct
    others = chain(sampler, prompts, exact, statistic, steps, seed, max_new_tokens, rng)  # [T, M]
    undefined = int(np.isnan(started).sum() + np.isnan(others).sum())
    if undefined:
        raise ValueError(
            f"statistic is NaN for {undefined} of {started.size + others.size} values, which have no rank: give numbers"
        )
    below = (others < started[:, None]).sum(1)
    tied = (others == started[:, None]).sum(1)
    ranks = below + rng.integers(0, tied + 1)
    return rank_uniformity(ranks, steps + 1)


def rank_uniformity(ranks: npt.NDArray[np.int64], places: int) -> RankTest:
    """Pearson's chi-square of `ranks: [T]`, each 0 to `places - 1`, against the uniform law."""
    counts = np.bincount(ranks, minlength=places)
    expected = ranks.size / places
    statistic = float(np.square(counts - expected).sum() / expected)
    return RankTest(ranks, places, statistic, float(chdtrc(places - 1, statistic)))


def _seeds(seed: int, trials: int, step: int) -> list[int]:
    """Seeds of one step of every trial; step 0 is the exact sample."""
    return [derived_seed(Role.TRIAL, seed, trial, step) for trial in range(trials)]


def _conditional(
    sampler: Sampler, prompts: Sequence[Sequence[int]], exact: Sequence[Result], statistic: Statistic, steps: int,
    seed: int, limit: int, rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Statistics of the M other states of every trial's chain, `[T, M]`."""
    program = multinomial(sampler)
    turn = rng.integers(0, steps + 1, size=len(prompts))  # steps that are walked backwards
    start = [result.sequences[0] for result in exact]
    at = list(start)
    out = np.empty((len(prompts), steps))
    for step in range(steps):
        # Both walks leave from the exact sample: the second begins where the first has its length.
        at = [own if step == m else here for own, here, m in zip(start, at, turn, strict=True)]
        runs = program.run(
            prompts, seed=_seeds(seed, len(prompts), step + 1), max_new_tokens=limit, retained=at
        )
        require_proper(runs, "the conditional rank test", retained=True)
        chosen = [int(rng.choice(len(run.sequences), p=run.weights)) for run in runs]
        at = [run.sequences[i] for run, i in zip(runs, chosen, strict=True)]
        out[:, step] = [statistic(run.values[i]) for run, i in zip(runs, chosen, strict=True)]
    return out


def _direct(
    sampler: Sampler, prompts: Sequence[Sequence[int]], exact: Sequence[Result], statistic: Statistic, steps: int,
    seed: int, limit: int, rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Statistics of M independent outputs for every trial, `[T, M]`."""
    out = np.empty((len(prompts), steps))
    for step in range(steps):
        runs = sampler.run(prompts, seed=_seeds(seed, len(prompts), step + 1), max_new_tokens=limit)
        out[:, step] = [
            statistic(run.values[int(rng.choice(len(run.sequences), p=run.weights))]) for run in runs
        ]
    return out
