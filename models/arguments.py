"""Arguments as users give them: whole numbers and numbers of any kind (Python's, numpy's, tensors of one), checked.

Every violation is one line that names argument, value and remedy.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Set
from typing import Any

#: Characters of a value that a message shows.
SHOWN = 160
#: Greatest number of an int64, in which sizes are counted.
MOST = 2**63 - 1


def said(value: Any) -> str:
    """A value for a message, on one line; a long one is cut, and an object without a repr of its own has no address."""
    text = " ".join(re.sub(r"<(?:function )?(?:[\w.<>]+\.)?(\w+)(?: object)? at 0x\w+>", r"\1", repr(value)).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def called(part: Any) -> str:
    """What a user's part is called in a message: a function by its name, an object by its class."""
    return str(getattr(part, "__qualname__", type(part).__name__)).rsplit("<locals>.", 1)[-1]


def ids_of(value: Any) -> list[int]:
    """Ids of an entry of a configuration, which may be a number, several of them, or missing."""
    return [i for i in (value if isinstance(value, list | tuple) else [value]) if isinstance(i, int)]


def is_bool(value: Any) -> bool:
    """Whether this is True or False, of Python, numpy or torch: no number here."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def is_list(value: Any) -> bool:
    """Whether this holds entries in an order: a list, tuple, array or tensor, but no text, mapping or set."""
    if isinstance(value, str | bytes | Mapping | Set):
        return False
    return hasattr(value, "__iter__") and getattr(value, "ndim", 1) > 0


def whole_number(
    name: str, value: Any, *, least: int | None = 1, most: int | None = MOST, remedy: str | None = None
) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, less than `least` or more than `most` (None: any number).
    """
    try:
        found = None if is_bool(value) or getattr(value, "ndim", 0) > 0 else operator.index(value)
    except TypeError:
        found = None
    if found is not None and most is not None and found > most:
        raise ValueError(f"{name} = {said(value)}: give a whole number of at most {most}")
    if found is None or (least is not None and found < least):
        raise ValueError(f"{name} = {said(value)}: {remedy or f'give a whole number of at least {least}'}")
    return found


def whole_numbers(name: str, value: Any, *, remedy: str) -> list[int]:
    """The entries of a list, array or tensor of whole numbers, of any sign.

    Raises:
        ValueError: it is none, or an entry is no whole number (True and 1.0 are none).
    """
    flat = value.tolist() if hasattr(value, "tolist") else value  # one transfer, not one for each entry
    try:
        if not is_list(flat):
            raise TypeError
        entries = list(flat)
        if all(type(entry) is int for entry in entries):
            return entries
        if any(is_bool(entry) or getattr(entry, "ndim", 0) > 0 for entry in entries):
            raise TypeError
        return [operator.index(entry) for entry in entries]
    except TypeError:
        raise ValueError(f"{name} = {said(value)}: {remedy}") from None


def real_number(name: str, value: Any, *, remedy: str = "give a number") -> float:
    """`value` as a float, an int left as it is.

    Raises:
        ValueError: it is no number.
    """
    if is_bool(value) or isinstance(value, str | bytes) or value is None or getattr(value, "ndim", 0) > 0:
        raise ValueError(f"{name} = {said(value)}: {remedy}")
    try:
        found = float(value)
        return value if isinstance(value, int) else found
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} = {said(value)}: {remedy}") from error


def real_between(name: str, value: Any, low: float, high: float, *, remedy: str, strictly: bool = False) -> float:
    """`value` as a number from `low` to `high`, or, `strictly`, between them.

    Raises:
        ValueError: it is no number, NaN, or out of range.
    """
    found = real_number(name, value, remedy=remedy)
    if not (low < found < high if strictly else low <= found <= high):
        raise ValueError(f"{name} = {said(value)}: {remedy}")
    return found


def true_or_false(name: str, value: Any) -> bool:
    """`value` as a bool; ValueError unless it is one, of whatever library: 'no' and NaN are not."""
    if not is_bool(value) or getattr(value, "ndim", 0) > 0:
        raise ValueError(f"{name} = {said(value)}: give True or False")
    return bool(value)


def check_callable(name: str, value: Any, wanted: str) -> None:
    """Raise ValueError unless `value` is None or can be called; `wanted` says what it should be."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} = {said(value)}: give {wanted}, or None")


def check_text(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} = {said(value)}: give a text")


def confidence(level: Any) -> float:
    """A level of confidence, or of a test, as a number; ValueError unless it lies in (0, 1)."""
    return float(real_between("level", level, 0.0, 1.0, remedy="give a number in (0, 1)", strictly=True))
