"""Values of kinds that nobody means: every argument refuses them in one line that names it, or takes them as they are.

Each case ended in an error of torch, numpy or Python, in a message of several lines, or in silence.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import (
    ARTarget,
    Clamp,
    DLMProposal,
    PowerMean,
    ProductOfExperts,
    Result,
    Sampler,
    ar_sampling,
    certify,
    check,
    diffusion,
    smc,
    speculative,
)
from smc_bridge.analysis import (
    batch_means,
    bias_against_samples,
    kl_certificate,
    largest_within,
    mmd_test,
    oracle,
    summary,
    to_datatree,
    weighted_law,
)
from smc_bridge.analysis.comparison import Settings
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.tabular import TabularAR, TabularDLM

AR = TabularAR.random(3, 3, seed=3, eos_id=2)
PAIR: Any = SimpleNamespace(dlm=TabularDLM(AR, noise=0.5, seed=1), ar=AR)
HUGE = 10**400


class Written:
    """An object whose text has two lines, as those of networks have many."""

    def __repr__(self) -> str:
        return "two\nlines"


def sampler(**parts: Any) -> Sampler:
    return smc(PAIR, 2, window=2, lookahead=2, **parts)


def run(**arguments: Any) -> list[Result]:
    return sampler().run(**{"prompts": [[]], "max_new_tokens": 2, **arguments})


RUNS = run(prompts=[[]] * 4, seed=range(4))

#: What is called with what, and how the line begins.
REFUSED: dict[str, tuple[Any, Any, str]] = {
    **{f"two lines as {name}": (lambda v, name=name: sampler(**{name: v}), Written(), f"{name} = two lines")
       for name in ("kernel", "weight", "resampler", "trigger", "intermediate", "potential", "compile")},
    "a pair of two lines": (smc, Written(), "pair = two lines: give a pair"),
    "w beside an intermediate": (
        lambda v: smc(PAIR, intermediate="target", w=v), Written(), "w = two lines with intermediate = "),
    "w of a preset that has none": (
        lambda v: speculative(PAIR, w=v), Written(), "w = two lines with speculative, which has none"),
    "a class as a potential": (lambda v: sampler(potential=v), Written, "potential = Written is a class"),
    **{f"{HUGE.bit_length()} bits as {name}": (lambda v, name=name: smc(PAIR, **{name: v}), HUGE, f"{name} = 1000")
       for name in ("particles", "lanes", "window", "lookahead")},
    "64 bits of a limit": (lambda v: run(max_new_tokens=v), 2**63, "max_new_tokens = 9223372036854775808: give a"),
    "a huge exponent": (lambda v: ProductOfExperts(0.3, v), HUGE, "target_exponent = 1000"),
    "a huge ratio": (Clamp, HUGE, "beta = 1000"),
    "a huge power": (PowerMean, HUGE, "alpha = 1000"),
    "a proposal's temperature": (
        lambda v: sampler(proposal_temperature=v), -1, "temperature of the proposal = -1: give"),
    "a proposal's top_p": (lambda v: sampler(proposal_top_p=v), 0, "top_p of the proposal = 0: give a mass"),
    "temperatures without an order": (lambda v: sampler(proposal_temperature=v), {1.0}, "temperature of the proposal"),
    "no model of a proposal": (DLMProposal, 3, "model = 3 has no vocab_size: give the diffusion model"),
    "no model of a target": (ARTarget, None, "model = None has no vocab_size: give the autoregressive model"),
    "half an id": (lambda v: ARTarget(AR, banned_ids=v), torch.tensor([0.5]), "banned_ids = tensor([0.5000]): give"),
    "ids that are none": (lambda v: DLMProposal(PAIR.dlm, banned_ids=v), None, "banned_ids = None: give a list"),
    "a number as name": (lambda v: sampler(name=v), 0, "name = 0: give a text"),
    "a number as name of a decoder": (lambda v: diffusion(PAIR, [[]], name=v), 1, "name = 1: give a text"),
    "no function of ids": (lambda v: ar_sampling(PAIR, [[]], detokenize=v), "", "detokenize = '': give a function"),
    "no function for an oracle": (
        lambda v: oracle(PAIR, max_new_tokens=1, detokenize=v), 0, "detokenize = 0: give a function"),
    "no function of a text": (lambda v: Sampler(sampler().proposal, sampler().target, tokenize=v), 1, "tokenize = 1"),
    "no function of progress": (lambda v: run(progress=v), 1, "progress = 1: give a function"),
    "a text as a bool": (lambda v: run(keep_drafts=v), "no", "keep_drafts = 'no': give True or False"),
    "half a seed": (lambda v: run(seed=v), torch.tensor([0.5]), "seed = tensor([0.5000]): give a whole number"),
    "True as a seed": (lambda v: run(seed=v), True, "seed = True: give a whole number"),
    "a mapping of seeds": (lambda v: run(seed=v), {1: 2}, "seed = {1: 2}: give a whole number"),
    "True as a seed of draws": (lambda v: RUNS[0].sample(seed=v), True, "seed = True: give a whole number"),
    "a share of draws": (lambda v: RUNS[0].sample(v, seed=0), 1.5, "count = 1.5: give a whole number"),
    "a number of an open file": (RUNS[0].save, 1, "path = 1: give the path of a file"),
    "no file": (Result.load, None, "path = None: give the path of a file"),
    "a text as a level": (lambda v: certify([0.1, 0.2], level=v), "x", "level = 'x': give a number in (0, 1)"),
    "no level of a check": (lambda v: check(sampler(), level=v), None, "level = None: give a number in (0, 1)"),
    "no level of a bias": (lambda v: bias_against_samples(RUNS, RUNS, len, level=v), [0.5], "level = [0.5]: give"),
    "a check of no sampler": (check, 3, "sampler = 3: give a Sampler"),
    "evidence of inf": (certify, [0.1, math.inf], "log_evidence = [0.1, inf]: give a list of at least one number"),
    "evidence of text": (certify, ["x"], "log_evidence = ['x']: give a list of at least one number"),
    "evidence of one number": (certify, 0.5, "log_evidence = 0.5: give a list of at least one number"),
    "log Z of NaN": (lambda v: certify([0.1, 0.2], log_z=v), math.nan, "log_z = nan: give a finite number"),
    "several log Z": (lambda v: certify([0.1, 0.2], log_z=v), [1, 2], "log_z = [1, 2]: give a finite number"),
    "log Z of a law": (lambda v: weighted_law(RUNS, log_z=v), None, "log_z = None: give a number"),
    "runs that are none": (kl_certificate, 3, "results = 3: give a Result, or a list of them"),
    "a list of what are none": (summary, [RUNS[0], 3], "results[1] = 3: give a Result"),
    "exact samples that are none": (lambda v: bias_against_samples(RUNS, v, len), 3, "exact = 3: give a Result, or a"),
    "n-grams of nothing": (lambda v: mmd_test(["ab"] * 2, ["ac"] * 2, n=v), None, "n = None: count n-grams"),
    "half a permutation": (
        lambda v: mmd_test(["ab"] * 2, ["ac"] * 2, permutations=v), 1.5, "permutations = 1.5: permute at least once"),
    "half a batch": (lambda v: batch_means([1.0, 2.0, 3.0], batches=v), 1.5, "batches = 1.5: give a whole number"),
    "a budget of NaN": (lambda v: largest_within(v, float), math.nan, "budget = nan: give a cost"),
    "True as a seed of an export": (lambda v: to_datatree(RUNS, seed=v), True, "seed = True: give a whole number"),
    "problems of half": (lambda v: Settings("arithmetic", v, ("smc",)), 1.5, "n = 1.5: give a whole number"),
    "True as w": (lambda v: Settings("arithmetic", 1, ("smc",), w=v), True, "w = True: give a number"),
    "a text of methods": (lambda v: Settings("arithmetic", 1, v), "smc", "methods = 'smc': give a list of names"),
    "code that is trusted by mistake": (
        lambda v: load_pair("a", "b", trust_remote_code=v), "no", "trust_remote_code = 'no': give True or False"),
    "a form that is no function": (lambda v: load_pair("a", "b", format_prompt=v), "x", "format_prompt = 'x': give a"),
    "a list of types": (lambda v: load_pair(dtype=v), [1], "dtype = [1]: use one of"),
    "a table's seed": (lambda v: TabularAR.random(2, 1, seed=v), "x", "seed = 'x': tables are made from 32 bits"),
    "a table's concentration": (
        lambda v: TabularAR.random(2, 1, seed=1, concentration=v), math.nan, "concentration = nan: give a positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_odd_value_is_refused_in_one_line_that_names_its_argument(case: str) -> None:
    call, value, words = REFUSED[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 its words are compared below
        call(value)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    assert TabularAR.random(2, 1, seed=np.int64(5)).tables[0].equal(TabularAR.random(2, 1, seed=5).tables[0])
    assert len(TabularAR(iter([[[0.5, 0.5]]])).tables) == 1  # type: ignore[arg-type]
    assert certify([0.1, 0.2, 0.4], level=torch.tensor(0.5)) == certify([0.1, 0.2, 0.4], level=0.5)  # type: ignore[arg-type]
    draws = [RUNS[0].sample(np.int64(3), seed=s) for s in (4, np.int64(4), torch.tensor(4))]  # type: ignore[arg-type]
    assert draws[0] == draws[1] == draws[2]
    assert ARTarget(AR, banned_ids={1}).shaping.banned_ids == (1,)  # type: ignore[arg-type]
    settings = Settings("arithmetic", np.int64(3), ["smc", "ar"], temperature=np.float32(0.5))  # type: ignore[arg-type]
    assert settings == Settings("arithmetic", 3, ("smc", "ar"), temperature=0.5)
    assert run(keep_drafts=np.True_)[0].trace[0].to_dict() == run(keep_drafts=True)[0].trace[0].to_dict()
