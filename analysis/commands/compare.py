"""`smc-bridge compare`: one table of decoders on the same prompts and seeds. What is done survives an interruption."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from smc_bridge.analysis.commands.common import (
    SPELLING,
    add_experiment_arguments,
    experiment,
    interrupted,
    options,
)
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.base import PROGRAM, Command, check_writable, deliver, importing, tell
from smc_bridge.commands.prompts import described
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.tables import print_table
from smc_bridge.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

#: Problems of a task unless they are given.
PROBLEMS = 200
DEFAULT_FILE = Path("runs/compare.json")
#: Every method, by its examples.
ALL = "all"


def _limits() -> str:
    """What the task, and no method, decides."""
    each = "; ".join(
        f"{task.name}: M = {task.lookahead}, V = {task.window}, at most {task.max_new_tokens} tokens"
        for task in TASKS.values()
    )
    return f"Lookahead M, window V and length limit are the same for all, by default the task's ({each})"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument(
        "--methods", metavar="a,b,..", default=ALL,
        help=f"each {SPELLING}; {ALL}: every method that runs on these models, by its examples (default: {ALL}). "
        f"{_limits()}",
    )
    add_experiment_arguments(parser, n=PROBLEMS, least=1, temperature=0.2, file=DEFAULT_FILE)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def _chosen(text: str) -> Iterator[str]:
    """The methods of `--methods`; ValueError if one is none."""
    from smc_bridge.analysis.study.plan import of_methods
    from smc_bridge.registry import spelled_list

    try:
        yield from (each.text for each in spelled_list(text))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("methods") else of_methods(error, text)) from error


def run(arguments: argparse.Namespace) -> int:
    """Run or continue a comparison and print its table; 0, or 130 after Ctrl-C."""
    with importing():
        from smc_bridge.analysis.comparison.comparing import compare, default_methods
        from smc_bridge.analysis.runner import about
    every = arguments.methods.strip() == ALL
    methods = default_methods() if every else tuple(_chosen(arguments.methods))
    settings, task, models = experiment(arguments, methods, PROBLEMS)
    check_workers(arguments.workers, name="--workers")
    path: Path = arguments.json
    check_writable(path, "--json", make_folder=True)
    threads = use_free_cores()

    missing: list[str] = []

    def leave_out(method: str, reason: str) -> None:
        missing.append(method)
        tell(f"{PROGRAM}: {method} is left out, it cannot run on these models: {reason}")

    def begin(seconds: float) -> None:
        tell(
            f"{PROGRAM}: {len(settings.methods) - len(missing)} methods on {settings.n} problems: {about(seconds)} on "
            f"{threads} {'thread' if threads == 1 else 'threads'}"
        )

    try:
        found = compare(
            settings, path=path, pair=models, task=task, estimate=begin, left_out=leave_out if every else None,
            **options(arguments),
        )
    except KeyboardInterrupt as stop:
        return interrupted(stop, path, arguments, "parts are saved beside")
    table = found.table(described(task))

    def show_table(out: Console) -> None:
        if arguments.markdown:
            out.print(table.markdown(), soft_wrap=True)
        else:
            print_table(out, table)

    deliver(path, lambda: None, show_table)
    return 0


command = Command("compare", "Compare decoders on the same problems and seeds, in one table.", configure, run)
