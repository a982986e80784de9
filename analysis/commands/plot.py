"""`smc-bridge plot FILE`: a picture of a saved study, comparison or result; the file says which it is."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from smc_bridge.analysis.prices import Cost, Unit
from smc_bridge.commands.base import (
    Command,
    UsageError,
    check_writable,
    destination,
    importing,
    one_of,
    printing,
)
from smc_bridge.files import is_standard_output, is_stream, shown, write_bytes
from smc_bridge.models.extras import need

if TYPE_CHECKING:
    from smc_bridge.result import Result

#: Pictures of a result.
RESULT_PLOTS = ("steps", "genealogy", "lanes", "acceptance", "ess")
#: Those that are drawn of several results too, all of one method.
OF_MANY = ("acceptance", "ess")
#: Columns of a comparison that are no figures.
WORDS = ("method", "targets", "proper")
DPI = 150


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plot`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="of `study --out`, `compare --json` or `decode --json`")
    parser.add_argument("--out", type=destination, metavar="PNG", help="picture (default: FILE with the suffix .png)")
    parser.add_argument(
        "--x", metavar="COLUMN", help="of a study: particles, w, cost, kl_per_token (the frontier), ..; of a "
        "comparison: tokens_per_second (default), nats_per_token, ..",
    )
    parser.add_argument(
        "--y", metavar="COLUMN", help="of a study: tv, bias, kl_bound, ess, tokens_per_dlm_forward, ..; of a "
        f"comparison: accuracy (default, where answers are known), ess, ..; of a result: {', '.join(RESULT_PLOTS)}; "
        f"of several in a file: {', '.join(OF_MANY)}",
    )
    parser.add_argument(
        "--cost", type=prices, metavar="c_D,c_A", help="prices of a DLM and an AR forward in a study (default: 1,1)"
    )
    parser.add_argument(
        "--unit", type=one_of(get_args(Unit)), metavar="UNIT",
        help=f"what the prices are for: {', '.join(get_args(Unit))} (default: forwards)",
    )


def prices(text: str) -> Cost:
    """Argument type: the prices of a forward of either model."""
    try:
        dlm, ar = map(float, text.split(","))
        return Cost(dlm, ar)
    except ValueError:
        raise argparse.ArgumentTypeError(f"= {text}: give two numbers of at least 0, such as 2,1") from None


def run(arguments: argparse.Namespace) -> int:
    """Draw FILE and write the picture."""
    source: Path = arguments.file
    if source.is_dir():
        raise UsageError(f"FILE = {source}: is a folder; give a file")
    out: Path = arguments.out or source.with_suffix(".png")
    draw = reader(source, arguments)
    check_writable(out, "--out")
    if out.exists() and os.path.samefile(out, source):
        raise UsageError(f"--out = {shown(out)}: is FILE itself; give another name")
    need("matplotlib", "plots", extra="analysis")
    with importing():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    known = pyplot.figure().canvas.get_supported_filetypes()
    kind = out.suffix.removeprefix(".") or ("png" if is_stream(out) else "")
    if kind not in known:
        raise UsageError(f"--out = {out}: is of no known kind; choose from {', '.join(sorted(known))}")
    axes = draw()
    picture = io.BytesIO()
    axes.figure.savefig(picture, format=kind, dpi=DPI, bbox_inches="tight")
    pyplot.close("all")
    write_bytes(out, picture.getvalue(), argument="--out")
    if not is_standard_output(out):
        with printing(f"; the picture is saved as {shown(out)}"):
            print(f"drawn as {shown(out)}")
    return 0


def reader(path: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    """What draws the file, by the kind that its first line tells.

    Raises:
        UsageError: the file cannot be read, or is nothing that this program wrote.
    """
    with importing():
        from smc_bridge.analysis.comparison.comparing import KIND as COMPARISON
        from smc_bridge.analysis.study.run import KIND as STUDY
        from smc_bridge.result import Result
    try:
        text = path.read_text(encoding="utf-8")
        head = json.loads(text.partition("\n")[0])
    except OSError as error:
        raise UsageError(f"FILE = {path}: cannot be read ({error.strerror}); give another file") from error
    except ValueError as error:
        raise _foreign(path) from error
    if not isinstance(head, dict):
        raise _foreign(path)
    for option in ("cost", "unit"):
        if getattr(arguments, option) is not None and head.get("kind") != STUDY:
            raise UsageError(f"--{option} with FILE = {path}: is for a study; leave it out")
    if head.get("kind") == STUDY:
        return lambda: _study(path, arguments)
    if head.get("kind") == COMPARISON:
        if not is_table(head.get("rows")):
            raise UsageError(f"FILE = {path}: is a comparison without its table; make it again with `compare`")
        return lambda: _comparison(head["rows"], arguments)
    if "log_weights" in head:
        try:
            results = [Result.from_dict(json.loads(line)) for line in text.split("\n") if line.strip()]
        except ValueError as error:
            raise _foreign(path) from error
        return lambda: _results(results, arguments)
    raise _foreign(path)


def is_table(rows: Any) -> bool:
    """Whether data is the table of a comparison: rows with the same columns, of methods, numbers and intervals."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return False

    def figure(value: Any) -> bool:
        ends = value.values() if isinstance(value, dict) else [value]
        whole = not isinstance(value, dict) or {"value", "low", "high"} <= set(value)
        return whole and all(end is None or isinstance(end, int | float) for end in ends)

    return all(
        set(row) == set(rows[0]) and isinstance(row.get("method"), str)
        and all(figure(value) for name, value in row.items() if name not in WORDS)
        for row in rows
    )


def _foreign(path: Path) -> UsageError:
    return UsageError(f"FILE = {path}: is no saved study, comparison or result; give another file")


def _study(path: Path, arguments: argparse.Namespace) -> Any:
    from smc_bridge.analysis.study.drawing import plot_study
    from smc_bridge.analysis.study.run import load_study

    cost = replace(arguments.cost or Cost(), unit=arguments.unit or "forwards")
    frame = load_study(path, cost=cost, argument="FILE")
    try:
        return plot_study(frame, arguments.x, arguments.y)
    except ValueError as error:
        said = f"--{error}" if str(error).startswith(("x = ", "y = ")) else f"FILE = {shown(path)}: {error}"
        raise UsageError(said) from error


def _comparison(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> Any:
    """A point for every method that has both figures."""
    from smc_bridge.analysis.study.drawing import plot_lines

    graded = any(row.get("accuracy") is not None for row in rows)
    x, y = arguments.x or "tokens_per_second", arguments.y or ("accuracy" if graded else "nats_per_token")
    known = [name for name in rows[0] if name not in WORDS]
    for option, name in (("x", x), ("y", y)):
        if name not in known:
            raise UsageError(f"--{option} = {name}: choose from {', '.join(known)}")

    def ends(value: Any) -> tuple[float, float, float]:
        """A figure with its interval."""
        if not isinstance(value, dict):
            return float(value), math.nan, math.nan
        middle, low, high = (math.nan if value[k] is None else float(value[k]) for k in ("value", "low", "high"))
        return middle, low, high

    lines = {}
    for row in rows:
        if row[x] is not None and row[y] is not None:
            place, (value, low, high) = ends(row[x])[0], ends(row[y])
            lines[row["method"]] = ([place], [value], [low], [high])
    if not lines:
        raise UsageError(f"--x = {x} with --y = {y}: no method has both; choose other columns")
    return plot_lines(lines, x, y)


def _results(results: list[Result], arguments: argparse.Namespace) -> Any:
    """A picture of a result, or of those of a file of prompts."""
    from smc_bridge.analysis import plots

    if arguments.x is not None:
        raise UsageError(f"--x = {arguments.x}: FILE is a result, whose pictures have their own; give --y alone")
    result, *others = results
    y = arguments.y or ("ess" if others else "steps")
    if y not in RESULT_PLOTS:
        raise UsageError(f"--y = {y}: choose from {', '.join(RESULT_PLOTS)}")
    if others and y not in OF_MANY:
        raise UsageError(f"--y = {y}: is of one result, and FILE has {len(results)}; choose from {', '.join(OF_MANY)}")
    if y == "lanes" and any(step.blocks is None for step in result.trace):
        raise UsageError("--y = lanes: FILE has no drafts; decode again with --trace, or choose another picture")
    match y:
        case "steps":
            return plots.plot_steps(result)
        case "genealogy":
            return plots.plot_genealogy(result)
        case "lanes":
            return plots.plot_trace_grid(result)
        case "acceptance":
            return plots.plot_acceptance({result.method: results})
        case _:
            return plots.plot_ess_along({result.method: results})


command = Command("plot", "Draw a saved study, comparison or result.", configure, run)
