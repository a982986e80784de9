"""What `smc-bridge doctor` prints of a report: models, memory, probes, and what was decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from smc_bridge.commands.doctor_report import KINDS, ROW, Report
from smc_bridge.display import PrintedTable
from smc_bridge.models.facts import Facts
from smc_bridge.tables import print_table

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render_report(console: Console, report: Report, tokenizer: Any) -> None:
    """Print a report.

    Args:
        tokenizer: of the pair, for the names of tokens.
    """
    print_table(console, _models(report, tokenizer))
    print_table(console, _memory(report))
    print_table(console, _probes(report))
    decoded = report.decoded
    if decoded is None:
        console.print("nothing was decoded")
        return
    console.print(Text(f"prompt  {decoded['prompt']}"), soft_wrap=True)
    text = "none: every weight is zero" if decoded["text"] is None else decoded["text"]
    console.print(Text.assemble("text    ", (text, "bold")), soft_wrap=True)
    speed = f"{decoded['tokens_per_dlm_forward']:.2f} per DLM forward"
    console.print(f"{_count(decoded['tokens'])} in {decoded['seconds']:.2f} s, {speed}")


def _count(tokens: float) -> str:
    """A mean number of tokens, with a digit behind the point where there is one."""
    return f"{tokens:.1f}".removesuffix(".0") + (" token" if f"{tokens:.1f}" == "1.0" else " tokens")


def amount(size: float) -> str:
    """Bytes with three digits and a unit."""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 99.95 else f"{size:.3g} {UNITS[unit]}"


def _models(report: Report, tokenizer: Any) -> PrintedTable:
    table = PrintedTable(title=f"pair {report.name}", title_justify="left")
    table.add_column("", no_wrap=True)
    columns = []
    for kind, facts in report.models.items():
        table.add_column(KINDS[kind])
        columns.append(_facts(facts, tokenizer) | {"prompts": report.prompts})
    for name in columns[0]:
        table.add_row(name, *(Text(column[name]) for column in columns))
    return table


def _facts(facts: Facts, tokenizer: Any) -> dict[str, str]:
    """A model's column, by the names of its rows."""
    count = facts.parameters

    def tokens(ids: Sequence[int]) -> str:
        return ", ".join(_token(i, tokenizer) for i in ids) or "none"

    return {
        "family": facts.family or "-",
        "code": facts.route or "-",
        "class": facts.kind,
        "parameters": "-" if count is None else f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M",
        "dtype, device": f"{facts.dtype or '-'}, {facts.device}",
        "attention": facts.attention or "-",
        "an output is about": facts.output,
        "mask": "-" if facts.mask_id is None else _token(facts.mask_id, tokenizer),
        "ends": tokens(facts.eos_ids),
        "drawn": f"{facts.alphabet - facts.banned:,} of {facts.alphabet:,} ids",
        "positions": "any number" if facts.positions is None else f"{facts.positions:,}",
        "cache": facts.cache,
    }


def _token(index: int, tokenizer: Any) -> str:
    name = None
    with suppress(Exception):  # a tokenizer of the user's, and an id that it may not have
        name = tokenizer.convert_ids_to_tokens(index)
    return f"{index} {name!r}" if isinstance(name, str) else str(index)


def _memory(report: Report) -> PrintedTable:
    sizes = ", ".join(f"{name} {report.sizes[name]}" for name in report.sizes)
    table = PrintedTable(title=f"memory with {sizes}", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("how")
    table.add_column("size", justify="right", no_wrap=True)
    for what, how, size in report.memory:
        table.add_row(what, how, "-" if size is None else amount(size))
    table.add_section()
    how = f"caches of {ROW:,} tokens a row; activations come on top"
    table.add_row("together", how, "-" if report.total is None else amount(report.total))
    return table


def _probes(report: Report) -> PrintedTable:
    table = PrintedTable(title="probes", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("what holds of a good one")
    table.add_column("found", overflow="fold")
    for kind, verdict in report.probes:
        found = "yes" if verdict.fault is None else f"{'NO' if verdict.fatal else 'warning'}: {verdict.fault}"
        table.add_row(kind, verdict.name, Text(found))
    return table
