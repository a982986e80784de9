"""From logits to the one law that is drawn from and scored: temperature, top-k, top-p, banned ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge.distributions.shaping import Shaping, as_ids
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from tests.oracle.intermediates import model_law

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 0.7},
    {"top_p": 1e-9},
    {"top_k": 4, "top_p": 0.6, "temperature": 1.4},
    {"banned": (1, 5)},
    {"banned": (0,), "top_k": 2, "top_p": 0.9, "temperature": 0.8},
]


def law_of(setting: dict[str, Any]) -> Shaping:
    names = {"banned": "banned_ids"}
    return Shaping(**{names.get(key, key): value for key, value in setting.items()})


def random_logits(rows: int = 100, size: int = 8, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_law_is_plain_numpys(setting: dict[str, Any], device: str) -> None:
    logits = random_logits()
    logits[::7, 2] = -math.inf
    found = law_of(setting).log_probs(logits.to(device)).exp().cpu().numpy()
    for row in range(logits.shape[0]):
        expected = model_law(logits[row].numpy(), **setting)
        assert np.abs(found[row] - expected).max() < 1e-12, f"row {row}: {found[row]}, numpy {expected}"


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_shifted_logits_change_nothing(setting: dict[str, Any]) -> None:
    logits, law = random_logits(), law_of(setting)
    shift = torch.linspace(-30, 30, logits.shape[0], dtype=torch.float64)[:, None]
    gap = (law.log_probs(logits + shift).exp() - law.log_probs(logits).exp()).abs().max()
    assert float(gap) < 1e-12, f"a constant added to the logits moves the law by {float(gap)}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_laws(dtype: torch.dtype) -> None:
    logits = random_logits(dtype=dtype)
    found = Shaping(0.7, 0.9).log_probs(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, Shaping(0.7, 0.9).log_probs(logits.float()))
    assert float((found.exp().sum(-1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_logits_keep_their_dtype(dtype: torch.dtype) -> None:
    assert Shaping(0.7).log_probs(random_logits(dtype=dtype)).dtype == dtype


def test_nan_is_refused_with_its_place() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN at .*\[1, 2\].*logits"):
        Shaping().log_probs(logits)


@pytest.mark.parametrize("value", [-math.inf, math.inf])
def test_a_row_without_a_law_is_refused_with_its_place(value: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1] = value
    with pytest.raises(ValueError, match=r"\[1\]"):
        Shaping().log_probs(logits)


def test_a_banned_last_token_is_refused_where_it_leaves_nothing() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf]])
    with pytest.raises(ValueError, match=r"\[0\]"):
        Shaping(banned_ids=(0,)).log_probs(logits)


def test_top_p_keeps_the_smallest_set_with_its_mass() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64))
    for top_p, kept in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        found = int((Shaping(top_p=top_p).log_probs(logits) > -math.inf).sum())
        assert found == kept, f"top_p = {top_p} keeps {found} tokens, the smallest set has {kept}"


def test_truncation_is_told() -> None:
    assert not Shaping(0.2, banned_ids=(1,)).truncates
    assert Shaping(top_p=0.9).truncates
    assert Shaping(top_k=3).truncates


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Shaping(1e-39), "temperature = 1e-39: give 0 for the likeliest token alone, or a number between"),
        (lambda: Shaping(-1.0), "temperature = -1.0"),
        (lambda: Shaping(math.nan), "temperature = nan"),
        (lambda: Shaping(math.inf), "temperature = inf"),
        (lambda: Shaping(top_p=0.0), "top_p = 0.0"),
        (lambda: Shaping(top_p=1.2), "top_p = 1.2"),
        (lambda: Shaping(top_k=0), "top_k = 0"),
        (lambda: as_ids([3, 9], 5), r"banned_ids = \[3, 9\].*0..4"),
        (lambda: as_ids([-1], 5), "banned_ids"),
        (lambda: as_ids([0, 1, 2], 3), "bans all 3"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_value(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def proposal(**options: Any) -> DLMProposal:
    return DLMProposal(TabularDLM(TabularAR.random(4, 2, seed=1)), **options)


def test_each_lane_has_its_own_temperature() -> None:
    logits = random_logits(6, 4).reshape(2, 3, 4)
    found = proposal(temperature=[0.5, 1.0, 2.0], top_p=0.9).log_probs(logits, 3)
    assert found.shape == (2, 3, 3, 4)
    for k, temperature in enumerate((0.5, 1.0, 2.0)):
        gap = (found[:, k].exp() - Shaping(temperature, 0.9).log_probs(logits).exp()).abs().max()
        assert float(gap) < 1e-12, f"lane {k} differs from its own law by {float(gap)}"


def test_one_temperature_is_shared_by_all_lanes() -> None:
    logits = random_logits(6, 4).reshape(2, 3, 4)
    found = proposal(temperature=0.6).log_probs(logits, 5)
    assert found.shape == (2, 5, 3, 4)
    assert torch.equal(found, Shaping(0.6).log_probs(logits)[:, None].expand(-1, 5, -1, -1))
    assert proposal(temperature=0.6).identical_lanes
    assert proposal(temperature=[0.6, 0.6]).identical_lanes
    assert not proposal(temperature=[0.6, 0.7]).identical_lanes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": []}, "temperature of the proposal is an empty list"),
        ({"temperature": [1.0, -0.5]}, "temperature of the proposal = -0.5"),
        ({"temperature": -2.0}, "temperature of the proposal = -2.0"),
        ({"lookahead": 0}, "lookahead = 0"),
        ({"top_p": 0.0}, "top_p of the proposal = 0.0"),
        ({"banned_ids": [7]}, "banned_ids"),
    ],
)
def test_bad_proposals_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        proposal(**options)


def test_lane_temperatures_must_match_the_lanes() -> None:
    with pytest.raises(ValueError, match="2 entries for 3 lanes"):
        proposal(temperature=[0.5, 1.0]).log_probs(random_logits(6, 4).reshape(2, 3, 4), 3)


def test_target_bans_the_models_ids_and_its_own() -> None:
    model = TabularAR.random(4, 2, seed=1, banned_ids=(3,))
    target = ARTarget(model, temperature=0.7, top_k=2, banned_ids=[0])
    found = target.log_probs(torch.zeros(1, 4, dtype=torch.float64)).exp()
    assert target.temperature == 0.7
    assert torch.allclose(found, torch.tensor([[0.0, 0.5, 0.5, 0.0]], dtype=torch.float64))
