"""A cell of a study: one sampler on one point of the source under one seed, a pure function of the configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from smc_bridge.analysis.comparison.methods import make_method
from smc_bridge.analysis.study.config import Block, Config, Point, Prompts, Tabular, TabularPoint
from smc_bridge.analysis.study.figures import Record, distances, figures
from smc_bridge.analysis.study.plan import WEIGHTED, MakeIntermediate, Setting, intermediate_of
from smc_bridge.analysis.study.sources import Limits, Problems, exact_law, tabular_pair
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.released import released
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.pairs import Pair
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed, seeds_apart

#: Pairs of tabular models, and exact laws, that a process keeps.
KEPT = 16


class Work(NamedTuple):
    """What a cell consists of."""

    setting: Setting
    point: Point
    seed: int

    def key(self) -> dict[str, Any]:
        """The columns that name the cell."""
        return {**self.setting.to_dict(), **self.point._asdict(), "seed": self.seed}


def run_seed(seed: int, run: int) -> int:
    """Seed of one of the runs behind a row of tabular models."""
    return derived_seed(Role.STUDY, seed, run)


class Runner:
    """Runs cells. Serves one process: it holds the models.

    Args:
        config: of the study.
        load: gives models and prompts.
        custom: intermediates by name besides ours.
    """

    def __init__(
        self, config: Config, load: Callable[[], Problems], custom: Mapping[str, MakeIntermediate]
    ) -> None:
        self.config, self.custom = config, custom
        self.problems = load()
        # The cells of a pair of tabular models stand apart in the order of a study.
        self._pair = lru_cache(KEPT)(self._make_pair)
        self._exact = lru_cache(KEPT)(self._make_exact)

    def __call__(self, work: Work) -> Record:
        """Decode the prompts of a cell; its key and its figures."""
        pair, prompts, seeds = self._inputs(work)
        limits = self.problems.limits(work.point, self.config.lookahead, work.setting.window)
        decode = self._decoder(work.setting, pair, limits)
        began = time.perf_counter()
        results = decode(prompts, seeds)
        seconds = (time.perf_counter() - began) / len(results)
        found = {**work.key(), **figures(results), "seconds": seconds}
        if isinstance(work.point, TabularPoint):
            return {**found, **distances(results, self._exact(work.point, work.setting.temperature)), "accuracy": None}
        return {**found, **distances(results, None), "accuracy": self._accuracy(work, results)}

    def _inputs(self, work: Work) -> tuple[Pair, Sequence[Sequence[int]], Sequence[int]]:
        """Models, prompts, and a seed for each of them."""
        source = self.config.source
        if isinstance(work.point, Block):
            assert isinstance(source, Prompts)
            assert self.problems.pair is not None
            chosen, seeds = source.problems(work.point.block), seeds_apart(self.problems.prompts, work.seed)
            return self.problems.pair, [self.problems.prompts[i] for i in chosen], [seeds[i] for i in chosen]
        assert isinstance(source, Tabular)
        return self._pair(work.point), [()] * source.runs, [run_seed(work.seed, run) for run in range(source.runs)]

    def _make_pair(self, point: TabularPoint) -> Pair:
        assert isinstance(self.config.source, Tabular)
        return tabular_pair(point, self.config.source)

    def _make_exact(self, point: TabularPoint, temperature: float) -> Result:
        return exact_law(self._pair(point), point.length, temperature)

    def _decoder(
        self, setting: Setting, pair: Pair, limits: Limits
    ) -> Callable[[Sequence[Sequence[int]], Sequence[int]], list[Result]]:
        """From prompts and their seeds to results."""
        if setting.method in WEIGHTED:
            sampler = build_sampler(setting, pair, limits, self.custom)
            return lambda prompts, seeds: sampler.run(prompts, seed=seeds, max_new_tokens=limits.max_new_tokens)
        return make_method(setting.method, pair, limits, temperature=setting.temperature, weight=0.0).decode

    def _accuracy(self, work: Work, results: Sequence[Result]) -> float | None:
        """Share of right answers, each a draw from its result's weights; None where no answer is known."""
        source, task = self.config.source, self.problems.task
        assert isinstance(source, Prompts)
        assert isinstance(work.point, Block)
        assert task is not None
        if any(self.problems.items[problem].answer is None for problem in source.problems(work.point.block)):
            return None
        right = 0
        for problem, result in zip(source.problems(work.point.block), results, strict=True):
            if result.alive:
                text = result.sample(seed=work.seed)
                right += task.grade(text, self.problems.items[problem].answer)
        return right / len(results)


def build_sampler(
    setting: Setting, pair: Pair, limits: Limits, custom: Mapping[str, MakeIntermediate] | None = None
) -> Sampler:
    """The sampler of a setting with a weighted method."""
    common: dict[str, Any] = {
        "temperature": setting.temperature, "lookahead": limits.lookahead, "window": limits.window,
        "lanes": setting.lanes, "name": setting.method,
    }
    method = setting.method
    if method in ("paper", "released"):
        preset = presets.paper if method == "paper" else released
        assert setting.w is not None
        return preset(pair, w=setting.w, **common)
    common["particles"] = setting.particles
    if method in ("plain-is", "speculative"):
        return presets.plain_is(pair, **common) if method == "plain-is" else presets.speculative(pair, **common)
    common["intermediate"] = intermediate_of(setting, custom or {})
    return tree_walk(pair, **common) if method == "tree-walk" else presets.smc(pair, **common)
