"""A cell of a comparison: one method on one batch of problems, a pure function of the settings and the models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from smc_bridge.analysis.comparison.methods import Method, make_method
from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.comparison.store import Cell, Outcome
from smc_bridge.commands.models import Models
from smc_bridge.models.pairs import PAIRS, Pair, load_pair
from smc_bridge.result import Result
from smc_bridge.tasks import Item, Task


class Work(NamedTuple):
    """What a cell consists of; its prompts are encoded and checked, and each has its seed."""

    method: str
    batch: int
    items: tuple[Item, ...]
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]


class Decoder:
    """Decodes cells. Serves one process: it holds the models, and each method once it was asked for.

    Args:
        settings: of the comparison.
        task: grades, and gives the decoding limits.
        pair: models, or what loads them; by default the task's are loaded.
    """

    def __init__(self, settings: Settings, task: Task, pair: Pair | Models | None = None) -> None:
        self.settings, self.task = settings, task
        self.pair = load_pair(task.pair) if pair is None else pair.load() if isinstance(pair, Models) else pair
        self._methods: dict[str, Method] = {}

    def __call__(self, work: Work) -> Cell:
        """Decode and grade the prompts of a cell."""
        method = self._method(work.method)
        began = time.perf_counter()
        results = method.decode(work.prompts, work.seeds)
        seconds = time.perf_counter() - began
        outcomes = tuple(
            self._outcome(item, problem, result, weighted=method.weighted)
            for item, problem, result in zip(work.items, self.settings.problems(work.batch), results, strict=True)
        )
        exact = all(result.exact for result in results)
        return Cell(work.method, work.batch, seconds, len(results[0].sequences), outcomes, exact)

    def _method(self, name: str) -> Method:
        if name not in self._methods:
            settings = self.settings
            self._methods[name] = make_method(
                name, self.pair, self.task, temperature=settings.temperature, weight=settings.weight
            )
        return self._methods[name]

    def _outcome(self, item: Item, problem: int, result: Result, *, weighted: bool) -> Outcome:
        text: Any = result.sample(seed=self.settings.seed) if result.alive else None
        proper = weighted and result.proper
        return Outcome(
            problem=problem, id=item.id, text=text, correct=self._correct(text, item),
            tokens=result.tokens, drawn_tokens=result.drawn_tokens, dlm_forwards=result.forwards.dlm_forwards,
            ar_forwards=result.forwards.ar_forwards,
            log_evidence=result.log_evidence if proper else None,
            ess=result.ess if proper else None,
        )

    def _correct(self, text: str | None, item: Item) -> bool | None:
        """Whether a text is right; None where no answer is known."""
        if item.answer is None:
            return None
        return text is not None and self.task.grade(text, item.answer)


def decoder_elsewhere(
    settings: Settings, task: Task, pair: Pair | Models | None,
    entry: Callable[[torch.device, torch.dtype], Pair] | None,
) -> Decoder:
    """A decoder in another process, where what this process registered is not known.

    Args:
        pair: models; None loads the task's there, and names load those, rather than to send weights.
        entry: of `smc_bridge.models.pairs.PAIRS` for the task's pair.
    """
    if entry is not None:
        PAIRS.setdefault(task.pair, entry)
    return Decoder(settings, task, pair)


