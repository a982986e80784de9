"""Speed dials of the field: an option of a method and its values, each point a spelling of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparisons import TASK
from benchmarks.problems import TABLES
from smc_bridge.analysis.comparison import Settings, default_methods
from smc_bridge.registry import spelled
from smc_bridge.signature import written
from smc_bridge.tasks import TASKS


@dataclass(frozen=True)
class Dial:
    """A method's own speed dial.

    Attributes:
        method: as it is spelled, the first point.
        option: what is turned.
        values: of the option, as they are written, and the spellings that have them.
    """

    method: str
    option: str
    values: Mapping[str, str]

    @property
    def points(self) -> tuple[str, ...]:
        """Every point once, as it is spelled; the method itself is the first."""
        return tuple(dict.fromkeys(self.values.values()))


def turned(text: str, option: str, value: Any) -> str:
    """The spelling of a method with an option at this value, whatever the text says of it."""
    said = spelled(text)
    if option not in said.options:
        return f"{text},{option}={written(value)}"
    options = {**said.options, option: value}
    return ",".join([said.method.name, *(f"{name}={written(each)}" for name, each in options.items())])


def own(text: str, option: str) -> Any:
    """The value of an option in a row of the table: what the text says, what all rows are given, or the default.

    Raises:
        ValueError: the method has no such option.
    """
    said, task = spelled(text), TASKS[TASK]
    default = said.method.option(option).default
    given = {
        "w": Settings.w, "temperature": TABLES["field"]["temperature"], "window": task.window,
        "lookahead": task.lookahead,
        "max_new_tokens": task.max_new_tokens,
    }
    return said.options.get(option, given.get(option, default))


def dials(methods: Sequence[str], told: Mapping[str, Mapping[str, Any]], *, most: int | None = None) -> list[Dial]:
    """The dials of these methods; a point that a row of the table is already is that row.

    Args:
        methods: rows of the table.
        told: option and values, the default first, by the spelling of a method.
        most: points of a dial.
    Raises:
        ValueError: a dial of what is no example of a method, of an option that it does not have, or with another value
            first than the row has.
    """
    if unknown := [text for text in told if text not in default_methods()]:
        raise ValueError(f"field.dials = {', '.join(unknown)}: is no example of a method; spell it as its file does")
    rows = {spelled(text).meaning: text for text in methods}
    found = []
    for text, dial in told.items():
        if text in methods:
            first, *others = dial["values"][:most]
            value = own(text, dial["option"])
            if value is not None and first != value:  # none leaves it to the method
                raise ValueError(
                    f"field.dials of {text}: the first {dial['option']} is {written(first)}, its own is "
                    f"{written(value)}: give its own first"
                )
            values = {written(value): turned(text, dial["option"], value) for value in others}
            known = {value: rows.get(spelled(each).meaning, each) for value, each in values.items()}
            found.append(Dial(text, dial["option"], {written(first): text, **known}))
    return found
