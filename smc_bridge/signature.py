"""The options of a function, read from its signature and docstring: name, type, default, values, help.

What can be written on a command line is an option: whole numbers, numbers, true or false, names, several numbers with
slashes between them, and parts of a sampler that have a name (`smc_bridge.names`). Other arguments are objects.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from smc_bridge.names import NAMED, meant

#: Arguments that are no options: what is decoded with, and what the decoder is called, which is its spelling.
NOT_OPTIONS = ("pair", "name")
#: What a value of each kind is called.
_KINDS: dict[Any, str] = {int: "int", float: "float", bool: "bool", list: "floats", str: "name", None: "none"}
_BOOLS = {"true": True, "yes": True, "false": False, "no": False}
_WANTED = {
    int: "a whole number", float: "a number", bool: "true or false", list: "numbers with / between them",
    str: "a name", None: "none",
}


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        name: of the argument.
        default: of the function.
        help: from the docstring's `Args`.
        kinds: types of its values, of `int`, `float`, `bool`, `list` (of numbers), `str` (a name) and None.
        choices: the names there are, if they are known.
    """

    name: str
    default: Any
    help: str
    kinds: tuple[Any, ...]
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The kinds of its values in words: `int`, `float or floats`, or the names there are."""
        names = [" or ".join(self.choices)] if self.choices else []
        return " or ".join([_KINDS[kind] for kind in self.kinds if not (kind is str and self.choices)] + names)

    @property
    def default_text(self) -> str:
        """The default as it is written in a spelling."""
        return written(self.default)

    def parse(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ValueError: it is none; the message names the values there are, or the nearest.
        """
        for kind in self.kinds:
            with suppress(ValueError, KeyError):
                return self._read(kind, text)
        words = [_WANTED[kind] for kind in self.kinds if not (kind is str and self.choices)] + list(self.choices)
        named = bool(self.choices) and all(kind in (None, str) for kind in self.kinds)
        wanted = f"choose from {', '.join(self.choices)}" if named else f"give {' or '.join(words)}"
        raise ValueError(f"{self.name} = {text!r}: {meant(text, self.choices)}{wanted}")

    def _read(self, kind: Any, text: str) -> Any:
        if kind is None:
            return {"none": None}[text.lower()]
        if kind is bool:
            return _BOOLS[text.lower()]
        if kind is list:
            if "/" not in text:
                raise ValueError
            return [float(part) for part in text.split("/")]
        if kind is str and self.choices and text not in self.choices:
            raise ValueError
        return kind(text)


def written(value: Any) -> str:
    """A value as it is written in a spelling: `none`, `true`, `0.2/0.7`."""
    if isinstance(value, list | tuple):
        return "/".join(f"{x:g}" for x in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def read_options(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The options of a function, in the order of its arguments.

    Raises:
        ValueError: an argument that is needed has no default.
    """
    helps = argument_help(function.__doc__ or "")
    found = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name in NOT_OPTIONS or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kinds, choices = _values(function, parameter)
        if not kinds:
            continue
        if parameter.default is parameter.empty:
            raise ValueError(f"{function.__name__} has no default for {parameter.name}: give every option one")
        text = helps.get(parameter.name, "")
        found.append(Option(parameter.name, parameter.default, text, kinds, choices))
    return tuple(found)


def _values(function: Callable[..., Any], parameter: inspect.Parameter) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Kinds of the values of an argument that can be written, and its names."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}), {})
        except (NameError, AttributeError, TypeError):  # a name that only type checkers import
            annotation = type(parameter.default)
    kinds: list[Any] = []
    choices: list[str] = []
    for kind in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        if kind in (int, float, bool, str):
            kinds.append(kind)
        elif typing.get_origin(kind) is Literal:
            choices += [value for value in typing.get_args(kind) if isinstance(value, str)]
        elif typing.get_origin(kind) in (Sequence, list, tuple) and float in typing.get_args(kind):
            kinds.append(list)
    if parameter.name in NAMED and not {int, float}.intersection(kinds):
        return (str,), tuple(NAMED[parameter.name])
    if choices:
        kinds.append(str)
    if kinds and type(None) in typing.get_args(annotation):
        kinds.insert(0, None)
    # The narrowest reading comes first: `1` is whole, `true` no name.
    order = [None, bool, int, float, list, str]
    return tuple(sorted(kinds, key=order.index)), tuple(choices)


def _is_union(annotation: Any) -> bool:
    return isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union


def argument_help(docstring: str) -> dict[str, str]:
    """What the `Args` section of a docstring (Google's style) says of each argument.

    `particles, lanes: N, K.` says as many things as it has names, and each is the name's own; else all share the text.
    """
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n?|\s*\n)*)", inspect.cleandoc(docstring), re.MULTILINE)
    found: dict[str, str] = {}
    if section is None:
        return found
    for names, text in re.findall(
        r"^ {4}([\w, ]+?): ((?:.*)(?:\n {5,}.*)*)", section[2], re.MULTILINE
    ):
        each = re.split(r",\s*", names)
        whole = " ".join(text.split())
        parts = re.split(r",\s+", whole.rstrip("."))
        own = parts if len(parts) == len(each) > 1 else [whole.rstrip(".")] * len(each)
        found.update(zip(each, own, strict=True))
    return found
