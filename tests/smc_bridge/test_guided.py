"""Guided diffusion: every committed token is that of the agreement rule, by a plain loop over both models."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from smc_bridge.decode import decode
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.agreement import Agreement
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.registry import spelled
from smc_bridge.testing import assert_biased, exact_law, tabular_pair
from smc_bridge.testing.tabular import TabularPair
from tests.smc_bridge.canvas_enumeration import distance
from tests.toys import toy_pair

LIMIT = 5
PROMPTS: list[list[int]] = [[1], [2], [1, 2], [2, 1], [2, 2], []]


def pair_of(seed: int) -> TabularPair:
    ar = TabularAR.random(4, LIMIT + 2, seed=seed, concentration=1.5, eos_id=0)
    return TabularPair(TabularDLM(ar, noise=0.8, seed=seed + 1), ar)


def plain_loop(pair: TabularPair, prompt: list[int], agrees: Any, lookahead: int) -> tuple[list[int], int]:
    """The rule, one token at a time, and how many rounds it took; no code of the kernel or the engine."""
    out: list[int] = []
    rounds = 0
    while len(out) < LIMIT and 0 not in out:
        rounds += 1
        prefix = prompt + out
        tokens, length = torch.tensor([prefix], dtype=torch.long).reshape(1, -1), torch.tensor([len(prefix)])
        masks = torch.full((1, min(lookahead, LIMIT - len(out))), MASKED)
        draft = pair.dlm.session(tokens, length).score(torch.zeros(1, dtype=torch.long), masks)[0].argmax(-1).tolist()
        committed: list[int] = []
        for token in draft:
            before = torch.tensor([prefix + committed], dtype=torch.long).reshape(1, -1)
            law = pair.ar.log_conditional(before, torch.tensor([len(prefix) + len(committed)]))[0].exp().tolist()
            if not agrees(token, law):
                break
            committed.append(token)
            if token == 0:
                break
        out += committed or draft[:1]
    return out, rounds


RULES = {
    "guided": lambda token, law: law[token] == max(law),
    "guided,rule=threshold": lambda token, law: law[token] > 0.1,
    "guided,rule=threshold,threshold=0.35": lambda token, law: law[token] > 0.35,
    "guided,rule=top-k,likeliest=2": lambda token, law: sorted(law, reverse=True).index(law[token]) < 2,
}


@pytest.mark.parametrize("lookahead", [2, 8])
@pytest.mark.parametrize("text", RULES)
def test_every_committed_token_is_that_of_the_rule(text: str, lookahead: int) -> None:
    kinds = set()
    for seed in range(4):
        pair = pair_of(seed)
        decoder = spelled(f"{text},lookahead={lookahead}").make(pair)
        for batch in (None, 2):
            for result in decode(decoder, PROMPTS, max_new_tokens=LIMIT, batch=batch):
                expected, rounds = plain_loop(pair, result.prompt, RULES[text], lookahead)
                assert result.sequences == [expected]
                assert (result.forwards.dlm_forwards, result.forwards.ar_forwards) == (rounds, rounds)
                assert result.log_weights == [0.0]
                kinds.add((rounds, len(expected)))
    assert len(kinds) > 3, "the cases are all alike"


def test_no_token_of_the_ar_model_enters() -> None:
    """Two tokens that the models never agree on: the diffusion model's own come out, one a round."""
    ar = TabularAR([[[0.9, 0.1]], [[0.9, 0.1], [0.9, 0.1]]])
    other = TabularAR([[[0.1, 0.9]], [[0.1, 0.9], [0.1, 0.9]]])
    [result] = decode(spelled("guided").make(TabularPair(TabularDLM(other), ar)), [[]], max_new_tokens=2)
    assert result.sequences == [[1, 1]]
    assert result.forwards.dlm_forwards == 2


def test_it_is_a_baseline_that_says_so() -> None:
    pair = tabular_pair(2, 3)
    decoder = spelled("guided,lookahead=3").make(pair)
    assert isinstance(decoder, Sampler)
    assert not decoder.proper
    assert not decoder.exact
    assert decoder.why_improper() == ["kernel Agreement is not proper", "weight Unweighed is not proper"]
    assert_biased(decoder, least=0.1)
    [result] = decode(decoder, [[]], max_new_tokens=3)
    tv = distance({tuple(result.sequences[0]): 1.0}, exact_law(decoder.target, 3))
    assert tv > 0.2, f"a point mass cannot be the AR law: {tv:.4f}"


@pytest.mark.parametrize(("options", "says"), [
    ({"rule": "own"}, "rule = 'own': give one of argmax, threshold, top-k"),
    ({"threshold": 0.2}, "threshold = 0.2 with rule = 'argmax': leave it out, or give rule = threshold"),
    ({"likeliest": 3}, "likeliest = 3 with rule = 'argmax': leave it out, or give rule = top-k"),
    ({"rule": "threshold", "threshold": 2}, "threshold = 2: give a probability"),
    ({"rule": "top-k", "likeliest": 0}, "likeliest = 0: agree with at least 1 token"),
    ({"lookahead": 0}, "lookahead = 0: draft at least 1 position"),
])
def test_bad_options_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)) as caught:
        spelled("guided").method.make(toy_pair(), **options)
    assert "\n" not in str(caught.value)


def test_a_tie_is_the_first_of_the_likeliest() -> None:
    law = torch.tensor([[0.4, 0.4, 0.2]]).log()
    assert Agreement().agrees(law, torch.tensor([0])).tolist() == [True]
    assert Agreement().agrees(law, torch.tensor([1])).tolist() == [False]
    assert Agreement("top-k", likeliest=1).agrees(law, torch.tensor([1])).tolist() == [True]
