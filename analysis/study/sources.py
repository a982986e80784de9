"""Where the runs of a study come from: pairs of tabular models with their exact law, or the problems of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.study.config import Block, Point, Prompts, Tabular, TabularPoint
from smc_bridge.commands.models import Models
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.pairs import PAIRS, Pair, load_pair
from smc_bridge.models.tabular import SEEDS, TabularAR, TabularDLM
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed
from smc_bridge.tasks import TASKS, Item, Task, encode_prompts


class Numerals:
    """A tokenizer that writes token a as the number a, with blanks between tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text of numbers with blanks between them."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: their numbers, with blanks between them."""
        return " ".join(str(i) for i in ids)


class Numbered(Pair):
    """A pair whose text keeps the end of a sequence, so that texts and sequences are one to one."""

    def decode(self, ids: Any, prompt: Any = None) -> str:
        """Text of `ids: [S]`, the end of sequence included."""
        text: str = self.tokenizer.decode(map(int, ids))
        return text


def tabular_pair(point: TabularPoint, source: Tabular) -> Pair:
    """The pair of tabular models of a point."""
    ar = TabularAR.random(
        point.alphabet, point.length, seed=point.model_seed, concentration=source.concentration,
        eos_id=0 if source.eos else None,
    )
    # With one seed for both, noise and tables would be correlated: the model would know where the target is uncertain.
    dlm = TabularDLM(ar, noise=point.noise, seed=derived_seed(Role.NOISE, point.model_seed) % SEEDS)
    return Numbered("tabular", dlm, ar, Numerals(), lambda tokenizer, text: list(tokenizer.encode(text)))


def exact_law(pair: Pair, length: int, target: ARTarget) -> Result:
    """The law of a target on tabular models, enumerated, as a `Result` with a sequence for each possible one."""
    return oracle(target, max_new_tokens=length, detokenize=pair.decode)


class Limits(NamedTuple):
    """Sizes of a cell's runs (`smc_bridge.tasks.Limits`).

    Attributes:
        max_new_tokens: length limit, tokens.
        lookahead, window: M and V, tokens.
    """

    max_new_tokens: int
    lookahead: int
    window: int


@dataclass(frozen=True)
class Problems:
    """What a process needs of a source: the models, the prompts of every point, and what grades them.

    Attributes:
        pair: models of a task; None for tabular models, which are made where they are needed.
        task: grades and gives the limits; None for tabular models.
        items, prompts: of a task.
        identity: names and options of models that are no pair of ours (`smc_bridge.commands.models.Models`).
    """

    pair: Pair | None = None
    task: Task | None = None
    items: Sequence[Item] = ()
    prompts: Sequence[tuple[int, ...]] = ()
    identity: str = ""

    def limits(self, point: Point, lookahead: int | None, window: int | None) -> Limits:
        """Length limit, lookahead and window of the runs of a point."""
        if isinstance(point, Block):
            assert self.task is not None
            return Limits(self.task.max_new_tokens, lookahead or self.task.lookahead, window or self.task.window)
        return Limits(point.length, lookahead or point.length, window or point.length)


def find_task(source: Prompts, task: Task | None) -> Task:
    """The task of a source, by its name unless it is given.

    Raises:
        ValueError: there is no such task.
    """
    if task is None and source.name not in TASKS:
        raise ValueError(f"task = {source.name!r}: choose from {', '.join(TASKS)}")
    return task or TASKS[source.name]


def load_problems(
    source: Tabular | Prompts, *, pair: Pair | Models | None = None, task: Task | None = None
) -> Problems:
    """Models and prompts of a source.

    Args:
        pair, task: instead of those that the source names; only for a task.
    Raises:
        ValueError: an unknown task, too few problems, a prompt that is too long, or a `pair` for tabular models.
        FileNotFoundError: the pair's weights are not installed.
    """
    if isinstance(source, Tabular):
        if pair is not None or task is not None:
            raise ValueError("pair and problems are for the prompts of a task: give task, or leave them out")
        return Problems()
    known = find_task(source, task)
    items = known.problems(source.n)
    loaded = pair.load() if isinstance(pair, Models) else pair or load_pair(known.pair)
    identity = pair.identity if isinstance(pair, Models) else ""
    return Problems(loaded, known, items, encode_prompts(loaded, known, items), identity)


def load_elsewhere(source: Tabular | Prompts, pair: Pair | Models | None, task: Task | None, entry: Any) -> Problems:
    """`load_problems` in another process, where what this process registered is not known.

    Args:
        entry: of `smc_bridge.models.pairs.PAIRS` for the task's pair.
    """
    if task is not None and entry is not None:
        PAIRS.setdefault(task.pair, entry)
    return load_problems(source, pair=pair, task=task)
