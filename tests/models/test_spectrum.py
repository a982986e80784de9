"""Forecast features of a diffusion model: which forwards are computed, what the others say, rows that follow, costs."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from smc_bridge.decode import decode
from smc_bridge.models.caches import Spectrum, cache_named
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.models.spectrum import SpectrumSession
from smc_bridge.registry import spelled

M = 8


@pytest.fixture(scope="module")
def dlm() -> Any:
    return load_pair("arithmetic", dlm_cache="none").dlm


def opened(dlm: Any, rows: int = 1, **policy: Any) -> tuple[SpectrumSession, Any]:
    """A session that forecasts, and one that computes."""
    tokens, length = torch.tensor([[1, 20, 30, 40]] * rows), torch.full((rows,), 4)
    own = dlm.with_cache(Spectrum(**policy)).session(tokens, length)
    assert isinstance(own, SpectrumSession)
    return own, dlm.session(tokens, length)


def grown(step: int) -> torch.Tensor:
    """A canvas of which the last places are filled, one after the other."""
    return torch.tensor([[MASKED] * (M - step) + list(range(50, 50 + step))])


def test_it_computes_the_first_forwards_then_one_of_each_window(dlm: Any) -> None:
    session, _ = opened(dlm, warmup=3, window=2, growth=0.5)
    ran = []
    for _ in range(16):
        session.score(torch.tensor([0]), grown(0))
        ran += session.computed.tolist()
    # Windows of 2, 2, 3, 3, 4 forwards.
    assert ran == [True] * 3 + [False, True] * 2 + [False, False, True] * 2 + [False] * 3
    published, _ = opened(dlm)
    counts = [published.score(torch.tensor([0]), grown(0)) is not None and int(published.computed.sum())
              for _ in range(50)]
    assert sum(counts) == 14, "as the authors count, 14 of 50"


def test_a_forecast_is_the_heads_word_on_the_fitted_features(dlm: Any) -> None:
    session, exact = opened(dlm, warmup=4, degree=2, ridge=0.3, keep=3)
    features = []
    for step in range(4):
        scored = exact.score(torch.tensor([0]), grown(step), hidden=True)
        torch.testing.assert_close(session.score(torch.tensor([0]), grown(step)), scored.logits)
        features.append(scored.hidden[0].double().numpy())
    # The prefix takes in two tokens: places are told by their positions.
    for each in (session, exact):
        each.commit(torch.tensor([[7, 8]]), torch.tensor([2]))
    canvas = torch.tensor([[MASKED] * 3 + [50, 51, 52, ABSENT]])
    found = session.score(torch.tensor([0]), canvas, hidden=True)
    assert session.computed.tolist() == [False]
    phi = np.polynomial.chebyshev.chebvander(2 * np.array([1, 2, 3]) / M - 1, 2)
    rows = np.concatenate([phi, np.sqrt(0.3) * np.eye(3)])
    kept = np.stack(features[1:]).reshape(3, -1)
    fit = np.linalg.lstsq(rows, np.concatenate([kept, np.zeros((3, kept.shape[1]))]), rcond=None)[0]
    expected = (np.polynomial.chebyshev.chebvander(np.array([2 * 4 / M - 1]), 2) @ fit).reshape(M, -1)
    np.testing.assert_allclose(found.hidden[0, :6].numpy(), expected[2:], atol=2e-4)
    torch.testing.assert_close(found.logits, dlm.head(found.hidden))
    computed = exact.score(torch.tensor([0]), canvas)
    assert float((found.logits - computed)[:, :3].abs().max()) > 0.1, "a forecast is no forward"


def test_rows_that_are_gathered_or_equal_have_one_past_and_others_do_not(dlm: Any) -> None:
    session, _ = opened(dlm, rows=3, warmup=2)
    for step in range(2):
        session.score(torch.tensor([0]), grown(step))  # rows 1 and 2 are equal, and follow
    session.score(torch.tensor([1]), grown(2))
    assert session.computed.tolist() == [False]
    session.commit(torch.tensor([[5], [6], [5]]), torch.tensor([1, 1, 1]))
    session.gather(torch.tensor([1, 1, 2]))
    one, other = (session.score(torch.tensor([row]), grown(2)[:, 1:]) for row in (0, 2))
    assert session.computed.tolist() == [True], "the second of its window"
    torch.testing.assert_close(session.inner.tokens[0], session.inner.tokens[1])
    assert not torch.equal(one, other)


def test_a_row_that_is_given_another_prompt_begins_anew_and_new_places_are_computed(dlm: Any) -> None:
    session, exact = opened(dlm, warmup=2)
    for step in range(2):
        session.score(torch.tensor([0]), grown(step))
    wider = torch.cat([grown(2), torch.tensor([[MASKED]])], 1)
    session.score(torch.tensor([0]), wider)
    assert session.computed.tolist() == [True], "the last place was in no forward before"
    for each in (session, exact):
        each.crop(torch.tensor([0]))
        each.commit(torch.tensor([[9, 9, 9]]), torch.tensor([3]))
    for step in range(2):
        torch.testing.assert_close(*(each.score(torch.tensor([0]), grown(step)) for each in (session, exact)))


def test_forecasts_cost_no_forward_and_draws_do_not_depend_on_the_batch() -> None:
    pair = load_pair("arithmetic", dlm_cache="spectrum:3")
    prompts = [pair.encode(f"Ann has {n} apples. Ann buys 4 more.").tolist() for n in (3, 15, 27)]
    inner = type(pair.dlm.session(torch.tensor([prompts[0]]), torch.tensor([len(prompts[0])])).inner)
    plain, scored, asked = inner.score, list[int](), list[int]()
    forecast = SpectrumSession.score

    def counting(self: Any, rows: torch.Tensor, canvas: torch.Tensor, **more: Any) -> Any:
        scored.append(len(rows))
        return plain(self, rows, canvas, **more)

    def asking(self: Any, rows: torch.Tensor, canvas: torch.Tensor, **more: Any) -> Any:
        asked.append(len(rows))
        return forecast(self, rows, canvas, **more)

    for text in ("low-confidence,temperature=0.2", "smc-1,temperature=0.2,lookahead=24"):
        decoder = spelled(text).make(pair)
        scored.clear()
        asked.clear()
        with mock.patch.object(inner, "score", counting), mock.patch.object(SpectrumSession, "score", asking):
            together = decode(decoder, prompts, seed=1, max_new_tokens=24)
        assert sum(r.forwards.dlm_rows for r in together) == sum(scored)
        alone = [decode(decoder, [p], seed=1, max_new_tokens=24)[0] for p in prompts[:2]]
        assert [(r.sequences, r.forwards) for r in alone] == [(r.sequences, r.forwards) for r in together[:2]]
        assert sum(scored) < sum(asked)


def test_a_policy_has_a_name_and_bad_numbers_are_refused_in_one_line() -> None:
    assert cache_named("spectrum") == Spectrum()
    assert (cache_named("spectrum:4"), str(Spectrum(4)), str(Spectrum())) == (Spectrum(4), "spectrum:4", "spectrum")
    assert str(Spectrum(growth=0.0, warmup=1)) == "spectrum(growth=0, warmup=1)"
    for options, says in (
        ({"window": 0}, "window of the cache spectrum = 0: give the forwards of a window"),
        ({"ridge": 0.0}, "ridge of the cache spectrum = 0.0: give a penalty above 0"),
        ({"keep": 1}, "keep of the cache spectrum = 1: keep at least 2 forwards"),
        ({"growth": -1.0}, "growth of the cache spectrum = -1.0: give a number of at least 0"),
    ):
        with pytest.raises(ValueError, match=says):
            Spectrum(**options)  # type: ignore[arg-type]
