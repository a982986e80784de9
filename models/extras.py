"""Optional packages: what needs one says so in one line, with an installation that exists.

The package is on no index: from a clone it is installed again with the extra; where it is installed from a wheel, pip
finds it there and adds what the extra needs.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path

#: Whether the package runs from a clone, beside what it is built from.
IN_CLONE = (Path(__file__).parents[1] / "pyproject.toml").is_file()


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message is one line and names the extra."""


def install(extra: str) -> str:
    """How an extra is installed."""
    return f"pip install -e '.[{extra}]' in a clone" if IN_CLONE else f'pip install "smc-bridge[{extra}]"'


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    return util.find_spec(package) is not None


def need(module: str, what: str, *, extra: str) -> None:
    """Import a module of an extra, before anything is computed that needs it.

    Args:
        module: its name; the package is what stands before its first dot.
        what: needs it, in the plural.
        extra: that installs it.
    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise MissingExtraError(f"{what} need {package}: {install(extra)}") from error
