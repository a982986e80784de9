"""Where drafts are refused: kinds of tokens, places of a draft, and how sure the proposal was of them.

`Recording` is token-level rejection that keeps what it saw: each committed token was drafted or corrects a refused one.
A place is known by the token that was committed at it (`kinds`), by how far into the draft it stands (`POSITIONS`) and
by the greatest probability of the law that it was drafted from (`SURE`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.law import Law
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness

#: Kinds of tokens of a solution, in the order that tables show them.
KINDS = (
    "digit of a result", "digit of an operand", "digit of the answer", "word begun", "word continued",
    "sign or space", "end",
)
#: Last position of each band within a draft, and upper ends of the bands of the greatest probability.
POSITIONS, SURE = (1, 2, 4, 8, 16, 32), (0.5, 0.9, 0.99, 0.999, 1.0)


class Step(NamedTuple):
    """One draft that was looked at.

    Attributes:
        committed: tokens of the block.
        accepted: how many of them are the draft's; one more is a correction.
        sure: greatest probability of the law that each was drafted from.
    """

    committed: list[int]
    accepted: int
    sure: list[float]


class Recording(Rejection):
    """Token-level rejection that keeps its steps, of one particle of one prompt at a time."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        move = super().__call__(draft, pi, source=source, horizon=horizon)
        length = int(move.length[0])
        sure = draft.q.dense()[0, :length].amax(-1).exp()
        self.steps.append(Step(move.block[0, :length].tolist(), int(move.accepted[0]), sure.tolist()))
        return move


def kinds(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], ends: Sequence[int]) -> Iterator[str]:
    """The kind of each token of a response, one of `KINDS`."""
    before = ""
    for token in tokens:
        text = decode([token])
        if token in ends:
            yield "end"
        elif text.strip().isdigit():
            head = before.rstrip("0123456789").rstrip()
            answer, result = head.endswith("#"), head.endswith("=")
            yield "digit of the answer" if answer else "digit of a result" if result else "digit of an operand"
        elif any(letter.isalpha() for letter in text):
            yield "word continued" if text[0].isalpha() and before[-1:].isalpha() else "word begun"
        else:
            yield "sign or space"
        before += text


class Seen(NamedTuple):
    """A committed token.

    Attributes:
        kind: of `KINDS`.
        position: within the draft, from 1.
        sure: greatest probability of the law that was drafted from.
        refused: whether it corrects the draft.
    """

    kind: str
    position: int
    sure: float
    refused: bool


def seen(steps: Iterable[Step], decode: Callable[[Sequence[int]], str], ends: Sequence[int]) -> list[Seen]:
    """All committed tokens of one run, in order."""
    steps = list(steps)
    kind = kinds([token for step in steps for token in step.committed], decode, ends)
    return [
        Seen(next(kind), i + 1, step.sure[i], i >= step.accepted)
        for step in steps for i in range(len(step.committed))
    ]


def rows_of(token: Seen) -> tuple[str, ...]:
    """The rows of a table (`ROWS`) that a token counts in."""
    position = next((last for last in POSITIONS if token.position <= last), POSITIONS[-1])
    sure = next((end for end in SURE if token.sure <= end), SURE[-1])
    return ("all", token.kind, position_row(position), sure_row(sure))


def position_row(last: int) -> str:
    """The name of a band of positions."""
    first = 1 + max((each for each in POSITIONS if each < last), default=0)
    return f"place {first}" if first == last else f"place {first} to {last}"


def sure_row(end: float) -> str:
    """The name of a band of the greatest probability."""
    low = max((each for each in SURE if each < end), default=0.0)
    return f"top probability {low:g} to {end:g}"


#: Rows of a table.
ROWS = ("all", *KINDS, *map(position_row, POSITIONS), *map(sure_row, SURE))
