"""Overhead: what the sampler adds to the time of its models' own forwards, and to the memory of their logits.

    python -m benchmarks.overhead [--prompts 1,16] [--repetitions 5] [--alphabet 151936] [--lanes 4] [--window 32]
        [--temperature 0.2] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

Two measurements. On the embedded pair: the wall time of a whole run over that of its recorded model calls, made again
on fresh sessions without the sampler, over the networks alone, and over the same networks by transformers' own forward.
On a mock pair whose logits are precomputed, over an
alphabet of 151,936: a step's own arithmetic against the textbook's form (full softmax of q, p, pi and residual at all
positions), and the peak of the memory that it takes beyond the models' logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import progress
from benchmarks.overhead_arithmetic import PROGRAMS, Arithmetic, arithmetic
from benchmarks.overhead_forwards import Overhead, cases, overhead
from benchmarks.problems import TABLES, embedded, methods
from benchmarks.report import Report, Sheet, Verdict, execute, several
from smc_bridge.commands.base import positive, whole

TABLE = TABLES["overhead"]
#: A step of the mock pair over the textbook's; memory in [K, V, A] float32 tensors.
WANTED_SHARE, WANTED_MEMORY = 1 / 3, 1.5


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--prompts", type=several(whole(1)), default="1" if quick else "1,16", metavar="P,P,..",
                        help="prompts P")
    parser.add_argument("--repetitions", type=whole(1), default=1 if quick else 5, help="of every measurement")
    parser.add_argument("--alphabet", type=whole(2), default=500 if quick else 151_936, help="A of the mock pair")
    parser.add_argument("--lanes", type=whole(1), default=4, help="K of the mock pair")
    parser.add_argument("--window", type=whole(1), default=32, help="V of the mock pair")
    parser.add_argument("--temperature", type=positive, default=0.2, help="of the embedded pair's target")
    parser.add_argument("--tokens", type=whole(1), default=8 if quick else 128, help="length limit of a run")


def measure(options: argparse.Namespace) -> Report:
    """Measure the overhead on the models' forwards, and a step's own arithmetic."""
    pair, task, prompts = embedded(max(options.prompts))
    programs = cases(task, temperature=options.temperature, prompts=options.prompts)
    with progress("overhead", options.repetitions * (4 * len(programs) + 2 * len(PROGRAMS))) as advance:
        runs = [
            overhead(
                case, pair, prompts, rounds=options.repetitions, max_new_tokens=options.tokens, seed=options.seed,
                advance=advance,
            )
            for case in programs
        ]
        steps = [
            arithmetic(
                name, lanes=options.lanes, window=options.window, alphabet=options.alphabet,
                rounds=options.repetitions, seed=options.seed, advance=advance,
            )
            for name in PROGRAMS
        ]
    data = {"forwards": runs, "arithmetic": steps}
    return Report(
        [_forwards_sheet(runs, options), _arithmetic_sheet(steps)], data, lambda figure: _draw(figure, runs, steps),
        size=(9.6, 1.6 + 0.5 * len(runs)), verdicts=verdicts(runs, steps),
    )


def verdicts(runs: Sequence[Overhead], steps: Sequence[Arithmetic]) -> list[Verdict]:
    """The figures that the project wants to reach."""
    out = [
        Verdict(
            f"{run.program}, P = {run.prompts}, run over the networks alone", run.over_networks.value,
            TABLE["over_networks"][str(run.prompts)], least=False,
        )
        for run in runs if run.program in methods(TABLE["held"]) and str(run.prompts) in TABLE["over_networks"]
    ]
    for step in steps:
        size = f"{step.name}, A = {step.alphabet:,}, K = {step.lanes}, V = {step.window}"
        out.append(Verdict(f"{size}, time over the textbook's", step.share.value, WANTED_SHARE, least=False))
        out.append(Verdict(f"{size}, extra memory in [K, V, A] tensors", step.memory, WANTED_MEMORY, least=False))
    return out


def _forwards_sheet(runs: Sequence[Overhead], options: argparse.Namespace) -> Sheet:
    rows = [
        (run.program, str(run.prompts), *(each.text() for each in run[2:9]))
        for run in runs
    ]
    columns = (
        "program", "P", "run, s", "its session calls, s", "networks alone, s", "transformers' own forward, s",
        "run / calls", "run / networks", "run / transformers' own",
    )
    title = f"Embedded pair, at most {options.tokens} tokens, target temperature {options.temperature:g}"
    return Sheet(title, columns, rows)


def _arithmetic_sheet(steps: Sequence[Arithmetic]) -> Sheet:
    rows = [
        (step.name, step.seconds.text(), step.textbook_seconds.text(), step.share.text(), f"{step.memory:.2f}",
         f"{step.textbook_memory:.2f}", f"{step.equal_lanes} of {step.lanes}")
        for step in steps
    ]
    columns = (
        "program", "step, s", "textbook, s", "step / textbook", "extra memory", "textbook's", "equal blocks"
    )
    first = steps[0]
    return Sheet(
        f"Mock pair, A = {first.alphabet:,}, K = {first.lanes}, V = {first.window}, one particle", columns, rows,
        note="One temperature for all lanes, or one for each. Extra memory: peak of all that the step "
        "allocates beyond the models' logits, temporary buffers of operations included, in [K, V, A] float32 tensors. "
        "Equal blocks: lanes that commit the same tokens in both forms.",
    )


def _draw(figure: Any, runs: Sequence[Overhead], steps: Sequence[Arithmetic]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    labels = [f"{run.program}, P = {run.prompts}" for run in runs]
    place = np.arange(len(runs))
    parts = (
        ("networks", [run.networks.value for run in runs]),
        ("sessions", [run.calls.value - run.networks.value for run in runs]),
        ("sampler", [run.wall.value - run.calls.value for run in runs]),
    )
    whole = np.array([run.wall.value for run in runs])
    start = np.zeros(len(runs))
    for name, seconds in parts:
        share = np.maximum(seconds, 0.0) / whole
        left.barh(place, share, 0.7, left=start, label=name)
        start = start + share
    left.set_yticks(place, labels)
    left.invert_yaxis()
    left.set_xlim(0, 1.02)
    left.set_xlabel("share of the run's wall time")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False)
    each = np.arange(len(steps))
    right.bar(each - 0.2, [step.share.value for step in steps], 0.36, label="time",
              yerr=np.transpose([step.share.bars for step in steps]), error_kw={"lw": 0.8})
    right.bar(each + 0.2, [step.memory / step.textbook_memory for step in steps], 0.36, label="extra memory")
    right.axhline(1.0, color="0.4", lw=0.8)
    right.set_xticks(each, [step.name for step in steps])
    right.set_xlabel(f"step of the mock pair, A = {steps[0].alphabet:,}")
    right.set_ylabel("over the textbook's form")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)


main = partial(execute, "overhead", __doc__, configure, measure)

if __name__ == "__main__":
    main()
