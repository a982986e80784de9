"""A cell of a study: one sampler on one point of the source under one seed, a pure function of the configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from smc_bridge.analysis.store import Record
from smc_bridge.analysis.study.config import Block, Config, Point, Prompts, Tabular, TabularPoint
from smc_bridge.analysis.study.figures import distances, figures
from smc_bridge.analysis.study.plan import MakeIntermediate, Setting, make_decoder
from smc_bridge.analysis.study.sources import Limits, Problems, exact_law, tabular_pair
from smc_bridge.decode import decode
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.pairs import Pair
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed, seeds_apart
from smc_bridge.tasks import Item

#: Pairs of tabular models, and exact laws, that a process keeps.
KEPT = 16


class Work(NamedTuple):
    """A cell of a study: one sampler on one point of the source under one seed.

    Attributes:
        setting: the sampler.
        point: of the source.
        seed: of all draws.
        size: runs.
        part: what is done with them, where there is more than one.
    """

    setting: Setting
    point: Point
    seed: int
    size: int
    part: str = ""

    @property
    def label(self) -> str:
        """The sampler, and the part of the work, for the progress."""
        return " ".join(filter(None, (self.setting.method, self.setting.intermediate, self.part)))

    def key(self) -> dict[str, Any]:
        """Values of the columns that name the cell."""
        part = {"part": self.part} if self.part else {}
        return {**self.setting.to_dict(), **self.point._asdict(), "seed": self.seed, **part}


def cells(config: Config) -> list[Work]:
    """All cells in the order of the rows: settings, then points of the source, then seeds."""
    source = config.source
    sizes: list[tuple[Point, int]] = (
        [(point, source.runs) for point in source.points()] if isinstance(source, Tabular)
        else [(block, len(source.problems(block.block))) for block in source.points()]
    )
    return [
        Work(setting, point, seed, size)
        for setting in config.axes.settings() for point, size in sizes for seed in config.axes.seeds
    ]


def run_seed(seed: int, run: int) -> int:
    """Seed of one of the runs behind a row of tabular models."""
    return derived_seed(Role.STUDY, seed, run)


class Laboratory:
    """Runs the cells of a study in one process, of which it holds the models.

    Args:
        config: of the study.
        load: gives models and prompts.
        custom: intermediates by name besides ours.
    """

    def __init__(
        self, config: Config, load: Callable[[], Problems], custom: Mapping[str, MakeIntermediate] | None = None
    ) -> None:
        self.config, self.custom = config, custom
        self.problems = load()
        # The cells of a pair of tabular models stand apart in the order of a study.
        self._pair = lru_cache(KEPT)(self._make_pair)
        self._exact = lru_cache(KEPT)(self._make_exact)

    def __call__(self, work: Work) -> Record:
        """Decode the prompts of a cell; its key and its figures."""
        prompts, seeds = self.inputs(work)
        decoder, limit = self.decoder(work), self.limits(work).max_new_tokens
        began = time.perf_counter()
        results = decode(decoder, prompts, seed=seeds, max_new_tokens=limit)
        seconds = (time.perf_counter() - began) / len(results)
        found = {**work.key(), **figures(results), "seconds": seconds}
        if isinstance(work.point, TabularPoint):
            law = self.law(work.point, work.setting, decoder)
            return {**found, **distances(results, law), **self.answers(work, ())}
        return {**found, **distances(results, None), **self.answers(work, results)}

    def limits(self, work: Work) -> Limits:
        """Length limit, lookahead and window of a cell's runs."""
        return self.problems.limits(work.point, self.config.lookahead, work.setting.window)

    def decoder(self, work: Work) -> Any:
        """The decoder that runs the prompts of a cell."""
        pair = self._pair(work.point) if isinstance(work.point, TabularPoint) else self.problems.pair
        assert pair is not None
        return make_decoder(work.setting, pair, self.limits(work), self.custom)

    def inputs(self, work: Work) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
        """The prompts of a cell, and a seed for each of them."""
        if isinstance(work.point, Block):
            chosen, seeds = self.chosen(work.point), seeds_apart(self.problems.prompts, work.seed)
            return [self.problems.prompts[i] for i in chosen], [seeds[i] for i in chosen]
        return [()] * work.size, [run_seed(work.seed, run) for run in range(work.size)]

    def chosen(self, point: Block) -> range:
        """Indices of the task's problems that a point's prompts are."""
        assert isinstance(self.config.source, Prompts)
        return self.config.source.problems(point.block)

    def items(self, point: Block) -> list[Item]:
        """The task's items that a point's prompts are."""
        return [self.problems.items[i] for i in self.chosen(point)]

    def _make_pair(self, point: TabularPoint) -> Pair:
        assert isinstance(self.config.source, Tabular)
        return tabular_pair(point, self.config.source)

    def law(self, point: TabularPoint, setting: Setting, decoder: Any) -> Result:
        """The exact law of a decoder's own target; of one that has none, the AR law at its temperature."""
        target, pair = getattr(decoder, "target", None), self._pair(point)
        if not isinstance(target, ARTarget):
            return self._exact(point, Shaping(1.0 if setting.temperature is None else setting.temperature))
        if target.model is not pair.ar or target.potential is not None:
            return exact_law(pair, point.length, target)
        return self._exact(point, target.shaping)

    def _make_exact(self, point: TabularPoint, law: Shaping) -> Result:
        pair = self._pair(point)
        target = ARTarget(
            pair.ar, temperature=law.temperature, top_p=law.top_p, top_k=law.top_k, banned_ids=law.banned_ids
        )
        return exact_law(pair, point.length, target)

    def answers(self, work: Work, results: Sequence[Result]) -> dict[str, Any]:
        """One draw from each result's weights, whether it is right, and the problems' names; None without prompts.

        A text is None if every weight is zero, and a verdict is None where no answer is known.
        """
        if not isinstance(work.point, Block):
            return {"texts": None, "correct": None, "ids": None}
        items, task = self.items(work.point), self.problems.task
        assert task is not None
        texts: list[Any] = [result.sample(seed=work.seed) if result.alive else None for result in results]
        correct = [
            None if item.answer is None else text is not None and bool(task.grade(text, item.answer))
            for item, text in zip(items, texts, strict=True)
        ]
        return {"texts": texts, "correct": correct, "ids": [item.id for item in items]}
