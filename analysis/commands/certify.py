"""`smc-bridge certify`: how far a method's output can be from exact AR sampling, in both directions, with intervals."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from smc_bridge.analysis.comparison.methods import KNOWN_PROPER, check_proper, make_sampler
from smc_bridge.commands.base import (
    INTERRUPTED,
    PROGRAM,
    Command,
    UsageError,
    add_w_argument,
    check_writable,
    console,
    deliver,
    destination,
    importing,
    positive,
    tell,
    whole,
)
from smc_bridge.commands.models import add_model_arguments
from smc_bridge.commands.prompts import add_task_arguments, count_of, described, task_and_models
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.files import is_stream, shown
from smc_bridge.tables import print_table
from smc_bridge.tasks import encode_prompts

if TYPE_CHECKING:
    from smc_bridge.analysis.bounds import TokenBound
    from smc_bridge.analysis.reverse import Bidirectional, Report
    from smc_bridge.certificate import Certificate
    from smc_bridge.result import Result
    from smc_bridge.tasks import Item, Task


#: Problems of a task unless they are given.
PROBLEMS = 100
#: Arguments that the runs depend on, besides prompts and models.
DECISIVE = ("method", "temperature", "w", "seed", "batch")


def _level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"= {text}: give a confidence between 0 and 1, such as 0.95")
    return value


def _method(text: str) -> str:
    try:
        check_proper(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("method ")) from None
    return text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `certify`."""
    add_task_arguments(parser, n=PROBLEMS, least=2)
    add_model_arguments(parser)
    parser.add_argument(
        "--method", type=_method, default="smc-4", metavar="NAME",
        help=f"a properly weighted method as `compare` names it: {KNOWN_PROPER} (default: smc-4); it runs with "
        "multinomial resampling, which the reverse bound is about",
    )
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="of the target (default: 1)")
    add_w_argument(parser, "exponent of the DLM in the product of experts (default: 0.3)", default=0.3)
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--batch", type=whole(1), default=32, help="prompts that are decoded together (default: 32)")
    parser.add_argument("--level", type=_level, default=0.95, help="confidence of the intervals (default: 0.95)")
    parser.add_argument(
        "--json", type=destination, metavar="FILE",
        help="where the runs and the bounds are kept; a second call continues it (--level may differ)",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever certificate FILE holds")


def run(arguments: argparse.Namespace) -> int:
    """Run, or continue, both kinds of runs and print the bounds; 0, or 130 after Ctrl-C."""
    path: Path | None = arguments.json
    if path is not None:
        check_writable(path, "--json", make_folder=True)
    with importing():
        from smc_bridge.analysis.certified import Runs
        from smc_bridge.analysis.comparison.settings import fingerprint, problems_fingerprint
        from smc_bridge.analysis.lock import holding
    task, models = task_and_models(arguments)
    n = count_of(arguments, task, PROBLEMS)
    items = task.problems(n)
    if n < 2:
        raise UsageError(f"--prompts = {arguments.prompts}: has 1 prompt; an interval needs at least 2")
    use_free_cores()
    pair = models.load()
    sampler = make_sampler(arguments.method, pair, task, temperature=arguments.temperature, weight=arguments.w)
    prompts = encode_prompts(pair, task, items)
    settings = {
        "task": task.name, "n": n, **{name: getattr(arguments, name) for name in DECISIVE}, "pair": models.identity,
        "models": fingerprint(pair), "problems": problems_fingerprint(task, items, prompts),
    }
    title = (
        f"{arguments.method} on {n} problems of {described(task)}, target temperature "
        f"{arguments.temperature:g}, w = {arguments.w:g}, seed {arguments.seed}"
    )
    with holding(path, argument="--json"):
        runs = Runs(path, settings, fresh=arguments.fresh)
        try:
            with _progress(n) as report:
                found = runs.bounds(
                    sampler, prompts, seed=arguments.seed, max_new_tokens=task.max_new_tokens, level=arguments.level,
                    batch=arguments.batch, ids=[item.id for item in items], report=report,
                )
        except KeyboardInterrupt:
            done = len(runs.store.cells)
            kept = done and path is not None and not is_stream(path)
            what = f"{done} of {-(-n // arguments.batch)} parts are saved beside {shown(path or '')}; the " \
                "same command without --fresh goes on from there" if kept else "nothing was saved"
            tell(f"{PROGRAM}: interrupted: {what}")
            return INTERRUPTED
        right = accuracy(runs.free, task, items, seed=arguments.seed)
        deliver(
            path, lambda: runs.finish({**to_dict(found, arguments), "accuracy": None if right is None else right[0]}),
            lambda out: print_table(out, render(found, title=title, right=right)),
        )
    return 0


def accuracy(runs: Sequence[Result], task: Task, items: Sequence[Item], *, seed: int) -> tuple[float, int] | None:
    """Share of right answers, a draw from the weights of each free run, and of how many; None without answers.

    The draws are those of `compare` under the same seed.
    """
    known = [(run, item.answer) for run, item in zip(runs, items, strict=True) if item.answer is not None]
    right = sum(run.alive and task.grade(run.sample(seed=seed), answer) for run, answer in known)
    return (right / len(known), len(known)) if known else None


def render(found: Bidirectional, *, title: str = "", right: tuple[float, int] | None = None) -> Table:
    """The bounds as a table; its caption tells how far their intervals can be trusted, and the accuracy if it is known.
    """
    from smc_bridge.intervals import NAME

    bounds = {"KL(r || p)": found.forward, "KL(p || r)": found.reverse, "their sum": found.symmetric}
    table = Table(
        title=title, title_justify="left", caption_justify="left",
        caption="r: law of one text drawn from a run's weights; p: the AR model; in brackets "
        f"{found.forward.level:.0%} {NAME} intervals\n" + "\n".join(_told(*each) for each in bounds.items())
        + ("" if right is None else f"\naccuracy of {right[1]} texts: {right[0]:.1%}"),
    )
    table.add_column("bound on", no_wrap=True)
    for name in ("by", "nats / sequence", "nats / 1,000 tokens", "total variation at most"):
        table.add_column(name, justify="right")
    table.add_row(
        "KL(r || p)", "E[-log Z]", _interval(found.forward), _interval(found.forward_per_token, 1000.0),
        f"{found.forward.tv:.3f}",
    )
    table.add_row(
        "KL(p || r)", "E[log Z], conditional", _interval(found.reverse),
        _interval(found.reverse_per_token, 1000.0), f"{found.reverse.tv:.3f}",
    )
    table.add_row("their sum", "both", _interval(found.symmetric), "", "")
    return table


def to_dict(found: Bidirectional, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plain data for JSON: each bound with its interval, nats; JSON has no infinity, "inf" stands for it."""
    bounds = {
        name: {end: _plain(x) for end, x in (("bound", bound.kl), ("low", bound.low), ("high", bound.high))}
        for name, bound in (
            ("forward", found.forward), ("forward_per_token", found.forward_per_token), ("reverse", found.reverse),
            ("reverse_per_token", found.reverse_per_token), ("symmetric", found.symmetric),
        )
    }
    return {"level": arguments.level, "bounds": bounds}


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _interval(bound: Certificate | TokenBound, scale: float = 1.0) -> str:
    value, low, high = (f"{scale * x:.3g}" for x in (bound.kl, bound.low, bound.high))
    return f"{value} [{low}, {high}]" if math.isfinite(bound.high) else f"{value}, no interval"


def _told(name: str, bound: Certificate) -> str:
    """What the terms of a bound are like, and what follows for its interval."""
    if bound.exact or not bound.has_interval:
        return f"{name}: {bound}"
    return f"{name}: {bound.terms}{'; warning: ' + '; '.join(bound.warnings) if bound.warnings else ''}"


@contextmanager
def _progress(total: int) -> Iterator[Report | None]:
    """A progress bar on standard error, nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr)) as bar:
        tasks = {name: bar.add_task(name, total=total) for name in ("exact samples", "conditional runs", "free runs")}
        yield lambda name, done: bar.update(tasks[name], completed=done)


command = Command(
    "certify", "Bound a method's divergence from exact AR sampling, in both directions.", configure, run
)
