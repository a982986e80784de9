"""The runs that certificates are drawn from: programs by name, and a *pool* of the evidence of each, kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.bias_vs_particles import LENGTH, WINDOW, toy_pair
from benchmarks.candidates import Array
from benchmarks.harness import timed
from benchmarks.problems import embedded
from smc_bridge.analysis.runner import run_cells
from smc_bridge.analysis.store import Record, open_store
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods.poe_bridge import plain_is
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.result import Result

Pools = dict[str, Array]


def mixture(common: Sequence[float], rare: Sequence[float], *, share: float) -> TabularAR:
    """Two tokens, four of them a sequence: after a first token of probability `share` the rows are `rare`."""
    first = torch.tensor([[1 - share, share]], dtype=torch.float64)
    rows = [torch.tensor([list(common), list(rare)], dtype=torch.float64).repeat_interleave(2**d, 0) for d in range(3)]
    return TabularAR([first, *rows])


def _mixture(common: Sequence[float], rare: Sequence[float], q_common: Sequence[float], q_rare: Sequence[float]) -> Any:
    """A pair that nearly agrees in 87 of 100 sequences and not at all in the others."""
    return SimpleNamespace(
        ar=mixture(common, rare, share=0.13), dlm=TabularDLM(mixture(q_common, q_rare, share=0.13))
    )


def _tabular(make: Callable[[], Sampler], runs: int, seed: int) -> list[Result]:
    return make().run([[]] * runs, seed=list(range(seed * runs, (seed + 1) * runs)), max_new_tokens=LENGTH)


def _embedded(temperature: float, w: float, runs: int, seed: int) -> list[Result]:
    """Runs on the held-out problems, as often as it takes, with another seed each time."""
    pair, task, prompts = embedded(min(runs, 1000))
    sampler = smc(pair, 1, w=w, temperature=temperature, lookahead=task.lookahead, window=task.window)
    found: list[Result] = []
    while len(found) < runs:
        some = prompts[: runs - len(found)]
        again = seed + len(found) // len(prompts)
        found.extend(sampler.run(some, seed=again, max_new_tokens=task.max_new_tokens, batch=64))
    return found


#: By name: what the program is, and its runs (how many, seed).
PROGRAMS: dict[str, tuple[str, Callable[[int, int], list[Result]]]] = {
    "embedded-cold": ("embedded pair, temperature 0.2, w = 0.3", partial(_embedded, 0.2, 0.3)),
    "embedded": ("embedded pair, temperature 1, w = 0.3", partial(_embedded, 1.0, 0.3)),
    "embedded-light": ("embedded pair, temperature 1, w = 0.1", partial(_embedded, 1.0, 0.1)),
    "mixture": ("tabular mixture, plain IS", partial(_tabular, lambda: plain_is(
        _mixture((0.7, 0.3), (0.95, 0.05), (0.65, 0.35), (0.5, 0.5)), lanes=1, window=1, lookahead=1,
    ))),
    "mixture-heavy": ("tabular mixture with Z up to 64, plain IS", partial(_tabular, lambda: plain_is(
        _mixture((0.7, 0.3), (0.8, 0.2), (0.65, 0.35), (0.2, 0.8)), lanes=1, window=1, lookahead=1,
    ))),
    "mixture-far": ("tabular mixture with Z up to 6,859, plain IS", partial(_tabular, lambda: plain_is(
        _mixture((0.05, 0.95), (0.05, 0.95), (0.95, 0.05), (0.95, 0.05)), lanes=1, window=1, lookahead=1,
    ))),
    "toy": ("tabular pair, w = 0.5", partial(_tabular, lambda: smc(toy_pair(), 1, w=0.5, window=WINDOW))),
    "toy-4": (
        "tabular pair, w = 0.5, 4 particles",
        partial(_tabular, lambda: smc(toy_pair(), 4, w=0.5, window=WINDOW)),
    ),
}


class Pool(NamedTuple):
    """A cell of `smc_bridge.analysis.runner`: the runs of a program.

    Attributes:
        label: name of the program.
        size: runs.
        seed: of their draws.
    """

    label: str
    size: int
    seed: int

    def key(self) -> dict[str, Any]:
        """The entries of the pool's record that name it."""
        return {"program": self.label, "runs": self.size, "seed": self.seed}


def run_pool(pool: Pool) -> Record:
    """The evidence of every run."""
    seconds, results = timed(lambda: PROGRAMS[pool.label][1](pool.size, pool.seed))
    evidence = [result.log_evidence for result in results]
    return {**pool.key(), "seconds": seconds / pool.size, "log_evidences": evidence}


def pools(
    programs: Collection[str], folder: Path, *, runs: int, tabular: int, seed: int, fresh: bool
) -> Pools:
    """Evidence of the programs' runs, from the file where it has them.

    Args:
        folder: of the file, `certificate_pools.jsonl`.
        runs, tabular: of a pool, on the embedded pair and on tabular pairs.
    """
    every = [Pool(name, runs if name.startswith("embedded") else tabular, seed) for name in PROGRAMS]
    header = {"kind": "smc-bridge pools", "format": 1, "runs": runs, "tabular": tabular, "seed": seed}
    with open_store(
        folder / "certificate_pools.jsonl", header, [pool.key() for pool in every], argument="--out",
        noun="set of pools", fresh=fresh, valid=lambda record: len(record["log_evidences"]) == record["runs"],
    ) as store:
        records = run_cells([pool for pool in every if pool.label in programs], lambda: run_pool, store, show=True)
    found = {record["program"]: np.array(record["log_evidences"]) for record in records}
    return {name: found[name] for name in programs}
