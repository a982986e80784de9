"""The other direction: conditional runs that retain an exact AR sample bound `KL(p || r)`, and both bounds together.

An exact draw `x* ~ p` (ancestral sampling, always possible without a potential) is retained in a conditional SMC run.
That run is then an exact draw from the extended target, so `KL(p || r) <= E[log Z_hat_cond]` (docs/theory, Theorem 4),
r being the output's law of the same program *with multinomial resampling*. With the certificate
`KL(r || p) <= E[-log Z_hat]` the sum bounds the symmetric (Jeffreys) divergence: bidirectional Monte Carlo (Grosse,
Ghahramani & Adams 2015) as a measure of accuracy, AIDE (Cusumano-Towner & Mansinghka 2017).

Under the extended target `E[1 / Z_hat_cond] = P(Z_hat > 0)`, so the terms `1 / Z_hat - 1 + log Z_hat >= 0` have the
mean `E[log Z_hat_cond] - P(Z_hat = 0)`, which is at least `E[log Z_hat_cond] + log P(Z_hat > 0)`: they bound
`KL(p || r)` for the law r of the output of runs that have one. The plain terms are averaged where runs fall short of
that mean, as those of the certificate (`smc_bridge.certificate`).

What the bounds do not say: they are about r against p *as the AR model has it*, not about right answers; they average
over the prompts that were run; and a loose bound is not a large divergence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from smc_bridge.analysis.bounds import kl_certificate, kl_per_token, ratio_per_token
from smc_bridge.analysis.runs import require_proper
from smc_bridge.certificate import Certificate, certificate_of, certify, kl_terms
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.sampler import Sampler
from smc_bridge.estimate import Estimate
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.requests import check_prompts, seeds_of
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed, first_repeat


@dataclass(frozen=True)
class Bidirectional:
    """Both bounds over the same prompts, with what they were computed from.

    Attributes:
        forward: bound on `KL(r || p)`, nats per sequence.
        forward_per_token: the same, nats per token.
        reverse: bound on `KL(p || r)`, nats per sequence.
        reverse_per_token: the same, nats per token.
        symmetric: their sum, nats per sequence.
        free: ordinary runs, one per prompt.
        retained: conditional runs, one per prompt.
    """

    forward: Certificate
    forward_per_token: Estimate
    reverse: Certificate
    reverse_per_token: Estimate
    symmetric: Certificate
    free: list[Result] = field(repr=False)
    retained: list[Result] = field(repr=False)

    def named(self) -> dict[str, Estimate]:
        """The bounds by the names of their fields."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)[:5]}


def multinomial(sampler: Sampler) -> Sampler:
    """The same program with multinomial resampling: the one that conditional runs belong to."""
    return dataclasses.replace(sampler, resampler=Multinomial())


def conditional_runs(
    sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
    batch: int | None = None,
) -> list[Result]:
    """One conditional run per prompt, each with an exact sample of the target retained in place 0.

    Args:
        sampler: a proper program without potential whose lanes have their own weights.
        prompts: token ids; repeat a prompt with other seeds for independent runs.
        seed, max_new_tokens, batch: as `Sampler.run`; samples and runs are independent of each other, and of the
            free runs and the `ar_sampling` of the same seed.
    Raises:
        ValueError: the program is not proper or has a potential, or an argument is out of range; or an exact sample
            has probability 0 where the run verifies it (truncation in bfloat16, see `smc_bridge.engine.conditional`).
            Such runs cannot be left out of a bound: the samples that are lost are not like the others.
    """
    if sampler.target.potential is not None:
        raise ValueError("the target has a potential: exact samples of it are not at hand, so it has no reverse bound")
    if not sampler.proper:
        raise ValueError(f"method {sampler.name!r} has no reverse bound: {'; '.join(sampler.why_improper())}")
    prompts = check_prompts(prompts, sampler.models, max_new_tokens=max_new_tokens)
    seeds = seeds_of(seed, len(prompts))
    repeat = first_repeat([(tuple(prompt), own) for prompt, own in zip(prompts, seeds, strict=True)])
    if repeat is not None:
        raise ValueError(
            f"prompts[{repeat[0]}] repeats prompts[{repeat[1]}] with seed {seeds[repeat[0]]}, which would be the same "
            f"run: give seeds of their own, seed=range({len(prompts)})"
        )
    exact = ar_sampling(
        sampler.target, prompts, seed=[derived_seed(Role.RETAINED, own) for own in seeds],
        max_new_tokens=max_new_tokens, batch=batch,
    )
    return multinomial(sampler).run(
        prompts, seed=seeds, max_new_tokens=max_new_tokens, batch=batch,
        retained=[result.sequences[0] for result in exact],
    )


def reverse_certificate(results: Sequence[Result], *, level: float = 0.95) -> Certificate:
    """Bound on `KL(p || r)`: mean of `1 / Z_hat - 1 + log Z_hat` over conditional runs (see the module's text).

    The fields of the certificate then read the other way round: `kl` bounds `KL(p || r)`.

    Args:
        results: of `conditional_runs`.
        level: confidence, in (0, 1).
    Raises:
        ValueError: a run that is not conditional, or the same prompt and seed twice.
    """
    require_proper(results, "the reverse bound", retained=True)
    return certify([-run.log_evidence for run in results], level=level, exact=all(run.exact for run in results))


def reverse_per_token(results: Sequence[Result], *, level: float = 0.95) -> Estimate:
    """The reverse bound by the mean length of the *retained* sequences, which are the ones drawn from p."""
    require_proper(results, "the reverse bound", retained=True)
    return ratio_per_token(
        [-run.log_evidence for run in results], [len(run.sequences[0]) for run in results], level=level,
        exact=all(run.exact for run in results),
    )


def symmetric_certificate(free: Sequence[Result], retained: Sequence[Result], *, level: float = 0.95) -> Certificate:
    """Bound on `KL(r || p) + KL(p || r)`: mean of the sum of both bounds' terms over pairs of runs.

    Args:
        free, retained: runs of the same prompts in the same order.
        level: confidence, in (0, 1).
    Raises:
        ValueError: different numbers of runs, or runs that are of the wrong kind or repeat a prompt and seed.
    """
    if len(free) != len(retained):
        raise ValueError(f"{len(free)} free and {len(retained)} retained runs: give one of each per prompt")
    require_proper(free, "the symmetric bound")
    require_proper(retained, "the symmetric bound", retained=True)
    evidence, conditional = (np.array([run.log_evidence for run in runs]) for runs in (free, retained))
    return certificate_of(
        kl_terms(evidence) + kl_terms(-conditional), spread_of=evidence - conditional, level=level,
        exact=all(run.exact for run in (*free, *retained)),
    )


def bidirectional(
    sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
    level: float = 0.95, batch: int | None = None,
) -> Bidirectional:
    """Both bounds for a program with multinomial resampling; arguments and errors as `conditional_runs`.

    `level` is the confidence of every interval.
    """
    retained = conditional_runs(sampler, prompts, seed=seed, max_new_tokens=max_new_tokens, batch=batch)
    free = multinomial(sampler).run(prompts, seed=seed, max_new_tokens=max_new_tokens, batch=batch)
    return both_bounds(free, retained, level=level)


def both_bounds(free: Sequence[Result], retained: Sequence[Result], *, level: float = 0.95) -> Bidirectional:
    """The bounds from free and conditional runs of the same prompts.

    Raises:
        ValueError: runs that are of the wrong kind, or repeat a prompt and seed, or a level outside (0, 1).
    """
    return Bidirectional(
        kl_certificate(free, level=level), kl_per_token(free, level=level),
        reverse_certificate(retained, level=level), reverse_per_token(retained, level=level),
        symmetric_certificate(free, retained, level=level), [*free], [*retained],
    )
