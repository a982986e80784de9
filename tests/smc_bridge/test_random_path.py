"""The whole program on its real random path: weighted output against the exact law of sequences.

Many independent runs of the same program each give unbiased estimates `1/N sum_k w_k 1[x_k = s]` of `p(s)`, for every
sequence s. Their mean is compared with p by Hotelling's chi-square (powerful, asymptotic) and, where the weights are
bounded, by total variation with McDiarmid's bound (finite-sample, no assumptions).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from smc_bridge.distributions.intermediate import (
    Chernoff,
    Clamp,
    Defensive,
    Mixture,
    PowerMean,
    ProductOfExperts,
    Proposal,
    Target,
)
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always, never
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.released import Argmax, ReleasedRejection, ReleasedScore
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.result import Result
from tests.oracle.intermediates import sequence_law
from tests.smc_bridge.claims import chi_square, claim, mean_test, total_variation_bound

LIMIT, EOS, RUNS = 3, 1, 4_000
AR = TabularAR.random(3, LIMIT + 1, seed=5, eos_id=EOS, concentration=1.5)
DLM = TabularDLM(AR, noise=0.5)
PROMPT = (2,)
EXACT = sequence_law([table.numpy() for table in AR.tables], PROMPT, LIMIT, EOS)
SEQUENCES = sorted(EXACT)
LAW = np.array([EXACT[s] for s in SEQUENCES])


def runs(*, temperature: Any = 1.0, top_p: float = 1.0, potential: Any = None, **parts: Any) -> list[Result]:
    parts.setdefault("intermediate", ProductOfExperts(0.5))
    program = Sampler(
        DLMProposal(DLM, temperature=temperature, top_p=top_p), ARTarget(AR, potential=potential), **parts
    )
    return program.run([list(PROMPT)] * RUNS, seed=list(range(RUNS)), max_new_tokens=LIMIT)


def estimates(results: list[Result]) -> np.ndarray:
    """`1/N sum_k w_k 1[x_k = s]` of every run and sequence, `[runs, S]`."""
    place = {s: i for i, s in enumerate(SEQUENCES)}
    out = np.zeros((len(results), len(SEQUENCES)))
    for r, result in enumerate(results):
        for sequence, log_weight in zip(result.sequences, result.log_weights, strict=True):
            out[r, place[tuple(sequence)]] += math.exp(log_weight) / len(result.sequences)
    return out


def test_the_exact_law_sums_to_one() -> None:
    assert abs(LAW.sum() - 1.0) < 1e-12


MIXED = [0.6, 1.5]
PROGRAMS: dict[str, dict[str, Any]] = {
    "rejection": {"kernel": Rejection(), "window": 3},
    "rejection, smc": {"kernel": Rejection(), "window": 2, "particles": 3, "trigger": always},
    "rejection, mixed lanes": {"window": 3, "particles": 2, "lanes": 2, "temperature": MIXED},
    "rejection, balance": {"window": 3, "lanes": 2, "temperature": MIXED, "weight": BalanceHeuristic()},
    "block": {"kernel": BlockVerification(), "window": 3, "particles": 2, "trigger": always},
    "gumbel": {"kernel": GumbelCoupling(), "window": 3, "particles": 2, "trigger": always},
    "accept all": {"kernel": AcceptAll(), "intermediate": Proposal(), "window": 2, "particles": 3},
    "tree": {"kernel": TreeWalk(2), "window": 3, "particles": 2, "trigger": always},
    "tree, mixed lanes": {"kernel": TreeWalk(2), "window": 3, "lanes": 2, "temperature": MIXED},
    "tree, balance": {"kernel": TreeWalk(2), "window": 3, "lanes": 2, "temperature": MIXED,
                      "weight": BalanceHeuristic()},
    "chernoff": {"intermediate": Chernoff(), "window": 3},
    "clamp": {"intermediate": Clamp(3.0), "window": 3},
    "clamp, truncated q": {"intermediate": Clamp(2.0), "top_p": 0.7, "window": 3},
    "power mean": {"intermediate": PowerMean(-1.0, 0.4), "window": 3},
    "defensive, truncated q": {"intermediate": Defensive(ProductOfExperts(0.5), 0.5), "top_p": 0.7, "window": 3},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_weighted_output_has_the_targets_law(name: str) -> None:
    results = runs(**PROGRAMS[name])
    assert results[0].proper
    claim(mean_test(estimates(results), LAW), f"{name}: mean of Z_hat W 1[x = s] over {RUNS} runs against p(s)")


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_every_resampling_scheme_keeps_the_targets_law(scheme: str) -> None:
    results = runs(window=2, particles=4, trigger=always, resampler=named("resampler", scheme))
    claim(mean_test(estimates(results), LAW), f"{scheme} resampling: mean of Z_hat W 1[x = s] against p(s)")


@pytest.mark.parametrize(
    ("kernel", "w", "particles"),
    [(Rejection(), 0.2, 1), (BlockVerification(), 0.2, 1), (GumbelCoupling(), 0.2, 2), (TreeWalk(2), 0.2, 2)],
    ids=["rejection", "block", "gumbel", "tree"],
)
def test_bounded_weights_stay_within_mcdiarmids_bound(kernel: Any, w: float, particles: int) -> None:
    """`Mixture(w)` bounds every token's weight by 1 / (1 - w)."""
    found = estimates(runs(kernel=kernel, intermediate=Mixture(w), window=3, particles=particles, trigger=never))
    largest = (1 / (1 - w)) ** LIMIT
    assert found.sum(1).max() <= largest * (1 + 1e-12)
    distance = 0.5 * np.abs(found.mean(0) - LAW).sum()
    bound = total_variation_bound(LAW, RUNS, largest=largest)
    assert distance <= bound, f"total variation {distance:.4f}, McDiarmid's bound {bound:.4f}"


@pytest.mark.parametrize("kernel", [Rejection(), BlockVerification(), GumbelCoupling(), TreeWalk(2)])
def test_speculative_decoding_samples_the_target(kernel: Any) -> None:
    """w = 0 is exact: counts of whole sequences, by chi-square."""
    results = runs(kernel=kernel, intermediate=Target(), window=3)
    counts = [sum(tuple(r.sequences[0]) == s for r in results) for s in SEQUENCES]
    claim(chi_square(np.array(counts), LAW), f"{type(kernel).__name__} at w = 0: counts of sequences against p")


def log_potential(prefix: Prefix) -> Any:
    """An incremental potential: each token 0 of the continuation halves phi, each token 2 takes it times 1.5."""
    new = prefix.tokens[:, len(PROMPT) :]
    return (new == 0).sum(1) * math.log(0.5) + (new == 2).sum(1) * math.log(1.5)


@pytest.mark.parametrize("trigger", [always, never])
def test_a_potential_tilts_the_law_and_the_evidence_estimates_its_constant(trigger: Any) -> None:
    tilt = np.array([0.5 ** s.count(0) * 1.5 ** s.count(2) for s in SEQUENCES])
    results = runs(potential=log_potential, window=2, particles=3, trigger=trigger)
    found = estimates(results)
    claim(mean_test(found, LAW * tilt), "with a potential: mean of Z_hat W 1[x = s] against p(s) phi(s)")
    evidence = np.array([math.exp(r.log_evidence) for r in results])
    assert np.abs(evidence - found.sum(1)).max() < 1e-12
    t = stats.ttest_1samp(evidence, float((LAW * tilt).sum()))
    claim(float(t.pvalue), f"evidence {evidence.mean():.4f} against Z = {(LAW * tilt).sum():.4f}")


@pytest.mark.parametrize(
    "parts",
    [
        {"kernel": ReleasedRejection(4), "weight": ReleasedScore(), "resampler": Argmax(), "lanes": 4,
         "trigger": always, "window": 3},
        {"resampler": Argmax(), "particles": 4, "trigger": always, "window": 2},
        {"top_p": 0.6, "window": 3},
    ],
    ids=["released", "argmax", "truncated q without defence"],
)
def test_an_improper_program_is_caught_and_says_so(parts: dict[str, Any]) -> None:
    """The claims above have power at this number of runs."""
    results = runs(**parts)
    assert not results[0].proper
    p_value = mean_test(estimates(results), LAW)
    assert p_value < 1e-12, f"an improper program passes with p-value {p_value:.3g}"
