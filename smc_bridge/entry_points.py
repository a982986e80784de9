"""What installed packages add to this one: entry points of a group, and why one of them cannot be used.

One that is broken does not take the others down: whoever loads a group keeps `reason_of` its error and goes on.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

#: This distribution.
NAME = "smc-bridge"


def declared(group: str) -> list[metadata.EntryPoint]:
    """Entry points of installed packages; in a source tree that is not installed also its pyproject.toml's."""
    found = list(metadata.entry_points(group=group))
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not any(True for _ in metadata.distributions(name=NAME)) and project.is_file():
        own = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("entry-points", {}).get(group, {})
        found += [metadata.EntryPoint(name, value, group) for name, value in own.items()]
    return found


def reason_of(error: BaseException) -> str:
    """An error of another package's code, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
