"""Arguments as users give them: whole numbers and numbers of any kind (Python's, numpy's, tensors of one), checked.

Every violation is one line that names argument, value and remedy.
"""

from __future__ import annotations

import operator
from typing import Any


def said(value: Any) -> str:
    """A value for a message, on one line."""
    return " ".join(repr(value).split())


def ids_of(value: Any) -> list[int]:
    """Ids of an entry of a configuration, which may be a number, several of them, or missing."""
    return [i for i in (value if isinstance(value, list | tuple) else [value]) if isinstance(i, int)]


def whole_number(name: str, value: Any, *, least: int = 1, remedy: str | None = None) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number, or less than `least`.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise ValueError(f"{name} = {said(value)}: {remedy or f'give a whole number of at least {least}'}")
    return found


def real_number(name: str, value: Any, *, remedy: str = "give a number") -> float:
    """`value` as a float, an int left as it is.

    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, bool | str) or value is None or getattr(value, "ndim", 0) > 0:
        raise ValueError(f"{name} = {said(value)}: {remedy}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} = {said(value)}: {remedy}") from error
