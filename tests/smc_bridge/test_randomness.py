"""Explicit randomness: draws by inversion, one generator per prompt, rows that do not disturb each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from smc_bridge import sampling
from smc_bridge.randomness import PromptSource, as_source
from smc_bridge.sampling import SEGMENT, TWO_LEVELS, inverse_cdf
from smc_bridge.testing import EnumeratingSource, outcomes
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.enumeration import log

INF = math.inf


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_inverse_cdf_gives_every_token_its_own_interval() -> None:
    law = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    cdf = np.cumsum(law)
    for token in np.flatnonzero(law):
        for u in (cdf[token] - law[token], cdf[token] - law[token] / 2, np.nextafter(cdf[token], 0.0)):
            drawn = int(inverse_cdf(log(law), torch.tensor(u)))
            assert drawn == token, f"uniform {u} gives token {drawn}, its interval belongs to {token}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_never_returns_a_token_of_probability_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 10 * torch.randn(500, 40, generator=generator, dtype=dtype)
    logits = logits.masked_fill(torch.rand(500, 40, generator=generator) < 0.5, -INF)
    logits[:, 7] = torch.where((logits == -INF).all(-1), torch.zeros((), dtype=dtype), logits[:, 7])
    log_probs = torch.log_softmax(logits, -1)
    for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-24, 1 - 2.0**-53):
        drawn = inverse_cdf(log_probs, torch.full((500,), u, dtype=torch.float64))
        chosen = log_probs.gather(-1, drawn[:, None])
        assert bool((chosen > -INF).all()), f"uniform {u} draws a token of probability zero"


@pytest.mark.parametrize(
    "size",
    [1, 2, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, TWO_LEVELS - 1, TWO_LEVELS, TWO_LEVELS + 1, 1000],
)
def test_inverse_cdf_in_two_levels_is_that_of_the_whole_distribution(
    size: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the rows are taken a few at a time, and where whole blocks have no mass."""
    generator = torch.Generator().manual_seed(size)
    logits = 4 * torch.randn(300, size, generator=generator, dtype=torch.float64)
    logits[::3, 1 : size - 1] = -INF
    law = torch.softmax(logits, -1)
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(law.cumsum(-1), uniform[:, None], right=True)[:, 0]
    for chunk in (1, 7 * size, 2**18):
        monkeypatch.setattr(sampling, "CHUNK", chunk)
        monkeypatch.setattr(sampling, "DEVICE_CHUNK", chunk)
        drawn = inverse_cdf(law.log().to(device), uniform.to(device)).cpu()
        differ = (drawn != expected).nonzero().flatten().tolist()
        assert not differ, f"rows {differ} of {size} tokens draw {drawn[differ]}, expected {expected[differ]}"


def test_inverse_cdf_takes_unnormalised_laws() -> None:
    law, uniform = torch.tensor([[0.2, 0.5, 0.3]]).double(), torch.linspace(0.01, 0.98, 30)[:, None].double()
    for scale in (1e-6, 1.0, 50.0):
        drawn = inverse_cdf((scale * law).log().expand(30, 1, 3), uniform)
        assert torch.equal(drawn, inverse_cdf(law.log().expand(30, 1, 3), uniform)), f"scale {scale} changes the draws"


@pytest.mark.parametrize("value", [math.nan, -INF])
def test_inverse_cdf_refuses_a_row_without_a_law(value: float) -> None:
    log_probs = torch.zeros(3, 2)
    log_probs[1] = value
    with pytest.raises(ValueError, match=r"\[1\].*logits"):
        inverse_cdf(log_probs, torch.zeros(3))


def test_inverse_cdf_draws_follow_the_law(device: str) -> None:
    law = np.random.default_rng(2).dirichlet(np.arange(1.0, 8.0))
    source = PromptSource(generators(3), 50_000, device=device)
    drawn = source.categorical(log(law).to(device).expand(50_000, -1))
    claim(chi_square(torch.bincount(drawn.cpu(), minlength=7).numpy(), law), "categorical draws by inversion")


def test_bernoulli_trials_and_exponentials_follow_their_laws() -> None:
    source = PromptSource(generators(4), 40_000)
    p = torch.tensor([0.0, 0.03, 0.5, 0.97, 1.0], dtype=torch.float64)
    hits = source.bernoulli(p.expand(40_000, -1)).sum(0).numpy()
    assert hits[0] == 0
    assert hits[4] == 40_000
    for count, probability in zip(hits[1:4], p[1:4].tolist(), strict=True):
        claim(float(stats.binomtest(int(count), 40_000, probability).pvalue), f"trials of probability {probability}")
    values = source.exponential((2,))
    assert bool((values >= 0).all())
    claim(float(stats.kstest(values.flatten().numpy(), "expon").pvalue), "exponential variables")


def test_uniforms_are_float64_on_the_half_open_interval(device: str) -> None:
    values = PromptSource(generators(1, 2), 3, device=device).uniform((4, 5))
    assert values.shape == (6, 4, 5)
    assert values.dtype == torch.float64
    assert values.device.type == device
    assert float(values.min()) >= 0
    assert float(values.max()) < 1


def test_a_prompts_draws_do_not_depend_on_the_batch() -> None:
    together = PromptSource(generators(1, 2, 3), 2)
    alone = PromptSource(generators(2), 2)
    law = torch.log_softmax(torch.randn(3, generator=torch.Generator().manual_seed(0)), -1)
    for size in ((), (3,), (2, 2)):
        assert torch.equal(together.uniform(size)[2:4], alone.uniform(size))
        assert torch.equal(
            together.categorical(law.expand(6, *size, 3))[2:4], alone.categorical(law.expand(2, *size, 3))
        )


def test_choosing_rows_changes_no_other_draw() -> None:
    """Rows that are not chosen are drawn and thrown away: what follows is the same."""
    rows = torch.tensor([4, 0, 1])
    whole, part = PromptSource(generators(1, 2), 3), PromptSource(generators(1, 2), 3)
    chosen = part.select(rows)
    assert torch.equal(chosen.uniform((2,)), whole.uniform((2,))[rows])
    law = torch.log_softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), -1)
    assert torch.equal(chosen.categorical(law[rows]), whole.categorical(law)[rows])
    assert torch.equal(chosen.bernoulli(torch.full((3, 2), 0.4)), whole.bernoulli(torch.full((6, 2), 0.4))[rows])
    assert torch.equal(chosen.exponential((2,)), whole.exponential((2,))[rows])
    assert torch.equal(chosen.select(torch.tensor([2])).uniform(()), whole.uniform(())[[1]])
    assert torch.equal(part.uniform(()), whole.uniform(()))


@pytest.mark.parametrize("used", [0, 1, 3])
def test_what_follows_a_stream_does_not_depend_on_how_much_of_it_was_used(used: int) -> None:
    source, other = PromptSource(generators(5), 4), PromptSource(generators(5), 4)
    law = torch.log_softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), -1)
    draw = source.categorical_stream(3)
    for _ in range(used):
        draw(law)
    other.uniform((3,))
    assert torch.equal(source.uniform(()), other.uniform(()))


def test_a_stream_draws_afresh_at_every_step() -> None:
    draw = PromptSource(generators(5), 2_000).categorical_stream(2)
    law = torch.full((2_000, 2), 0.5, dtype=torch.float64).log()
    first, second = draw(law), draw(law)
    table = np.array([[int(((first == a) & (second == b)).sum()) for b in (0, 1)] for a in (0, 1)])
    claim(chi_square(table, np.full(4, 0.25)), "two steps of a stream are independent")


def test_a_plain_generator_serves_as_a_source() -> None:
    source = as_source(torch.Generator().manual_seed(3), 5)
    assert torch.equal(source.uniform((2,)), PromptSource(generators(3), 5).uniform((2,)))
    assert as_source(source, 99) is source


def test_the_enumerating_source_lists_every_outcome_once_with_its_probability() -> None:
    """The instrument of the kernel tests, on a program whose law is known."""
    law = np.array([0.2, 0.0, 0.8])

    def run(source: EnumeratingSource) -> tuple[int, ...]:
        first: Tensor = source.categorical(log(law)[None])
        if int(first) == 0:
            return (0, *source.bernoulli(torch.tensor([[0.3, 1.0]], dtype=torch.float64))[0].long().tolist())
        draw = source.categorical_stream(2)
        return (int(first), int(draw(log(law)[None])))

    found = {outcome: probability for probability, outcome in outcomes(run)}
    expected = {(0, 0, 1): 0.14, (0, 1, 1): 0.06, (2, 0): 0.16, (2, 2): 0.64}
    assert set(found) == set(expected)
    assert all(abs(found[o] - expected[o]) < 1e-15 for o in expected), f"{found}, by hand {expected}"
    assert len(list(outcomes(run))) == 4
