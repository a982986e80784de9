"""Names of a package that are imported when they are first asked for (PEP 562), so that `--help` needs no torch.

A package writes its public names once, as imports that only type checkers run, and hands itself to `on_demand`:

    if TYPE_CHECKING:
        from smc_bridge.engine.presets import smc

    __all__ = ["smc"]
    if not TYPE_CHECKING:
        __getattr__, __dir__ = on_demand(__name__)

What these imports say is read from the package's source: a second list of names could differ from the first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def on_demand(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; a name is imported once and stays.

    No public name may be that of a module of the package: the import system binds a module in its parent as soon as
    anything of it is imported.

    Raises:
        ImportError: the package's source is not at hand.
    """
    module = sys.modules[package]
    homes = _homes(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *homes})


def _homes(package: str) -> dict[str, str]:
    """Public name -> module that defines it, from the block of imports under `if TYPE_CHECKING`."""
    spec = find_spec(package)
    source = None if spec is None else spec.loader.get_source(package)  # type: ignore[union-attr]
    if source is None:
        raise ImportError(f"the source of {package} is not at hand: install it with its .py files")
    return {
        alias.name: str(line.module)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for line in block.body if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
