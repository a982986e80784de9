"""Wrong results that the drafted dialect writes: a carry or borrow forgotten where the second number ends in 7 to 9.

A slip is a rule, not noise, so that a model that learns it is sure of it: at a low temperature noise would vanish.
"""

from smc_bridge.models.arithmetic.wording import Step

SMALLEST, LARGEST = 2, 99
#: Smallest last digit of the second number of which a carry or a borrow is forgotten.
HARD = 7


def result(kind: str, a: int, b: int) -> int:
    """Return what the right result of an operation is, a key of `wording.SIGNS`; a division is exact."""
    if kind == "add":
        return a + b
    if kind == "subtract":
        return a - b
    return a // b if kind == "divide" else a * b


def slipped(kind: str, a: int, b: int) -> int:
    """Return the result as someone writes it who forgets carries and borrows of a last digit of at least `HARD`."""
    right, units = result(kind, a, b), b % 10
    if kind == "add" and units >= HARD and a % 10 + units >= 10:
        return right - 10
    if kind == "subtract" and units >= HARD and a % 10 < units:
        return right + 10
    return right


def retold(steps: list[Step]) -> list[Step]:
    """Return the steps with slips, each working on from the result before it.

    The steps are returned as they are where a wrong result would lead out of the limits (a number below 2 or above 99,
    a division with a remainder).
    """
    told: list[Step] = []
    held: int | None = None  # what the last step that changes it left; bags are counted apart from it
    for step in steps:
        if step.kind == "bags":
            told.append(step)
            continue
        a = step.a if held is None else held
        if step.kind == "divide" and a % step.b:
            return steps
        held = slipped(step.kind, a, step.b)
        if not SMALLEST <= held <= LARGEST:
            return steps
        told.append(step._replace(a=a, c=held))
    return told
