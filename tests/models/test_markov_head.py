"""Training of the Markov head and of the selector: it repeats, a short one drafts better than marginals, and what it
reads is right; the selector that is shipped beats the head."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from smc_bridge.models.learned.store import facts_of
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.training import markov as training
from smc_bridge.models.training import selector
from smc_bridge.models.training.markov import PLACES, accepted, harvest


@pytest.mark.parametrize("kind", [training, selector])
def test_a_short_training_repeats_and_shares_more_with_the_target_than_marginals_do(
    kind: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "BATCH", 8)
    pair = load_pair("arithmetic")
    first, again = (kind.train(pair, seed=3, steps=40, blocks=32) for _ in range(2))
    for name, weight in first.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name])
    assert first.loss == again.loss < 0.9
    other = harvest(pair, seed=4, blocks=16)
    gain = accepted(first.module, other, 1.0).mean() - accepted(None, other, 1.0).mean()  # type: ignore[arg-type]
    assert gain > 0.1, gain


@pytest.mark.parametrize("kind", [training, selector])
def test_fewer_steps_read_fewer_blocks_and_the_recipe_all(kind: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class AskedError(Exception):
        """With how many blocks the training asks for."""

    def asked(*_: object, blocks: int, **__: object) -> None:
        raise AskedError(blocks)

    monkeypatch.setattr(kind, "harvest", asked)
    found = []
    for steps in (None, 5, training.STEPS // 2, 10 * training.STEPS):
        with pytest.raises(AskedError) as caught:
            kind.train(load_pair("arithmetic"), steps=steps)
        found.append(caught.value.args[0])
    assert found == [training.BLOCKS, training.AT_ONCE, training.BLOCKS // 2, training.BLOCKS]


def test_the_head_that_is_shipped_says_how_it_was_trained_and_shares_more() -> None:
    pair = load_pair("arithmetic")
    head, data = pair.part("markov"), harvest(pair, seed=5, blocks=32)
    assert facts_of(pair.learned["markov"])["target"] == "ar"
    assert sum(weight.numel() for weight in head.parameters()) * 2 < 1_000_000  # bytes of the file
    for temperature in (1.0, 0.2):
        plain, chained = (accepted(each, data, temperature) for each in (None, head))  # type: ignore[arg-type]
        assert float(chained[1:8].mean()) > 1.2 * float(plain[1:8].mean())


def test_the_selector_that_is_shipped_says_how_it_was_trained_and_shares_more_than_a_markov_head() -> None:
    pair = load_pair("arithmetic")
    head, data = pair.part("selector"), harvest(pair, seed=5, blocks=48)
    assert facts_of(pair.learned["selector"])["blocks"] == training.BLOCKS
    assert sum(weight.numel() for weight in head.parameters()) * 2 < 1_000_000  # bytes of the file
    for temperature in (1.0, 0.2):
        simple, own = (accepted(each, data, temperature) for each in (pair.part("markov"), head))  # type: ignore[arg-type]
        assert float(own[1:8].mean()) > 1.02 * float(simple[1:8].mean())


def test_either_target_is_read_where_the_block_stands() -> None:
    """At the first place the diffusion model's chain rule is its marginal; both know the tokens before it."""
    pair = load_pair("arithmetic")
    own, ar = (harvest(pair, seed=1, blocks=3, target=target) for target in ("dlm", "ar"))  # type: ignore[arg-type]
    assert own.tokens.shape == (3, PLACES)
    assert torch.equal(own.tokens, ar.tokens)
    assert torch.equal(own.before[:, 1:], own.tokens[:, :-1])
    torch.testing.assert_close(own.target[:, 0], own.scores[:, 0], rtol=0, atol=0.02)
    assert float((own.target[:, 4] - own.scores[:, 4]).float().abs().max()) > 1.0
    assert not torch.equal(own.target, ar.target)
