"""`smc-bridge certify`: how far a method's output can be from exact AR sampling, in both directions, with intervals."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.bounds import TokenBound
from analysis.comparison.methods import check_methods, make_sampler
from analysis.reverse import Bidirectional, Report, bidirectional
from models.pairs import load_pair
from smc_bridge.certificate import Certificate
from smc_bridge.commands.base import (
    INTERRUPTED,
    PROGRAM,
    Command,
    check_writable,
    console,
    one_of,
    positive,
    share,
    whole,
)
from smc_bridge.intervals import NAME
from smc_bridge.result import write_text
from smc_bridge.tasks import TASKS

#: Methods that can be certified, for messages.
METHODS = "smc-<particles>, smc-<particles>x<lanes>, tree-walk, plain-is, speculative"


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
        check_methods([text])
    except ValueError:
        known = False
    else:
        known = text != "ar" and not text.startswith("dlm-")
    if not known:
        raise argparse.ArgumentTypeError(f"= {text!r}: choose from {METHODS}")
    return text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `certify`."""
    parser.add_argument("--task", type=one_of(TASKS), default="arithmetic", metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--n", type=whole(2), default=100, help="problems, the first ones of the task (default: 100)")
    parser.add_argument(
        "--method", type=_method, default="smc-4", metavar="NAME",
        help="a properly weighted method as `compare` names it, such as smc-4, smc-1x4, tree-walk (default: smc-4); it "
        "runs with multinomial resampling, which the reverse bound is about",
    )
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="of the target (default: 1)")
    parser.add_argument("--weight", type=share, default=0.3, metavar="w", help="weight of the DLM (default: 0.3)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--batch", type=whole(1), default=32, help="prompts that are decoded together (default: 32)")
    parser.add_argument("--level", type=_level, default=0.95, help="confidence of the intervals (default: 0.95)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are kept")


def run(arguments: argparse.Namespace) -> int:
    """Run both kinds of runs and print the bounds; 0, or 130 after Ctrl-C."""
    if arguments.json is not None:
        check_writable(arguments.json, "--json", make_folder=True)
    task = TASKS[arguments.task]
    pair = load_pair(task.pair)
    sampler = make_sampler(
        arguments.method, pair, task, temperature=arguments.temperature, weight=arguments.weight
    )
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(arguments.n)]
    try:
        with _progress(arguments.n) as report:
            found = bidirectional(
                sampler, prompts, seed=arguments.seed, max_new_tokens=task.max_new_tokens, level=arguments.level,
                batch=arguments.batch, report=report,
            )
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted: nothing was saved; fewer problems (--n) take less time", file=sys.stderr)
        return INTERRUPTED
    out = console(sys.stdout)
    title = (
        f"{arguments.method} on {arguments.n} problems of {task.name}, target temperature "
        f"{arguments.temperature:g}, w = {arguments.weight:g}, seed {arguments.seed}"
    )
    out.print(render(found, title=title))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, json.dumps(to_dict(found, arguments), indent=2, allow_nan=False) + "\n")
        out.print(f"saved as {arguments.json}", markup=False)
    return 0


def render(found: Bidirectional, *, title: str = "") -> Table:
    """The bounds as a table; its caption tells how far their intervals can be trusted."""
    bounds = {"KL(r || p)": found.forward, "KL(p || r)": found.reverse, "their sum": found.symmetric}
    table = Table(
        title=title, title_justify="left", caption_justify="left",
        caption="r: law of one text drawn from a run's weights; p: the AR model; in brackets "
        f"{found.forward.level:.0%} {NAME} intervals\n" + "\n".join(_told(*each) for each in bounds.items()),
    )
    table.add_column("bound on", no_wrap=True)
    for name in ("by", "nats / sequence", "nats / 1,000 tokens", "total variation at most"):
        table.add_column(name, justify="right")
    table.add_row(
        "KL(r || p)", escape("E[-log Z]"), _interval(found.forward), _interval(found.forward_per_token, 1000.0),
        f"{found.forward.tv:.3f}",
    )
    table.add_row(
        "KL(p || r)", escape("E[log Z]") + ", conditional", _interval(found.reverse),
        _interval(found.reverse_per_token, 1000.0), f"{found.reverse.tv:.3f}",
    )
    table.add_row("their sum", "both", _interval(found.symmetric), "", "")
    return table


def to_dict(found: Bidirectional, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plain data for JSON: settings, and each bound with its interval, nats; JSON has no infinity, "inf" stands for it.
    """
    settings = {
        name: getattr(arguments, name) for name in ("task", "n", "method", "temperature", "weight", "seed", "level")
    }
    bounds = {
        name: {end: _plain(x) for end, x in (("bound", bound.kl), ("low", bound.low), ("high", bound.high))}
        for name, bound in (
            ("forward", found.forward), ("forward_per_token", found.forward_per_token), ("reverse", found.reverse),
            ("reverse_per_token", found.reverse_per_token), ("symmetric", found.symmetric),
        )
    }
    return {"kind": f"{PROGRAM} certificate", "format": 1, **settings, "bounds": bounds}


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
