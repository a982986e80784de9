"""Temperature 0: the law is the point mass at the greatest logit, the smallest id of equal ones, on every path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge import DLMProposal
from smc_bridge.blocks import Horizon
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law, truncated
from smc_bridge.distributions.residual import ResidualLaw
from smc_bridge.distributions.shaping import COLDEST, Shaping
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.tree_build import best_first
from smc_bridge.models.tabular import TabularAR, TabularDLM
from tests.oracle import intermediates as oracle

ROWS, WIDTH = 3, 4
#: Little is computed at a time, and nothing at once.
LAZY = Chunks(bytes=1, whole=0)
#: What else a law may say; none of it moves the greatest logit but a ban.
SETTINGS: list[dict[str, Any]] = [
    {}, {"banned_ids": (0, 2, 5)}, {"top_p": 0.3}, {"top_p": 1e-9, "top_k": 3}, {"top_k": 2, "banned_ids": (1,)},
]


def scores(size: int, dtype: torch.dtype) -> Tensor:
    """Logits `[ROWS, WIDTH, size]` with many ties: whole numbers, some rows of one value, some tokens of -inf."""
    generator = torch.Generator().manual_seed(size)
    raw = torch.randint(-3, 4, (ROWS, WIDTH, size), generator=generator).to(dtype)
    raw[0, 0], raw[1, 1, :3], raw[2, 2, 3:] = 1.0, -math.inf, -math.inf
    return raw


def expected(raw: Tensor, setting: dict[str, Any], *, temperature: float = 0.0) -> Tensor:
    """The oracle's law of each cell, `[R, V, A]`."""
    names = {"banned_ids": "banned"}
    given = {names.get(key, key): value for key, value in setting.items()}
    flat = raw.double().reshape(-1, raw.shape[-1]).numpy()
    return torch.from_numpy(
        np.stack([oracle.model_law(row, temperature=temperature, **given) for row in flat])
    ).reshape(raw.shape)


def singly(law: Law) -> Tensor:
    """Its log-probabilities, asked for one token at a time."""
    rows, width, size = law.shape
    cell = torch.arange(rows * width * size)
    return law.log_probs(cell // (width * size), cell // size % width, cell % size).reshape(law.shape)


def drawn(law: Law) -> Tensor:
    """Shares of tokens among draws from each cell, at uniforms over all of [0, 1)."""
    points = torch.tensor([0.0, 1e-9, 0.3, 0.7, 1 - 2.0**-53], dtype=torch.float64)
    each = torch.stack([law.inverse_cdf(point.expand(law.shape[:-1])) for point in points])
    return torch.nn.functional.one_hot(each, law.shape[-1]).double().mean(0)


PLACES = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH)
PATHS: dict[str, Callable[[Tensor, Shaping], Tensor]] = {
    "dense": lambda raw, law: law.log_probs(raw).double().exp(),
    "table": lambda raw, law: model_law(raw, None, law).dense().double().exp(),
    "lazy": lambda raw, law: model_law(raw, PLACES, law, chunks=LAZY).dense().double().exp(),
    "singly": lambda raw, law: singly(model_law(raw, PLACES, law, chunks=LAZY)).double().exp(),
    "row": lambda raw, law: torch.stack(
        [model_law(raw, PLACES, law, chunks=LAZY).row(torch.full((ROWS,), i)) for i in range(WIDTH)], 1
    ).double().exp(),
    "drawn": lambda raw, law: drawn(model_law(raw, None, law)),
    "drawn lazily": lambda raw, law: drawn(model_law(raw, PLACES, law, chunks=LAZY)),
    "cut again": lambda raw, law: truncated(model_law(raw, None, law), Shaping(top_p=0.5)).dense().double().exp(),
}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [7, 700])
@pytest.mark.parametrize("path", PATHS)
def test_the_law_is_the_oracles_on_every_path(path: str, size: int, setting: dict[str, Any]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        raw = scores(size, dtype)
        found = PATHS[path](raw, Shaping(0.0, **setting))
        assert torch.equal(found, expected(raw, setting)), dtype


@pytest.mark.parametrize("path", PATHS)
def test_logits_that_rounding_makes_equal_are_equal(path: str) -> None:
    """bfloat16 has steps of 1/2 at 100, float32 none that matter: 100.1 wins there and is equal to 100 here."""
    exact = torch.tensor([99.0, 100.0, 100.1, 3.0])
    for dtype, winner in ((torch.float32, 2), (torch.bfloat16, 1)):
        found = PATHS[path](exact.to(dtype).expand(ROWS, WIDTH, 4).contiguous(), Shaping(0))
        assert found.argmax(-1).unique().tolist() == [winner], dtype


@pytest.mark.parametrize("path", [path for path in PATHS if path != "cut again"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_law_is_refused_with_its_place(path: str, value: float) -> None:
    raw = scores(7, torch.float32)
    raw[1, 2, 4] = value
    with pytest.raises(ValueError, match=r"log_probs has NaN at \(row, .*position\) \[1, 2\]: check the model's log"):
        PATHS[path](raw, Shaping(0.0))
    raw[1, 2] = -math.inf
    with pytest.raises(ValueError, match=r"\[1, 2\]: check the model's logits"):
        PATHS[path](raw, Shaping(0.0))


def test_the_coldest_temperatures_come_to_the_same_law_where_one_logit_is_the_greatest() -> None:
    raw = torch.randn(ROWS, WIDTH, 50, generator=torch.Generator().manual_seed(1))
    for path, law in PATHS.items():
        assert torch.equal(law(raw, Shaping(COLDEST)), law(raw, Shaping(-0.0))), path
    assert math.copysign(1.0, Shaping(-0.0).temperature) == 1.0


@pytest.mark.parametrize("own", [[0.0, 0.5], [0.5, 0.0, 0.0], [0.0, 0.0]], ids=str)
@pytest.mark.parametrize("setting", [{}, {"top_p": 0.6}, {"banned_ids": [1]}], ids=str)
@pytest.mark.parametrize("chunks", [None, LAZY], ids=["at once", "lazy"])
def test_each_lane_has_its_own_temperature(own: list[float], setting: dict[str, Any], chunks: Chunks | None) -> None:
    proposal = DLMProposal(TabularDLM(TabularAR.random(7, 2, seed=1)), temperature=own, **setting)
    raw, lanes = scores(7, torch.float64), len(own)
    law = proposal.law(raw, PLACES.numpy(), np.arange(ROWS), lanes, chunks=chunks)
    by_hand = torch.stack([expected(raw, setting, temperature=one) for one in own], 1)
    for found in (law.dense(), singly(law), proposal.log_probs(raw, lanes).reshape(law.shape)):
        assert torch.allclose(found.exp(), by_hand.reshape(law.shape), atol=1e-12)
    shares = drawn(law).reshape(by_hand.shape)
    for k in [k for k, one in enumerate(own) if one == 0.0]:
        assert torch.equal(shares[:, k], by_hand[:, k]), k


def test_the_residual_of_point_masses_is_what_the_other_leaves() -> None:
    """Of `(pi - q)_+`: pi itself where q is elsewhere, pi without q's token, and pi where nothing is left."""
    point, other = Dense(Shaping(0.0).log_probs(torch.tensor([[[3.0, 1.0, 2.0]]]))), Dense(
        torch.tensor([[[0.2, 0.3, 0.5]]]).log())
    away = Dense(torch.tensor([[[0.0, 1.0, 0.0]]]).log())
    zero, needed = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    for q, pi, left in (
        (away, point, [1.0, 0.0, 0.0]), (point, other, [0.0, 0.375, 0.625]), (other, point, [1.0, 0.0, 0.0]),
        (point, point, [1.0, 0.0, 0.0]),
    ):
        found = ResidualLaw(q, pi, zero, needed, None).log_probs(zero, zero).exp()
        assert torch.allclose(found, torch.tensor([left])), left


@pytest.mark.parametrize("chunks", [None, LAZY], ids=["at once", "lazy"])
def test_a_tree_of_greedy_marginals_ranks_by_the_models_own_law(chunks: Chunks | None) -> None:
    raw = torch.randn(ROWS, WIDTH, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    horizon = Horizon(torch.tensor([4, 3, 4, 4]), ())
    shared = torch.tensor([0, 2, 1, 0])
    cold, plain = (
        model_law(raw, PLACES, Shaping(temperature, top_p=top_p), chunks=chunks).of_rows(shared)
        for temperature, top_p in ((0.0, 0.5), (1.0, 1.0))
    )
    for exponent in (1.0, 1 / 0.65):
        one, other = (best_first(law, 9, horizon, exponent=exponent) for law in (cold, plain))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert bool((one.depth == 1).sum(1).gt(1).all()), "a path has one node of each depth"
