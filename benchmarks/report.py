"""What a benchmark hands over: tables on the terminal, and JSON and PNG in a folder.

`execute` makes a command of a benchmark: it reads the options that all of them share, measures, and publishes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich import box

from benchmarks.harness import HERE, Machine, cores
from benchmarks.pages import check_page, fill, save_svg
from smc_bridge.commands.base import LineParser, check_writable, console, whole
from smc_bridge.display import PrintedTable
from smc_bridge.estimate import Estimate, plain
from smc_bridge.files import write_bytes, write_text
from smc_bridge.models.extras import need

#: Adds a benchmark's own arguments; the second argument says whether defaults are to be those of `--quick`.
Configure = Callable[[argparse.ArgumentParser, bool], None]


T = TypeVar("T")


def several(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Argument type: values with commas between them; each counts once."""

    def parse_all(text: str) -> tuple[T, ...]:
        return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))

    return parse_all


@dataclass(frozen=True)
class Sheet:
    """A table whose cells are texts; the first column names the rows.

    Attributes:
        title: above the table.
        columns: their heads.
        rows: a text for each column.
        note: below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> PrintedTable:
        """The table as a rich one, for a terminal."""
        table = PrintedTable(
            title=self.title, title_justify="left", caption=self.note or None, caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table in Markdown, for a page."""
        return "\n\n".join([f"**{self.title}**", self.rich().markdown(), *([self.note] if self.note else [])])


@dataclass(frozen=True)
class Verdict:
    """A wanted figure beside the one seen.

    Attributes:
        claim: what is wanted, in words.
        seen: the figure that was measured.
        wanted: the figure that is wanted.
        least: whether it is a lower bound rather than an upper one.
    """

    claim: str
    seen: float
    wanted: float
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is reached; one that is not a number is not."""
        return self.seen >= self.wanted if self.least else self.seen <= self.wanted

    def __str__(self) -> str:
        bound = "at least" if self.least else "at most"
        return f"{'met   ' if self.met else 'missed'}  {self.claim}: {self.seen:.3g}, wanted {bound} {self.wanted:g}"


def plus_minus(found: Estimate, form: str) -> str:
    """`value ± standard error`, or the value alone where its error is not known."""
    value = format(found.value, f"z{form}")
    return value if math.isnan(found.error) else f"{value} ± {found.error:{form}}"


@dataclass(frozen=True)
class Report:
    """All that a benchmark found.

    Attributes:
        sheets: its tables.
        data: every figure, for JSON (`plain`).
        draw: draws the figures on an empty `matplotlib.figure.Figure`.
        size: of the picture, inches.
        verdicts: wanted figures beside those seen.
        spread: what the figures' intervals are.
        picture: what the picture shows, for a page.
    """

    sheets: Sequence[Sheet]
    data: dict[str, Any]
    draw: Callable[[Any], None]
    size: tuple[float, float] = (7.2, 4.2)
    verdicts: Sequence[Verdict] = field(default_factory=list)
    spread: str = "median [least, greatest] of the repetitions"
    picture: str = ""


def bars(ax: Any, places: Sequence[str], groups: Mapping[str, Sequence[Estimate]]) -> None:
    """Bars side by side at each place, one of every group, with their ends."""
    width = 0.8 / len(groups)
    for i, (label, found) in enumerate(groups.items()):
        ax.bar(
            np.arange(len(places)) + (i - (len(groups) - 1) / 2) * width, [each.value for each in found], width,
            yerr=np.transpose([each.bars for each in found]), label=label, error_kw={"lw": 0.8},
        )
    ax.set_xticks(np.arange(len(places)), places)


def execute(
    name: str, doc: str | None, configure: Configure, measure: Callable[[argparse.Namespace], Report],
    arguments: Sequence[str] | None = None, *, page: Path | None = None, shared: bool = False,
) -> None:
    """Run a benchmark as a command: options, measurement, tables, `NAME.json` and `NAME.png`.

    Args:
        page: of the docs that the command fills too, with the picture beside it (`benchmarks.pages`); a smoke test
            fills none unless it is told to.
        shared: whether `--threads` are processes of one thread each.
    Raises:
        SystemExit: with code 2 and one line, if an argument cannot be used.
    """
    prog = f"python -m benchmarks.{name}"
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = LineParser(prog=prog, description=(doc or "").split("\n")[0])
    configure(parser, "--quick" in given)
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="of the files (default: runs)")
    parser.add_argument("--quick", action="store_true", help="sizes of a smoke test: seconds, figures of no use")
    told = f"{'processes of one thread each' if shared else 'of torch'} (default: every core)"
    parser.add_argument("--threads", type=whole(1), default=cores(), help=told)
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    if page is not None:
        parser.add_argument(
            "--page", type=Path, default=None if "--quick" in given else page, metavar="FILE",
            help=f"whose figures and picture are made anew (default: {page.relative_to(HERE)}, with --quick none)",
        )
    try:
        options = parser.parse_args(given)
        filled: Path | None = getattr(options, "page", None)
        if filled is not None:
            check_page(filled)
        files = out_files(options.out, name, "json", "png")
        figure = _figure()
        before = torch.get_num_threads()
        torch.set_num_threads(1 if shared else options.threads)
        try:
            machine = Machine.here()
            report = measure(options)
        finally:
            torch.set_num_threads(before)
        _publish(name, options, machine, report, figure, *files)
        if filled is not None:
            told = "\n\n".join([_markdown(report), f"{report.spread}; {machine}"])
            fill(filled, f"![{report.picture}]({filled.stem}.svg)\n\n{told}")
            save_svg(filled.with_suffix(".svg"), report.draw, report.size)
    except (ValueError, OSError, ImportError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _markdown(report: Report) -> str:
    return "\n\n".join(sheet.markdown() for sheet in report.sheets)


def out_files(folder: Path, name: str, *endings: str) -> list[Path]:
    """The files of a benchmark, in a folder that is made and can be written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out = {folder}: cannot be made ({error.strerror}); give another folder") from error
    files = [folder / f"{name}.{ending}" for ending in endings]
    for file in files:
        check_writable(file, "--out")
    return files


def _figure() -> Any:
    """An empty figure; it is made before anything is measured, so that hours are not lost for want of a package."""
    need("matplotlib.figure", "plots", extra="analysis")
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _publish(
    name: str, options: argparse.Namespace, machine: Machine, report: Report, figure: Any, json_file: Path, png: Path
) -> None:
    verdicts = [{**vars(verdict), "met": verdict.met} for verdict in report.verdicts]
    data = {"benchmark": name, "machine": machine, "settings": vars(options), "verdicts": verdicts, **report.data}
    write_text(json_file, json.dumps(plain(data), indent=1, allow_nan=False))
    figure.set_size_inches(*report.size)
    report.draw(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(png, picture.getvalue(), argument="--out")
    out = console(sys.stdout)
    spread = report.spread
    if options.quick:
        spread += "; --quick: a smoke test, the figures say nothing"
    if options.markdown:
        print(_markdown(report))
        print(f"\n{spread}; {machine}")
    else:
        for sheet in report.sheets:
            out.print(sheet.rich())
        out.print(f"{spread}\n{machine}", markup=False)
    for verdict in report.verdicts:
        print(f"- {verdict}" if options.markdown else verdict)
    if not options.markdown:
        out.print(f"saved as {json_file} and {png}", markup=False)
