"""`smc-bridge methods`: the decoders there are, which law they target, and their options.

The same in Markdown is the table of the README (`--markdown`) and the page docs/methods (`--markdown --full`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smc_bridge.commands.base import Command, UsageError, console, importing, printing
from smc_bridge.registry import METHODS, Method, spelled, unavailable

if TYPE_CHECKING:
    from smc_bridge.signature import Option

COLUMNS = ("method", "role", "targets", "proper", "reference")
#: What the roles mean.
ROLES = {
    "exact": "draws of the target itself", "weighted": "properly weighted samples of the target",
    "baseline": "to compare with",
}
TITLE = "# Methods"
INTRO = """\
Every decoder has a name, which `decode`, `compare`, `study` and `certify` take with options behind it:
`NAME[,option=value...]`, as `smc,particles=4,w=0.5`. Numbers for each lane have slashes between them
(`proposal_temperature=0.2/0.7`). *Exact* methods draw from the target itself, *weighted* ones give properly weighted
samples of it, and *baselines* are there to compare with. A package adds its own: [a guide](../guides/own_method.md)."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `methods`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="explain this one, with its options")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a table, or a section, in Markdown")
    form.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--full", action="store_true", help="with --markdown: a page with a section for each method")


def run(arguments: argparse.Namespace) -> int:
    """Print the table of methods, or one method with its options; returns the exit code."""
    if arguments.full and (arguments.name is not None or not arguments.markdown):
        raise UsageError("--full is for the page of all methods: give --markdown and no NAME with it")
    with importing():
        chosen = None if arguments.name is None else spelled(arguments.name).method
        known, broken = list(METHODS.values()), unavailable()
    with printing():
        if arguments.json:
            print(json.dumps(listed(known, broken) if chosen is None else described(chosen), indent=2))
        elif arguments.markdown:
            print(section(chosen) if chosen is not None else page(known) if arguments.full else table(known))
        elif chosen is not None:
            _explain(chosen)
        else:
            _list(known, broken)
    return 0


def cells(method: Method) -> tuple[str, ...]:
    """A method's row of the table, a text for each of `COLUMNS`."""
    return (
        method.name, method.role, method.targets, "yes" if method.proper else f"no: {method.why}", method.reference
    )


def described(method: Method) -> dict[str, Any]:
    """All that is known of a method as plain data for JSON, its options included."""
    return {
        "name": method.name, "summary": method.summary, "role": method.role, "targets": method.targets,
        "proper": method.proper, "why": method.why, "reference": method.reference, "published": method.published,
        "aliases": {alias: dict(fixed) for alias, fixed in method.aliases.items()},
        "options": [
            {"name": option.name, "type": option.type, "default": option.default_text, "choices": list(option.choices),
             "help": option.help} for option in method.options
        ],
    }


def listed(methods: Iterable[Method], broken: Mapping[str, str]) -> dict[str, Any]:
    """All methods as plain data for JSON, and the entry points that cannot be used, with the reason."""
    return {"methods": [described(method) for method in methods], "unavailable": dict(broken)}


def table(methods: Iterable[Method]) -> str:
    """The table of methods in Markdown, one row each."""
    return _markdown(COLUMNS, [(f"`{name}`", *others) for name, *others in map(cells, methods)])


def page(methods: Sequence[Method]) -> str:
    """The table and a section for each method, in Markdown."""
    return "\n\n".join([TITLE, INTRO, table(methods), *map(section, methods)])


def section(method: Method) -> str:
    """What a method is and its options, in Markdown; those that it passes on are named and not told again."""
    own = method.options if method.rest is None else method.own
    others = [option.name for option in method.options if option not in own]
    parts = [f"## {method.name}", _prose(method), "\n".join(f"- {line}" for line in _facts(method))]
    if own:
        parts.append(_markdown(("option", "values", "default", "meaning"), [_row(option) for option in own]))
    if others and method.rest is not None:
        shared = next((found.name for found in METHODS.values() if found.make is method.rest), method.rest.__name__)
        parts.append(f"Also, as of `{shared}`: {', '.join(f'`{name}`' for name in others)}.")
    return "\n\n".join(parts)


def _prose(method: Method) -> str:
    """The docstring up to its sections."""
    text = inspect.cleandoc(method.make.__doc__ or "")
    return re.split(r"^(?:Args|Returns|Raises|Example):$", text, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _facts(method: Method) -> list[str]:
    proper = "properly weighted" if method.proper else f"not proper: {method.why}"
    facts = [f"{method.role}: {ROLES[method.role]}", f"targets {method.targets}; {proper}", method.reference]
    if method.published:
        facts.append(f"its authors: {method.published}")
    if method.aliases:
        facts.append("short: " + ", ".join(f"`{alias}`" for alias in method.aliases))
    return facts


def _row(option: Option) -> tuple[str, ...]:
    return f"`{option.name}`", option.type, f"`{option.default_text}`", option.help


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(methods: Sequence[Method], broken: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from smc_bridge.tables import print_table

    found = Table(caption="smc-bridge methods NAME explains one", caption_justify="left")
    for column in COLUMNS:
        found.add_column(column, overflow="fold")
    for method in methods:
        found.add_row(*map(Text, cells(method)))
    out = console(sys.stdout)
    print_table(out, found)
    for name, reason in broken.items():
        out.print(f"{name} is unavailable: {reason}", soft_wrap=True)


def _explain(method: Method) -> None:
    from rich.table import Table
    from rich.text import Text

    from smc_bridge.tables import print_table

    out = console(sys.stdout)
    out.print(f"{method.name}: {' '.join(_prose(method).split())}\n")
    for line in _facts(method):
        out.print(f"  {line.replace('`', '')}")
    found = Table(title=f"{method.name},option=value,...", title_justify="left")
    for column in ("option", "values", "default", "meaning"):
        found.add_column(column)
    for option in method.options:
        found.add_row(*(Text(cell.replace("`", "")) for cell in _row(option)))
    if method.options:
        print_table(out, found)


command = Command("methods", "List the decoders by name, or explain one with its options.", configure, run)
