"""What `smc-bridge decode` prints of a `Result`: the drawn text, the weighted particles, evidence and diagnostics."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console
from rich.text import Text

from smc_bridge.display import PrintedTable
from smc_bridge.result import Result
from smc_bridge.tables import print_table


def render_result(console: Console, result: Result, *, seed: int = 0) -> None:
    """Print the text drawn from the weights, the particles and the diagnostics.

    Raises:
        ValueError: every weight is zero, so that nothing can be drawn.
    """
    drawn = str(result.sample(seed=seed))
    console.print(Text(drawn, style="bold"))
    console.print()
    print_table(console, particle_table(result))
    console.print(diagnostics(result))


def particle_table(result: Result) -> PrintedTable:
    """Weight, log weight, length and text of every particle, heaviest first."""
    what = "weighted particles" if result.trace else "the continuation"  # of a decoder without particles
    table = PrintedTable(title=f"{result.method}: {what}", title_justify="left")
    for name in ("particle", "weight", "log weight (nats)", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    weights = result.weights
    for i in np.argsort(-weights, kind="stable"):
        table.add_row(
            str(i), f"{weights[i]:.4f}", f"{result.log_weights[i]:.4f}", str(len(result.sequences[i])),
            Text(str(result.values[i])),
        )
    return table


def accepted_lengths(result: Result) -> tuple[float, list[float]]:
    """Accepted draft tokens of a lane: mean over all lanes, and mean of each step, tokens."""
    per_step = [[accepted for _, accepted, _ in record.grown()] for record in result.trace]
    everything = [accepted for step in per_step for accepted in step]
    mean = sum(everything) / len(everything) if everything else math.nan
    return mean, [sum(step) / len(step) if step else math.nan for step in per_step]


def diagnostics(result: Result) -> PrintedTable:
    """Evidence, ESS, certificate, accepted lengths, forwards and speed of a run, one line each."""
    table = PrintedTable(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    forwards = result.forwards
    mean, per_step = accepted_lengths(result)
    if result.proper:
        table.add_row("log Z", f"{result.log_evidence:.4f} nats")
        table.add_row("ESS", f"{result.ess:.2f} of {len(result.sequences)} particles")
        if not result.complete:
            bound = "none: the run was interrupted"
        elif result.has_potential:
            bound = "none: with a potential the bound is log Z - E[log Z_hat], and log Z is not known"
        else:
            certificate = result.certificate()
            bound = str(certificate)
            if not certificate.exact and math.isfinite(certificate.kl):
                bound += "; the term is Z - 1 - log Z, which has the mean of -log Z"
        table.add_row("KL certificate", Text(bound))
    else:
        table.add_row("log Z, ESS", "none: not properly weighted")
        table.add_row("KL certificate", Text(f"none: not properly weighted: {'; '.join(result.reasons)}"))
    if per_step:
        table.add_row(
            "accepted lengths", f"mean {mean:.2f} tokens per lane; by step {' '.join(f'{x:.3g}' for x in per_step)}"
        )
    table.add_row("DLM forwards", f"{forwards.dlm_forwards} ({forwards.dlm_rows} rows)")
    table.add_row(
        "AR forwards", f"{forwards.ar_forwards} ({forwards.ar_rows} rows, {forwards.ar_tokens} tokens or nodes scored)"
    )
    if forwards.dlm_forwards:
        table.add_row("tokens per DLM forward", f"{result.tokens_per_dlm_forward:.2f}")
    table.add_row(
        "tokens/s", f"{result.tokens / result.seconds:.1f} ({result.tokens:.1f} tokens in {result.seconds:.2f} s)"
    )
    return table
