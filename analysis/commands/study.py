"""`smc-bridge study CONFIG.toml`: a Cartesian experiment and its summary. What is done survives an interruption."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smc_bridge.analysis.commands.common import add_work_arguments, interrupted, options
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.base import Command, UsageError, check_writable, deliver, importing, whole
from smc_bridge.commands.models import MODEL_OPTIONS, Models, add_model_arguments, is_given
from smc_bridge.commands.prompts import add_prompts_arguments, count_of, described, task_and_models
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.tables import print_table
from smc_bridge.tasks import Task

if TYPE_CHECKING:
    from smc_bridge.analysis.study.config import Config


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `study`."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="axes and source; docs/study.toml is one")
    add_work_arguments(parser, "--out", None, "default: runs/<CONFIG>.jsonl, a line for each row")
    group = parser.add_argument_group("prompts", "in place of the [task] that CONFIG.toml names")
    add_prompts_arguments(group)
    group.add_argument("--max-new-tokens", type=whole(1), metavar="T", help="length limit of a task (default: its own)")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run or continue a study and print its summary; 0, or 130 after Ctrl-C."""
    with importing():
        from smc_bridge.analysis.study.run import study
        from smc_bridge.analysis.study.table import render
    config, task, models = sources(arguments)
    check_workers(arguments.workers, name="--workers")
    path: Path = arguments.out or Path("runs") / f"{arguments.config.stem}.jsonl"
    check_writable(path, "--out", make_folder=True)
    use_free_cores()
    try:
        frame = study(config, path=path, pair=models, problems=task, **options(arguments))
    except KeyboardInterrupt as stop:
        return interrupted(stop, path, arguments, "rows are saved in")
    prompts = "" if arguments.prompts is None or task is None else f" on {described(task)}"
    title = f"{arguments.config.name}{prompts}: {len(frame)} rows, pooled over seeds and prompts"
    deliver(path, lambda: None, lambda out: print_table(out, render(frame, title=title)))
    return 0


def sources(arguments: argparse.Namespace) -> tuple[Config, Task | None, Models | None]:
    """The configuration, and the task and the models that the arguments put in the place of its own.

    Raises:
        UsageError: arguments contradict each other or the configuration. ValueError: a file is not as it should be.
    """
    with importing():
        from smc_bridge.analysis.study.config import Config, Prompts
        from smc_bridge.analysis.study.sources import find_task
    if arguments.prompts is not None:
        task, models = task_and_models(arguments)
        named = {"name": task.name, "n": count_of(arguments, task, 0)}
        return Config.from_toml(arguments.config, prompts=named), task, models
    config = Config.from_toml(arguments.config)
    if isinstance(config.source, Prompts):
        arguments.task = find_task(config.source, None).name
        return config, *task_and_models(arguments)
    for name in (*MODEL_OPTIONS, "grader", "max_new_tokens"):
        if is_given(getattr(arguments, name)):
            raise UsageError(
                f"--{name.replace('_', '-')} is for prompts, and {arguments.config} has tabular models: give it a "
                "[task], or give --prompts"
            )
    return config, None, None


command = Command("study", "Run a Cartesian experiment over samplers, models and seeds.", configure, run)
