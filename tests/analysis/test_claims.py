"""Claims held against tables: what is exact is within noise, or enumerated as such, and what is biased is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import registry
from smc_bridge.analysis.claimed_law import claimed_law
from smc_bridge.analysis.claims import Output, judge, noise_floor, output_of, weighted_gap
from smc_bridge.analysis.laws import total_variation
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.methods.ar import ARSampling, ARState
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import spelled
from smc_bridge.requests import Request
from smc_bridge.result import Result
from smc_bridge.testing import exact_law, tabular_pair

LIMIT, RUNS = 3, 4_000
CLOSE, FAR = (tabular_pair(3, LIMIT, seed=2, noise=noise) for noise in (0.1, 2.0))


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder with a known bias: the AR law at twice the temperature, which says that it is at one."""
    len(registry.METHODS)
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))

    @registry.method("too-warm", role="exact", targets="AR", proper=True, reference="none")
    def too_warm(pair: ModelPair, *, temperature: float = 1.0) -> object:
        """Draws that are too warm."""
        return ARSampling(ARTarget(pair.ar, temperature=2 * temperature))

    @registry.method("power", role="exact", targets="AR^alpha", proper=True, reference="none")
    def power(pair: ModelPair, *, alpha: float = 2.0) -> object:
        """Draws of the AR law, whatever alpha."""
        return ARSampling(ARTarget(pair.ar))

    @registry.method("product", role="exact", targets="PoE", proper=True, reference="none")
    def product(
        pair: ModelPair, *, w: float = 0.7, window: int = 4, lookahead: int = 4, temperature: float = 1.0
    ) -> object:
        """Draws of a product of experts, which carry weights for the AR law besides."""
        return smc(pair, 1, w=w, window=window, lookahead=lookahead, temperature=temperature)

    @registry.method("phrase", role="baseline", targets="greedy something", proper=False, why="it is", reference="none")
    def phrase(pair: ModelPair) -> object:
        """Claims no law."""
        return ARSampling(ARTarget(pair.ar))


@pytest.mark.parametrize("method", ["ar", "speculative"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_exact_draws_of_the_ar_law_are_within_noise(method: str, temperature: float) -> None:
    for cheap in (0, 20_000):
        found = judge(method, FAR, LIMIT, runs=RUNS, temperature=temperature, cheap=cheap)
        assert found.claim == found.ar
        assert found.ar.within_noise, (method, found.ar)
        assert found.ar.enumerated == (cheap > 0 and method == "speculative")
    assert found.proper


@pytest.mark.parametrize("pair", [CLOSE, FAR])
def test_one_place_at_a_time_is_the_joint_of_the_diffusion_model_and_two_are_not(pair: ModelPair) -> None:
    one, two = (judge(method, pair, LIMIT, runs=RUNS) for method in ("dlm-1", "dlm-2"))
    assert one.claim is not None
    assert two.claim is not None
    assert one.claim.within_noise, one.claim
    assert not two.claim.within_noise, two.claim
    if pair is FAR:
        assert one.ar.tv.low > 0.05, "and it is not the AR law"


@pytest.mark.parametrize("method", ["released", "dlm-8"])
def test_biased_baselines_are_found_far_from_the_ar_law(method: str) -> None:
    found = judge(method, FAR, LIMIT, runs=RUNS)
    assert not found.ar.within_noise
    assert found.ar.tv.low > 0.05, found.ar
    assert not found.proper


@pytest.mark.usefixtures("mine")
def test_a_known_bias_is_found_to_be_what_it_is() -> None:
    """Its law is known: the interval holds the true distance, and the true distance from its own law is 0."""
    warm, right = (exact_law(ARTarget(FAR.ar, temperature=t), LIMIT) for t in (2.0, 1.0))
    truth = total_variation(warm, right)
    found = judge("too-warm", FAR, LIMIT, runs=RUNS)
    assert found.claim is not None
    assert truth > 0.05
    assert found.claim.tv.low <= truth <= found.claim.tv.high, (truth, found.claim)
    assert not found.claim.within_noise
    decoder = spelled("too-warm").make(FAR, temperature=1.0)
    assert output_of(decoder, LIMIT, runs=RUNS).distance(warm).within_noise


@pytest.mark.usefixtures("mine")
def test_powers_are_of_whole_sequences() -> None:
    law = exact_law(ARTarget(FAR.ar), LIMIT)
    measure = claimed_law(spelled("power"), FAR, LIMIT)
    assert measure is not None
    assert measure == pytest.approx({x: p**2 for x, p in law.items()}), "up to the normaliser, which is their sum"
    assert claimed_law(spelled("power,alpha=3"), FAR, LIMIT) == pytest.approx({x: p**3 for x, p in law.items()})
    found = judge("power", FAR, LIMIT, runs=RUNS)
    squares = {x: p**2 / sum(p**2 for p in law.values()) for x, p in law.items()}
    assert found.claim is not None
    assert found.claim.tv.low <= total_variation(law, squares) <= found.claim.tv.high
    assert found.ar.within_noise


@pytest.mark.usefixtures("mine")
def test_a_product_is_claimed_of_blocks_of_one_token() -> None:
    """Of longer ones the marginals are old, and the law of the output depends on where blocks end."""
    found = judge("product", FAR, LIMIT, runs=RUNS)
    assert found.claim is not None
    assert found.claim.text() == "0, enumerated"
    assert weighted_gap("product") is None, "its weights are for the AR law"
    assert not found.ar.within_noise
    decoder = spelled("product").make(FAR, window=LIMIT, lookahead=LIMIT)
    measure = claimed_law(spelled("product,w=0.7"), FAR, LIMIT)
    assert measure is not None
    assert output_of(decoder, LIMIT, runs=RUNS).distance(measure).tv.value > 1e-3


def test_a_product_is_normalised_at_each_place() -> None:
    """By hand, of the first token: `q^w p^(1-w)` of the first place."""

    product: Any = SimpleNamespace(method=SimpleNamespace(targets="PoE"), options={"w": 0.25})
    measure: Any = claimed_law(product, FAR, 1)
    empty, none = torch.zeros(1, 0, dtype=torch.long), torch.tensor([0])
    q = FAR.dlm.session(empty, none).score(none, torch.full((1, 1), -1))[0, 0].softmax(-1)
    p = FAR.ar.log_conditional(empty, none)[0].exp()
    by_hand = q**0.25 * p**0.75
    assert [measure[x,] for x in range(3)] == pytest.approx((by_hand / by_hand.sum()).tolist())


@pytest.mark.usefixtures("mine")
def test_a_phrase_claims_no_law() -> None:
    found = judge("phrase", FAR, LIMIT, runs=200)
    assert found.claim is None
    assert weighted_gap("phrase") is None


@pytest.mark.parametrize("method", ["smc-2", "plain-is,lanes=2", "tree-walk", "speculative"])
def test_the_weighted_measure_of_a_proper_method_is_exact_and_its_output_is_not(method: str) -> None:
    gap = weighted_gap(method)
    assert gap is not None
    assert gap < 1e-12, (method, gap)
    if method != "speculative":
        found = judge(method, FAR, LIMIT, runs=RUNS)
        assert found.claim is not None
        assert not found.claim.within_noise, (method, found.claim)


@pytest.mark.parametrize("method", ["markov", "markov,kernel=tree,nodes=4", "smc-1,proposal=adjust"])
def test_what_chains_by_a_learned_part_is_exact_by_weight_with_random_weights(method: str) -> None:
    found, gap = judge(method, FAR, LIMIT, runs=100), weighted_gap(method)
    assert found.proper
    assert gap is not None
    assert gap < 1e-12


@pytest.mark.parametrize("method", ["codila", "learn2pd", "adjust-2"])
def test_decoders_with_a_learned_part_are_found_far_from_the_ar_law(method: str) -> None:
    found = judge(method, FAR, LIMIT, runs=1_000)
    assert not found.proper
    assert found.ar.tv.low > 0.05, found.ar


def test_at_w_0_any_head_gives_the_ar_law() -> None:
    found = judge("markov,w=0", FAR, LIMIT, runs=200)
    assert found.claim is not None
    assert found.claim.text() == "0, enumerated"


@pytest.mark.parametrize("method", ["released", "ar", "dlm-2"])
def test_who_carries_no_weights_has_no_weighted_measure(method: str) -> None:
    assert weighted_gap(method) is None


def test_runs_agree_with_the_enumeration() -> None:
    decoder = smc(FAR, 2, w=0.5, window=LIMIT, lookahead=LIMIT)
    exact, drawn = output_of(decoder, LIMIT, runs=RUNS, cheap=10**6), output_of(decoder, LIMIT, runs=RUNS, cheap=0)
    assert exact.enumerated
    assert not drawn.enumerated
    assert len(exact.results) == 500
    assert drawn.distance(exact.law).within_noise
    law = exact_law(ARTarget(FAR.ar), LIMIT)
    bound = drawn.distance(law).tv
    assert bound.low <= exact.distance(law).tv.value <= bound.high


def test_a_run_whose_particles_all_died_is_a_value_that_no_law_has() -> None:
    results = [Result(prompt=[], sequences=[[0]], log_weights=[weight]) for weight in (0.0, -math.inf)]
    found = Output({(0,): 0.5, None: 0.5}, results, False)
    assert found.distance({(0,): 1.0}).tv.value == 0.5


def test_the_interval_covers_and_the_floor_is_seldom_passed() -> None:
    """Draws of a law, and of another one at a known distance: at the levels that are promised, or above."""
    law, other = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.4, 0.3, 0.2, 0.1])
    named, truth, runs, rng = dict(enumerate(law.tolist())), 0.1, 500, np.random.default_rng(0)
    floor = noise_floor(named, runs)
    passed = missed = 0
    for _ in range(300):
        own, off = (rng.multinomial(runs, p) / runs for p in (law, other))
        passed += 0.5 * abs(own - law).sum() > floor
        results = [Result(prompt=[], sequences=[[0]], log_weights=[0.0])] * runs
        found = Output(dict(enumerate(off.tolist())), results, False).distance(named).tv
        missed += not found.low <= truth <= found.high
    assert passed <= 3, f"{passed} of 300 exact samples are above a floor of level 0.999"
    assert missed <= 15, f"{missed} of 300 intervals of level 0.95 miss"


def test_draws_are_those_of_the_weights() -> None:
    """Two particles of weights 3 : 1 in every run."""

    class Fixed(ARSampling):
        def result(self, state: ARState, seat: int) -> Result:
            found = super().result(state, seat)
            weights = [math.log(0.75), math.log(0.25)]
            return Result(found.prompt, [[0], [1]], weights, texts=["same", "same"], forwards=found.forwards)

    drawn = output_of(Fixed(ARTarget(FAR.ar)), 1, runs=RUNS)
    assert drawn.distance({(0,): 0.75, (1,): 0.25}).within_noise, drawn.law
    assert drawn.forwards_per_token == 1.0


def test_every_run_has_a_seed_of_its_own() -> None:
    seen: list[int] = []

    class Noted(ARSampling):
        def open(self, requests: Sequence[Request | None], limit: int) -> ARState:
            seen.extend(request.seed for request in requests if request is not None)
            return super().open(requests, limit)

    output_of(Noted(ARTarget(FAR.ar)), 1, runs=RUNS, seed=7)
    assert seen == list(range(7, 7 + RUNS))
