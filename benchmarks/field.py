"""The field: every method of the package in one table, the law of each held against the law that it claims.

    python -m benchmarks.field [--n 100] [--threads N] [--seed 0] [--fresh] [--quick]
        [--page docs/benchmarks/field.md] [--out runs] [--markdown]

The methods are those of the registry by their examples, as in `smc-bridge compare --methods all`; what cannot run on
the embedded pair is left out. A line under `[field.dials]` of `benchmarks/tables.toml` gives a method a speed dial: an
option and its values. Every point is a call of `smc-bridge compare`, kept under `OUT/rows` (`benchmarks.comparisons`);
judgements on tables are kept under `OUT/laws` (`benchmarks.field_laws`), so that a second call goes on where the first
one was. What has no examples, since it draws no text, stands in a table of its own, with the page of its figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparisons import TASK, Case, Figures, add_arguments, embedded_pair, make_rows
from benchmarks.field_dials import Dial, dials
from benchmarks.field_labels import label_points
from benchmarks.field_laws import VERDICTS, Found, Tables, find_all
from benchmarks.harness import HERE
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, execute
from smc_bridge.analysis.aup import aup_of
from smc_bridge.analysis.claimed_law import POE
from smc_bridge.analysis.comparison import Settings, default_methods
from smc_bridge.analysis.comparison.comparing import runnable
from smc_bridge.analysis.comparison.table import AR
from smc_bridge.analysis.plots.style import BLUE, GREEN, RED, plain_ticks
from smc_bridge.analysis.study.sources import load_problems
from smc_bridge.commands.base import tell, whole
from smc_bridge.commands.methods import DRAFTER
from smc_bridge.registry import METHODS, spelled

NAME = Path(__file__).stem
TABLE: dict[str, Any] = TABLES[NAME]
#: Problems unless `--n` says others, and at least.
PROBLEMS, FEW = 100, 2
#: Runs on tables of a smoke test.
FEW_RUNS = 300
#: Colour and marker by role.
LOOKS = {"exact": (GREEN, "o"), "weighted": (BLUE, "s"), "baseline": (RED, "^")}
#: Size of the labels in the picture, points, and of the picture, inches: about as many pixels on the page.
LETTERS, SIZE = 7.5, (10.0, 15.0)


@dataclass(frozen=True)
class Field:
    """All that the page shows.

    Attributes:
        methods: rows of the table, as they are spelled.
        dials: of some of them.
        figures: of every row and every point of a dial, by spelling.
        laws: of every row.
        tables: on which they were found.
    """

    methods: Sequence[str]
    dials: Sequence[Dial]
    figures: Mapping[str, Figures]
    laws: Mapping[str, Found]
    tables: Tables

    @property
    def best(self) -> float:
        """The best accuracy of all points, per cent."""
        return max(100 * each.row.accuracy.value for each in self.figures.values() if each.row.accuracy is not None)

    def aup(self, text: str) -> str:
        """AUP over the method's dial; without one that of its point; '-' for a point of another method's dial."""
        own = next((dial for dial in self.dials if dial.method == text), None)
        if own is None and any(text in dial.points for dial in self.dials):
            return "-"
        points = [self.figures[each].row for each in (own.points if own else (text,))]
        found = aup_of(points, best=self.best)
        return "-" if found is None else f"{found:.0f}"


def measure(options: argparse.Namespace) -> Report:
    """The table, the dials, the laws on tables, and the verdicts."""
    tables = Tables(**TABLE["tables"], runs=options.runs)
    left: dict[str, str] = {}
    methods = _rows(options, left)
    turns = dials(methods, TABLE["dials"], most=2 if options.quick else None)
    every = list(dict.fromkeys([*methods, *(point for dial in turns for point in dial.points)]))
    cases = {text: _case(text, options) for text in every}
    made = make_rows(
        [*cases.values()], options.out / "rows", processes=options.threads, fresh=options.fresh
    )
    laws = find_all(
        methods, tables, options.out / "laws", seed=options.seed, processes=options.threads, fresh=options.fresh
    )
    field = Field(
        methods, turns, {text: made[case] for text, case in cases.items()}, {each.method: each for each in laws}, tables
    )
    data = {
        "rows": [{"command": f"smc-bridge compare {case.arguments}", **vars(made[case])} for case in cases.values()],
        "aup": {text: field.aup(text) for text in methods}, "laws": laws, "left_out": left,
        "verdicts_by_method": {each.method: each.verdict for each in laws},
    }
    return Report(
        [_table(field, left), _elsewhere(), _dials(field), _laws(field), _verdicts(field)], data, partial(draw, field),
        size=SIZE,
        spread=f"target temperature {TABLE['temperature']:g}; in brackets 95 % intervals; tokens/s: of one process of "
        f"one thread, {options.threads} at a time",
        picture="Accuracy against tokens per forward, and total variation from the AR law against forwards per token",
    )


def _rows(options: argparse.Namespace, left: dict[str, str]) -> tuple[str, ...]:
    """The methods that run on the embedded pair; what does not goes to `left`, with the reason."""
    chosen = tuple(TABLE["quick"]) if options.quick else with_baselines(default_methods(), TABLE["baselines"])
    settings = Settings(TASK, 1, chosen, temperature=TABLE["temperature"], seed=options.seed)

    def leave_out(method: str, reason: str) -> None:
        left[method] = reason
        tell(f"{method} is left out, it cannot run on the embedded pair: {reason}")

    return runnable(settings, load_problems(settings.study().source, pair=embedded_pair()), leave_out)


def with_baselines(methods: Sequence[str], baselines: Mapping[str, str]) -> tuple[str, ...]:
    """Each method once, its baseline of the same order and lookahead behind it, if it has one.

    Raises:
        ValueError: a baseline of what is no row.
    """
    if unknown := [text for text in baselines if text not in methods]:
        raise ValueError(f"field.baselines = {', '.join(unknown)}: is no row; spell a method as its file does")
    pairs = ((text, baselines.get(text)) for text in methods)
    return tuple(dict.fromkeys(text for pair in pairs for text in pair if text is not None))


def _case(text: str, options: argparse.Namespace) -> Case:
    count = max(FEW, round(TABLE.get("share", {}).get(text, 1.0) * options.n))
    return Case(text, count, TABLE["temperature"], options.seed)


def _table(field: Field, left: Mapping[str, str]) -> Sheet:
    columns = (
        "method", "reference", "law", "proper", "accuracy, %", "tokens / DLM forward", "AR forwards / token",
        "AR positions / token", "tokens/s", "AUP", "KL bound, nats / token",
    )
    rows = []
    for text in field.methods:
        row, method = field.figures[text].row, spelled(text).method
        rate, drafter = row.tokens_per_dlm_forward, DRAFTER if method.name in TABLE["drafters"] else ""
        rows.append([
            f"`{text}`", method.reference + TABLE["notes"].get(text, ""), method.targets, "yes" if row.proper else "no",
            "-" if row.accuracy is None else row.accuracy.times(100).text(".1f"),
            "-" if rate is None else f"{rate.value:.2f}{drafter}", _plain(row.ar_forwards_per_token, ".3f"),
            _plain(row.ar_positions_per_token, ".2f"), f"{row.tokens_per_second:.0f}", field.aup(text), row.bound,
        ])
    counts = sorted({each.case.n for each in field.figures.values()})
    notes = [
        f"Each row is `smc-bridge compare --n {counts[-1]} --temperature {TABLE['temperature']:g} --methods METHOD`"
        + (f"; of the dearest methods with fewer problems, at least {counts[0]}." if len(counts) > 1 else "."),
        *(f"`{text}` is left out: {reason}." for text, reason in left.items()),
    ]
    return Sheet("Every method on the embedded pair", columns, rows, "\n\n".join(notes))


def _elsewhere() -> Sheet:
    """Methods of the package without examples, which are compared on no text; KeyError unless each has a page."""
    rows = []
    for name, method in sorted(METHODS.items()):
        pages = TABLE["elsewhere"]
        if not method.examples and method.make.__module__.startswith("smc_bridge."):
            proper = "yes" if method.proper else f"no: {method.why}"
            rows.append([f"`{name}`", method.reference, method.targets, proper, f"[{pages[name]}]({pages[name]}.md)"])
    return Sheet("Methods of tables, which draw no text", ("method", "reference", "law", "proper", "figures"), rows)


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _dials(field: Field) -> Sheet:
    rows = []
    for dial in field.dials:
        points = []
        for value, text in dial.values.items():
            row = field.figures[text].row
            right = "-" if row.accuracy is None else f"{100 * row.accuracy.value:.1f}"
            points.append(f"{value}: {right} at {row.tokens_per_forward:.2f}")
        rows.append([f"`{dial.method}`", dial.option, field.aup(dial.method), "; ".join(points)])
    return Sheet(
        "Speed dials", ("method", "option", "AUP", "value: accuracy in % at tokens per forward"), rows,
        f"AUP against the best accuracy of all points, {field.best:.1f} %; a forward is one of the diffusion model, of "
        "a method that runs none one of the autoregressive model. A method without a dial has the AUP of its one "
        "point.",
    )


def _laws(field: Field) -> Sheet:
    names = [*field.tables.noise]
    columns = (
        "method", "claims", *(f"TV to the claim, {name}" for name in names), *(f"TV to AR, {name}" for name in names),
        "weighted measure", f"forwards / token, {names[-1]}",
    )
    rows = []
    for text in field.methods:
        found, method = field.laws[text], spelled(text).method
        if not found.on:
            rows.append([f"`{text}`", method.targets, *["-"] * (2 * len(names) + 2)])
            continue
        each = [found.on[name] for name in names]
        gap = "-" if found.gap is None else "exact" if found.gap < 1e-9 else f"off by {found.gap:.2g}"
        rows.append([
            f"`{text}`", method.targets, *("-" if one.claim is None else one.claim.text() for one in each),
            *(one.ar.text() for one in each), gap, f"{each[-1].forwards:.2f}",
        ])
    t = field.tables
    noises = ", ".join(f"{name}: {noise:g} nats" for name, noise in t.noise.items())
    return Sheet(
        "Total variation between the law of the output and other laws, on tables", columns, rows,
        f"Tables of {t.alphabet} tokens, of which the last ends a sequence, {t.length} deep, temperature 1; noise of "
        f"the diffusion model {noises}. In brackets intervals of level 95 % that hold at any number of runs "
        f"(McDiarmid), of {t.runs:,} runs; noise: {t.runs:,} draws of the law itself look like this in more than one "
        "case of a thousand. Weighted measure: of the program with four particles at most, on two tokens two deep, "
        "enumerated. A product is claimed of blocks of one token. Learned parts are untrained there, with random "
        "weights: what is exact is exact with any, and how far a biased method is off says nothing of the trained one.",
    )


def _verdicts(field: Field) -> Sheet:
    rows = []
    for verdict in VERDICTS:
        own = [f"`{text}`" for text in field.methods if field.laws[text].verdict == verdict]
        if own:
            rows.append([verdict, ", ".join(own)])
    reasons: dict[str, list[str]] = {}
    for each in field.laws.values():
        if each.reason:
            reasons.setdefault(each.reason, []).append(f"`{each.method}`")
    told = " ".join(f"{', '.join(methods)}: {reason}." for reason, methods in reasons.items())
    return Sheet("Which of them sample what they claim", ("verdict", "methods"), rows, told)


def draw(field: Field, figure: Any) -> None:
    """Accuracy against tokens per forward with the dials as lines, and distance from the AR law against forwards."""
    upper, lower = figure.subplots(2, 1)
    shown = [text for text in field.methods if _place(field.figures[text]) is not None]
    for dial in field.dials:
        ends = sorted(place for text in dial.points if (place := _place(field.figures[text])) is not None)
        colour = LOOKS[role(field, dial.method)][0]
        upper.plot(*zip(*ends, strict=True), color=colour, linewidth=0.7, alpha=0.5, marker=".", markersize=3)
    places = [place for text in shown if (place := _place(field.figures[text])) is not None]
    upper.set(
        xlabel="tokens per forward of the DLM (of the AR model where there is no DLM)", ylabel="accuracy (%)",
        xscale="log",
    )
    plain_ticks(upper.xaxis, np.array([0.5, *range(1, 5), 6, 8, 12, 16, 24, 32], dtype=np.float64))
    _points(upper, field, shown, places)
    name = [*field.tables.noise][-1]
    known = [text for text in field.methods if field.laws[text].on]
    lower.set(
        xlabel=f"forwards of both models per token, {name} tables",
        ylabel=f"total variation of the output from the AR law, {name} tables",
    )
    _points(lower, field, known, [
        (field.laws[text].on[name].forwards, field.laws[text].on[name].ar.tv.value) for text in known
    ])


def _place(figures: Figures) -> tuple[float, float] | None:
    row = figures.row
    rate = row.tokens_per_forward
    return None if row.accuracy is None or not rate > 0 else (rate, 100 * row.accuracy.value)


def role(field: Field, text: str) -> str:
    """Exact, weighted or baseline, of a method as it is spelled: forms of one method differ in what they are.

    A biased form of an exact method is a baseline, a properly weighted one of a baseline is weighted.
    """
    method, proper = spelled(text).method, field.figures[text].row.proper
    if proper:
        return "weighted" if method.role == "baseline" else method.role
    return "baseline" if method.proper and method.targets in (AR, POE) else method.role


def other_law(field: Field, text: str) -> bool:
    """Whether it draws or weighs what it claims, and that is another law than the AR model's."""
    return role(field, text) != "baseline" and spelled(text).method.targets != AR


def _points(ax: Any, field: Field, methods: Sequence[str], places: Sequence[tuple[float, float]]) -> None:
    """Points with their labels, by role; hollow ones are of another law."""
    for kind, (colour, marker) in LOOKS.items():
        for other, face in ((False, colour), (True, "white")):
            own = [
                place for text, place in zip(methods, places, strict=True)
                if role(field, text) == kind and other_law(field, text) == other
            ]
            if own:
                ax.plot(
                    *zip(*own, strict=True), linestyle="none", color=colour, marker=marker, markersize=5,
                    markerfacecolor=face, label=f"{kind}, of another law than the AR model's" if other else kind,
                )
    ax.margins(0.12)
    ax.grid(visible=True, color="0.93")
    ax.legend(fontsize=LETTERS, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 * len(LOOKS), frameon=False)
    if places:
        xs, ys = zip(*places, strict=True)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
        label_points(ax, xs, ys, short(methods), LETTERS)


def short(methods: Sequence[str]) -> list[str]:
    """Labels that tell the methods apart: the name, with an option of its own if another has that name already."""
    found: list[str] = []
    known: dict[str, set[str]] = {}
    bare = {text for text in methods if "," not in text}
    for text in methods:
        head, *options = text.split(",")
        before = known.setdefault(head, set())
        own = sorted(options, key=before.__contains__)  # those that no other has come first
        labels = [head, *(f"{head},{option}" for option in own), text]
        taken = {*found, *bare.difference({text})}
        found.append(next(label for label in labels if label not in taken))
        before.update(options)
    return found


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add how many problems, and runs on tables."""
    add_arguments(parser, quick, n=PROBLEMS)
    runs = FEW_RUNS if quick else TABLE["runs"]
    parser.add_argument("--runs", type=whole(100), default=runs, help=f"on tables, of a method (default: {runs})")


PAGE: Path = HERE / "docs" / "benchmarks" / f"{NAME}.md"
main = partial(execute, NAME, __doc__, configure, measure, page=PAGE, shared=True)

if __name__ == "__main__":
    main()
