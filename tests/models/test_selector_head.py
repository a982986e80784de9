"""The selector's training: it repeats, and a short one drafts better than marginals; what is shipped beats `markov`."""

from __future__ import annotations

import pytest
import torch

from smc_bridge.models.learned.store import facts_of
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.training import markov as training
from smc_bridge.models.training.markov import accepted, harvest
from smc_bridge.models.training.selector import train


def test_a_short_training_repeats_and_shares_more_with_the_target_than_marginals_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "BATCH", 8)
    pair = load_pair("arithmetic")
    first, again = (train(pair, seed=3, steps=40, blocks=32) for _ in range(2))
    for name, weight in first.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name])
    assert first.loss == again.loss < 0.9
    other = harvest(pair, seed=4, blocks=16)
    gain = accepted(first.module, other, 1.0).mean() - accepted(None, other, 1.0).mean()  # type: ignore[arg-type]
    assert gain > 0.1, gain


def test_the_head_that_is_shipped_says_how_it_was_trained_and_shares_more_than_a_markov_head() -> None:
    pair = load_pair("arithmetic")
    head, data = pair.part("selector"), harvest(pair, seed=5, blocks=48)
    assert facts_of(pair.learned["selector"])["blocks"] == training.BLOCKS
    assert sum(weight.numel() for weight in head.parameters()) * 2 < 1_000_000  # bytes of the file
    for temperature in (1.0, 0.2):
        simple, own = (accepted(each, data, temperature) for each in (pair.part("markov"), head))  # type: ignore[arg-type]
        assert float(own[1:8].mean()) > 1.02 * float(simple[1:8].mean())
