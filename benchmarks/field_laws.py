"""The laws of all methods' outputs on two pairs of tables: judgements that are kept in files, and verdicts on them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparisons import single_thread
from benchmarks.harness import progress
from smc_bridge.analysis.claims import Distance, Judgement, judge, weighted_gap
from smc_bridge.entry_points import reason_of
from smc_bridge.estimate import Estimate
from smc_bridge.files import write_text
from smc_bridge.registry import spelled
from smc_bridge.testing import tabular_pair

KIND, FORMAT = "smc-bridge claims", 1
#: A gap of a weighted measure that is round-off.
ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Tables:
    """Two pairs of tables that differ in how far the diffusion model is off.

    Attributes:
        alphabet, length: tokens, of which the last one ends a sequence, and how many a sequence has at most.
        seed: of the tables.
        noise: of the diffusion model by the name of the pair, nats.
        runs: of a method that is not enumerated.
    """

    alphabet: int
    length: int
    seed: int
    noise: Mapping[str, float]
    runs: int

    def task(self, text: str, name: str, seed: int) -> dict[str, Any]:
        """All that the judgement of a method on one of the pairs depends on."""
        return {
            "kind": KIND, "format": FORMAT, "method": text, "alphabet": self.alphabet, "length": self.length,
            "tables": self.seed, "noise": self.noise[name], "runs": self.runs, "seed": seed,
        }


@dataclass(frozen=True)
class Found:
    """What is known of a method's laws.

    Attributes:
        method: as it is spelled.
        on: judgements by the name of the pair; empty if it cannot run on tables.
        gap: of its weighted measure (`smc_bridge.analysis.claims.weighted_gap`).
        reason: why it cannot run on tables.
    """

    method: str
    on: Mapping[str, Judgement]
    gap: float | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Whether it samples what it claims, in words."""
        exact = spelled(self.method).method.role == "exact"
        if not self.on:
            return NOT_RUN
        claims = [each.claim for each in self.on.values()]
        if any(claim is None for claim in claims):
            return NO_LAW
        fits = all(claim is not None and claim.within_noise for claim in claims)
        enumerated = any(claim is not None and claim.enumerated for claim in claims)
        if all(each.proper for each in self.on.values()) and not exact and not (fits and enumerated):
            if self.gap is None:
                return UNSURE
            return WEIGHTED if self.gap < ROUND_OFF else OTHER
        return SAMPLES if fits else OTHER


SAMPLES = "The output has the law that is claimed: enumerated, or no difference beyond noise"
WEIGHTED = "The weighted measure is exact, by enumeration; the output has a bias that particles lower"
UNSURE = "Said to be properly weighted; too many outcomes to enumerate the weighted measure here"
OTHER = "The output has another law than the one that is claimed"
NO_LAW = "A law is claimed that has no formula here; only the distance from the AR law is known"
NOT_RUN = "Does not run on tables"
VERDICTS = (SAMPLES, WEIGHTED, UNSURE, OTHER, NO_LAW, NOT_RUN)


def find_all(
    texts: Sequence[str], tables: Tables, folder: Path, *, seed: int = 0, processes: int = 1, fresh: bool = False
) -> list[Found]:
    """What is known of every method's laws; judgements are kept in files of `folder`.

    Raises:
        ValueError: a file holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_find, tables=tables, folder=folder, seed=seed, fresh=fresh)
    with progress("laws", len(texts)) as advance:
        found = []
        if processes == 1:
            for text in texts:
                found.append(work(text))
                advance()
            return found
        method = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
        with ProcessPoolExecutor(processes, mp_context=method, initializer=single_thread) as pool:
            for each in pool.map(work, texts):
                found.append(each)
                advance()
    return found


def _find(text: str, *, tables: Tables, folder: Path, seed: int, fresh: bool) -> Found:
    kept = folder / f"{text.translate(str.maketrans(' /:', '_+-'))} runs={tables.runs} seed={seed}.json"
    head = [tables.task(text, name, seed) for name in tables.noise]
    if kept.exists() and not fresh:
        return _read(kept, text, head, tables)
    try:
        on = {
            name: judge(
                text, tabular_pair(tables.alphabet, tables.length, seed=tables.seed, noise=noise), tables.length,
                runs=tables.runs, seed=seed,
            )
            for name, noise in tables.noise.items()
        }
        gap = weighted_gap(text)
    except Exception as error:  # whatever it is, the method does not run on tables
        told = isinstance(error, ValueError | ImportError)
        return Found(text, {}, None, " ".join(str(error).split()) if told else reason_of(error))
    data = {"head": head, "gap": gap, "on": {name: asdict(each) for name, each in on.items()}}
    write_text(kept, json.dumps(data) + "\n", argument="--out")
    return Found(text, on, gap)


def _read(file: Path, text: str, head: Sequence[Mapping[str, Any]], tables: Tables) -> Found:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["head"] != head:
            raise ValueError("of other tables")
        return Found(text, {name: _judgement(data["on"][name]) for name in tables.noise}, data["gap"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no judgement of today ({error}); delete it, or give --fresh") from error


def _judgement(data: Mapping[str, Any]) -> Judgement:
    def distance(each: Mapping[str, Any]) -> Distance:
        return Distance(Estimate(**each["tv"]), each["floor"])

    claim = None if data["claim"] is None else distance(data["claim"])
    return Judgement(claim, distance(data["ar"]), data["forwards"], data["proper"])
