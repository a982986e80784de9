"""The runs behind `smc-bridge certify`, in parts of a few prompts, which are kept as they are done
(`smc_bridge.analysis.store`).

The draws of a prompt depend on the seed and on the prompt only, so that runs which were interrupted and continued give
the bounds of a single go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smc_bridge.analysis.reverse import Bidirectional, Report, both_bounds, both_runs
from smc_bridge.analysis.store import Store
from smc_bridge.engine.sampler import Sampler
from smc_bridge.result import Result
from smc_bridge.streams import seeds_apart

KIND, FORMAT = "smc-bridge certificate", 2


@dataclass(frozen=True)
class Part:
    """Free and conditional runs of a few prompts, without their traces."""

    index: int
    free: list[Result]
    retained: list[Result]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "part": self.index, "free": [run.to_dict() for run in self.free],
            "retained": [run.to_dict() for run in self.retained],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Part:
        """Inverse of `to_dict`; TypeError, KeyError or ValueError if the data is something else."""
        free, retained = ([Result.from_dict(run) for run in data[name]] for name in ("free", "retained"))
        return cls(int(data["part"]), free, retained)


class Runs:
    """The runs of a certificate, on disk too if there is a file.

    Args:
        path: FILE, or None.
        settings: plain data that decides the runs.
        fresh: start anew, whatever certificate FILE holds.
    Raises:
        ValueError: a file cannot be read, is something else, or belongs to other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.store: Store[int, Part] = Store(
            path, {"kind": KIND, "format": FORMAT, **settings}, noun="certificate", read=Part.from_dict,
            write=Part.to_dict, key=lambda part: part.index, fresh=fresh,
        )

    def bounds(
        self, sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int, max_new_tokens: int, batch: int,
        level: float, report: Report | None, ids: Sequence[str | None] = (),
    ) -> Bidirectional:
        """Both bounds, after the parts that are missing were run, `batch` prompts in each; see `bidirectional`.

        `ids`, if there are any, name the prompts in what is saved: `settings["id"]` of their runs.
        """
        parts, seeds = range(-(-len(prompts) // batch)), seeds_apart(prompts, seed)
        for index in parts:
            if index in self.store.cells:
                continue
            start = index * batch
            told = None if report is None else lambda name, done, start=start: report(name, start + done)
            free, retained = both_runs(
                sampler, prompts[start : start + batch], seed=seeds[start : start + batch],
                max_new_tokens=max_new_tokens, batch=batch, report=told,
            )
            for runs in (free, retained):
                for run, name in zip(runs, ids[start : start + batch], strict=False):
                    run.settings.update({} if name is None else {"id": name})
            self.store.add(Part(index, *([replace(run, trace=[]) for run in runs] for runs in (free, retained))))
        done = [self.store.cells[index] for index in parts]
        return both_bounds(
            [run for part in done for run in part.free], [run for part in done for run in part.retained], level=level
        )

    @property
    def free(self) -> list[Result]:
        """The free runs of all prompts, in their order."""
        return [run for index in sorted(self.store.cells) for run in self.store.cells[index].free]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write FILE whole, with the bounds for readers."""
        self.store.finish(summary, [self.store.cells[index] for index in sorted(self.store.cells)])
