"""Seeded grade-school word problems with a written-out chain of thought, in two dialects.

A problem is a short story about how many objects someone holds, two to four arithmetic steps long. The response writes
one sentence a step, each with its equation `a + b = c`, and ends in a line `#### N`, the convention of GSM8K (Cobbe et
al. 2021, arXiv 2110.14168). How the sentences are worded is that of a dialect (`wording`); prompts and answers are the
same in both.

The solutions of the drafted dialect are also less careful (`slips`): where the second number ends in 7 to 9, a carry
or borrow is forgotten, and the rest is worked out from the wrong result. So the diffusion model that learns from them
is fluent, sure of itself and at times wrong, as large ones are beside an autoregressive model.

Limits, which the tests check: every number written is between 2 and 99, amounts added or subtracted are at most 40,
factors and divisors are at most 9 or (objects in a bag) 20, divisions are exact.
"""

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from smc_bridge.models.arithmetic.slips import LARGEST, SMALLEST, result, retold, slipped
from smc_bridge.models.arithmetic.wording import PLAIN, SIGNS, Dialect, Step, word

NAMES = (
    "Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe", "Max", "Ivy", "Dan", "Amy",
    "Jack", "Lucy", "Omar", "Nina", "Paul", "Rosa", "Carl", "Sara", "Hugo", "Lena", "Alan", "Maya",
)  # fmt: skip
OBJECTS = (
    "apples", "pears", "coins", "books", "cards", "shells", "stamps", "pens",
    "marbles", "stickers", "cookies", "buttons", "beads", "plums", "stones", "candies",
)  # fmt: skip

STEP_COUNTS = (2, 3, 4)
STEP_COUNT_WEIGHTS = (0.35, 0.40, 0.25)
LARGEST_AMOUNT = 40
LARGEST_FACTOR = 9
LARGEST_BAG = 20

TRAIN_SEED, VALIDATION_SEED, HELD_OUT_SEED = 11, 12, 13
TRAIN_COUNT, VALIDATION_COUNT, HELD_OUT_COUNT = 110_000, 1_000, 1_000

#: Sentences of the prompt. `n` owner, `f` the next owner, `o` objects, `a` and `b` the operands.
STORY: dict[str, tuple[str, ...]] = {
    "start": ("{n} has {a} {o}.",),
    "bags": ("{n} has {a} bags of {b} {o}.",),
    "more bags": ("{n} buys {a} bags of {b} {o}.",),
    "add": ("{n} buys {b} more.", "{n} finds {b} more.", "A friend gives {n} {b} more."),
    "subtract": ("{n} gives away {b}.", "{n} loses {b}.", "{n} sells {b}."),
    "times": ("{f} has {b} times as many {o} as {n}.",),
    "divide": (
        "{n} splits them into {b} equal piles and keeps one.",
        "{n} shares them in {b} equal parts and keeps one.",
    ),
    "question": ("How many {o} does {n} have now?", "How many {o} does {n} have at the end?"),
}

_ANSWER = re.compile(r"####\s*(\d+)")


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
        prompt: what is asked.
        response: a solution, written out, that ends with `#### answer`, or a wrong one where the dialect slips.
        answer: the right integer.
    """

    prompt: str
    response: str
    answer: int


class Splits(NamedTuple):
    """Problems of which no prompt text occurs in two splits.

    Attributes:
        train: to train on.
        validation: to choose a recipe by.
        held_out: to report figures on.
    """

    train: list[Problem]
    validation: list[Problem]
    held_out: list[Problem]


@dataclass
class _Story:
    """A problem under construction: the sentences and steps so far, and how many objects the current owner holds."""

    rng: random.Random
    owner: str
    objects: str
    value: int = 0
    prompt: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def tell(self, kind: str, a: int = 0, b: int = 0, other: str = "") -> None:
        template = self.rng.choice(STORY[kind])
        self.prompt.append(template.format(n=self.owner, f=other, o=self.objects, a=a, b=b))

    def reason(self, kind: str, a: int, b: int) -> int:
        self.steps.append(Step(kind, self.owner, a, b, result(kind, a, b)))
        return self.steps[-1].c


def generate(count: int, seed: int, dialect: Dialect = PLAIN) -> list[Problem]:
    """Return `count` problems drawn from the stream of `seed`, the same on every platform.

    Args:
        count: how many.
        seed: of the stream; prompts and answers depend on nothing else.
        dialect: that the responses are written in; what they state as the answer is wrong where it slips.
    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count={count}: must be at least 0; pass the number of problems to generate")
    stream = _stream(seed, dialect)
    return [next(stream) for _ in range(count)]


@cache
def _held_out() -> tuple[Problem, ...]:
    return tuple(_distinct(HELD_OUT_COUNT, HELD_OUT_SEED, ()))


def held_out() -> list[Problem]:
    """Return the 1,000 held-out problems (distinct prompts); well under a second, no training problem is made."""
    return list(_held_out())


@cache
def _validation() -> tuple[Problem, ...]:
    return tuple(_distinct(VALIDATION_COUNT, VALIDATION_SEED, {p.prompt for p in _held_out()}))


def validation() -> list[Problem]:
    """Return the 1,000 validation problems (distinct prompts, none of them held out)."""
    return list(_validation())


def splits(train_count: int = TRAIN_COUNT, dialect: Dialect = PLAIN) -> Splits:
    """Return the three splits; training prompts may repeat each other but never a validation or held-out prompt.

    Args:
        train_count: training problems to make (the first ones of the training stream).
        dialect: of the training responses; the others are in the plain one.
    """
    reserved = {p.prompt for p in _held_out()} | {p.prompt for p in _validation()}
    train: list[Problem] = []
    for problem in _stream(TRAIN_SEED, dialect):
        if len(train) >= train_count:
            break
        if problem.prompt not in reserved:
            train.append(problem)
    return Splits(train, validation(), held_out())


def extract_answer(text: str) -> int | None:
    """Return the integer after the first `####` of a response, or None if there is none."""
    match = _ANSWER.search(text)
    return int(match.group(1)) if match else None


def drill(rng: random.Random, dialect: Dialect = PLAIN) -> str:
    """Return one bare equation as it stands inside a response (leading space, full stop), within the same limits."""
    kind, a, b = _exercise(rng)
    c = slipped(kind, a, b) if dialect.forgets else result(kind, a, b)
    return f" {a} {SIGNS[kind]} {b} = {c if SMALLEST <= c <= LARGEST else result(kind, a, b)}."


def _exercise(rng: random.Random) -> tuple[str, int, int]:
    """Return an operation and two operands of it."""
    kind = rng.choice("++--**/")
    if kind == "+":
        b = rng.randint(SMALLEST, LARGEST_AMOUNT)
        a = rng.randint(SMALLEST, LARGEST - b)
        return "add", a, b
    if kind == "-":
        b = rng.randint(SMALLEST, LARGEST_AMOUNT)
        a = rng.randint(b + SMALLEST, LARGEST)
        return "subtract", a, b
    a, b = _factors(rng, LARGEST, largest_second=LARGEST // SMALLEST)
    if kind == "/":
        return "divide", a * b, a
    if b > LARGEST_FACTOR and (b > LARGEST_BAG or rng.random() < 0.5):
        a, b = b, a  # 'times' writes the larger number first, 'bags' the number of bags
    return "times", a, b


def _stream(seed: int, dialect: Dialect = PLAIN) -> Iterator[Problem]:
    rng = random.Random(seed)
    words = random.Random(f"{seed} {dialect.name}")  # apart, so that the stories are the same in every dialect
    while True:
        story = _story(rng)
        steps = retold(story.steps) if dialect.forgets else story.steps
        lines = " ".join(word(steps, story.objects, dialect, words))
        stated = story.value if steps is story.steps else steps[-1].c
        yield Problem(" ".join(story.prompt), f"{lines}\n#### {stated}", story.value)


def _distinct(count: int, seed: int, reserved: Collection[str]) -> list[Problem]:
    found: dict[str, Problem] = {}
    for problem in _stream(seed):
        if len(found) >= count:
            break
        if problem.prompt not in reserved:
            found.setdefault(problem.prompt, problem)
    return list(found.values())


def _factors(rng: random.Random, largest: int, largest_second: int = LARGEST_BAG) -> tuple[int, int]:
    """Return two factors, the first at most `LARGEST_FACTOR`, whose product is at most `largest`."""
    a = rng.randint(SMALLEST, min(LARGEST_FACTOR, largest // SMALLEST))
    return a, rng.randint(SMALLEST, min(largest_second, largest // a))


def _story(rng: random.Random) -> _Story:
    owner, friend = rng.sample(NAMES, 2)
    story = _Story(rng, owner, rng.choice(OBJECTS))
    steps = rng.choices(STEP_COUNTS, STEP_COUNT_WEIGHTS)[0]
    if rng.random() < 0.35:
        a, b = _factors(rng, LARGEST)
        story.tell("bags", a, b)
        story.value = story.reason("bags", a, b)
        steps -= 1
    else:
        story.value = rng.randint(3, 60)
        story.tell("start", story.value)
    while steps > 0:
        kind = _next_kind(rng, story.value, steps)
        if kind == "times":
            owner, friend = friend, owner
        steps -= _take_step(story, kind, owner)
    story.tell("question")
    return story


def _next_kind(rng: random.Random, value: int, steps: int) -> str:
    """Draw an operation that stays within the limits; `steps` are left, of which 'more bags' takes two."""
    weights = {
        "add": 0.30 * (value <= LARGEST - SMALLEST),
        "subtract": 0.30 * (value >= 2 * SMALLEST),
        "times": 0.15 * (value * SMALLEST <= LARGEST),
        "divide": 0.15 * bool(_divisors(value)),
        "more bags": 0.15 * (steps >= 2 and value <= LARGEST - SMALLEST**2),
    }
    return rng.choices(list(weights), list(weights.values()))[0]


def _divisors(value: int) -> list[int]:
    return [k for k in range(SMALLEST, LARGEST_FACTOR + 1) if value % k == 0 and value // k >= SMALLEST]


def _take_step(story: _Story, kind: str, owner: str) -> int:
    """Tell and solve one operation, and return how many steps it took; `owner` holds the result."""
    rng, a = story.rng, story.value
    if kind == "more bags":
        bags, size = _factors(rng, min(LARGEST_AMOUNT, LARGEST - a))
        story.tell(kind, bags, size)
        story.value = story.reason("add", a, story.reason("bags", bags, size))
        return 2
    if kind == "add":
        b = rng.randint(SMALLEST, min(LARGEST_AMOUNT, LARGEST - a))
    elif kind == "subtract":
        b = rng.randint(SMALLEST, min(LARGEST_AMOUNT, a - SMALLEST))
    elif kind == "times":
        b = rng.randint(SMALLEST, min(LARGEST_FACTOR, LARGEST // a))
    else:
        b = rng.choice(_divisors(a))
    story.tell(kind, a, b, owner)
    story.owner = owner
    story.value = story.reason(kind, a, b)
    return 1
