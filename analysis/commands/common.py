"""What the commands that run experiments share: their arguments, and what they say when they are interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.commands.base import (
    INTERRUPTED,
    PROGRAM,
    add_w_argument,
    destination,
    importing,
    not_negative,
    tell,
    whole,
)
from smc_bridge.commands.models import Models, add_model_arguments
from smc_bridge.commands.prompts import add_task_arguments, count_of, task_and_models
from smc_bridge.files import is_stream, shown
from smc_bridge.models.extras import install
from smc_bridge.tasks import Task

if TYPE_CHECKING:
    from smc_bridge.analysis.comparison.settings import Settings

#: How methods are written, for the help.
SPELLING = "NAME[,option=value..] as `smc-bridge methods` lists them"


def add_experiment_arguments(
    parser: argparse.ArgumentParser, *, n: int, least: int, temperature: float, file: Path | None
) -> None:
    """Add prompts, models, the laws' arguments, and where and how the work is done.

    Args:
        n, least: problems of a task unless they are given, and fewest.
        temperature: unless it is given.
        file: where the work is kept unless it is given.
    """
    add_task_arguments(parser, n=n, least=least)
    add_model_arguments(parser)
    parser.add_argument(
        "--temperature", type=not_negative, default=temperature, metavar="T",
        help=f"of the target, 0 is greedy (default: {temperature:g})",
    )
    add_w_argument(parser, "exponent of the DLM in the product of experts (default: 0.3)", default=0.3)
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--batch", type=whole(1), default=32, help="prompts that are decoded together (default: 32)")
    add_work_arguments(parser, "--json", file, f"default: {file or 'nowhere'}")


def add_work_arguments(parser: argparse.ArgumentParser, flag: str, file: Path | None, default: str) -> None:
    """Add where the work is kept, `--workers` and `--fresh`."""
    parser.add_argument(
        flag, type=destination, default=file, metavar="FILE",
        help=f"where the work is kept; a second call continues it ({default})",
    )
    parser.add_argument(
        "--workers", type=whole(1), default=1, metavar="N",
        help="processes that share the work, with the same figures; timings are then those of one of them. More than 1 "
        f"need ray: {install('ray')} (default: 1)",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever FILE holds")


def experiment(
    arguments: argparse.Namespace, methods: tuple[str, ...], problems: int
) -> tuple[Settings, Task, Models]:
    """Settings, task and models that the arguments of `add_experiment_arguments` name; `problems` unless they do.

    Raises:
        UsageError: arguments contradict each other. ValueError: the file of prompts is not as it should be.
    """
    with importing():
        from smc_bridge.analysis.comparison.settings import Settings
    task, models = task_and_models(arguments)
    settings = Settings(
        task=task.name, n=count_of(arguments, task, problems), methods=methods, temperature=arguments.temperature,
        w=arguments.w, seed=arguments.seed, batch=arguments.batch,
    )
    return settings, task, models


def interrupted(stop: KeyboardInterrupt, path: Path | None, arguments: argparse.Namespace, kept: str) -> int:
    """Say what is saved, and how to go on; the exit code.

    Args:
        stop: of `run_cells`, or from before it began.
        path: of the file.
        kept: where in it the records are, such as "parts are saved beside".
    """
    done, total = getattr(stop, "done", 0), getattr(stop, "total", 0)
    again = "the same command without --fresh" if arguments.fresh else "the same command"
    if done and path is not None and not is_stream(path):
        tell(f"{PROGRAM}: interrupted: {done} of {total} {kept} {shown(path)}; {again} goes on from there")
    else:
        tell(f"{PROGRAM}: interrupted: nothing new was saved; {again} begins anew")
    return INTERRUPTED


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of an experiment's function that its command passes on."""
    return {"fresh": arguments.fresh, "workers": arguments.workers, "show": True}
