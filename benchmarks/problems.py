"""What the benchmarks decode, and with what: problems of the embedded pair in blocks, and methods by their spelling."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks.generate  # noqa: F401  # a method of these benchmarks
from smc_bridge.commands.base import positive, whole
from smc_bridge.decode import Decoder
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.registry import spelled, spelled_list
from smc_bridge.tasks import TASKS, Task

#: Methods and wanted figures of each benchmark.
TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
#: Ends the name of a method whose diffusion model keeps a prefix cache.
CACHED = "+prefix"


def embedded(n: int) -> tuple[Pair, Task, list[list[int]]]:
    """The embedded pair without a cache in its diffusion model, its task, and the prompts of the first `n` problems."""
    task = TASKS["arithmetic"]
    pair = load_pair(task.pair, dlm_cache="none")
    return pair, task, [pair.encode(item.prompt).tolist() for item in task.problems(n)]


def in_blocks(options: argparse.Namespace) -> tuple[Pair, Task, list[list[list[int]]]]:
    """The embedded pair, its task, and the prompts of the problems that the options ask for, in blocks."""
    pair, task, prompts = embedded(options.blocks * options.block)
    return pair, task, [prompts[i : i + options.block] for i in range(0, len(prompts), options.block)]


def methods(text: str) -> tuple[str, ...]:
    """Argument type: methods as they are spelled, with commas between them."""
    try:
        return tuple(each.text for each in spelled_list(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"= {text!r}: {error}") from error


def cached(name: str, pair: Pair) -> Pair:
    """The pair as a method of this name has it: its diffusion model with a prefix cache if the name ends so."""
    dlm: Any = pair.dlm
    return replace(pair, dlm=dlm.with_cache("prefix")) if name.endswith(CACHED) else pair


def decoder(text: str, pair: Pair, task: Task, *, temperature: float, **options: Any) -> Decoder[Any]:
    """The decoder of a spelling with the lookahead and window that suit the task, at a target temperature.

    The cache that the name may end with is that of the pair (`cached`); `options` are those that have no spelling.
    """
    made: Decoder[Any] = spelled(text.removesuffix(CACHED)).make(
        pair, temperature=temperature, lookahead=task.lookahead, window=task.window, **options
    )
    return made


def add_block_arguments(parser: argparse.ArgumentParser, quick: bool, *, block: int = 32) -> None:
    """Add how many problems are decoded, in blocks that are repetitions."""
    parser.add_argument("--blocks", type=whole(1), default=1 if quick else 4, help="repetitions, of other problems")
    parser.add_argument("--block", type=whole(1), default=2 if quick else block, help="problems in a block")


def add_law_arguments(parser: argparse.ArgumentParser, tokens: int | None) -> None:
    """Add the target's temperature and the length limit, `tokens` unless it is given."""
    parser.add_argument("--temperature", type=positive, default=0.2, help="of the target (default: 0.2)")
    parser.add_argument("--tokens", type=whole(1), default=tokens, help="length limit (default: the task's)")
