"""Versus: tokens per second of this checkout of the project over those of another one.

    python -m benchmarks.versus --other FOLDER [--methods smc-1,paper,tree-32] [--cache prefix] [--batches 1,16]
        [--blocks 4] [--block 16] [--temperature 0.2] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

The other is a folder with the project's files, such as `git worktree add FOLDER COMMIT` makes. Each side has one
process for the whole run (`benchmarks.versus_worker`), in this environment. Both are asked for the same P problems in
turns, so that what else the machine does hits them alike; tokens per second are those of a block of problems. A method
is spelled once for both sides, or as `OTHER|THIS`: `paper|paper,window=auto`. *Equal outputs* are problems for which
both give the same tokens, which is to be expected where methods and draws are meant to be the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.checkouts import Worker, package_of
from benchmarks.harness import HERE, over, over_rounds, progress, turns
from benchmarks.problems import TABLES, add_block_arguments, add_law_arguments, methods
from benchmarks.report import Report, Sheet, Verdict, bars, execute, several
from smc_bridge.commands.base import one_of, whole
from smc_bridge.tasks import TASKS

TABLE = TABLES["versus"]
#: The sides, by the order in which a method is spelled for them.
SIDES = ("other", "this")


class Case(NamedTuple):
    """A method as both sides spell it.

    Attributes:
        other, this: its spellings.
    """

    other: str
    this: str

    def __str__(self) -> str:
        return self.this if self.other == self.this else f"{self.other} -> {self.this}"


def both(text: str) -> tuple[Case, ...]:
    """Argument type: methods with commas between them, each for both sides or as `OTHER|THIS`."""
    groups: list[list[str]] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if "=" in piece.split("|")[0] and groups:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    found = []
    for group in groups:
        spellings = [part.strip() for part in ",".join(group).split("|")]
        if len(spellings) > 2 or not all(spellings):
            raise argparse.ArgumentTypeError(f"= {text!r}: write METHOD, or OTHER|THIS, not {','.join(group)!r}")
        found.append(Case(spellings[0], *methods(spellings[-1])))
    return tuple(dict.fromkeys(found))


class Run(NamedTuple):
    """One side on one block of problems.

    Attributes:
        seconds: in all.
        tokens: mean length of the particles, tokens, for each problem.
        dlm_forwards: of the block.
        sequences: the particles of each problem.
    """

    seconds: float
    tokens: tuple[float, ...]
    dlm_forwards: int
    sequences: list[list[list[int]]]

    @property
    def rate(self) -> float:
        """Tokens per second of wall time."""
        return sum(self.tokens) / self.seconds

    @property
    def per_forward(self) -> float:
        """Tokens per forward of the diffusion model."""
        return sum(self.tokens) / self.dlm_forwards if self.dlm_forwards else float("nan")


#: Of a method and P: for each side a run of every block.
Runs = dict[tuple[Case, int], Mapping[str, list[Run]]]


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--other", type=Path, required=True, metavar="FOLDER", help="the other checkout")
    parser.add_argument("--methods", type=both, default=TABLE["quick" if quick else "methods"], metavar="a,b|c,..",
                        help="as `smc-bridge methods` lists them; OTHER|THIS for other spellings on each side")
    parser.add_argument("--cache", type=one_of(("none", "prefix")), default=TABLE["cache"],
                        help=f"of the diffusion model's sessions (default: {TABLE['cache']})")
    parser.add_argument("--batches", type=several(whole(1)), default="2" if quick else "1,16", metavar="P,P,..",
                        help="prompts that are decoded at a time")
    add_law_arguments(parser, 8 if quick else None)
    add_block_arguments(parser, quick, block=16)


def measure(options: argparse.Namespace) -> Report:
    """Ask both sides for every block, with every method, at every number of prompts."""
    cells = [(case, batch) for batch in options.batches for case in options.methods]
    runs: Runs = {cell: {side: [] for side in SIDES} for cell in cells}
    with ExitStack() as stack, progress("versus", len(cells) * options.blocks) as advance:
        workers = {
            side: stack.enter_context(Worker(root, stack.enter_context(package_of(root)), options.threads))
            for side, root in zip(SIDES, (options.other, HERE), strict=True)
        }
        for worker in workers.values():
            worker.check()
        for case, _ in cells:  # the first call of all is slow
            _block(workers, case, 0, 1, 1, options)
        for block, (case, batch) in turns(cells, options.blocks):
            first = block * options.block
            found = _block(workers, case, first, first + options.block, batch, options)
            for side, run in found.items():
                runs[case, batch][side].append(run)
            advance()
    return Report(
        [_sheet(runs, batch, options) for batch in options.batches], {"figures": _data(runs)},
        lambda figure: _draw(figure, runs), verdicts=verdicts(runs),
    )


def _block(
    workers: Mapping[str, Worker], case: Case, first: int, last: int, batch: int, options: argparse.Namespace
) -> dict[str, Run]:
    """A block of problems, P of them at a time by both sides in turns; each time another side begins."""
    parts: dict[str, list[Any]] = {side: [] for side in SIDES}
    for start in range(first, last, batch):
        for side in SIDES if start // batch % 2 else SIDES[::-1]:
            parts[side].append(workers[side].ask(
                method=getattr(case, side), cache=options.cache, temperature=options.temperature, seed=options.seed,
                tokens=options.tokens or TASKS["arithmetic"].max_new_tokens, first=start,
                last=min(start + batch, last),
            ))
    return {
        side: Run(
            sum(part["seconds"] for part in found), tuple(t for part in found for t in part["tokens"]),
            sum(part["dlm_forwards"] for part in found), [each for part in found for each in part["sequences"]],
        )
        for side, found in parts.items()
    }


def equal(sides: Mapping[str, Sequence[Run]]) -> tuple[int, int]:
    """Problems for which both sides give the same tokens, and all."""
    other, this = ([each for run in sides[side] for each in run.sequences] for side in SIDES)
    return sum(a == b for a, b in zip(other, this, strict=True)), len(this)


def verdicts(runs: Runs) -> list[Verdict]:
    """The gains that the project wants to reach, for the numbers of prompts that have one."""
    return [
        Verdict(f"{case} at P = {batch}, tokens/s over the other", over(sides["this"], sides["other"], "rate").value,
                TABLE["wanted"][str(batch)])
        for (case, batch), sides in runs.items() if str(batch) in TABLE["wanted"]
    ]


def _sheet(runs: Runs, batch: int, options: argparse.Namespace) -> Sheet:
    rows = []
    for (case, size), sides in runs.items():
        if size == batch:
            same, every = equal(sides)
            rows.append((
                str(case), *(over_rounds(sides[side], "rate").text(".1f") for side in SIDES),
                over(sides["this"], sides["other"], "rate").text(".2f"),
                *(over_rounds(sides[side], "per_forward").text(".2f") for side in SIDES), f"{same} of {every}",
            ))
    title = (
        f"P = {batch}: {options.blocks} blocks of {options.block} problems, target temperature "
        f"{options.temperature:g}, cache of the DLM: {options.cache}"
    )
    columns = (
        "method", "tokens/s, other", "tokens/s, this", "this / other", "tokens / DLM forward, other", "this",
        "equal outputs",
    )
    return Sheet(title, columns, rows)


def _data(runs: Runs) -> list[dict[str, Any]]:
    return [
        {
            "method": case._asdict(), "batch": batch, "over_other": over(sides["this"], sides["other"], "rate"),
            "equal_outputs": equal(sides)[0],
            **{side: {"tokens_per_second": over_rounds(sides[side], "rate"),
                      "tokens_per_dlm_forward": over_rounds(sides[side], "per_forward")} for side in SIDES},
        }
        for (case, batch), sides in runs.items()
    ]


def _draw(figure: Any, runs: Runs) -> None:
    ax = figure.subplots()
    batches = list(dict.fromkeys(batch for _, batch in runs))
    cases = list(dict.fromkeys(case for case, _ in runs))
    bars(ax, [str(case) for case in cases], {
        f"P = {batch}": [over(runs[case, batch]["this"], runs[case, batch]["other"], "rate") for case in cases]
        for batch in batches
    })
    ax.axhline(1.0, color="0.4", lw=0.8)
    ax.set_ylabel("tokens per second, this over other")
    ax.legend()


main = partial(execute, "versus", __doc__, configure, measure)

if __name__ == "__main__":
    main()
