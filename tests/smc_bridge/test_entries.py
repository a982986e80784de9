"""Every entry that takes prompts refuses the same bad ones, with the same line, before any forward."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import ar_sampling, diffusion, smc
from smc_bridge.analysis import conditional_runs, measure_cost, oracle, rank_test
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.pyro_program import enumerate_program, importance_baseline, run_program
from smc_bridge.pyro_program.inference import score

LIMIT = 2


class Counting(TabularAR):
    """A table that counts its sessions, and has six positions."""

    max_length = 6
    limited_by = "rows of its table"
    min_length = 0
    sessions = 0

    def session(self, tokens: torch.Tensor, length: torch.Tensor) -> Any:
        self.sessions += 1
        return super().session(tokens, length)


class ShortDLM(TabularDLM):
    """A diffusion model with a number of positions."""

    max_length = 5
    min_length = 0


def pair(*, least: int = 0, longest: int = 6, dlm_longest: int | None = None) -> Any:
    """An AR model and a diffusion model; sessions of the first are counted."""
    ar = Counting(TabularAR.random(3, 6, seed=1, eos_id=2).tables, eos_id=2)
    dlm = ShortDLM(TabularAR(ar.tables, eos_id=2), noise=0.3)
    ar.max_length, ar.min_length, dlm.min_length = longest, least, least
    dlm.max_length = longest if dlm_longest is None else dlm_longest
    return type("Toy", (), {"dlm": dlm, "ar": ar})()


def sampler(models: Any) -> Any:
    """Two particles."""
    return smc(models, 2, window=2, lookahead=2)


#: Entries by name: models, prompts, length limit.
ENTRIES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "run": lambda m, p, t: sampler(m).run(p, max_new_tokens=t),
    "start": lambda m, p, t: sampler(m).start(p, max_new_tokens=t),
    "ar_sampling": lambda m, p, t: ar_sampling(m, p, max_new_tokens=t),
    "diffusion": lambda m, p, t: diffusion(m, p, max_new_tokens=t),
    "conditional_runs": lambda m, p, t: conditional_runs(sampler(m), p, max_new_tokens=t),
    "rank_test": lambda m, p, t: rank_test(sampler(m), p, len, steps=1, max_new_tokens=t),
}
#: Entries of one prompt, which call it `prompt`, or `prompts[0]` where they start a sampler.
SINGLE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "oracle": lambda m, p, t: oracle(m, p, max_new_tokens=t),
    "run_program": lambda m, p, t: run_program(sampler(m), p, max_new_tokens=t),
    "enumerate_program": lambda m, p, t: enumerate_program(sampler(m), p, max_new_tokens=t),
    "importance_baseline": lambda m, p, t: importance_baseline(sampler(m), p, 2, max_new_tokens=t),
    "decode": lambda m, p, t: _decode(m, p, t),
    "measure_cost": lambda m, p, t: measure_cost(m, lookahead=t, window=t, prompt=p),
    "score": lambda m, p, t: score(sampler(m), p, [0] * t),
}


def _decode(models: Any, prompt: Any, limit: Any) -> Any:
    program = sampler(models)
    program.tokenize = lambda text: prompt
    return program.decode("x", max_new_tokens=limit)


#: What is wrong: models, the second of two prompts, length limit, and how the line goes on after the prompt's name.
BAD: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "id past the alphabet": ({}, [0, 3], LIMIT, "has a token outside 0..2, 3: give ids"),
    "negative id": ({}, [-1], LIMIT, "has a token outside 0..2, -1: give ids"),
    "numbers that are not whole": ({}, torch.tensor([0.7, 1.0]), LIMIT, "= tensor([0.7000, 1.0000]): give token ids"),
    "truth values": ({}, [True], LIMIT, "= [True]: give token ids"),
    "a table": ({}, np.array([[0], [1]]), LIMIT, "= array([[0], [1]]): give token ids"),
    "a set": ({}, {0, 1}, LIMIT, "= {0, 1}: give token ids"),
    "empty where a token is read": ({"least": 1}, [], LIMIT, "is empty: the "),
    "too long for the models": (
        {}, [0] * 5, LIMIT, "has 5 tokens, with max_new_tokens = 2 more than the 6 positions of the "),
    "no room at all": ({}, [0] * 6, LIMIT, "has 6 tokens, with max_new_tokens = 2 more than the 6 positions of the "),
}


@pytest.mark.parametrize("wrong", BAD)
@pytest.mark.parametrize("entry", [*ENTRIES, *SINGLE])
def test_every_entry_refuses_a_bad_prompt_by_its_name_before_any_forward(entry: str, wrong: str) -> None:
    options, bad, limit, words = BAD[wrong]
    models = pair(**options)
    several = entry in ENTRIES
    call = (ENTRIES if several else SINGLE)[entry]
    with pytest.raises(ValueError, match=r"^(prompt|tokenize)") as caught:
        call(models, [[0], bad] if several else bad, limit)
    names = ["prompts[1]"] if several else ["prompt", "prompts[0]"]
    said = str(caught.value)
    if entry != "decode" or not words.startswith("= "):  # a tokenizer's ids are refused as what it returned
        assert any(said.startswith(f"{name} {words}") for name in names), said
    assert "\n" not in said
    assert models.ar.sessions == 0


@pytest.mark.parametrize("limit", [0, 1.5, True, "3", None])
@pytest.mark.parametrize("entry", [name for name in (*ENTRIES, *SINGLE) if name not in ("score", "measure_cost")])
def test_every_entry_refuses_a_limit_that_is_no_number(entry: str, limit: Any) -> None:
    if entry == "decode" and limit is None:  # what fits
        assert _decode(pair(), [0], limit).settings["max_new_tokens"] > LIMIT
        return
    several = entry in ENTRIES
    with pytest.raises(ValueError, match=r"^max_new_tokens = .*: allow at least 1 token"):
        (ENTRIES if several else SINGLE)[entry](pair(), [[0]] if several else [0], limit)


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, torch.tensor, iter], ids=["list", "tuple", "array", "tensor", "iter"]
)
def test_prompts_of_every_kind_are_the_same(kind: Callable[[Any], Any]) -> None:
    same = ar_sampling(pair(), [[0, 1], [1, 0]], max_new_tokens=LIMIT)
    assert [r.prompt for r in ar_sampling(pair(), [kind([0, 1]), kind([1, 0])], max_new_tokens=LIMIT)] == [
        r.prompt for r in same
    ]
    if kind is not iter:
        found = sampler(pair()).run(kind([[0, 1], [1, 0]]), max_new_tokens=np.int64(LIMIT))
        assert [r.prompt for r in found] == [[0, 1], [1, 0]]


@pytest.mark.parametrize("entry", ["run", "start", "conditional_runs"])
def test_the_limits_of_both_models_count_and_the_remedy_helps(entry: str) -> None:
    call = ENTRIES[entry]
    with pytest.raises(ValueError, match="5 positions of the diffusion model: allow at most 1 new tokens") as caught:
        call(pair(dlm_longest=5), [[0], [0] * 4], LIMIT)
    [room] = map(int, re.findall(r"at most (\d+)", str(caught.value)))
    call(pair(dlm_longest=5), [[0], [0] * 4], room)
    with pytest.raises(ValueError, match=r"4 positions of the autoregressive model \(rows of its table\): shorten"):
        call(pair(longest=4, dlm_longest=9), [[0], [0] * 4], LIMIT)


def test_an_empty_prompt_is_no_fault_where_the_models_read_none() -> None:
    assert ar_sampling(pair(), [[]], max_new_tokens=LIMIT)[0].prompt == []


@pytest.mark.parametrize("entry", [ar_sampling, diffusion])
def test_a_pair_stands_for_its_model_at_temperature_one(entry: Callable[..., Any]) -> None:
    models, program = pair(), sampler(pair())
    law = program.target if entry is ar_sampling else program.proposal
    prompts = [[0], [1], [0, 1]]
    left, right = (entry(x, prompts, seed=3, max_new_tokens=3) for x in (models, law))
    assert [r.sequences for r in left] == [r.sequences for r in right]
    models.decode = str
    assert entry(models, [[0]], max_new_tokens=3)[0].texts[0].startswith("[")
    with pytest.raises(ValueError, match=r"^(target|proposal) = 3: give "):
        entry(3, [[0]])


def test_the_oracle_takes_a_pair_too() -> None:
    models = pair()
    assert oracle(models, [0], max_new_tokens=2).posterior() == oracle(
        sampler(models).target, torch.tensor([0]), max_new_tokens=np.int64(2)
    ).posterior()
