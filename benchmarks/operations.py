"""Operations: what a step does besides its networks' forwards, and how often it makes the host wait for a device.

    python -m benchmarks.operations [--methods smc-1,smc-4,paper,tree-32] [--caches none,prefix] [--prompts 1,16]
        [--temperature 0.2] [--tokens 128] [--alphabet 151936] [--lanes 4] [--window 32] [--where N] [--quick]
        [--threads N] [--seed 0] [--out runs] [--markdown]

Tensor operations and waits (`benchmarks.counting` says what is one) on the embedded pair: those of a whole run, its
start and its results included, over its steps. On a mock pair, whose forwards are ready made, those of one step with a
large alphabet. On a GPU an operation is a kernel launch or a few, and a wait lets the device run dry. The counts are
the same in every repetition on every machine.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.counting import PARTS, Count, Sessions, Tally, counted
from benchmarks.harness import progress
from benchmarks.overhead_arithmetic import PROGRAMS, MockStep
from benchmarks.problems import CACHED, TABLES, add_law_arguments, cached, decoder, embedded, methods
from benchmarks.replay import observe
from benchmarks.report import Report, Sheet, execute, several
from smc_bridge.commands.base import one_of, whole
from smc_bridge.decode import decode
from smc_bridge.models.pairs import Pair
from smc_bridge.streams import _FRESH
from smc_bridge.tasks import Task

TABLE = TABLES["operations"]
#: What a session of the diffusion model keeps, and how a method's name says it.
CACHES = {"none": "", "prefix": CACHED}


class Counts(NamedTuple):
    """What one program did.

    Attributes:
        program: its name.
        prompts: P.
        steps: of the batch.
        tallies: by part.
    """

    program: str
    prompts: int
    steps: int
    tallies: Mapping[str, Tally]

    def operations(self, *parts: str) -> float:
        """Operations per step of these parts together."""
        return sum(self.tallies[part].operations.total() for part in parts) / self.steps

    def waits(self, *parts: str) -> float:
        """Waits per step of these parts together."""
        return sum(self.tallies[part].waits.total() for part in parts) / self.steps

    def uploads(self, *parts: str) -> float:
        """Uploads per step of these parts together."""
        return sum(self.tallies[part].uploads.total() for part in parts) / self.steps

    @property
    def outside(self) -> tuple[float, float]:
        """Operations and waits per step outside of the networks."""
        return self.operations("sessions", "program"), self.waits("sessions", "program")


def count_run(
    name: str, pair: Pair, task: Task, prompts: Sequence[Sequence[int]], *, temperature: float, tokens: int, seed: int
) -> Counts:
    """Count a method's run on the pair, all prompts at a time."""
    count, steps = Count([_FRESH]), 0
    own = cached(name, pair)
    program = decoder(name, observe(own, Sessions(count)), task, temperature=temperature)

    def step(_: int) -> None:
        nonlocal steps
        steps += 1

    decode(program, prompts[:1], max_new_tokens=2)  # what is made once for all runs
    with counted(count, own):
        decode(program, prompts, seed=seed, max_new_tokens=tokens, progress=step)
    return Counts(name, len(prompts), steps, count.tallies)


def count_mock(name: str, *, lanes: int, window: int, alphabet: int, seed: int) -> Counts:
    """Count one step on the mock pair."""
    count = Count()
    mock = MockStep(
        PROGRAMS[name], lanes=lanes, window=window, alphabet=alphabet, seed=seed,
        watch=lambda pair: observe(pair, Sessions(count)),
    )
    mock.ours(mock.start())
    state = mock.start()
    with count:
        mock.ours(state)
    return Counts(name, 1, 1, count.tallies)


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    default = TABLE["quick" if quick else "methods"]
    parser.add_argument("--methods", type=methods, default=default, metavar="a,b,..", help=f"(default: {default})")
    parser.add_argument("--caches", type=several(one_of(tuple(CACHES))), default=tuple(CACHES), metavar="a,b,..",
                        help=f"of the diffusion model's sessions, of {', '.join(CACHES)}")
    parser.add_argument("--prompts", type=several(whole(1)), default="1,2" if quick else "1,16", metavar="P,P,..",
                        help="prompts P")
    add_law_arguments(parser, 8 if quick else 128)
    parser.add_argument("--alphabet", type=whole(2), default=500 if quick else 151_936, help="A of the mock pair")
    parser.add_argument("--lanes", type=whole(1), default=4, help="K of the mock pair")
    parser.add_argument("--window", type=whole(1), default=32, help="V of the mock pair")
    parser.add_argument("--where", type=whole(0), default=0, metavar="N",
                        help="list for every program the N functions with most operations, and what uploads or waits")


def measure(options: argparse.Namespace) -> Report:
    """Count every program, and the steps of the mock pair."""
    pair, task, prompts = embedded(max(options.prompts))
    cells = [(m + CACHES[c], p) for c in options.caches for p in options.prompts for m in options.methods]
    with progress("operations", len(cells) + len(PROGRAMS)) as advance:
        runs, steps = [], []
        for name, p in cells:
            runs.append(count_run(
                name, pair, task, prompts[:p], temperature=options.temperature, tokens=options.tokens,
                seed=options.seed,
            ))
            advance()
        for name in PROGRAMS:
            steps.append(count_mock(
                name, lanes=options.lanes, window=options.window, alphabet=options.alphabet, seed=options.seed,
            ))
            advance()
    title = f"Embedded pair, at most {options.tokens} tokens, target temperature {options.temperature:g}"
    mock = f"Mock pair, A = {options.alphabet:,}, K = {options.lanes}, V = {options.window}, one particle, one step"
    sheets = [_sheet(f"{title}: per step", runs), _sheet(mock, steps)]
    if options.where:
        sheets += [sheet for counts in (*runs, *steps) for sheet in _where(counts, options.where)]
    data = {"runs": [_data(counts) for counts in runs], "mock": [_data(counts) for counts in steps]}
    every = [*runs, *steps]
    return Report(sheets, data, lambda figure: _draw(figure, every), size=(9.6, 1.2 + 0.3 * len(every)))


def _sheet(title: str, all_counts: Sequence[Counts]) -> Sheet:
    columns = (
        "program", "P", "steps", "operations", "sessions'", "program's", "waits", "sessions'", "program's",
        "uploads", "networks' operations", "networks' waits",
    )
    rows = [
        (
            counts.program, str(counts.prompts), str(counts.steps), f"{counts.outside[0]:.0f}",
            *(f"{counts.operations(part):.0f}" for part in PARTS[1:]), f"{counts.outside[1]:.1f}",
            *(f"{counts.waits(part):.1f}" for part in PARTS[1:]), f"{counts.uploads(*PARTS[1:]):.1f}",
            f"{counts.operations(PARTS[0]):.0f}", f"{counts.waits(PARTS[0]):.1f}",
        )
        for counts in all_counts
    ]
    return Sheet(title, columns, rows)


def _where(counts: Counts, top: int) -> Iterator[Sheet]:
    """The functions with most operations outside of the networks, and every place that waits."""
    tallies = [counts.tallies[part] for part in PARTS[1:]]
    operations = sum((tally.operations for tally in tallies), Counter[str]())
    waits = sum((counts.tallies[part].waits for part in PARTS), Counter[tuple[str, str]]())
    title = f"{counts.program}, P = {counts.prompts}"
    yield Sheet(f"{title}: functions with most operations", ("function", "operations / step"), [
        (place, f"{found / counts.steps:.1f}") for place, found in operations.most_common(top)
    ])
    uploads = sum((tally.uploads for tally in tallies), Counter[str]())
    yield Sheet(f"{title}: uploads", ("place", "uploads / step"), [
        (place, f"{found / counts.steps:.2f}") for place, found in uploads.most_common()
    ])
    yield Sheet(f"{title}: what waits", ("place", "for", "waits / step"), [
        (place, kind, f"{found / counts.steps:.2f}") for (place, kind), found in waits.most_common()
    ])


def _data(counts: Counts) -> dict[str, Any]:
    return {
        "program": counts.program, "prompts": counts.prompts, "steps": counts.steps,
        "operations": {part: counts.operations(part) for part in PARTS},
        "waits": {part: counts.waits(part) for part in PARTS},
        "uploads": {part: counts.uploads(part) for part in PARTS},
        "operations_by_function": dict(sum((counts.tallies[part].operations for part in PARTS), Counter[str]())),
        "waits_by_place": [
            {"part": part, "place": place, "for": kind, "waits": found}
            for part in PARTS for (place, kind), found in counts.tallies[part].waits.items()
        ],
    }


def _draw(figure: Any, all_counts: Sequence[Counts]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(all_counts))
    for ax, what in zip(axes, ("operations", "waits"), strict=True):
        start = np.zeros(len(all_counts))
        for part in PARTS:
            each = np.array([getattr(counts, what)(part) for counts in all_counts])
            ax.barh(place, each, 0.7, left=start, label=part)
            start = start + each
        ax.set_xlabel(f"{what} per step")
    axes[0].set_yticks(place, [f"{counts.program}, P = {counts.prompts}" for counts in all_counts])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PARTS))


main = partial(execute, "operations", __doc__, configure, measure)

if __name__ == "__main__":
    main()
