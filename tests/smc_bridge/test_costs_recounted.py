"""Costs are what the models were asked for: `Forwards` of every registered method against sessions that count.

A method is run as its `examples` spell it, on tables, one prompt at a time: then every forward, row and position is
that prompt's. One that tables do not suffice for is run on the embedded pair, with few tokens.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from smc_bridge import load_pair, smc
from smc_bridge.decode import decode
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import METHODS, spelled
from smc_bridge.result import Forwards, Result
from smc_bridge.testing import tabular_pair

#: Methods whose models are not asked through sessions, with the reason.
ELSEWHERE = {"generate": "transformers runs the AR model's module itself, and the method counts by hooks on it"}
LIMIT = 6


@dataclass
class Counts:
    """What the models of a pair were asked for."""

    found: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, rows: int, positions: int) -> None:
        for name, more in (("forwards", 1), ("rows", rows), ("positions", positions)):
            self.found[f"{kind}_{name}"] = self.found.get(f"{kind}_{name}", 0) + more

    @property
    def forwards(self) -> Forwards:
        """The counts that results have."""
        names = ("dlm_forwards", "dlm_rows", "ar_forwards", "ar_rows", "ar_positions")
        return Forwards(*(self.found.get(name, 0) for name in names))


class Counting:
    """A session that counts what is scored."""

    def __init__(self, session: Any, kind: str, counts: Counts) -> None:
        self.session, self.kind, self.counts = session, kind, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def score(self, rows: Tensor, places: Tensor, **options: Any) -> Tensor:
        self.counts.add(self.kind, rows.numel(), places.numel())
        found: Tensor = self.session.score(rows, places, **options)
        return found

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        self.counts.add(self.kind, rows.numel(), tokens.numel())
        found: Tensor = self.session.score_tree(rows, tokens, parents)
        return found


def counted(pair: Any) -> tuple[ModelPair, Counts]:
    """The pair with models whose sessions count."""
    counts = Counts()

    def counting(model: Any, kind: str) -> Any:
        found = copy.copy(model)
        found.session = lambda tokens, length: Counting(type(model).session(model, tokens, length), kind, counts)
        return found

    models = {kind: counting(getattr(pair, kind), kind) for kind in ("dlm", "ar")}
    if hasattr(pair, "_replace"):
        return pair._replace(**models), counts
    found = copy.copy(pair)
    for kind, model in models.items():
        object.__setattr__(found, kind, model)
    return found, counts


def watch_others(decoder: Any, pair: Any, counts: Counts) -> None:
    """Count what models besides the pair's are asked for: one that drafts is charged as the diffusion model is."""
    others = [(getattr(getattr(decoder, "proposal", None), "model", None), "dlm")]
    others += [(expert.model, "ar") for expert in getattr(decoder, "experts", ())]
    for model, kind in others:
        if model is not None and model is not pair.dlm and model is not pair.ar:
            plain = model.session
            model.session = lambda *args, plain=plain, kind=kind: Counting(plain(*args), kind, counts)


def runs(pair: Any, make: Any, prompts: list[list[int]], limit: int) -> Iterator[tuple[Result, Forwards]]:
    """Results of single prompts, and what their models were asked for."""
    for seed, prompt in enumerate(prompts):
        watched, counts = counted(pair)
        decoder = make(watched)
        watch_others(decoder, watched, counts)
        counts.found.clear()  # what was asked before the run is no cost of the prompt
        [result] = decode(decoder, [prompt], seed=seed, max_new_tokens=limit)
        yield result, counts.forwards


@functools.cache
def embedded() -> Any:
    return load_pair("arithmetic")


def spellings() -> list[str]:
    """As comparisons show the package's own methods."""
    own = [each for each in METHODS.values() if each.make.__module__.startswith("smc_bridge.")]
    return [text for each in own for text in each.examples]


@pytest.mark.parametrize("text", spellings())
def test_every_forward_row_and_position_is_counted(text: str) -> None:
    method = spelled(text)
    if reason := ELSEWHERE.get(method.method.name):
        pytest.skip(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = list(runs(tabular_pair(3, 8, seed=2), method.make, [[0], [1, 0], [0, 0]], LIMIT))
        except ValueError:  # it needs more of its models than tables have
            prompt = embedded().encode("Ann has 3 apples.")
            found = list(runs(embedded(), method.make, [prompt], LIMIT))
    for result, asked in found:
        assert result.complete
        assert result.forwards == asked, f"{text} says {result.forwards}, asked for {asked}"


PROGRAMS: dict[str, dict[str, Any]] = {
    "lanes": {"lanes": 3}, "resampling": {"particles": 4, "trigger": "always"}, "window of one": {"window": 1},
    "short lookahead": {"lookahead": 2}, "chain": {"proposal": "chain"}, "path": {"proposal": "path", "w": 0.0},
    "reuse": {"reuse": 0.3}, "tree": {"kernel": "tree", "particles": 2, "lanes": 2},
    "tree of lanes of their own": {"kernel": "tree", "lanes": 2, "proposal_temperature": [0.5, 1.5]},
    "accept-all": {"kernel": "accept-all", "window": 2}, "bonus": {"bonus": True},
    "accept-all with a bonus": {"kernel": "accept-all", "window": 2, "lookahead": 2, "bonus": True},
    "balance": {"lanes": 2, "weight": "balance"},
    "cap": {"particles": 4, "max_logit_bytes": 200}, "cap of a tree": {
        "particles": 4, "kernel": "tree", "nodes": 4, "max_logit_bytes": 200},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_counts_what_it_asks_for(name: str) -> None:
    def make(pair: Any) -> Any:
        return smc(pair, **{"window": 3, **PROGRAMS[name]})

    for result, asked in runs(tabular_pair(3, 8, seed=2), make, [[0], [1, 0]], LIMIT):
        assert result.complete
        assert result.forwards == asked, f"{name} says {result.forwards}, asked for {asked}"


def test_every_call_counts_where_the_model_has_positions_for_some_particles_only() -> None:
    pair = tabular_pair(3, 8, seed=2, eos=False)
    pair.ar.max_length = 8
    many = 0
    for result, asked in runs(pair, lambda pair: smc(pair, 6, window=3, w=0.0), [[1, 0], [0, 1], [0, 0]], LIMIT):
        assert result.forwards == asked, f"says {result.forwards}, asked for {asked}"
        many += asked.ar_forwards - len(result.trace)
    assert many > 0, "no step was made of several calls"


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "cap" not in name])
def test_what_a_prompt_is_charged_with_does_not_depend_on_the_batch(name: str) -> None:
    """A cap cuts the batch into calls wherever its particles stand, and is left out."""
    sampler = smc(tabular_pair(3, 8, seed=2), **{"window": 3, **PROGRAMS[name]})
    prompts, seeds = [[0], [1, 0], [0, 0], [1]], [1, 2, 3, 4]
    together = sampler.run(prompts, seed=seeds, max_new_tokens=LIMIT, batch=3)
    for prompt, seed, result in zip(prompts, seeds, together, strict=True):
        [alone] = sampler.run([prompt], seed=seed, max_new_tokens=LIMIT)
        assert result.forwards == alone.forwards
