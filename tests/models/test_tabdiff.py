"""TabDiff: normal scores, noise, network, sampler, imputation, and a reduced training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.models.learned.store import load, save
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.datasets import small
from smc_bridge.models.tables.marginals import Marginal
from smc_bridge.models.tables.noise import HIGH, LOW, Noise
from smc_bridge.models.tables.sampler import Known, Sampling, Source, draw
from smc_bridge.models.tables.skipping import Skipping
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.models.training.fit import Trained
from smc_bridge.models.training.table_diffusion import train

OTHER = Table((Column("a", "number"),), torch.zeros(1, 1).double(), torch.zeros(1, 0).long())


#: Of a category of `Exact`, how often it is the other one.
SLIP = 0.1


class Exact:
    """What TabDiff should tell of rows of a known law: x is normal with mean +-1 and deviation 1/2, b and c its sign,
    but for slips."""

    def __init__(self) -> None:
        self.noise, self.masks = Noise(1, 2), torch.tensor([2, 2])

    def __call__(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means and laws."""
        variance, means, signs = 0.25 + sigma**2, torch.tensor([-1.0, 1.0]), torch.arange(2)
        log_law = torch.tensor([0.3, 0.7]).log() - (x - means) ** 2 / (2 * variance)
        for j in range(2):
            seen = torch.where(categories[:, j, None] == signs, 1 - SLIP, SLIP).log()
            log_law = log_law + seen.masked_fill(categories[:, j, None] == 2, 0.0)
        law = log_law.softmax(-1)
        clean = (law * (means + 0.25 / variance * (x - means))).sum(-1, keepdim=True)
        told = (1 - SLIP) * law + SLIP * (1 - law)
        return clean, told.log()[:, None].expand(-1, 2, -1)


def test_whole_numbers_of_any_size_come_back_from_their_scores() -> None:
    numbers = 1_234_567_890_123_456 + 3 * torch.arange(40, dtype=torch.float64)
    law = Marginal.of(numbers, whole=True)
    assert torch.equal(law.numbers(law.scores(numbers)), numbers)


def test_a_table_without_rows_is_imputed_as_it_is_and_teaches_nothing() -> None:
    model = TabDiff.of(copies(), width=8, hidden=8)
    assert len(model.impute(copies().rows([]), ("a",), 0)) == 0
    with pytest.raises(ValueError, match=r"table = Table of 0 rows: .*: give at least one row"):
        TabDiff.of(copies().rows([]))
    with pytest.raises(ValueError, match="numbers are none: give a column"):
        Marginal.of(torch.zeros(0).double(), whole=False)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e30, "much", None])
@pytest.mark.parametrize("name", ["growth", "churn", "guidance"])
def test_a_number_out_of_range_is_refused_by_its_name(name: str, value: Any) -> None:
    makers: dict[str, Callable[[], object]] = {
        "growth": lambda: Skipping(growth=value), "churn": lambda: Sampling(churn=value),
        "guidance": lambda: TabDiff.of(copies(), width=8, hidden=8).impute(copies(), ("a",), 0, guidance=value),
    }
    with pytest.raises(ValueError, match=rf"^{name} = .*: give a number from 0 to 1"):
        makers[name]()


def test_a_width_that_its_heads_do_not_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width = 6: give a multiple of 4"):
        TabDiff.of(copies(), width=6)


def copies() -> Table:
    """A number of two atoms and a bell, whether it is above 0, and a copy of that."""
    generator = torch.Generator().manual_seed(0)
    bell = torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    number = torch.where(torch.rand(1000, 1, generator=generator) < 0.3, bell.sign() * 2, bell)
    columns = (Column("a", "number"), *(Column(name, "category", values=("below", "above")) for name in "bc"))
    return Table(columns, number, (number > 0).long().expand(-1, 2).contiguous())


@cache
def reduced() -> Trained:
    """A training of a few seconds."""
    return train(copies(), seed=0, steps=120, batch=128, rate=1e-2, width=16, hidden=32)


def test_numbers_come_back_from_their_scores_and_scores_are_of_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.where(torch.rand(2000, generator=generator) < 0.9, 0.0, torch.arange(2000.0) % 7).double()
    for numbers, whole in ((atoms, True), (torch.randn(3000, generator=generator).exp().double(), False)):
        law = Marginal.of(numbers, whole=whole)
        scores = law.scores(numbers)
        assert scores.mean().item() == pytest.approx(0, abs=1e-6)
        assert scores.std().item() == pytest.approx(1, abs=1e-6)
        gap = (law.numbers(scores) - numbers).abs() / numbers.abs().clamp_min(1)
        assert gap.max() < (1e-9 if whole else 0.05)
    nudged = Marginal.of(atoms, whole=True)
    assert torch.equal(nudged.numbers(nudged.scores(atoms[:1]) + 0.05), atoms[:1]), "an atom is left by a small error"


def test_noise_goes_from_low_to_high_and_masks_from_none_to_all() -> None:
    noise, ends = Noise(2, 3), torch.tensor([[0.0], [1.0]])
    assert torch.allclose(noise.sigma(ends), torch.tensor([[LOW] * 2, [HIGH] * 2]), rtol=1e-4)
    assert noise.masked(ends).tolist() == [[0.0] * 3, [1.0] * 3]
    assert torch.allclose(noise.rho, torch.tensor(7.0))
    half = ((LOW ** (1 / 7) + HIGH ** (1 / 7)) / 2) ** 7
    assert torch.allclose(noise.sigma(torch.tensor(0.5)), torch.tensor(half), rtol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(churn=20.0), Sampling(heun=False)])
def test_rows_of_an_exact_network_have_the_law_that_it_tells(sampling: Sampling) -> None:
    rows = 5_000
    x, c, calls = draw(Exact(), Source((torch.Generator().manual_seed(1),), rows), sampling)
    error, sign = 5 / rows**0.5, (x[:, 0] > 0).double()
    assert sign.mean().item() == pytest.approx(0.3 * 0.0228 + 0.7 * 0.9772, abs=error)
    assert x.mean().item() == pytest.approx(0.4, abs=2 * error)
    assert x.std().item() == pytest.approx((0.25 + 4 * 0.3 * 0.7) ** 0.5, abs=2 * error)
    assert c.double().mean(0) == pytest.approx(torch.tensor([0.66, 0.66]), abs=error)
    agree = (1 - SLIP) ** 2 + SLIP**2
    assert (c[:, 0] == c[:, 1]).double().mean().item() == pytest.approx(agree, abs=error)
    assert calls == (2 * sampling.steps - 1 if sampling.heun else sampling.steps)


def test_a_step_goes_back_in_noise_and_both_its_calls_see_the_same_masks() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(Exact):
        def __call__(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((sigma[0], categories))
            return super().__call__(x, sigma, categories)

    draw(Watched(), Source((torch.Generator().manual_seed(1),), 200), Sampling(steps=10))
    noise = Noise(1, 2)
    at = [noise.sigma(torch.tensor(1 - step / 10)) for step in range(10)]
    for step in range(9):
        (first, before), (second, after) = seen[2 * step], seen[2 * step + 1]
        assert torch.allclose(first, at[step] * (1.1 if step else 1.0)), "churn is a tenth of the noise, but none at 1"
        assert torch.allclose(second, at[step + 1])
        assert torch.equal(before, after), "masks that a step lifts are not seen in it"
    assert not torch.equal(seen[0][1], seen[2][1])
    assert noise.time(noise.sigma(torch.tensor(0.3))).item() == pytest.approx(0.3, abs=1e-5)


def test_a_network_that_forgets_what_it_saw_is_caught() -> None:
    class Forgetful(Exact):
        def __call__(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
            return super().__call__(torch.zeros_like(x), sigma, torch.full_like(categories, 2))

    _, c, _ = draw(Forgetful(), Source((torch.Generator().manual_seed(1),), 2_000), Sampling(steps=10))
    assert (c[:, 0] == c[:, 1]).double().mean() < 0.65


def test_unknown_columns_follow_the_known_ones() -> None:
    rows = 2_000
    scores, categories = torch.zeros(rows, 1), torch.ones(rows, 2, dtype=torch.int64)
    law = 0.7 * (1 - SLIP) / (0.7 * (1 - SLIP) + 0.3 * SLIP)  # of the sign, given that b is 1
    shares = {}
    for condition in ("clean", "noised"):
        known = Known(scores, categories, torch.tensor([False]), torch.tensor([True, False]), condition=condition)
        source = Source((torch.Generator().manual_seed(1),), rows)
        c = draw(Exact(), source, Sampling(steps=20), known).categories
        shares[condition] = (c[:, 1] == 1).double().mean().item()
    assert shares["clean"] == pytest.approx((1 - SLIP) * law + SLIP * (1 - law), abs=5 / rows**0.5)
    assert 0.66 < shares["noised"] < shares["clean"]  # seen through noise, it is partly forgotten


@pytest.mark.parametrize("w", [0.0, 0.6, 2.0])
def test_guidance_divides_by_the_law_without_the_known_columns(w: float) -> None:
    rows, at = 5_000, 0.1
    scores, categories = torch.full((rows, 1), at), torch.zeros(rows, 2, dtype=torch.int64)
    known = Known(scores, categories, torch.tensor([True]), torch.tensor([True, False]), guidance=w)
    c = draw(Exact(), Source((torch.Generator().manual_seed(1),), rows), Sampling(steps=5), known).categories
    prior = torch.tensor([0.3, 0.7])
    seen = prior.log() - (at - torch.tensor([-1.0, 1.0])) ** 2 / 0.5 + torch.tensor([1 - SLIP, SLIP]).log()
    all_, without = ((1 - SLIP) * law + SLIP * (1 - law) for law in (seen.softmax(-1), prior))
    law, undivided = (
        torch.softmax((1 + w) * all_.log() - weight * without.log(), -1)[1].item() for weight in (w, 0.0)
    )
    error = (law * (1 - law) / rows) ** 0.5
    drawn = (c[:, 1] == 1).double().mean().item()
    assert drawn == pytest.approx(law, abs=4 * error)
    assert not w or abs(undivided - law) > 8 * error, "a sampler that does not divide would be caught"


@pytest.mark.parametrize("w", [0.0, 0.6, 2.0])
def test_guidance_moves_clean_numbers_away_from_those_without_the_known_columns(w: float) -> None:
    class Told(Exact):
        def __call__(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
            return torch.where(categories[:, :1] == 2, 1.0, 3.0).expand_as(x), super().__call__(x, sigma, categories)[1]

    known = Known(torch.zeros(4, 1), torch.ones(4, 2).long(), torch.tensor([False]), torch.tensor([True, True]), w)
    x = draw(Told(), Source((torch.Generator().manual_seed(1),), 4), Sampling(steps=4), known).scores
    assert torch.allclose(x, torch.full((4, 1), (1 + w) * 3.0 - w * 1.0))


def test_windows_grow_as_published_and_forecasts_spare_calls() -> None:
    assert [sum(Skipping(growth=growth).calls(50)[:-1]) for growth in (0.75, 3.0)] == [14, 10]  # as published, of 50
    model = reduced().module
    assert isinstance(model, TabDiff)
    rows, sampling = 400, Sampling(steps=20, churn=0.0, skipping=Skipping(growth=0.0))
    for forecast, calls in ((sampling, 2 * 13 - 1), (replace(sampling, skipping=None), 2 * 20 - 1)):
        drawn = draw(model, Source((torch.Generator().manual_seed(1),), rows), forecast)
        assert drawn.calls == calls
        made = model.decode(*drawn[:2])
        assert ((made.numbers[:, 0] > 0) == (made.categories[:, 0] == 1)).double().mean() > 0.75


def test_a_row_has_the_same_draws_whatever_is_beside_it() -> None:
    generators = tuple(torch.Generator().manual_seed(i) for i in range(5))
    together = draw(Exact(), Source(generators, 5), Sampling(steps=6))
    alone = draw(Exact(), Source((torch.Generator().manual_seed(3),), 1), Sampling(steps=6))
    assert torch.allclose(together.scores[3], alone.scores[0])
    assert torch.equal(together.categories[3], alone.categories[0])


def test_a_reduced_training_lowers_the_loss() -> None:
    facts = reduced().facts
    assert facts["loss_of_average"] < 0.7 * facts["loss_at_first"], facts


def test_a_training_is_told_by_its_seed() -> None:
    table = small().train
    found = [train(table, seed=seed, steps=3, batch=16, width=8, hidden=8).module for seed in (1, 1, 2)]
    first, again, other = (torch.cat([p.flatten() for p in module.parameters()]) for module in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_have_the_shapes_and_the_copies_of_what_was_learnt() -> None:
    real, model = copies(), reduced().module
    assert isinstance(model, TabDiff)
    made = model.sample(500, 0, sampling=Sampling(steps=20))
    assert made.columns == real.columns
    assert made.numbers.mean().item() == pytest.approx(real.numbers.mean().item(), abs=0.3)
    assert (made.numbers.abs() == 2).double().mean().item() == pytest.approx(0.3, abs=0.1)  # the atoms
    for j in range(2):
        assert ((made.numbers[:, 0] > 0) == (made.categories[:, j] == 1)).double().mean() > 0.8
    first, again = (model.sample(10, 4, sampling=Sampling(steps=3)).numbers for _ in range(2))
    assert torch.equal(first, again)


def test_imputed_rows_keep_what_is_known_and_follow_it() -> None:
    model, table = reduced().module, copies().rows(slice(0, 200))
    assert isinstance(model, TabDiff)
    drawn = model.impute(table, ("b",), 0, guidance=0.5, sampling=Sampling(steps=4))
    for name in ("a", "c"):
        assert torch.equal(drawn.of(name), table.of(name))
    assert (drawn.of("b") == table.of("b")).double().mean() > 0.9


def test_weights_come_back_from_their_file(tmp_path: object) -> None:
    model, path = reduced().module, f"{tmp_path}/tabdiff.safetensors"
    save(model, path, kind="table_diffusion", facts=reduced().facts)
    back = load(path, kind="table_diffusion")
    assert isinstance(back, TabDiff)
    assert back.columns == copies().columns
    for one, other in zip(model.parameters(), back.parameters(), strict=True):
        assert torch.equal(one.half().float(), other)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Sampling(steps=1), "steps = 1"),
    (lambda: Sampling(churn=-1.0), "churn = -1.0"),
    (lambda: Sampling(skipping=3), "skipping = 3"),
    (lambda: Skipping(growth=-1.0), "growth = -1.0"),
    (lambda: Known(*torch.zeros(4, 1, 1), guidance=-1.0), "guidance = -1.0"),
    (lambda: Known(*torch.zeros(4, 1, 1), condition="x"), "condition = 'x'"),
    (lambda: TabDiff.of(small().train).sample(0, 0), "count = 0"),
    (lambda: TabDiff.of(small().train).impute(small().test, "height", 0), "column = 'height'"),
    (lambda: TabDiff.of(small().train).encode(OTHER), "its columns are not"),
])
def test_what_does_not_fit_is_refused_in_one_line(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
