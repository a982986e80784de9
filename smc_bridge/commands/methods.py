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
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smc_bridge.commands.base import Command, UsageError, console, importing, printing
from smc_bridge.entry_points import reason_of
from smc_bridge.registry import METHODS, Method, spelled, unavailable

if TYPE_CHECKING:
    from smc_bridge.signature import Option

COLUMNS = ("method", "role", "targets", "proper", "reference")
#: Columns of a page of figures that are quoted, and how.
QUOTED = {
    "accuracy, %": "% right", "tokens / DLM forward": "tokens / DLM forward",
    "KL bound, nats / token": "nats / token from the AR law",
}
#: What stands where a method has no such figure.
NOTHING = ("-", "improper", "other law")
#: Stands behind tokens per forward of a method that asks no DLM, where the forwards of its own drafter are counted.
DRAFTER = " (drafter)"
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
samples of it, and *baselines* are there to compare with. A package adds its own: [a guide](../guides/own_method.md).

What is no decoder is no row here: parts of programs (proposals, kernels, intermediates) stand under `smc`; `prefix`,
`dual`, `spectrum` and others are modes of the diffusion model's cache, which every method takes (`--dlm-cache`):
[a guide](../guides/loaded_models.md) lists them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `methods`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="explain this one, with its options")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a table, or a section, in Markdown")
    form.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--full", action="store_true", help="with --markdown: a page with a section for each method")
    parser.add_argument(
        "--figures", metavar="FILE", type=Path,
        help="with --full: a page with a table of methods, such as docs/benchmarks/field.md, whose figures are quoted",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table of methods, or one method with its options; returns the exit code."""
    if arguments.full and (arguments.name is not None or not arguments.markdown):
        raise UsageError("--full is for the page of all methods: give --markdown and no NAME with it")
    if arguments.figures is not None and not arguments.full:
        raise UsageError("--figures is for the page of all methods: give --markdown --full with it")
    figures = {} if arguments.figures is None else read_figures(arguments.figures)
    with importing():
        chosen = None if arguments.name is None else spelled(arguments.name).method
        known, broken = list(METHODS.values()), unavailable()
    with printing():
        if arguments.json:
            print(json.dumps(listed(known, broken) if chosen is None else described(chosen), indent=2))
        elif arguments.markdown:
            print(section(chosen) if chosen is not None else page(known, figures) if arguments.full else table(known))
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


def page(methods: Sequence[Method], figures: Mapping[str, str]) -> str:
    """The table and a section for each method, in Markdown; figures by spelling."""
    return "\n\n".join([TITLE, INTRO, table(methods), *(section(method, figures) for method in methods)])


def read_figures(path: Path) -> dict[str, str]:
    """What the first table of a Markdown page that has `QUOTED` says of each method, by its spelling.

    Raises:
        UsageError: the file cannot be read, or has no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give a page such as docs/benchmarks/field.md"
        raise UsageError(f"--figures = {path}: {reason_of(error)}; {remedy}") from error
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heads = [i for i, row in enumerate(rows) if {"method", *QUOTED} <= set(row)]
    if not heads:
        raise UsageError(f"--figures = {path} has no table with the columns method, {', '.join(QUOTED)}: give one")
    head, found = rows[heads[0]], dict[str, str]()
    for row in rows[heads[0] + 2 :]:
        if len(row) != len(head):
            break
        told = dict(zip(head, row, strict=True))
        figures = [_quoted(told[name], words) for name, words in QUOTED.items() if told[name] not in NOTHING]
        found[told["method"].strip("`")] = ", ".join(figures)
    return found


def _quoted(figure: str, words: str) -> str:
    if figure.endswith(DRAFTER):
        return f"{figure.removesuffix(DRAFTER)} {words.replace('DLM forward', 'forward of its drafter')}"
    return f"{figure} {words}"


def section(method: Method, figures: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a method is and its options, in Markdown; those that it passes on are named and not told again.

    Args:
        figures: of spellings, of this method or of others.
    """
    own = method.options if method.rest is None else method.own
    others = [option.name for option in method.options if option not in own]
    facts = [*_facts(method), *_here(method, figures)]
    parts = [f"## {method.name}", _prose(method), "\n".join(f"- {line}" for line in facts)]
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


def _here(method: Method, figures: Mapping[str, str]) -> list[str]:
    own = [f"`{text}` {told}" for text in method.examples if (told := figures.get(text))]
    return [f"here ([the field](../benchmarks/field.md)): {'; '.join(own)}"] if own else []


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
    paragraphs = (" ".join(each.split()) for each in _prose(method).split("\n\n"))
    out.print("\n\n".join([f"{method.name}: {next(paragraphs)}", *paragraphs]), end="\n\n")
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
