"""The commands that installed packages add, by the entry-point group `smc_bridge.commands`; this package imports none.

One that is broken does not take the others down: it is told on standard error, listed as unavailable, and refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from smc_bridge.commands.base import PROGRAM, Command

GROUP = "smc_bridge.commands"


@dataclass
class Offer:
    """Commands that work, by name, and why others do not."""

    working: dict[str, Command] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def declared() -> list[metadata.EntryPoint]:
    """Entry points of installed packages; in a source tree that is not installed also those of its pyproject.toml."""
    found = list(metadata.entry_points(group=GROUP))
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not any(True for _ in metadata.distributions(name=PROGRAM)) and project.is_file():
        own = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("entry-points", {}).get(GROUP, {})
        found += [metadata.EntryPoint(name, value, GROUP) for name, value in own.items()]
    return found


def discover(own: Command, check: Callable[[Command], None]) -> Offer:
    """`own` and the commands of installed packages, in the order of their names.

    Args:
        own: whose name no other command may have.
        check: raises whatever it likes if a command cannot be offered.
    """
    offer = Offer({own.name: own})
    for entry in sorted(declared(), key=lambda entry: entry.name):
        try:
            command = entry.load()
            if not isinstance(command, Command):
                raise TypeError(f"{entry.value} is no Command")
            if command.name in offer.working:
                raise ValueError(f"{entry.value} has the name of another command, {command.name}")
            check(command)
        except (Exception, SystemExit) as error:  # anything: another package's code runs in here
            offer.broken[entry.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            offer.working[command.name] = command
    return offer


def given(own: Command, commands: Iterable[Command]) -> Offer:
    """`own` and commands that are at hand."""
    return Offer({command.name: command for command in (own, *commands)})
