"""Drafters: tokens per forward of the diffusion model and time per step, by marginals and by a chain of them.

    python -m benchmarks.drafters [--proposals marginals,markov,selector] [--programs smc-1,paper,tree-32] [--w 0,0.3]
        [--temperatures 0.2,1] [--chain] [--refusals] [--blocks 4] [--block 25] [--quick] [--threads N] [--seed 0]
        [--out runs] [--markdown]

On the embedded pair, the diffusion model with a prefix cache, prompts one at a time. All proposals of a program bridge
to the same target by the same w; problems are decoded by each in turn, so that ratios over the first proposal are
within a block of them. With `--chain` the diffusion model's own chain rule drafts too, where a program takes it: what a
head could learn of it at most, for a forward a token. What a bridge pays is the mean of `Z - 1 - log Z`, nats: its
expectation is that of `-log Z`, the bound on the divergence from the target. With `--refusals` no time is taken; the
tables then say where drafts of one particle are refused, by token-level rejection (`benchmarks.refusals`).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.harness import over, over_rounds, progress, spread, timed, turns
from benchmarks.problems import CACHED, TABLES, add_block_arguments, cached, decoder, in_blocks
from benchmarks.refusals import ROWS, Recording, rows_of, seen
from benchmarks.report import Report, Sheet, Verdict, bars, execute, several
from smc_bridge.commands.base import one_of, positive, share
from smc_bridge.estimate import Estimate
from smc_bridge.models.ends import ends_of
from smc_bridge.models.pairs import Pair
from smc_bridge.names import PROPOSALS
from smc_bridge.tasks import Task

TABLE: dict[str, Any] = TABLES["drafters"]


class Run(NamedTuple):
    """A block of problems decoded in one way.

    Attributes:
        per_forward, per_step: tokens per forward of the diffusion model, and per step.
        step: seconds.
        price: mean of `Z - 1 - log Z`, nats.
        right: share of problems solved.
    """

    per_forward: float
    per_step: float
    step: float
    price: float
    right: float


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    for name, parse, default, small in (
        ("--proposals", one_of(list(PROPOSALS)), ",".join(TABLE["proposals"]), None),
        ("--programs", str, ",".join(TABLE["programs"]), TABLE["programs"][0]),
        ("--w", share, ",".join(map(str, TABLE["w"])), "0"),
        ("--temperatures", positive, ",".join(map(str, TABLE["temperatures"])), "1"),
    ):
        parser.add_argument(
            name, type=several(parse), default=small if quick and small else default, metavar="x,x,..",
            help=f"that are compared (default: {default})",
        )
    parser.add_argument("--chain", action="store_true", help="draft by the diffusion model's own chain rule too")
    parser.add_argument("--refusals", action="store_true", help="show where drafts are refused instead")
    add_block_arguments(parser, quick, block=25)


def measure(options: argparse.Namespace) -> Report:
    """Every proposal of every program at every w and temperature."""
    pair, task, blocks = in_blocks(options)
    pair = cached(CACHED, pair)
    if options.refusals:
        return _refusals(options, pair, task, [prompt for block in blocks for prompt in block])
    kinds = [(t, w, program) for t in options.temperatures for w in options.w for program in options.programs]
    found: dict[tuple[float, float, str], dict[str, list[Run]]] = {}
    with progress("drafters", len(kinds) * len(blocks)) as advance:
        for kind in kinds:
            temperature, w, program = kind
            more = ("chain",) if options.chain and not program.startswith("tree") else ()
            found[kind] = {proposal: [] for proposal in (*options.proposals, *more)}
            made: dict[str, Any] = {
                name: decoder(f"{program},w={w:g},proposal={name}", pair, task, temperature=temperature)
                for name in found[kind]
            }
            for sampler in made.values():  # what is made once
                sampler.run(blocks[0][:1], seed=options.seed, max_new_tokens=task.max_new_tokens)
            for i, block in enumerate(blocks):
                items = task.problems(len(block), i * options.block)
                parts: dict[str, list[tuple[float, Any]]] = {name: [] for name in made}
                for place, name in turns(list(made), len(block)):
                    parts[name].append(timed(partial(
                        made[name].run, block[place : place + 1], seed=options.seed,
                        max_new_tokens=task.max_new_tokens,
                    )))
                for name, own in parts.items():
                    found[kind][name].append(_run(own, [item.answer for item in items], task))
                advance()
    return _report(options, found)


def _run(parts: Sequence[tuple[float, Any]], answers: Sequence[Any], task: Any) -> Run:
    results = [result for _, [result] in parts]
    tokens, steps = sum(result.tokens for result in results), sum(len(result.trace) for result in results)
    prices = [math.exp(result.log_evidence) - 1.0 - result.log_evidence for result in results]
    right = [
        sum(weight * task.grade(text, answer) for weight, text in zip(result.weights, result.texts, strict=True))
        for result, answer in zip(results, answers, strict=True)
    ]
    return Run(
        tokens / sum(result.forwards.dlm_forwards for result in results), tokens / steps,
        sum(seconds for seconds, _ in parts) / steps, statistics.fmean(prices), statistics.fmean(right),
    )


def _report(options: argparse.Namespace, found: dict[tuple[float, float, str], dict[str, list[Run]]]) -> Report:
    first, *others = options.proposals
    columns = (
        "program, proposal", "tokens / DLM forward", f"over {first}", "tokens / step", "ms / step", f"over {first}",
        "Z - 1 - log Z", "right",
    )
    sheets, verdicts, groups = list[Sheet](), list[Verdict](), dict[str, list[Estimate]]()
    for temperature in options.temperatures:
        for w in options.w:
            rows = []
            for (t, v, program), runs in found.items():
                if (t, v) != (temperature, w):
                    continue
                for name, own in runs.items():
                    gain, slower = (over(own, runs[first], figure) for figure in ("per_forward", "step"))
                    rows.append((
                        f"{program}, {name}", over_rounds(own, "per_forward").text(), gain.text(),
                        over_rounds(own, "per_step").text(), f"{1e3 * over_rounds(own, 'step').value:.1f}",
                        slower.text(), over_rounds(own, "price").text(), f"{over_rounds(own, 'right').value:.0%}",
                    ))
                    groups.setdefault(name, []).append(over_rounds(own, "per_forward"))
                    if name in others:
                        case = f"{name}, {program}, w = {w:g}, temperature {temperature:g}"
                        verdicts += [
                            Verdict(f"{case}: tokens per DLM forward over {first}", gain.value, TABLE["tokens"]),
                            Verdict(f"{case}: time per step over {first}", slower.value, TABLE["time"], least=False),
                        ]
            sheets.append(Sheet(f"Target temperature {temperature:g}, w = {w:g}", columns, rows))
    cells = [
        {"temperature": t, "w": w, "program": program, "proposal": name, "runs": own}
        for (t, w, program), runs in found.items() for name, own in runs.items()
    ]
    shown = {name: values for name, values in groups.items() if len(values) == len(found)}
    places = [f"{program}\nw = {w:g}, T = {t:g}" for t, w, program in found]

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        bars(ax, places, shown)
        ax.set_ylabel("tokens per DLM forward")
        ax.tick_params(axis="x", labelsize=6)
        ax.legend()

    return Report(sheets, {"cells": cells}, draw, size=(9.0, 4.2), verdicts=verdicts)


def _refusals(options: argparse.Namespace, pair: Pair, task: Task, prompts: Sequence[list[int]]) -> Report:
    """Where the drafts of each proposal are refused, a table for each temperature and w."""
    names = (*options.proposals, *(("chain",) if options.chain else ()))
    cases = [(t, w) for t in options.temperatures for w in options.w]
    sheets, cells, groups = list[Sheet](), list[dict[str, Any]](), {name: list[Estimate]() for name in names}
    with progress("refusals", len(cases) * len(names)) as advance:
        for temperature, w in cases:
            counted = list[tuple[Counter[str], Counter[str]]]()
            columns, drafts = ["committed tokens"], ["tokens per draft, accepted"]
            for name in names:
                kernel, total, refused = Recording(), Counter[str](), Counter[str]()
                sampler: Any = decoder(
                    f"{TABLE['refused']},w={w:g},proposal={name}", pair, task, temperature=temperature, kernel=kernel
                )
                lengths = list[float]()
                for prompt in prompts:
                    kernel.steps.clear()
                    sampler.run([prompt], seed=options.seed, max_new_tokens=task.max_new_tokens)
                    for token in seen(kernel.steps, pair.decode, ends_of(pair.ar.eos_id)):
                        total.update(rows_of(token))
                        refused.update(rows_of(token) if token.refused else ())
                    lengths += [step.accepted for step in kernel.steps]
                counted.append((total, refused))
                columns += [f"{name}: corrections", "of all"]
                drafts += [f"{statistics.fmean(lengths):.2f}", ""]
                groups[name].append(spread([statistics.fmean(lengths)]))
                cells.append({
                    "temperature": temperature, "w": w, "proposal": name, "accepted": statistics.fmean(lengths),
                    "tokens": dict(total), "refused": dict(refused),
                })
                advance()
            rows = [tuple(drafts)]
            for row in (row for row in ROWS if any(total[row] for total, _ in counted)):
                shown = [row]
                for total, refused in counted:
                    part = f" ({refused[row] / total[row]:.1%})" if total[row] else ""
                    shown += [f"{refused[row]} of {total[row]}{part}", f"{refused[row] / max(1, refused['all']):.0%}"]
                rows.append(tuple(shown))
            sheets.append(Sheet(f"Refusals at target temperature {temperature:g}, w = {w:g}", columns, rows))

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        bars(ax, [f"w = {w:g}, T = {t:g}" for t, w in cases], groups)
        ax.set_ylabel("accepted tokens per draft")
        ax.legend()

    return Report(sheets, {"cells": cells}, draw, spread="counts over all problems")


main = partial(execute, "drafters", __doc__, configure, measure)

if __name__ == "__main__":
    main()
