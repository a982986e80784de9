"""Graders: whether a decoded text gives the answer that is known.

A grader is a function `(text, answer) -> bool`. Three have names; one of your own is named by where it is,
`module:function`, and gets the answer as it stands in the file.

    exact       the text is the answer, blanks around both aside
    contains    the answer occurs in the text
    number      the last number of the text is that of the answer

Case counts. `number` compares values and rounds nothing: 1,000 is 1000.0. As in GSM8K (Cobbe et al. 2021), `#### 18`
marks an answer: where a text has such a number, the first one counts and not the last, whatever follows.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

#: `(text, answer) -> bool`.
Grader = Callable[[str, Any], bool]

#: A number: its sign, unless that could subtract it from what stands before, and its digits, in groups of three or not.
_NUMBER = re.compile(
    r"""(?:(?<![\w.)\]])(?P<sign>[-−+]))?[$€£]?
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<!\d)(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?)""",
    re.VERBOSE,
)
#: The mark of an answer, just before its number.
_MARK = re.compile(r"####\s*(?=[-−+$€£]*\.?\d)")


def exact(text: str, answer: Any) -> bool:
    """Whether the text is the answer, blanks around both aside."""
    return text.strip() == str(answer).strip()


def contains(text: str, answer: Any) -> bool:
    """Whether the answer, blanks around it aside, occurs in the text."""
    return str(answer).strip() in text


def number(text: str, answer: Any) -> bool:
    """Whether the last number of the text, or the first one behind `####`, is that of the answer."""
    found = final_number(text)
    return found is not None and found == final_number(str(answer))


def final_number(text: str) -> Decimal | None:
    """The number that a text gives as its answer, or None if it has none."""
    marked = _MARK.search(text)
    numbers = [_NUMBER.search(text, marked.end())] if marked else list(_NUMBER.finditer(text))
    found = numbers[-1] if numbers else None
    if found is None:
        return None
    sign = "-" if found["sign"] in ("-", "−") else ""
    return Decimal(sign + found["digits"].replace(",", ""))


#: Graders by name.
GRADERS: dict[str, Grader] = {"exact": exact, "number": number, "contains": contains}


def check_answer(grader: str, answer: Any) -> None:
    """Raise ValueError unless a grader of that name can judge by the answer; one of your own may take any."""
    if grader not in GRADERS:
        return
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
        raise ValueError(f"answer = {_shown(answer)}: give a text or a number, or leave it out")
    if grader == "number" and final_number(str(answer)) is None:
        raise ValueError(f"answer = {_shown(answer)}: has no number; use another grader than number")


@cache
def find_grader(name: str) -> Grader:
    """A grader by its name, or one of your own by `module:function`; modules in the working directory are found.

    Raises:
        ValueError: there is no such grader, or its module cannot be imported. The message starts with `= name`.
    """
    if name in GRADERS:
        return GRADERS[name]
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise ValueError(f"= {name!r}: choose from {', '.join(GRADERS)}, or give your own as module:function")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module does when it is imported
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"= {name!r}: cannot be imported ({told}); give a function by module:function") from error
    if not callable(found):
        raise ValueError(f"= {name!r}: is no function; give one of (text, answer)")
    return _checked(name, found)


def _checked(name: str, function: Callable[[str, Any], Any]) -> Grader:
    """A function of the user's whose failures and results are told in one line."""

    def grade(text: str, answer: Any) -> bool:
        try:
            verdict = function(text, answer)
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"grader = {name!r}: raised {told} for answer = {_shown(answer)}; mend it") from error
        if not isinstance(verdict, bool) and type(verdict).__name__ not in ("bool", "bool_"):
            raise ValueError(f"grader = {name!r}: returned {_shown(verdict)}; return True or False")
        return bool(verdict)

    return grade


def _shown(value: Any) -> str:
    """A value for a message, on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
