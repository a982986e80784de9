"""`smc-bridge certify`: how far a method's output can be from exact AR sampling, in both directions, with intervals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from smc_bridge.analysis.commands.common import (
    SPELLING,
    add_experiment_arguments,
    experiment,
    interrupted,
    options,
)
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.base import Command, UsageError, check_writable, deliver, importing, level
from smc_bridge.commands.prompts import described
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.methods import DEFAULT
from smc_bridge.tables import print_table

if TYPE_CHECKING:
    from smc_bridge.analysis.certified import Certified
    from smc_bridge.certificate import Certificate
    from smc_bridge.estimate import Estimate

#: Problems of a task unless they are given.
PROBLEMS = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `certify`."""
    parser.add_argument(
        "--method", default=DEFAULT, metavar="NAME",
        help=f"a properly weighted method, {SPELLING} (default: {DEFAULT}); it runs with multinomial resampling, which "
        "the reverse bound is about",
    )
    add_experiment_arguments(parser, n=PROBLEMS, least=2, temperature=1.0, file=None)
    parser.add_argument(
        "--level", type=level, default=0.95,
        help="confidence of the intervals, which another call may change (default: 0.95)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run, or continue, both kinds of runs and print the bounds; 0, or 130 after Ctrl-C."""
    path: Path | None = arguments.json
    if path is not None:
        check_writable(path, "--json", make_folder=True)
    with importing():
        from smc_bridge.analysis.certified import certifying
    settings, task, models = experiment(arguments, (arguments.method,), PROBLEMS)
    check_workers(arguments.workers, name="--workers")
    if settings.n < 2:
        raise UsageError(f"--prompts = {arguments.prompts}: has 1 prompt; an interval needs at least 2")
    use_free_cores()
    try:
        with certifying(
            settings, path=path, pair=models, task=task, level=arguments.level, **options(arguments)
        ) as found:
            title = f"{arguments.method} on {settings.n} problems of {described(task)}, {settings.shared}"
            deliver(path, found.save, lambda out: print_table(out, render(found, title=title)))
    except KeyboardInterrupt as stop:
        return interrupted(stop, path, arguments, "parts are saved beside")
    return 0


def render(certified: Certified, *, title: str = "") -> Table:
    """The bounds as a table; its caption tells how far their intervals can be trusted, and the accuracy if it is known.
    """
    found, right = certified.bounds, certified.accuracy
    bounds = {"KL(r || p)": found.forward, "KL(p || r)": found.reverse, "their sum": found.symmetric}
    table = Table(
        title=title, title_justify="left", caption_justify="left",
        caption="r: law of one text drawn from a run's weights; p: the AR model; in brackets "
        f"{found.forward.level:.0%} {found.forward.how} intervals\n"
        + "\n".join(_told(*each) for each in bounds.items())
        + ("" if right is None else f"\naccuracy of {right.n} texts: {right.value:.1%}"),
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


def _interval(bound: Estimate, scale: float = 1.0) -> str:
    return bound.times(scale).text(without=", no interval")


def _told(name: str, bound: Certificate) -> str:
    """What the terms of a bound are like, and what follows for its interval."""
    if bound.exact or not bound.has_interval:
        return f"{name}: {bound}"
    return f"{name}: {bound.terms}{'; warning: ' + '; '.join(bound.warnings) if bound.warnings else ''}"


command = Command(
    "certify", "Bound a method's divergence from exact AR sampling, in both directions.", configure, run
)
