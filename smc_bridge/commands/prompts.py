"""The arguments of a command that name its prompts: a task that ships with the package, or a file (`--prompts`)."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from smc_bridge.commands.base import UsageError, one_of, whole
from smc_bridge.commands.models import EMBEDDED, Models, models_of, pair_name
from smc_bridge.graders import GRADERS, find_grader
from smc_bridge.prompts_file import STANDARD_INPUT, PromptsTask, read_prompts
from smc_bridge.tasks import DEFAULT_LOOKAHEAD, TASKS, Task

#: Task unless one, or a file, is named, and how a file is graded.
DEFAULT_TASK, DEFAULT_GRADER = "arithmetic", "exact"
#: Limits of a task that an option may set, tokens.
LIMITS = ("max_new_tokens", "lookahead", "window")


def add_prompts_arguments(group: Any) -> None:
    """Add `--prompts` and `--grader` to a parser or a group of its arguments."""
    group.add_argument(
        "--prompts", metavar="FILE.jsonl",
        help="prompts of your own: a line each, a JSON object with prompt, and answer and id if there are any; - is "
        "standard input",
    )
    group.add_argument(
        "--grader", type=_grader, metavar="NAME",
        help=f"how texts are judged by the answers of FILE.jsonl: {', '.join(GRADERS)}, or module:function "
        f"(default: {DEFAULT_GRADER})",
    )


def add_task_arguments(parser: argparse.ArgumentParser, *, n: int, least: int = 1) -> None:
    """Add `--task`, `--prompts` with what goes with it, `--n`, and the limits.

    Args:
        n: problems of a task unless they are given.
        least: fewest problems.
    """
    group = parser.add_argument_group("prompts", "the problems of a task, or those of a file")
    group.add_argument(
        "--task", type=one_of(TASKS), metavar="NAME", help=f"{', '.join(TASKS)} (default: {DEFAULT_TASK})"
    )
    add_prompts_arguments(group)
    group.add_argument("--n", type=whole(least), help=f"problems, the first ones (default: {n}; of a file, all)")
    group.add_argument("--max-new-tokens", type=whole(1), metavar="T", help="length limit (default: the task's; 128)")
    group.add_argument(
        "--lookahead", type=whole(1), metavar="M", help="masked positions per forward of the DLM (default: the task's; "
        f"{DEFAULT_LOOKAHEAD} for a pair that no task knows)",
    )
    group.add_argument("--window", type=whole(1), metavar="V", help="tokens verified at once (default: the task's; 32)")


def _grader(text: str) -> str:
    try:
        find_grader(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def task_of(arguments: argparse.Namespace, pair: str) -> Task:
    """The task that the arguments name, or that their file makes.

    Args:
        arguments: of `add_task_arguments`, or of `add_prompts_arguments` where a file must be given.
        pair: name of the pair that decodes a file; empty for one of the user's own.
    Raises:
        UsageError: arguments contradict each other. ValueError: the file is not as it should be.
    """
    limits = {name: getattr(arguments, name, None) for name in LIMITS}
    given = {name: value for name, value in limits.items() if value is not None}
    name = getattr(arguments, "task", None)
    if arguments.prompts is not None:
        if name is not None:
            raise UsageError(f"--task = {name} with --prompts: give one of them")
        return replace(file_task(arguments, pair), **given)
    if arguments.grader is not None:
        raise UsageError(f"--grader = {arguments.grader} is for the answers of a file: give --prompts too")
    task = TASKS[name or DEFAULT_TASK]
    changed: Task = replace(task, **given) if given else task  # type: ignore[type-var]  # ours are dataclasses
    return changed


def file_task(arguments: argparse.Namespace, pair: str) -> PromptsTask:
    """The task of `--prompts`, with the limits of a task on the same pair, else those of the paper.

    Raises:
        UsageError: a grader without answers. ValueError: the file is not as it should be.
    """
    path, grader = arguments.prompts, arguments.grader or DEFAULT_GRADER
    items = read_prompts(path, grader=grader, argument="--prompts")
    if arguments.grader is not None and items[0].answer is None:
        raise UsageError(f"--grader = {grader}: --prompts = {path} has no answers; leave it out")
    name = "standard input" if path == STANDARD_INPUT else os.path.basename(path)
    known = next((task for task in TASKS.values() if task.pair == pair), None)
    limits = {} if known is None else {limit: getattr(known, limit) for limit in LIMITS}
    return PromptsTask(name, items, grader, pair, **limits)


def task_and_models(arguments: argparse.Namespace) -> tuple[Task, Models]:
    """Prompts and models that the arguments name, of which nothing is loaded: by default those of the task.

    Raises:
        UsageError: arguments contradict each other. ValueError: the file is not as it should be.
    """
    name = getattr(arguments, "task", None) or DEFAULT_TASK
    default = EMBEDDED if arguments.prompts is not None else TASKS[name].pair
    models = models_of(arguments, default)
    return task_of(arguments, pair_name(arguments, default)), models


def described(task: Task) -> str:
    """How a title names the task; of a file with answers also how they are judged."""
    if isinstance(task, PromptsTask) and task.items[0].answer is not None:
        return f"{task.name}, graded by {task.grader}"
    return task.name


def count_of(arguments: argparse.Namespace, task: Task, default: int) -> int:
    """Problems that are asked for: those of `--n`, else all of a file, or `default` of a task."""
    if getattr(arguments, "n", None) is not None:
        return int(arguments.n)
    return len(task.items) if isinstance(task, PromptsTask) else default
