"""Arguments of every numeric kind are taken for what they are; others are refused in one line before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import Defensive, ProductOfExperts, paper, smc
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.weights import EssBelow
from smc_bridge.kernels.importance import BalanceHeuristic, OwnWeights
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.canvas import diffusion
from smc_bridge.models.arguments import real_number, said, whole_number
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal

AR = TabularAR.random(3, 8, seed=1, eos_id=1)
DLM = TabularDLM(AR, noise=0.5)
PAIR: Any = type("Toy", (), {"dlm": DLM, "ar": AR})()
PROMPTS: Any = [[0], [1, 0]]


def run(prompts: Any = PROMPTS, *, max_new_tokens: Any = 3, **arguments: Any) -> Any:
    """A short run."""
    return smc(PAIR, 2, window=2, lookahead=3).run(prompts, max_new_tokens=max_new_tokens, **arguments)


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor], ids=["int", "numpy", "tensor"])
def test_whole_numbers_of_every_kind_are_the_same(kind: Callable[[int], Any]) -> None:
    sampler = smc(PAIR, kind(2), lanes=kind(2), window=kind(2), lookahead=kind(3), max_logit_bytes=kind(10**6))
    results = sampler.run(PROMPTS, seed=kind(3), max_new_tokens=kind(3), batch=kind(1))
    plain = smc(PAIR, 2, lanes=2, window=2, lookahead=3).run(PROMPTS, seed=3, max_new_tokens=3)
    assert [r.sequences for r in results] == [r.sequences for r in plain]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, torch.tensor], ids=["float", "f64", "f32", "tensor"])
def test_temperatures_of_every_kind_are_the_same(kind: Callable[[float], Any]) -> None:
    results = smc(PAIR, 2, window=2, lookahead=3, temperature=kind(0.5)).run(PROMPTS, max_new_tokens=3)
    plain = smc(PAIR, 2, window=2, lookahead=3, temperature=0.5).run(PROMPTS, max_new_tokens=3)
    assert [r.log_weights for r in results] == [r.log_weights for r in plain]


#: What is called, and how the line begins.
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "particles as text": (lambda: smc(PAIR, "4"), "particles = '4': give a whole number"),  # type: ignore[arg-type]
    "half a window": (lambda: smc(PAIR, window=2.5), "window = 2.5: give a whole number"),  # type: ignore[arg-type]
    "half a lookahead": (lambda: smc(PAIR, lookahead=2.5), "lookahead = 2.5"),  # type: ignore[arg-type]
    "half a top-k": (lambda: smc(PAIR, top_k=1.5), "top_k = 1.5"),  # type: ignore[arg-type]
    "top-p as text": (lambda: smc(PAIR, top_p="x"), "top_p = 'x'"),  # type: ignore[arg-type]
    "temperature as text": (lambda: smc(PAIR, temperature="hot"), "temperature = 'hot'"),  # type: ignore[arg-type]
    "no temperature": (lambda: DLMProposal(DLM, temperature=None), "temperature of the proposal = None"),  # type: ignore[arg-type]
    "half a node": (lambda: TreeWalk(2.5), "nodes = 2.5"),  # type: ignore[arg-type]
    "half a lane": (lambda: paper(PAIR, lanes=2.5), "lanes = 2.5"),  # type: ignore[arg-type]
    "unknown intermediate": (
        lambda: smc(PAIR, intermediate="pow"), "intermediate = 'pow': did you mean poe? give one of poe"),
    "base as text": (lambda: Defensive("poe"), "base = 'poe'"),  # type: ignore[arg-type]
    "trigger as number": (lambda: smc(PAIR, trigger=0.5), "trigger = 0.5"),  # type: ignore[arg-type]
    "trigger as class": (lambda: smc(PAIR, trigger=EssBelow), "trigger = EssBelow is a class"),  # type: ignore[arg-type]
    "potential as text": (lambda: smc(PAIR, potential="x"), "potential = 'x'"),  # type: ignore[arg-type]
    "pair as text": (lambda: smc("arithmetic"), "pair = 'arithmetic': give a pair of models"),  # type: ignore[arg-type]
    "pair as number": (lambda: load_pair(3), "pair = 3"),  # type: ignore[call-overload, arg-type, unused-ignore]
    "cap as text": (lambda: load_pair(max_logit_bytes="a"), "max_logit_bytes = 'a'"),  # type: ignore[arg-type]
    "exponents of other lanes": (
        lambda: smc(PAIR, lanes=2, intermediate=ProductOfExperts(0.3, torch.ones(3))), "target_exponent has 3 entries"),
    "exponents of a table": (lambda: ProductOfExperts(0.3, torch.ones(2, 2)), "target_exponent has shape (2, 2)"),
    "one flat list": (lambda: run([0, 1]), "prompts[0] = 0: give token ids, whole numbers, as pair.encode(text) does"),
    "no prompts": (lambda: run(None), "prompts = None"),
    "prompts as text": (lambda: run("01"), "prompts = '01': give a list with the token ids of each, [pair.e"),
    "a table of seeds": (lambda: run(seed=np.zeros((2, 1), int)), "seed = array"),
    "seed as text": (lambda: run(seed="1"), "seed = '1'"),
    "half a token": (lambda: run(max_new_tokens=1.5), "max_new_tokens = 1.5"),
    "half a batch": (lambda: run(batch=1.5), "batch = 1.5"),
    "nobody to tell": (lambda: run(on_result="x"), "on_result = 'x'"),
    "ids for a text": (lambda: smc(load_pair()).decode([5]), "text = [5]: give a string"),  # type: ignore[arg-type]
    "texts for ids": (lambda: ar_sampling(ARTarget(AR), ["0"]), "prompts[0] = '0': give token ids, whole n"),  # type: ignore[list-item]
    "half a forward": (
        lambda: diffusion(DLMProposal(DLM), PROMPTS, tokens_per_forward=1.5),  # type: ignore[arg-type]
        "tokens_per_forward = 1.5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_one_line_that_names_it(case: str) -> None:
    call, words = WRONG[case]
    with pytest.raises(ValueError, match="^" + re.escape(words)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_numbers_are_numbers() -> None:
    assert whole_number("x", np.int8(3)) == 3
    assert real_number("x", torch.tensor(0.5)) == 0.5
    for value in (True, None, "1", 1.0, torch.ones(2)):
        with pytest.raises(ValueError, match="x = "):
            whole_number("x", value)
    for value in (True, None, "1", torch.ones(2)):
        with pytest.raises(ValueError, match="x = "):
            real_number("x", value)


def test_no_message_has_an_address() -> None:
    class Own:
        pass

    assert (repr(OwnWeights()), repr(BalanceHeuristic())) == ("OwnWeights()", "BalanceHeuristic()")
    assert (said(Own()), said([Own(), run, 1])) == ("Own", "[Own, run, 1]")
