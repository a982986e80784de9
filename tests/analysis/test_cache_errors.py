"""The error meter of caches: exact caches have none, and what it says is what two sessions' scores say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from smc_bridge.analysis.cache_errors import CacheMeter, cache_error
from smc_bridge.decode import decode
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.registry import spelled
from smc_bridge.testing import tabular_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("arithmetic", device="cpu")


@pytest.fixture(scope="module")
def prompts(pair: Pair) -> list[list[int]]:
    texts = "Ann has 3 apples. Ann buys 4. How many has Ann now?", "Ben has 2 pens. How many has Ben now?"
    return [pair.encode(text).tolist() for text in texts]


def test_the_meter_says_what_the_scores_of_two_sessions_say(pair: Pair, prompts: list[list[int]]) -> None:
    """KL and overlap of the places that were committed after each forward, by hand, of one row."""
    dlm: Any = pair.dlm
    models = CacheMeter(dlm.with_cache("freecache:4"), 0.5), dlm.with_cache("freecache:4"), dlm.with_cache("none")
    tokens, row = torch.tensor([prompts[0]]), torch.tensor([0])
    sessions = [model.session(tokens, torch.tensor([len(prompts[0])])) for model in models]
    canvas, expected = torch.full((1, 6), MASKED), []
    for count in (3, 2, 5, 1):
        logits = [session.score(row, canvas)[0].double() for session in sessions]
        banned = torch.zeros(dlm.vocab_size, dtype=torch.bool)
        banned[list(dlm.banned_ids)] = True
        torch.testing.assert_close(logits[0], logits[1])
        q, exact = ((scores / 0.5).masked_fill(banned, -torch.inf).softmax(-1) for scores in logits[1:])
        kl = torch.where(q > 0, q * (q / exact).log(), 0.0).sum(-1)
        expected += list(zip(kl[:count].tolist(), torch.minimum(q, exact).sum(-1)[:count].tolist(), strict=True))
        block = torch.arange(5, 5 + count)[None]
        for session in sessions:
            session.commit(block, torch.tensor([count]))
    found = list(zip(*models[0].used(), strict=True))
    assert len(found) == len(expected) == 11
    assert max(kl for kl, _ in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_meter_changes_no_draw_and_counts_every_committed_place(pair: Pair, prompts: list[list[int]]) -> None:
    dlm: Any = pair.dlm
    for method in ("smc-2,w=0.3,temperature=0.2", "dlm-2-entropy,temperature=0.2"):
        chosen, meter = spelled(method), CacheMeter(dlm.with_cache("freecache:8"), 0.2)
        plain, metered = (
            decode(chosen.make(replace(pair, dlm=model)), prompts, max_new_tokens=24)  # type: ignore[arg-type]
            for model in (meter.model, meter)
        )
        assert [r.sequences for r in plain] == [r.sequences for r in metered]
        kl, overlap = meter.used()
        assert kl.size <= sum(len(row.used) for row in meter.scored)
        if method.startswith("dlm"):
            assert kl.size >= sum(r.tokens for r in metered)
        assert kl.min() >= 0.0
        assert 0.0 < overlap.min() <= overlap.max() <= 1.0 + 1e-6


def test_without_a_cache_there_is_no_error_and_with_one_there_is(pair: Pair, prompts: list[list[int]]) -> None:
    found = cache_error(pair, ["none", "prefix", "dual:4"], prompts, method="smc-1", max_new_tokens=24)
    none, *others = found
    assert (none.kl_max, none.tokens_per_forward) == (0.0, none.tokens_per_forward_exact)
    assert none.acceptance == pytest.approx(1.0, abs=1e-6)
    assert all(row.kl_max > 1e-6 for row in others)
    text = repr(found)
    for word in ("smc-1, prefix", "smc-1, dual:4", "acceptance", "tokens /"):
        assert word in text, text


def test_what_cannot_be_measured_is_refused_in_one_line(pair: Pair, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompts is empty: give at least one, as token ids"):
        cache_error(pair, "prefix", [], method="smc-1")
    with pytest.raises(ValueError, match=r"method = 'ar,temperature=0\.2': it runs no forward of the diffusion"):
        cache_error(pair, "prefix", prompts, method="ar", max_new_tokens=2)
    with pytest.raises(ValueError, match="cache = 'all': give one of auto, none, prefix"):
        cache_error(pair, "all", prompts, method="smc-1")
    with pytest.raises(ValueError, match="has no cache; give a pair of transformers models"):
        cache_error(tabular_pair(), "prefix", [[0]], method="smc-1")  # type: ignore[arg-type]
