"""The certificate of a method on the problems of a task: conditional and free runs, as cells of one experiment.

The draws of a prompt depend on the seed and on the prompt only, so that runs which were interrupted and continued give
the bounds of a single go. The file keeps the runs whole, but for their traces; the level of the intervals is no part of
what decides them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.reverse import Bidirectional, both_bounds, conditional_runs, multinomial
from smc_bridge.analysis.runner import run_cells
from smc_bridge.analysis.store import Record, Store, open_store
from smc_bridge.analysis.study.cells import Laboratory, Work, cells
from smc_bridge.analysis.study.config import Block
from smc_bridge.analysis.study.identity import fingerprints
from smc_bridge.analysis.study.run import loading
from smc_bridge.analysis.study.sources import Problems, load_problems
from smc_bridge.commands.models import Models
from smc_bridge.estimate import Estimate
from smc_bridge.models.pairs import Pair
from smc_bridge.registry import METHODS, spelled
from smc_bridge.result import Result
from smc_bridge.tasks import Task

KIND, FORMAT = "smc-bridge certificate", 3
#: What is done with the problems of every batch.
PARTS = CONDITIONAL, FREE = "conditional runs", "free runs"


@dataclass(frozen=True)
class Certified:
    """What `certifying` found about a method.

    Attributes:
        bounds: both, and their sum.
        accuracy: share of right answers, a draw from the weights of each free run; None without known answers.
        store: of the runs.
    """

    bounds: Bidirectional
    accuracy: Estimate | None
    store: Store

    def save(self) -> None:
        """Write the file whole, with the bounds for readers; an end that is infinite is a word, for JSON has none."""
        bounds = {
            name: {end: value if abs(value) < float("inf") else str(value) for end, value in (
                ("bound", bound.value), ("low", bound.low), ("high", bound.high)
            )}
            for name, bound in self.bounds.named().items()
        }
        right = None if self.accuracy is None else self.accuracy.value
        self.store.finish({"level": self.bounds.forward.level, "bounds": bounds, "accuracy": right})


class Certifying(Laboratory):
    """The laboratory that runs the cells of a certificate."""

    def __call__(self, work: Work) -> Record:
        """Conditional or free runs of a batch of problems, with their names."""
        prompts, seeds = self.inputs(work)
        sampler, limit = self.decoder(work), self.limits(work).max_new_tokens
        began = time.perf_counter()
        if work.part == CONDITIONAL:
            runs = conditional_runs(sampler, prompts, seed=seeds, max_new_tokens=limit)
        else:
            runs = multinomial(sampler).run(prompts, seed=seeds, max_new_tokens=limit)
        seconds = (time.perf_counter() - began) / len(runs)
        assert isinstance(work.point, Block)
        for run, item in zip(runs, self.items(work.point), strict=True):
            run.settings.update({} if item.id is None else {"id": item.id})
        return {**work.key(), "seconds": seconds, "results": [replace(run, trace=[]).to_dict() for run in runs]}


@contextmanager
def certifying(
    settings: Settings, *, path: Path | None = None, fresh: bool = False, pair: Pair | Models | None = None,
    task: Task | None = None, workers: int = 1, level: float = 0.95, show: bool = False,
) -> Iterator[Certified]:
    """Both bounds of one method, after the runs that are missing were made; nobody else writes the file meanwhile.

    Args:
        settings: with the method; the other arguments are those of `compare`.
        level: confidence of every interval.
    Raises:
        ValueError: an argument is out of range, the method has no conditional form, or the file is something else, has
            other settings, or is being written by another process.
    """
    check_weighted(*settings.methods)
    config = settings.study()
    loaded = load_problems(config.source, pair=pair, task=task)
    plan = [work._replace(part=part) for part in PARTS for work in cells(config)]
    header = {
        "kind": KIND, "format": FORMAT, **{k: v for k, v in settings.to_dict().items() if k != "methods"},
        "method": settings.methods[0], **fingerprints(config, loaded, {}),
    }
    keys = [work.key() for work in plan]
    with open_store(
        path, header, keys, argument="--json", noun="certificate", fresh=fresh, whole=True, valid=is_runs
    ) as store:
        make = partial(Certifying, config, loading(config, loaded, pair, task, workers))
        records = run_cells(plan, make, store, workers=workers, show=show)
        runs = {part: [Result.from_dict(each) for r in records if r["part"] == part for each in r["results"]]
                for part in PARTS}
        bounds = both_bounds(runs[FREE], runs[CONDITIONAL], level=level)
        yield Certified(bounds, accuracy(runs[FREE], loaded, seed=settings.seed), store)


def check_weighted(method: str) -> None:
    """Raise ValueError unless a method's runs are particles with proper weights, which can retain a sequence, and its
    spelling leaves their resampling open."""
    found = spelled(method)
    known = [
        each.name for each in METHODS.values()
        if each.proper and any(option.name == "particles" for option in each.options)
    ]
    if found.method.name not in known:
        raise ValueError(f"method = {method!r}: has no properly weighted particles; choose from {', '.join(known)}")
    if (resampler := found.options.get("resampler", "multinomial")) != "multinomial":
        raise ValueError(
            f"method = {method!r}: certify resamples multinomially, which its reverse bound is about; leave out "
            f"resampler={resampler}"
        )


def is_runs(record: Record) -> bool:
    """Whether data of a file is a record of runs; TypeError, KeyError or ValueError if they are something else."""
    return bool([Result.from_dict(run) for run in record["results"]]) and set(PARTS) >= {record["part"]}


def accuracy(runs: list[Result], problems: Problems, *, seed: int) -> Estimate | None:
    """Share of right answers, the draws being those of `compare` under the same seed; None without answers."""
    task = problems.task
    assert task is not None
    known = [(run, item.answer) for run, item in zip(runs, problems.items, strict=True) if item.answer is not None]
    right = sum(run.alive and task.grade(run.sample(seed=seed), answer) for run, answer in known)
    return wilson(right, len(known)) if known else None
