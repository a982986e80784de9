"""Rich tables: one that sums up runs side by side, one that shows a single step lane by lane.

In a notebook and at a prompt a table shows itself; in a script `print(table)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich import box
from rich.text import Text

from smc_bridge.analysis.bounds import kl_certificate
from smc_bridge.analysis.lengths import block_statistics
from smc_bridge.analysis.runs import Runs, as_runs
from smc_bridge.analysis.variance import log_weight_variance_per_token
from smc_bridge.display import PrintedTable
from smc_bridge.result import Result


def summary(results: Runs | Mapping[str, Runs]) -> PrintedTable:
    """Means over runs, a row for each method; in brackets the 95 % interval of the bound, where the runs give one.

    Args:
        results: runs of one method, or of several by name.
    """
    groups = results if isinstance(results, Mapping) else {as_runs(results)[0].method: results}
    table = PrintedTable(
        box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption="means over runs; blocks of all lanes"
    )
    table.add_column("method", no_wrap=True)
    for name in (
        "runs", "tokens", "tokens /\nblock", "accepted", "ESS / N", "var(log w)\n/ token", "tokens /\nDLM fwd",
        "AR\nfwds",
    ):
        table.add_column(name, justify="right")
    table.add_column("KL bound\n(nats)", justify="right", no_wrap=True)
    for name, group in groups.items():
        table.add_row(name, *_cells(as_runs(group)))
    return table


def _cells(runs: list[Result]) -> list[str]:
    blocks = block_statistics(runs)
    if not all(run.proper for run in runs):
        bound = "not proper"
    elif any(run.has_potential for run in runs):
        bound = "needs log Z"
    else:
        certificate = kl_certificate(runs)
        spread = f" [{certificate.low:.2g}, {certificate.high:.2g}]" if certificate.has_interval else ""
        bound = f"{certificate.kl:.3g}{spread}"
    values = [
        _mean([run.tokens for run in runs]), blocks.tokens, blocks.acceptance,
        _mean([run.ess / len(run.log_weights) for run in runs]), log_weight_variance_per_token(runs),
        _mean([run.tokens_per_dlm_forward for run in runs]), _mean([run.forwards.ar_forwards for run in runs]),
    ]
    return [str(len(runs)), *("–" if math.isnan(value) else f"{value:.3g}" for value in values), bound]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def step_table(result: Result, step: int, *, decode: Callable[[list[int]], str] | None = None) -> PrintedTable:
    """One step lane by lane: accepted tokens green, the correction yellow, refused draft tokens red and struck out.

    Args:
        result: of a run with `keep_drafts=True`.
        step: index into its trace, negative from the end.
        decode: turns token ids into text; by default ids are shown.
    Raises:
        ValueError: no such step, or the run kept no drafts.
    """
    if not -len(result.trace) <= step < len(result.trace):
        raise ValueError(f"step = {step}: the trace has {len(result.trace)} steps")
    record = result.trace[step]
    if record.blocks is None:
        raise ValueError("result has no drafts in its trace: run with keep_drafts=True")
    place = step % len(result.trace)
    table = PrintedTable(
        title=f"Step {place} of {len(result.trace)}: ESS {record.ess:.2f}, log Z {record.log_evidence:.4f}",
        caption="draft: accepted green, corrected yellow, refused red",
    )
    for name in ("particle", "lane"):
        table.add_column(name, justify="right")
    table.add_column("draft", overflow="fold")
    for name in ("accepted", "length", "log weight\nearned (nats)", "survivors"):
        table.add_column(name, justify="right")
    chosen = list(zip(record.ancestors, record.lanes, strict=True))
    for n, blocks in enumerate(record.blocks):
        for k, block in enumerate(blocks):
            accepted = record.accepted[n][k]
            draft = record.drafts[n][k] if record.drafts else []
            # The correction replaces the draft's token in its place; what follows was never committed.
            text = Text()
            for ids, style in (
                (block[:accepted], "green"), (block[accepted:], "bold yellow"), (draft[accepted:], "red strike"),
            ):
                if ids:
                    text.append(_words(ids, decode), style=style)
            grew = bool(block)
            table.add_row(
                str(n), str(k), text if grew else Text("finished", style="dim"), str(accepted) if grew else "",
                str(len(block)) if grew else "", f"{record.log_increments[n][k]:+.3f}" if grew else "",
                str(chosen.count((n, k)) or ""),
            )
    return table


def _words(ids: list[int], decode: Callable[[list[int]], str] | None) -> str:
    return "".join(f"{i} " for i in ids) if decode is None else decode(ids)
