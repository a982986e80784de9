"""What is known of a method: its function, options, names and reference; `smc_bridge.registry` holds them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from smc_bridge.names import meant
from smc_bridge.patterns import places
from smc_bridge.signature import Option, read_options

if TYPE_CHECKING:
    from smc_bridge.decode import Decoder

#: What its results are: draws of the law itself, properly weighted samples of it, or neither.
Role = Literal["exact", "weighted", "baseline"]


class UnsuitedError(ValueError):
    """A method's options are right, but the pair has no models of the kind that it needs."""


@dataclass(frozen=True)
class Method:
    """A decoder by name.

    Attributes:
        name: what the user types.
        make: from a pair of models and options to a decoder.
        role: see `Role`.
        targets: the law that its results are of, or that they are compared with.
        proper: whether `E[Z_hat sum W f] = E_p[f]` holds with the options that are its own.
        reference: where it was published.
        why: why it is not proper.
        aliases: short names: a pattern with options in angle brackets -> options that it fixes.
        examples: spellings that a comparison shows unless it is told otherwise.
        rest: function whose options it has too, those that it passes on.
        without: options of `rest` that it does not have, because it is defined by them.
        published: headline figures of its authors, with their models and task.
    """

    name: str
    make: Callable[..., Decoder[Any]]
    role: Role
    targets: str
    proper: bool
    reference: str
    why: str = ""
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    rest: Callable[..., Any] | None = None
    without: tuple[str, ...] = ()
    published: str = ""

    @cached_property
    def own(self) -> tuple[Option, ...]:
        """Options of the function's own signature."""
        told = {} if self.rest is None else {option.name: option.help for option in read_options(self.rest)}
        own = read_options(self.make)
        return tuple(replace(option, help=option.help or told.get(option.name, "")) for option in own)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """All options that can be written behind its name: its own, and those that it passes on to `rest`."""
        mine = {option.name for option in self.own}.union(self.without)
        passed = () if self.rest is None else read_options(self.rest)
        return (*self.own, *(option for option in passed if option.name not in mine))

    @property
    def summary(self) -> str:
        """What it is: the first line of the function's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]

    def option(self, name: str) -> Option:
        """The option of that name.

        Raises:
            ValueError: it has none; the message names the nearest, and all.
        """
        names = [option.name for option in self.options]
        if name not in names:
            has = f"it has {', '.join(names) or 'none'}"
            raise ValueError(f"{name or repr(name)} is no option of {self.name}: {meant(name, names)}{has}")
        return self.options[names.index(name)]


def check_call(found: Method) -> None:
    """Raise ValueError unless a method can be made from a pair alone, and with the options that its aliases say."""
    try:
        inspect.signature(found.make).bind(None)
    except TypeError as error:
        raise ValueError(
            f"method {found.name} cannot be made of a pair alone ({error}): give every other argument a default"
        ) from error
    for pattern, fixed in found.aliases.items():
        numbers = places(pattern)
        if twice := fixed.keys() & numbers:
            raise ValueError(f"alias = {pattern!r} of method {found.name} says {min(twice)} twice: say it once")
        for name in (*numbers, *fixed):
            try:
                option = found.option(name)
                if name in numbers:
                    option.parse("1")
            except ValueError as error:
                raise ValueError(f"alias = {pattern!r} of method {found.name}: {error}") from error


def ours(make: Callable[..., Any]) -> bool:
    """Whether a method is of this package."""
    return make.__module__.startswith("smc_bridge.")
