"""Local divergences: they add up to the weights, and predict how the variance of the weights grows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge.analysis.local import blocks_of, chi2, kl, laws_along, local_divergences, log_variance
from smc_bridge.analysis.variance import weight_variance
from smc_bridge.distributions.intermediate import Mixture, ProductOfExperts
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import never
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.costs import Costs
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.testing import TabularPair, tabular_pair
from tests.smc_bridge.test_exact_on_cached_path import models as networks


class Tables:
    """A tabular pair with a perturbed proposal."""

    ar = TabularAR.random(3, 6, seed=5, eos_id=2)
    dlm = TabularDLM(ar, noise=0.6)


@pytest.mark.parametrize("lookahead", [2, 6])
@pytest.mark.parametrize(
    "options",
    [{}, {"w": 1.0}, {"intermediate": Mixture(0.6)}, {"lanes": 2, "proposal_temperature": [0.7, 1.4]}],
    ids=["product", "proposal", "mixture", "two lanes"],
)
def test_local_ratios_add_up_to_what_the_blocks_earned(options: dict[str, object], lookahead: int) -> None:
    sampler = smc(Tables(), 1, window=2, lookahead=lookahead, trigger=never, **{"w": 0.5, **options} if
                          "intermediate" not in options else options)  # type: ignore[arg-type]
    reused = 0
    for result in sampler.run([[]] * 40, seed=list(range(40)), max_new_tokens=6):
        local = local_divergences(sampler, result, max_new_tokens=6)
        earned = [record.log_increments[0][record.lanes[0]] for record in result.trace]
        summed = np.bincount(local.block, local.log_ratio, minlength=len(earned))
        assert summed == pytest.approx(earned, abs=1e-9)
        assert len(local.chi2) == len(result.sequences[0])
        reused += sum(b.forward < b.start for b in blocks_of(sampler, result))
    assert (reused > 0) == (lookahead > 2), f"{reused} blocks shared a forward"


def test_blocks_of_a_block_causal_model_are_read_where_they_were_drafted() -> None:
    """Drafts end with the model's block, so that the next has another forward."""
    pair = tabular_pair(3, 6, seed=5, block_size=3)
    sampler = smc(pair, 1, w=0.5, window=1, lookahead=6, trigger=never)
    starts = set()
    for result in sampler.run([[0]] * 40, seed=list(range(40)), max_new_tokens=5):
        local_divergences(sampler, result, max_new_tokens=5)  # raises unless they give the weights that were earned
        blocks = blocks_of(sampler, result)
        starts |= {(1 + b.forward, 1 + b.start) for b in blocks}
        assert all((1 + b.forward) // 3 == (1 + b.start) // 3 for b in blocks)
    assert any(start > forward for forward, start in starts), "no draft was used up in two blocks"


def cached(particles: int, **options: Any) -> Sampler:
    """On networks whose diffusion model keeps an approximate prefix cache."""
    ar, dlm = networks(5, None, cache=True)
    pair = TabularPair(dlm.with_cache("prefix"), ar)  # type: ignore[arg-type]
    return smc(pair, particles, w=0.5, window=2, lookahead=3, trigger=never, **options)


@pytest.mark.parametrize("reuse", [0.0, 1e-9])
def test_laws_of_a_session_with_a_history_are_those_that_were_drawn_from(reuse: float) -> None:
    sampler, other = cached(1, reuse=reuse), 0
    runs = sampler.run([[0, 1, 2], [3]] * 5, seed=list(range(10)), max_new_tokens=10)
    for result in runs:
        along = list(laws_along(sampler, result, max_new_tokens=10))
        assert [float(each.log_ratio.sum()) for each in along] == pytest.approx(
            [record.log_increments[0][0] for record in result.trace], abs=1e-9
        )
        # A forward on the prefix alone, without the forwards before it, is another law.
        for each in along:
            if each.block.forward == each.block.start > 0:
                seen = torch.tensor([[*result.prompt, *result.sequences[0][: each.block.start]]])
                model = sampler.proposal.model
                width = min(3, 10 - each.block.start)
                raw = model.session(seen, torch.tensor([seen.shape[1]])).score(
                    torch.tensor([0]), torch.full((1, width), MASKED)
                )
                alone = sampler.proposal.log_probs(raw, 1)[0, 0, : each.block.length]
                other += int((alone - each.log_q).abs().max() > 1e-3)
    assert other > 10, f"{other} blocks have another law without the history: the claim says little"


def test_particles_that_share_forwards_with_a_history_are_refused() -> None:
    sampler = cached(2)
    (result,) = sampler.run([[0, 1, 2]], seed=0, max_new_tokens=6)
    with pytest.raises(ValueError, match=r'result has 2 particles.*prefix cache.*dlm_cache="none"'):
        local_divergences(sampler, result, max_new_tokens=6)
    found = local_divergences(cached(1), result, particle=1, max_new_tokens=6, foreign=True)
    assert len(found.chi2) == len(result.sequences[1])


def test_windows_that_are_chosen_in_each_step_are_read_where_they_were_drafted() -> None:
    """A window that ends before the program's own draws on from the same forward."""
    pair = TabularPair(TabularDLM(Tables.ar, noise=1.2, seed=1), Tables.ar)
    costs = Costs.linear(dlm=(20.0, 0.01), ar=(0.01, 1.0))
    for reuse in (0.0, 0.3):
        sampler = smc(pair, 1, window="auto", lookahead=6, reuse=reuse, trigger=never, costs=costs)
        shared = 0
        for result in sampler.run([[]] * 30, seed=list(range(30)), max_new_tokens=6):
            local_divergences(sampler, result, max_new_tokens=6)  # raises unless they give the weights that were earned
            shared += sum(b.forward < b.start for b in blocks_of(sampler, result))
        assert shared > 10, f"{shared} blocks shared a forward"


def test_a_trace_without_forwards_is_refused() -> None:
    sampler = smc(Tables(), 1, window=2)
    (result,) = sampler.run([[]], seed=0, max_new_tokens=6)
    older = replace(result, trace=[replace(record, fresh=None) for record in result.trace])
    with pytest.raises(ValueError, match=r"step 0 does not say which drafts had a forward of their own"):
        local_divergences(sampler, older)


def test_every_particle_of_a_resampled_run_has_its_own_blocks() -> None:
    sampler = smc(Tables(), 4, w=0.8, window=2, lookahead=2)
    for result in sampler.run([[]] * 20, seed=list(range(20)), max_new_tokens=6):
        for particle, sequence in enumerate(result.sequences):
            assert sum(b.length for b in blocks_of(sampler, result, particle)) == len(sequence)


def test_divergences_are_those_of_plain_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(5), size=7), rng.dirichlet(np.ones(5), size=7)
    log_a, log_b = torch.from_numpy(np.log(a)), torch.from_numpy(np.log(b))
    assert kl(log_a, log_b).numpy() == pytest.approx((a * np.log(a / b)).sum(-1), abs=1e-12)
    assert chi2(log_a, log_b).numpy() == pytest.approx((a**2 / b).sum(-1) - 1, rel=1e-12)
    ratio = np.log(a / b)
    expected = (b * ratio**2).sum(-1) - (b * ratio).sum(-1) ** 2
    assert log_variance(log_a, log_b).numpy() == pytest.approx(expected, rel=1e-10)
    holes = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert kl(holes, holes.flip(0)).tolist() == [math.inf, math.inf]
    assert chi2(holes, holes).tolist() == [0.0, 0.0]
    assert log_variance(holes, holes.flip(0)).tolist() == [math.inf, math.inf]
    assert log_variance(holes, holes).tolist() == [0.0, 0.0]


def test_predicted_growth_is_exact_where_the_conditionals_do_not_depend_on_the_path() -> None:
    rows = np.random.default_rng(1).dirichlet(np.ones(3), size=4)
    ar = TabularAR([torch.from_numpy(np.tile(row, (3**i, 1))) for i, row in enumerate(rows)], eos_id=None)

    class Flat:
        """Conditionals that depend on the place only."""

    Flat.ar, Flat.dlm = ar, TabularDLM(ar, noise=0.5)  # type: ignore[attr-defined]
    count = 20_000
    poe = ProductOfExperts(0.8)
    sampler = smc(Flat(), count, intermediate=poe, kernel=Rejection(), window=4, trigger=never)
    result = sampler.run([[]], seed=1, max_new_tokens=4)[0]
    predicted = math.expm1(local_divergences(sampler, result, max_new_tokens=4).predicted_log_variance[-1])
    observed = weight_variance(result.log_weights)
    squares = np.square(np.exp(result.log_weights) - 1)
    error = 5 * squares.std() / math.sqrt(count)
    assert abs(observed - predicted) < error, f"predicted {predicted:.4f}, observed {observed:.4f} ± {error:.4f}"
    assert predicted > 0.02
    whole = local_divergences(sampler, result, max_new_tokens=4).predicted_variance_of_log_weight[-1]
    logs = np.asarray(result.log_weights)
    spread = 5 * np.square(logs - logs.mean()).std() / math.sqrt(count)
    assert abs(logs.var() - whole) < spread, f"predicted {whole:.4f}, observed {logs.var():.4f} ± {spread:.4f}"


def test_a_particle_that_does_not_exist_is_refused() -> None:
    sampler = smc(Tables(), 2, window=2)
    result = sampler.run([[]], seed=0, max_new_tokens=6)[0]
    with pytest.raises(ValueError, match="particle = 2"):
        local_divergences(sampler, result, particle=2)


def test_a_run_of_another_sampler_is_refused_unless_it_is_called_foreign() -> None:
    made, other = (smc(Tables(), 1, w=w, window=2, trigger=never) for w in (0.9, 0.3))
    for result in made.run([[]] * 10, seed=list(range(10)), max_new_tokens=6):
        local_divergences(made, result, max_new_tokens=6)
        with pytest.raises(ValueError, match=r"block 0 earned .* foreign=True"):
            local_divergences(other, result, max_new_tokens=6)
        assert len(local_divergences(other, result, max_new_tokens=6, foreign=True).chi2) == len(result.sequences[0])


def test_weights_that_are_not_the_blocks_own_are_not_held_against_the_laws() -> None:
    potential = smc(Tables(), 2, w=0.5, window=2, potential=lambda prefix: prefix.length.double())
    balanced = smc(
        Tables(), 1, lanes=2, w=0.5, window=2, proposal_temperature=[0.7, 1.4], weight=BalanceHeuristic()
    )
    for sampler in (potential, balanced):
        result = sampler.run([[]], seed=0, max_new_tokens=6)[0]
        assert len(local_divergences(sampler, result, max_new_tokens=6).chi2) == len(result.sequences[0])
