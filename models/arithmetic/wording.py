"""How a solution is worded: sentences with slots, and two *dialects* that fill the slots differently.

A sentence is one of three frames for its operation, which say the same in another order of clauses, and each frame has
slots: how the sentence begins, the verb, what joins its halves, how it ends. All words of a solution agree in tense, so
that independent marginals (what a masked diffusion model drafts from) mix what belongs together.

The autoregressive model of the pair learns the *plain* dialect: every slot is drawn from the soft weights `SOFT`. The
diffusion model learns a dialect of its own (`DRAFTED`): every slot has a favourite, which depends on the operation and,
but for how a sentence begins and ends and for the tense, is never what the plain dialect says most often. So a draft
often differs from what the autoregressive model would most likely write in wording alone, and a bridge between the two
has something to accept that plain speculative decoding refuses. Real pairs of models differ likewise.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

#: Weights of the options of a slot in the plain dialect, by how many there are.
SOFT: dict[int, tuple[float, ...]] = {
    2: (0.65, 0.35),
    3: (0.50, 0.30, 0.20),
    4: (0.34, 0.28, 0.22, 0.16),
}

#: Options of a slot, each in the present and in the past tense; verbs depend on the operation (`VERBS`).
SLOTS: dict[str, tuple[tuple[str, str], ...]] = {
    "lead": (("So ", "So "), ("Then ", "Then "), ("Next, ", "Next, "), ("After that, ", "After that, ")),
    "link": (
        (", which makes ", ", which made "),
        (", so there are ", ", so there were "),
        (", and that is ", ", and that was "),
        (", and this comes to ", ", and this came to "),
    ),
    "opener": (
        ("there are ", "there were "),
        ("we get ", "we got "),
        ("that makes ", "that made "),
        ("it comes to ", "it came to "),
    ),
    "joint": ((", because ", ", because "), (", since ", ", since "), (", as ", ", as "), (" once ", " once ")),
    "tail": (("", ""), (" in all", " in all"), (" so far", " so far"), (" at this point", " at this point")),
}
VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "bags": (("gets", "got"), ("opens", "opened"), ("takes", "took"), ("brings home", "brought home")),
    "add": (("gets", "got"), ("picks up", "picked up"), ("gains", "gained"), ("puts aside", "put aside")),
    "subtract": (
        ("loses", "lost"), ("gives up", "gave up"), ("parts with", "parted with"), ("hands over", "handed over"),
    ),
    "times": (("has", "had"), ("holds", "held"), ("owns", "owned"), ("can count", "could count")),
    "divide": (("keeps", "kept"), ("takes", "took"), ("holds on to", "held on to"), ("is left with", "was left with")),
}  # fmt: skip

#: What an operation does, and what it is done with, as parts of a frame.
DEEDS: dict[str, str] = {
    "bags": "{n} {verb} {a} bags of {b}",
    "add": "{n} {verb} {b} more",
    "subtract": "{n} {verb} {b}",
    "times": "{n} {verb} {b} times as many",
    "divide": "{n} {verb} one of {b} parts",
}
MEANS: dict[str, str] = {
    "bags": "with {a} bags of {b} for {n}",
    "add": "with {b} more for {n}",
    "subtract": "without {b} of them",
    "times": "with {b} times as many for {n}",
    "divide": "with {b} equal parts",
}
SIGNS: dict[str, str] = {"bags": "*", "add": "+", "subtract": "-", "times": "*", "divide": "/"}
#: The frames: `{deed}` and `{means}` are those of the operation, `{sum}` is its equation.
FRAMES: tuple[str, ...] = (
    "{lead}{deed}{link}{sum} {o}{tail}.",
    "{lead}{opener}{sum} {o}{joint}{deed}.",
    "{lead}{means} {opener}{sum} {o}{tail}.",
)


@dataclass(frozen=True)
class Dialect:
    """How slots are filled.

    Attributes:
        name: "plain" or "drafted".
        skew: probability of the favourite option of a slot, the others share the rest; None: the soft weights.
        favourites: favourite option of (operation, slot), for a dialect with a skew.
        forgets: whether results are written with `slips`.
    """

    name: str
    skew: float | None = None
    favourites: dict[tuple[str, str], int] | None = None
    forgets: bool = False

    def choose(self, rng: random.Random, kind: str, slot: str, count: int) -> int:
        """Return which of the `count` options of a slot is taken in a sentence about the operation `kind`."""
        weights = self.weights(kind, slot, count)
        return rng.choices(range(count), weights)[0]

    def weights(self, kind: str, slot: str, count: int) -> tuple[float, ...]:
        """Return the probabilities of the `count` options of a slot, for the operation `kind`."""
        if self.skew is None or self.favourites is None:
            return SOFT[count]
        favourite = self.favourites[kind, slot]
        return tuple(self.skew if i == favourite else (1 - self.skew) / (count - 1) for i in range(count))


_ORDER = ("frame", "lead", "verb", "link", "opener", "joint", "tail")
#: Favourites of the drafted dialect, an option for each slot of `_ORDER`: what the plain dialect says most often for
#: lead and tail, and never that for the others.
_FAVOURITES: dict[str, tuple[int, ...]] = {
    "bags": (1, 0, 1, 2, 3, 1, 0),
    "add": (1, 0, 1, 1, 2, 2, 0),
    "subtract": (2, 0, 2, 3, 1, 3, 0),
    "times": (1, 0, 1, 1, 2, 2, 0),
    "divide": (2, 0, 3, 2, 3, 1, 0),
}
PLAIN = Dialect("plain")
DRAFTED = Dialect(
    "drafted",
    skew=0.88,
    favourites={
        **{(kind, slot): i for kind, row in _FAVOURITES.items() for slot, i in zip(_ORDER, row, strict=True)},
        ("all", "tense"): 0,
    },
    forgets=True,
)


class Step(NamedTuple):
    """One equation of a solution.

    Attributes:
        kind: the operation, a key of `SIGNS`.
        owner: who holds the result.
        a, b, c: operands and result.
    """

    kind: str
    owner: str
    a: int
    b: int
    c: int


def word(steps: list[Step], objects: str, dialect: Dialect, rng: random.Random) -> list[str]:
    """Return a solution's sentences, one a step, drawn from a dialect."""
    tense = dialect.choose(rng, "all", "tense", 2)
    return [_sentence(step, objects, tense, dialect, rng) for step in steps]


def _sentence(step: Step, objects: str, tense: int, dialect: Dialect, rng: random.Random) -> str:
    kind = step.kind
    frame = FRAMES[dialect.choose(rng, kind, "frame", len(FRAMES))]
    text = frame.replace("{deed}", DEEDS[kind]).replace("{means}", MEANS[kind])
    filled = {}
    for slot, options in (*SLOTS.items(), ("verb", VERBS[kind])):
        if f"{{{slot}}}" in text:
            filled[slot] = options[dialect.choose(rng, kind, slot, len(options))][tense]
    equation = f"{step.a} {SIGNS[kind]} {step.b} = {step.c}"
    return text.format(n=step.owner, o=objects, a=step.a, b=step.b, sum=equation, **filled)
