"""Profile: where the time of a run goes, by part and by function.

    python -m benchmarks.profile [--method paper] [--problems 8] [--batch 1] [--temperature 0.2] [--top 12]
        [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

A run on the embedded pair under cProfile. Each moment counts for the Python function that was running, or had called
the operation of torch that was: for the *networks* if that function is of transformers, `torch.nn` or the project's own
forward (`models/huggingface/lean.py`), for the *sessions* if it is of the rest of `models/`, else for the *program*, by
file. cProfile slows Python code and not the operations, so the networks' true share is larger than the one seen here
(`benchmarks.overhead` measures it without a profiler).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import own_file
from benchmarks.problems import TABLES, add_law_arguments, decoder, embedded, methods
from benchmarks.report import Report, Sheet, execute
from smc_bridge.commands.base import whole
from smc_bridge.decode import decode

#: What is the project's own.
PACKAGES = ("models", "smc_bridge", "analysis", "benchmarks")
#: Forwards of the networks that are the project's own code.
LEAN = Path("models/huggingface/lean.py")
#: Share of a run from which a part is listed; the JSON holds all.
LEAST = 0.001
#: File, line and name, as pstats has them; operations of torch have no file.
Function = tuple[str, int, str]


def own_seconds(stats: Mapping[Function, Any]) -> dict[Function, float]:
    """Seconds of every Python function itself and of the operations that it called; they add up to the whole run."""
    seconds: dict[Function, float] = defaultdict(float)
    for function, (_, _, own, _, callers) in stats.items():
        if function[0] != "~":
            seconds[function] += own
            continue
        for caller, (_, _, part, _) in callers.items():
            seconds[caller] += part
    return dict(seconds)


def part_of(function: Function) -> str:
    """Networks, sessions, a file of the program, or other libraries."""
    own = own_file(function[0], PACKAGES)
    if own is not None:
        part = "networks" if own == LEAN else "sessions"
        return part if own.parts[0] == "models" else str(own)
    library = Path(function[0]).as_posix()
    return "networks" if "/transformers/" in library or "/torch/nn/" in library else "other libraries"


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    default = TABLES["profile"]["methods"]
    parser.add_argument("--method", type=methods, default=default, metavar="NAME", help=f"(default: {default})")
    parser.add_argument("--problems", type=whole(1), default=1 if quick else 8, help="that are decoded")
    parser.add_argument("--batch", type=whole(1), default=1, help="prompts in work at a time")
    add_law_arguments(parser, 8 if quick else None)
    parser.add_argument("--top", type=whole(1), default=12, help="functions that are listed")


def measure(options: argparse.Namespace) -> Report:
    """Run once to warm up, and once under the profiler."""
    pair, task, prompts = embedded(options.problems)
    [method] = options.method
    program = decoder(method, pair, task, temperature=options.temperature)
    limits = {
        "seed": options.seed, "max_new_tokens": options.tokens or task.max_new_tokens, "batch": options.batch,
    }
    decode(program, prompts[:1], **limits)
    profiler = cProfile.Profile()
    profiler.runcall(decode, program, prompts, **limits)
    seconds = own_seconds(pstats.Stats(profiler).stats)  # type: ignore[attr-defined]
    whole_run = sum(seconds.values())
    parts: dict[str, float] = defaultdict(float)
    for function, spent in seconds.items():
        parts[part_of(function)] += spent
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    functions = [(f"{file}, {f[2]}", s) for f, s in seconds.items() if (file := own_file(f[0], PACKAGES)) is not None]
    functions.sort(key=lambda item: -item[1])
    shares = [(name, f"{100 * spent / whole_run:.1f}") for name, spent in ordered if spent > LEAST * whole_run]
    listed = [(name, f"{100 * spent / whole_run:.1f}") for name, spent in functions[: options.top]]
    title = f"{method}, {options.problems} problems, {options.batch} at a time"
    most = f"Its {len(listed)} most expensive functions of {len(functions)}"
    return Report(
        [Sheet(title, ("part", "% of the run"), shares), Sheet(most, ("function", "% of the run"), listed)],
        {"seconds": whole_run, "parts": dict(ordered)}, lambda figure: _draw(figure, ordered, whole_run),
    )


def _draw(figure: Any, parts: Sequence[tuple[str, float]], whole_run: float) -> None:
    ax = figure.subplots()
    shown = parts[:15][::-1]
    ax.barh([name for name, _ in shown], [100 * spent / whole_run for _, spent in shown])
    ax.set(xlabel="% of the run, under the profiler")


main = partial(execute, "profile", __doc__, configure, measure)

if __name__ == "__main__":
    main()
