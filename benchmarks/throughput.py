"""Throughput: tokens per second of every decoder against the diffusion model's own at one token per forward.

    python -m benchmarks.throughput [--batches 1,4,16] [--blocks 4] [--block 32] [--temperature 0.2] [--methods a,b,..]
        [--cached a,b,..] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

On the embedded pair every method decodes the same problems, cut into blocks: all methods at all batch sizes P decode
block 1, then block 2, and so on. P prompts are in work at a time: when one is done, the next takes its place. The
methods that are shown and what is wanted of them stand in `benchmarks/tables.toml`; `NAME+prefix` is a method whose
diffusion model keeps a prefix cache, and the baseline is there without one and with. transformers' own `generate`
(`benchmarks.generate`) is AR sampling too. Tokens are those that are committed (means over the particles), and a
block's time is that of all its prompts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import over, over_rounds, progress, timed, turns
from benchmarks.problems import (
    CACHED,
    TABLES,
    add_block_arguments,
    add_law_arguments,
    cached,
    decoder,
    embedded,
    methods,
)
from benchmarks.report import Report, Sheet, Verdict, execute, several
from smc_bridge.analysis.bounds import ratio_per_token
from smc_bridge.analysis.estimates import wilson
from smc_bridge.commands.base import whole
from smc_bridge.decode import Decoder, decode
from smc_bridge.estimate import Estimate
from smc_bridge.registry import spelled
from smc_bridge.result import Result
from smc_bridge.tasks import Item, Task

TABLE = TABLES["throughput"]
BASELINE: str = TABLE["baseline"]
#: What the wanted tokens/s may cost: at least this share of the AR model's accuracy.
SHARE_OF_ACCURACY = 0.99
#: Tokens/s at P = 16 over those at P = 1, for programs with weights.
WANTED_BATCH = 5.0
#: The same decoder where the diffusion model keeps a prefix cache.
CACHED_BASELINE = BASELINE + CACHED


class Run(NamedTuple):
    """One method on one block of problems.

    Attributes:
        seconds: wall time.
        tokens: mean length of the particles, tokens, for each problem.
        drawn_tokens: expected length of a draw from the weights, tokens, for each problem.
        right: problems with a right answer.
        dlm_forwards: forwards of the DLM in all.
        log_evidence: `log Z_hat` of each problem, nats; None for methods without weights.
    """

    seconds: float
    tokens: tuple[float, ...]
    drawn_tokens: tuple[float, ...]
    right: int
    dlm_forwards: int
    log_evidence: tuple[float, ...] | None

    @property
    def rate(self) -> float:
        """Tokens per second of wall time."""
        return sum(self.tokens) / self.seconds


def run_block(
    decoder: Decoder[Any], task: Task, items: Sequence[Item], prompts: Sequence[Sequence[int]], *, batch: int,
    seed: int, limit: int,
) -> Run:
    """Decode a block of problems."""
    seconds, results = timed(lambda: decode(decoder, prompts, seed=seed, max_new_tokens=limit, batch=batch))
    right = sum(_right(task, item, result, seed) for item, result in zip(items, results, strict=True))
    weighted = all(result.proper and result.forwards.dlm_forwards for result in results)
    return Run(
        seconds, tuple(result.tokens for result in results), tuple(result.drawn_tokens for result in results), right,
        sum(result.forwards.dlm_forwards for result in results),
        tuple(result.log_evidence for result in results) if weighted else None,
    )


def _right(task: Task, item: Item, result: Result, seed: int) -> bool:
    """Whether one draw from the weights is the right answer; a run whose weights are all zero has none."""
    return result.alive and task.grade(result.sample(seed=seed), item.answer)


class Figures(NamedTuple):
    """One method at one batch size over all blocks; None where a figure does not apply.

    Attributes:
        tokens_per_second: its rate.
        over_baseline: the same over the baseline's.
        over_cached: the same over that of the baseline with a prefix cache.
        tokens_per_dlm_forward: tokens per forward of the DLM.
        accuracy: share of right answers.
        nats_per_token: KL bound per token, nats.
    """

    tokens_per_second: Estimate
    over_baseline: Estimate
    over_cached: Estimate
    tokens_per_dlm_forward: float | None
    accuracy: Estimate
    nats_per_token: float | None

    @classmethod
    def of(cls, runs: Sequence[Run], baseline: Sequence[Run], cached_baseline: Sequence[Run]) -> Figures:
        """Sum up a method's blocks beside those of the baseline at the same batch size, without a cache and with."""
        tokens = [t for run in runs for t in run.tokens]
        forwards = sum(run.dlm_forwards for run in runs)
        evidence = [z for run in runs for z in run.log_evidence or ()]
        drawn = [t for run in runs for t in run.drawn_tokens]
        return cls(
            over_rounds(runs, "rate"), over(runs, baseline, "rate"), over(runs, cached_baseline, "rate"),
            sum(tokens) / forwards if forwards else None, wilson(sum(run.right for run in runs), len(tokens)),
            ratio_per_token(evidence, drawn).value if evidence else None,
        )


#: By method and batch size: a run for each block, and the figures of all blocks.
Runs = dict[tuple[str, int], list[Run]]
Found = dict[tuple[str, int], Figures]


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument(
        "--methods", type=methods, default=TABLE["quick" if quick else "methods"], metavar="a,b,..",
        help=f"as `smc-bridge methods` lists them, or generate-batch; {BASELINE} is always there",
    )
    parser.add_argument(
        "--cached", type=methods, default=() if quick else TABLE["cached"], metavar="a,b,..",
        help="methods that are run with a prefix cache of the diffusion model too",
    )
    parser.add_argument(
        "--batches", type=several(whole(1)), default="1,2" if quick else "1,4,16", metavar="P,P,..",
        help="prompts in work at a time",
    )
    add_law_arguments(parser, 16 if quick else None)
    add_block_arguments(parser, quick)


def measure(options: argparse.Namespace) -> Report:
    """Decode every block with every method at every batch size."""
    with_cache = [text + CACHED for text in options.cached]
    chosen = tuple(dict.fromkeys((*options.methods, BASELINE, CACHED_BASELINE, *with_cache)))
    batches = options.batches
    pair, task, prompts = embedded(options.blocks * options.block)
    items = task.problems(len(prompts))
    decoders = {
        name: decoder(name, cached(name, pair), task, temperature=options.temperature) for name in chosen
    }
    limit = options.tokens or task.max_new_tokens
    cells = [(name, batch) for batch in batches for name in chosen]
    runs: Runs = {cell: [] for cell in cells}
    with progress("throughput", len(cells) * options.blocks) as advance:
        for each in decoders.values():
            decode(each, prompts[:1], seed=options.seed, max_new_tokens=limit)
        for block, (name, batch) in turns(cells, options.blocks):
            part = slice(block * options.block, (block + 1) * options.block)
            runs[name, batch].append(run_block(
                decoders[name], task, items[part], prompts[part], batch=batch, seed=options.seed, limit=limit,
            ))
            advance()
    found = {
        cell: Figures.of(runs[cell], *(runs[base, cell[1]] for base in (BASELINE, CACHED_BASELINE))) for cell in cells
    }
    gains = {name: over(runs[name, max(batches)], runs[name, min(batches)], "rate") for name in chosen}
    sheets = [_sheet(found, chosen, batch, options) for batch in batches]
    if len(batches) > 1:
        sheets.append(Sheet(
            f"tokens/s at P = {max(batches)} over P = {min(batches)}", ("method", "ratio"),
            [(name, gain.text(".2f")) for name, gain in gains.items()],
        ))
    data = {
        "figures": [{"method": name, "batch": batch, **figures._asdict()} for (name, batch), figures in found.items()],
        "batch_gain": gains,
    }
    return Report(
        sheets, data, lambda figure: _draw(figure, found, chosen, batches),
        size=(7.2, 1.4 + 0.42 * len(chosen)), verdicts=verdicts(runs, found, batches),
    )


def verdicts(runs: Runs, found: Found, batches: Sequence[int]) -> list[Verdict]:
    """The figures that the project wants to reach, for the methods that were run (medians over blocks)."""
    out = []
    slow = [name for name, batch in found if batch == 1 and found[name, 1].tokens_per_dlm_forward is None]
    ar = found[slow[-1], 1] if slow else None
    for name, wanted in TABLE["over_baseline"].items():
        if (name, 1) in found:
            gain = found[name, 1].over_baseline
            out.append(Verdict(f"{name} at P = 1, tokens/s over {BASELINE}", gain.value, wanted))
            if ar is not None:
                share = found[name, 1].accuracy.value / ar.accuracy.value if ar.accuracy.value else math.nan
                out.append(Verdict(f"{name} at P = 1, accuracy over the AR model's", share, SHARE_OF_ACCURACY))
    if 1 in batches and 16 in batches:
        out.extend(
            Verdict(f"{name}, tokens/s at P = 16 over P = 1", gain.value, WANTED_BATCH)
            for name, batch in found if batch == 1 and is_program(name)
            for gain in (over(runs[name, 16], runs[name, 1], "rate"),)
        )
    for name in methods(TABLE["over_ar"]):
        for other in slow:
            if (name, 1) in found:
                gain = over(runs[name, 1], runs[other, 1], "rate")
                out.append(Verdict(f"{name} at P = 1, tokens/s over {other}", gain.value, 1.0))
    return out


def is_program(name: str) -> bool:
    """Whether a method is a program of particles with proper weights."""
    found = spelled(name.removesuffix(CACHED)).method
    return found.proper and any(option.name == "particles" for option in found.options)


def _sheet(found: Found, chosen: Sequence[str], batch: int, options: argparse.Namespace) -> Sheet:
    rows = []
    for name in chosen:
        figures = found[name, batch]
        rows.append((
            name, figures.tokens_per_second.text(".1f"), figures.over_baseline.text(".2f"),
            figures.over_cached.text(".2f"),
            "-" if figures.tokens_per_dlm_forward is None else f"{figures.tokens_per_dlm_forward:.2f}",
            figures.accuracy.times(100).text(".1f"),
            "-" if figures.nats_per_token is None else f"{figures.nats_per_token + 0.0:.2g}",
        ))
    title = (
        f"P = {batch}: {options.blocks} blocks of {options.block} problems, target temperature "
        f"{options.temperature:g}, w = 0.3"
    )
    columns = (
        "method", "tokens/s", f"over {BASELINE}", f"over {CACHED_BASELINE}", "tokens / DLM forward",
        "accuracy, % [95 %]", "-log Z, nats / token",
    )
    return Sheet(title, columns, rows)


def _draw(figure: Any, found: Found, chosen: Sequence[str], batches: Sequence[int]) -> None:
    ax = figure.subplots()
    place = np.arange(len(chosen))
    for i, batch in enumerate(batches):
        rates = [found[name, batch].tokens_per_second for name in chosen]
        ax.errorbar(
            [rate.value for rate in rates], place + 0.2 * (i - (len(batches) - 1) / 2),
            xerr=np.transpose([rate.bars for rate in rates]), fmt="osD^v"[i % 5], capsize=2, label=f"P = {batch}",
        )
    ax.set_yticks(place, chosen)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    ax.set_xlabel("tokens per second (median block; bars from the least to the greatest)")
    ax.grid(which="both", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=len(batches))


main = partial(execute, "throughput", __doc__, configure, measure)

if __name__ == "__main__":
    main()
