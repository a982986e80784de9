"""`smc-bridge compare`: one table of decoders on the same prompts and seeds. What is done survives an interruption."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smc_bridge.analysis.comparison.methods import DEFAULT_METHODS, KNOWN, check_methods
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.base import (
    INTERRUPTED,
    PROGRAM,
    Command,
    add_w_argument,
    check_writable,
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
from smc_bridge.models.extras import install
from smc_bridge.tables import print_table
from smc_bridge.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from smc_bridge.analysis.comparison.effort import Clock
    from smc_bridge.analysis.comparison.store import Cell

#: Problems of a task unless they are given.
PROBLEMS = 200
DEFAULT_FILE = Path("runs/compare.json")


def method_names(text: str) -> tuple[str, ...]:
    """Argument type: names of methods with commas between them; each counts once."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    try:
        check_methods(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("methods ")) from None
    return names


def _limits() -> str:
    """What the task, and no preset, decides for every method."""
    each = "; ".join(
        f"{task.name}: M = {task.lookahead}, V = {task.window}, at most {task.max_new_tokens} tokens"
        for task in TASKS.values()
    )
    return f"Lookahead M, window V and length limit are the same for all, by default the task's ({each}); " \
        "dlm-<tokens> looks V ahead, dlm-all to the limit"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    add_task_arguments(parser, n=PROBLEMS)
    add_model_arguments(parser)
    parser.add_argument(
        "--methods", type=method_names, default=DEFAULT_METHODS, metavar="a,b,..",
        help=f"of {KNOWN} (default: {', '.join(DEFAULT_METHODS)}). {_limits()}",
    )
    parser.add_argument("--temperature", type=positive, default=0.2, metavar="T", help="of the target (default: 0.2)")
    add_w_argument(parser, "exponent of the DLM in the product of experts (default: 0.3)", default=0.3)
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--batch", type=whole(1), default=32, help="prompts that are decoded together (default: 32)")
    parser.add_argument(
        "--workers", type=whole(1), default=1, metavar="N",
        help="processes that share the work, with the same figures; tokens/s is then that of one of them. More than 1 "
        f"need ray: {install('ray')} (default: 1)",
    )
    parser.add_argument(
        "--json", type=destination, default=DEFAULT_FILE, metavar="FILE",
        help=f"where the comparison is kept; a second call continues it (default: {DEFAULT_FILE})",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever FILE holds")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Run or continue a comparison and print its table; 0, or 130 after Ctrl-C."""
    with importing():
        from smc_bridge.analysis.comparison.compare import compare
        from smc_bridge.analysis.comparison.effort import about
        from smc_bridge.analysis.comparison.settings import Settings
        from smc_bridge.analysis.progress import progress
    task, pair = task_and_models(arguments)
    settings = Settings(
        task=task.name, n=count_of(arguments, task, PROBLEMS), methods=arguments.methods,
        temperature=arguments.temperature, weight=arguments.w, seed=arguments.seed, batch=arguments.batch,
    )
    check_workers(arguments.workers, name="--workers")
    path: Path = arguments.json
    check_writable(path, "--json", make_folder=True)
    cells = len(settings.methods) * settings.batches
    saved, threads = 0, use_free_cores()
    clock: Clock | None = None

    def begin(found: Clock) -> None:
        nonlocal clock
        clock = found
        tell(
            f"{PROGRAM}: {len(settings.methods)} methods on {settings.n} problems: {about(found.left)} on "
            f"{threads} {'thread' if threads == 1 else 'threads'}"
        )

    def left() -> str:
        return "" if clock is None else f"{about(clock.left)} left"

    try:
        with progress(cells, left=left) as show:

            def report(cell: Cell, done: int, total: int) -> None:
                nonlocal saved
                saved = done
                if clock is not None:
                    clock.finished(cell)
                show(done, cell.method, f"{len(cell.outcomes)} problems in {cell.seconds:.1f} s")

            found = compare(
                settings, path=path, fresh=arguments.fresh, pair=pair, task=task, workers=arguments.workers,
                report=report, estimate=begin,
            )
    except KeyboardInterrupt:
        kept = saved and not is_stream(path)
        what = f"{saved} of {cells} parts are saved beside {shown(path)}" if kept else "nothing new was saved"
        again = "the same command without --fresh" if arguments.fresh else "the same command"
        tell(f"{PROGRAM}: interrupted: {what}; {again} {'goes on from there' if kept else 'begins anew'}")
        return INTERRUPTED
    table = found.table(described(task))

    def show_table(out: Console) -> None:
        if arguments.markdown:
            out.print(table.markdown(), soft_wrap=True)
        else:
            print_table(out, table)

    deliver(path, lambda: None, show_table)
    return 0


command = Command("compare", "Compare decoders on the same problems and seeds, in one table.", configure, run)
