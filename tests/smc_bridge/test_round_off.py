"""Round-off decides nothing: a law is one arithmetic wherever it is drawn from or scored, and truncation keeps the same
tokens on every path and in every dtype."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import LogitLaw, model_law
from smc_bridge.distributions.shaping import COLDEST, HOTTEST, Shaping
from smc_bridge.engine.presets import smc
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from tests.oracle.intermediates import model_law as numpy_law

ROWS, SIZE = 2000, 48
#: Size of the logits and temperature.
SCALES = [(1e4, 0.1), (1e4, 1e-3), (30.0, 0.7), (-1e4, 1.0)]


def models_logits(size: float, temperature: float) -> tuple[Tensor, Tensor]:
    """float32 logits of that size whose laws at the temperature are neither flat nor peaked: of q and of p."""
    generator = torch.Generator().manual_seed(0)
    base = 3 * temperature * torch.randn(1, ROWS, SIZE, generator=generator)
    return size + base, size + base + temperature * torch.randn(1, ROWS, SIZE, generator=generator)


def law_of(raw: Tensor, temperature: float | Tensor) -> Law:
    """The law of logits `[1, V, A]`, one row per entry of the temperature."""
    place = torch.arange(raw.shape[1])[None]
    if isinstance(temperature, Tensor):
        return LogitLaw(raw, place.expand(temperature.numel(), -1), temperature=temperature)
    return model_law(raw, place, Shaping(temperature))


def exact(raw: Tensor, temperature: float) -> Tensor:
    """The law in float64."""
    return torch.log_softmax(raw.double() / temperature, -1)


def at(law: Tensor, tokens: Tensor) -> Tensor:
    return law.gather(-1, tokens[..., None])[..., 0].double()


@pytest.mark.parametrize("lanes", ["one", "each"])
@pytest.mark.parametrize(("size", "temperature"), SCALES)
def test_log_z_does_not_drift_whatever_the_size_of_the_logits(size: float, temperature: float, lanes: str) -> None:
    """Over 2,000 tokens drawn from the product, dense and lazy, within 2.4e-4 nats of float64."""
    raw_q, raw_p = models_logits(size, temperature)
    log_q, log_p = exact(raw_q, temperature), exact(raw_p, temperature)
    log_pi = torch.log_softmax(0.3 * log_q + 0.7 * log_p, -1)
    uniform = torch.rand(1, ROWS, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.searchsorted(log_pi.exp().cumsum(-1), uniform)[..., 0].clamp_max(SIZE - 1)
    expected = (at(log_p, tokens) - at(log_pi, tokens)).sum()
    given = torch.tensor([temperature], dtype=torch.float64) if lanes == "each" else temperature
    q, p = law_of(raw_q, given), law_of(raw_p, given)
    lazy = (p.at(tokens).double() - bridge_law(ProductOfExperts(0.3), q, p, lanes=1).at(tokens).double()).sum()
    own = given[:, None, None] if isinstance(given, Tensor) else None
    dense_q, dense_p = (Shaping(temperature).log_probs(raw, own) for raw in (raw_q, raw_p))
    dense = (at(dense_p, tokens) - at(ProductOfExperts(0.3).log_prob(dense_q, dense_p), tokens)).sum()
    for name, found in (("lazy", lazy), ("dense", dense)):
        assert abs(float(found - expected)) < 2.4e-4, f"{name}: log Z = {float(found)}, in float64 {float(expected)}"


@pytest.mark.parametrize(("size", "temperature"), SCALES)
def test_what_is_drawn_is_what_is_scored(size: float, temperature: float) -> None:
    """Probabilities that draws invert, scored ones and those of float64 differ by a few roundings of float32."""
    raw_q, raw_p = models_logits(size, temperature)
    q, p = law_of(raw_q, temperature), law_of(raw_p, temperature)
    log_q, log_p = exact(raw_q, temperature), exact(raw_p, temperature)
    log_pi = torch.log_softmax(0.3 * log_q + 0.7 * log_p, -1)
    rows, places = torch.zeros(ROWS, dtype=torch.long), torch.arange(ROWS)
    pi = bridge_law(ProductOfExperts(0.3), q, p, lanes=1)
    for name, law, expected in (("q", q, log_q), ("p", p, log_p), ("pi", pi, log_pi)):
        probs = law.probs(rows, places).double()
        drawn, scored = probs / probs.sum(-1, keepdim=True), law.log_probs(rows, places).double().exp()
        for what, found in (("drawn", drawn), ("scored", scored)):
            gap = float((found - expected[0].exp()).abs().max())
            assert gap < 1e-5, f"{name}, {what}: off by {gap}"
        assert float((drawn - scored).abs().max()) < 1e-6, f"{name}: {float((drawn - scored).abs().max())}"
    dense = Shaping(temperature).log_probs(raw_p)
    assert float((p.dense() - dense).abs().max()) < 1e-5, "dense and lazy laws of p"


def test_frequencies_of_draws_are_the_law_at_large_logits() -> None:
    """20,000 equally spaced uniforms: each token's share is its probability up to two of them."""
    raw_q, raw_p = models_logits(1e4, 0.1)
    q, p = law_of(raw_q, 0.1), law_of(raw_p, 0.1)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5)[:, None] / 20_000
    for weight in (0.0, 0.3, 1.0):
        expected = torch.log_softmax(weight * exact(raw_q, 0.1) + (1 - weight) * exact(raw_p, 0.1), -1)[0, 0].exp()
        law = bridge_law(ProductOfExperts(weight), q, p, lanes=1)
        drawn = law.draw(torch.zeros(20_000, dtype=torch.long), uniform)
        share = torch.bincount(drawn[:, 0], minlength=SIZE) / 20_000
        assert float((share - expected).abs().max()) < 1e-4, f"w = {weight}: {share.tolist()}, {expected.tolist()}"


@pytest.mark.parametrize(
    "temperature", [1e-39, 1e-310, 1e38, pytest.param(10**400, id="1e400"), -1e-9, math.inf, math.nan]
)
def test_temperatures_whose_inverse_float32_does_not_hold_are_refused_by_name(temperature: float) -> None:
    model = TabularDLM(TabularAR.random(3, 1, seed=0))
    makers = (
        lambda: Shaping(temperature), lambda: DLMProposal(model, temperature=[1.0, temperature]),
        lambda: Settings("arithmetic", 1, ("ar",), temperature),
    )
    for make in makers:
        with pytest.raises(ValueError, match=r"temperature.* = .*: give 0 .*or a number between 3e-39 and 8e\+37"):
            make()


@pytest.mark.parametrize("temperature", [COLDEST, HOTTEST])
def test_the_ends_of_the_temperatures_give_laws(temperature: float) -> None:
    raw = torch.tensor([[[1e4, 1e4 - 1, -math.inf, -1e4], [-math.inf, 0.0, 0.0, 0.0]]])
    law = Shaping(temperature, banned_ids=(3,))
    expected = [[1.0, 0.0, 0.0, 0.0] if temperature < 1 else [0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]]
    lazy = model_law(raw, torch.arange(2)[None], law)
    for found in (law.log_probs(raw), lazy.dense(), bridge_law(ProductOfExperts(0.3), lazy, lazy, lanes=1).dense()):
        assert torch.allclose(found.exp()[0], torch.tensor(expected)), found


def test_exponents_that_float32_does_not_hold_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"target_exponent = 1e\+39: .* finite in float32"):
        ProductOfExperts(0.3, 1e39)


def kept(law: Tensor) -> list[list[int]]:
    """Tokens of positive probability in each row of `[R, A]`."""
    return [row.nonzero().flatten().tolist() for row in law > -math.inf]


def on_every_path(raw: Tensor, law: Shaping) -> dict[str, list[list[int]]]:
    """What is kept of logits `[R, A]` by the dense law and by the lazy one, read whole and token by token."""
    rows, size = raw.shape
    lazy = model_law(raw[None], torch.arange(rows)[None], law)
    place, token = torch.arange(rows).repeat_interleave(size), torch.arange(size).repeat(rows)
    singly = lazy.log_probs(torch.zeros_like(place), place, token).reshape(rows, size)
    return {"dense": kept(law.log_probs(raw)), "lazy": kept(lazy.dense()[0]), "singly": kept(singly)}


def smallest_set(shares: list[Fraction], top_p: Fraction) -> list[int]:
    """The smallest set of likeliest tokens with at least that mass, by rational numbers; ties by id."""
    mass, found = Fraction(0), []
    for token in sorted(range(len(shares)), key=lambda t: (-shares[t], t)):
        if mass >= top_p:
            break
        mass, found = mass + shares[token], [*found, token]
    return sorted(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_a_mass_that_is_top_p_counts_as_reached(temperature: float, dtype: torch.dtype) -> None:
    """Every boundary of laws in tenths."""
    rng = np.random.default_rng(0)
    counts = [[2, 4, 4], [3, 1, 1, 5], [6, 2, 1, 1], [1] * 10, *rng.multinomial(10, [0.25] * 4, size=8).tolist()]
    for row in counts:
        shares = [Fraction(n, 10) for n in row]
        raw = temperature * torch.tensor([[float(s) for s in shares]], dtype=torch.float64).log()
        for tenths in range(1, 10):
            expected = smallest_set(shares, Fraction(tenths, 10))
            law = Shaping(temperature, top_p=tenths / 10)
            for path, found in on_every_path(raw.to(dtype), law).items():
                assert found == [expected], f"{path}: {row} in tenths, top_p = 0.{tenths}: {found[0]}, {expected}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("size", "top_k"), [(12, None), (12, 7), (700, None), (5000, None), (5000, 40)])
def test_every_path_keeps_the_same_tokens_at_a_boundary(dtype: torch.dtype, size: int, top_k: int | None) -> None:
    """top_p is the very mass of some tokens, in float64; logits of the model's dtype, ties among them."""
    raw = (2 * torch.randn(4, size, generator=torch.Generator().manual_seed(size))).to(dtype)
    raw[1] = raw[1].float().round().to(dtype)
    for row in raw:
        logits = row.double().numpy()
        whole = numpy_law(logits, temperature=0.7, top_k=top_k)
        falling = np.sort(whole)[::-1].cumsum()
        for count in (1, 3, 6):
            top_p = float(falling[count - 1])
            expected = np.flatnonzero(numpy_law(logits, temperature=0.7, top_k=top_k, top_p=top_p)).tolist()
            assert len(expected) == count
            for path, found in on_every_path(row[None], Shaping(0.7, top_p=top_p, top_k=top_k)).items():
                assert found == [expected], f"{path}: {found[0]}, {expected} at top_p = {top_p}"


def test_tokens_are_ranked_by_logits_that_no_arithmetic_has_merged() -> None:
    """Two logits whose log-probabilities are equal in float32: the greater one is kept on every path."""
    raw = torch.tensor([[20.0, 1.0, 1.0 + 2**-23]])
    for path, found in on_every_path(raw, Shaping(0.7, top_k=2)).items():
        assert found == [[0, 2]], f"{path}: {found}"


PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "speculative": lambda pair: presets.speculative(pair, top_p=0.8),
    "smc": lambda pair: smc(pair, 1, w=0.0, top_p=0.8, window=1, lookahead=2),
    "tree": lambda pair: tree_walk(pair, w=0.0, top_p=0.8, window=2, lookahead=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_sampler_exact_samples_and_oracle_have_one_law_at_a_boundary(name: str) -> None:
    """p = (.2, .4, .4) and top_p = .8, two tokens long: each of four sequences a quarter of 400 runs."""
    row = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64)
    ar = TabularAR([row, row.expand(3, -1)])
    program = PROGRAMS[name](SimpleNamespace(dlm=TabularDLM(ar), ar=ar))
    law = oracle(program.target, max_new_tokens=2).posterior()
    assert set(law) == {(1, 1), (1, 2), (2, 1), (2, 2)}, law
    runs = program.run([[]] * 400, seed=range(400), max_new_tokens=2)
    free = ar_sampling(program.target, [[]] * 400, seed=range(400), max_new_tokens=2)
    for which, results in (("sampler", runs), ("AR sampling", free)):
        counts = Counter(tuple(r.sequences[0]) for r in results)
        assert set(counts) <= set(law), f"{which}: {counts}"
        assert all(abs(counts[x] - 100) < 5 * math.sqrt(75) for x in law), f"{which}: {counts}"
