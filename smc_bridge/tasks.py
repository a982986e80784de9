"""Tasks: prompts with known answers, on which decoders are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from smc_bridge.models.arithmetic import problems as arithmetic

if TYPE_CHECKING:
    from smc_bridge.models.pairs import Pair
    from smc_bridge.models.protocols import LanguageModel


class Item(NamedTuple):
    """A prompt with its known answer.

    Attributes:
        prompt: the text.
        answer: as `Task.grade` knows it; None if there is none.
        id: its name in a file, or None.
    """

    prompt: str
    answer: Any = None
    id: str | None = None


class Limits(Protocol):
    """The sizes that suit the decoding of a task, tokens."""

    @property
    def max_new_tokens(self) -> int:
        """Length limit of a continuation, tokens."""
        ...

    @property
    def lookahead(self) -> int:
        """M, masked positions per forward that the pair's diffusion model drafts well, tokens."""
        ...

    @property
    def window(self) -> int:
        """V, tokens verified at once."""
        ...


class Task(Limits, Protocol):
    """A list of items, how to grade a decoded text, and decoding limits that suit it."""

    @property
    def name(self) -> str:
        """Name of the task, as the user types it."""
        ...

    @property
    def pair(self) -> str:
        """Name of the pair of models (`smc_bridge.models.pairs.load_pair`)."""
        ...

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        """Items `offset` to `offset + n`, the same at every call; ValueError if there are not so many."""
        ...

    def grade(self, text: str, answer: Any) -> bool:
        """Whether a decoded text gives the answer."""
        ...


@dataclass(frozen=True)
class Arithmetic:
    """The 1,000 held-out problems of the embedded pair; right is who writes `#### N` with the right N first.

    V and M follow from how far drafts are accepted: few blocks reach V = 16, and those go on in the next step with the
    marginals that they have not used (elastic window). A greater V spares few forwards of the AR model, more masks
    bring hardly a token per forward of the diffusion model, and both cost (docs/benchmarks/paper.md).

    Attributes:
        name: of the task.
        pair: name of the pair of models.
        max_new_tokens: length limit, tokens.
        lookahead, window: M and V, tokens.
    """

    name: str = "arithmetic"
    pair: str = "arithmetic"
    max_new_tokens: int = 128
    lookahead: int = 32
    window: int = 16

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        """Held-out problems `offset` to `offset + n`; ValueError if there are not so many."""
        every = arithmetic.held_out()
        check_range(n, offset, len(every), f"the task {self.name!r}")
        return [Item(problem.prompt, problem.answer) for problem in every[offset : offset + n]]

    def grade(self, text: str, answer: Any) -> bool:
        """Whether the first number after `####` in a decoded text is the answer."""
        return bool(arithmetic.extract_answer(text) == answer)


def check_range(n: int, offset: int, count: int, whose: str) -> None:
    """Raise ValueError unless the items `offset` to `offset + n` are among the `count` that `whose` are."""
    if n < 1 or offset < 0 or offset + n > count:
        start, remedy = (f" from offset = {offset}", "a part of them") if offset else ("", f"1 to {count}")
        raise ValueError(f"n = {n}{start}: {whose} has {count} prompts; give {remedy}")


#: Tasks by name.
TASKS: dict[str, Task] = {"arithmetic": Arithmetic()}

def encode_prompts(pair: Pair, task: Task, items: Sequence[Item]) -> list[tuple[int, ...]]:
    """Ids of the items' prompts.

    Raises:
        ValueError: a prompt has no tokens, or passes with its continuation what the pair was built for.
    """
    from smc_bridge.requests import check_prompts  # here, for it imports torch

    def called(place: int) -> str:
        return _called(task, items, place)

    every = prompts_of(pair, task, items)
    models: dict[str, LanguageModel] = {"diffusion": pair.dlm, "autoregressive": pair.ar}
    return [*map(tuple, check_prompts(every, models, max_new_tokens=task.max_new_tokens, called=called))]


def prompts_of(pair: Pair, task: Task, items: Sequence[Item]) -> list[list[int]]:
    """Ids of the items' prompts, whatever may follow them.

    Raises:
        ValueError: a prompt is none of the pair's.
    """
    every = []
    for place, item in enumerate(items):
        try:
            every.append(pair.encode(item.prompt).tolist())
        except ValueError as error:
            is_foreign = task.name in TASKS and pair.name != task.pair
            remedy = f"; the task is one of {task.pair!r}, give prompts of your own by --prompts" if is_foreign else ""
            raise ValueError(f"{_called(task, items, place)}: {error}{remedy}") from error
    return every


def _called(task: Task, items: Sequence[Item], place: int) -> str:
    name = items[place].id
    return f"{task.name}: prompt {place if name is None else repr(name)}"


#: M for a pair that no task knows, tokens: the paper's.
DEFAULT_LOOKAHEAD = 256


def lookahead_of(pair: str) -> int:
    """M that suits a pair: that of a task on it, else the paper's."""
    return next((task.lookahead for task in TASKS.values() if task.pair == pair), DEFAULT_LOOKAHEAD)
