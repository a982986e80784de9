"""The commands that installed packages add, by the entry-point group `smc_bridge.commands`; this package imports none.

One that is broken does not take the others down: it is told on standard error, listed as unavailable, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from smc_bridge.commands.base import Command
from smc_bridge.entry_points import declared, reason_of

GROUP = "smc_bridge.commands"


@dataclass
class Offer:
    """The commands that the command line offers, and those that it cannot.

    Attributes:
        working: the commands that can be called, by name.
        broken: why others cannot be called, one line each, by name.
    """

    working: dict[str, Command] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def discover(own: Sequence[Command], check: Callable[[Command], None]) -> Offer:
    """`own` and the commands of installed packages, in the order of their names.

    Args:
        own: whose names no other command may have.
        check: raises whatever it likes if a command cannot be offered.
    """
    offer = given(own, ())
    for entry in sorted(declared(GROUP), key=lambda entry: entry.name):
        try:
            command = entry.load()
            if not isinstance(command, Command):
                raise TypeError(f"{entry.value} is no Command")
            if command.name in offer.working:
                raise ValueError(f"{entry.value} has the name of another command, {command.name}")
            check(command)
        except (Exception, SystemExit) as error:  # anything: another package's code runs in here
            offer.broken[entry.name] = reason_of(error)
        else:
            offer.working[command.name] = command
    return offer


def given(own: Sequence[Command], commands: Iterable[Command]) -> Offer:
    """The commands that a caller hands over beside `own`, by name; nothing is looked up."""
    return Offer({command.name: command for command in (*own, *commands)})
