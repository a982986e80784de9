"""The trace of a run as coloured text: for every step, what became of each lane's draft, its weight, and who survived.

Accepted tokens are green, the token that the kernel put after them yellow, refused tokens red. Symbols say the same
where there is no colour: `[+corrected+]` and `[-refused-]`, as in a word diff. `*` marks lanes that survived.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from smc_bridge.models.ends import Ends, EosId, ends_of
from smc_bridge.result import Result
from smc_bridge.trace import StepRecord

if TYPE_CHECKING:
    from smc_bridge.models.pair import Pair

ACCEPTED, CORRECTED, REFUSED = "green", "yellow", "red"
#: Refused tokens that are shown; the rest is counted.
SHOWN = 12

#: Ids to text.
Decode = Callable[[list[int]], str]


def texts_of(pair: Pair) -> Decode:
    """What shows the tokens of a pair: its text, or their ids where one means something at its own place alone."""
    return (lambda ids: "".join(f" {i}" for i in ids)) if getattr(pair.ar, "placed", False) else pair.decode


def render_trace(console: Console, result: Result, *, decode: Decode, eos_id: EosId) -> None:
    """Print every step of a result.

    Args:
        result: of a run with `keep_drafts`.
        decode: turns ids into text; it may leave out an end of sequence, which is shown as `<eos>`.
        eos_id: token that ends a sequence, several of them, or None.
    Raises:
        ValueError: the run did not keep its drafts.
    """
    legend = Text("trace: ")
    legend.append("accepted", ACCEPTED)
    legend.append(" [+corrected+]", CORRECTED)
    legend.append(" [-refused-]", REFUSED)
    legend.append("; * survives; W is a lane's share of the step's weight")
    console.print(legend)
    carried, show = [0.0] * len(result.sequences), _Show(decode, ends_of(eos_id))
    for number, record in enumerate(result.trace, start=1):
        _render_step(console, number, record, carried, show=show, weighted=result.proper)
        carried = record.log_weights
    console.print()


def token_texts(result: Result, *, decode: Decode, eos_id: EosId) -> dict[str, str]:
    """Text of every token of a trace by its id, which JSON wants as a string; arguments as `render_trace`.

    A result that is saved with them (`settings["tokens"]`) shows its tokens where its tokenizer is not at hand.
    """
    rows = [row for record in result.trace for lanes in (record.blocks, record.drafts) for row in lanes or []]
    ends = ends_of(eos_id)
    every = {token for row in rows for lane in row for token in lane}
    return {str(token): "<eos>" if token in ends else decode([token]) for token in sorted(every)}


def lane_shares(record: StepRecord, carried: list[float]) -> list[list[float]]:
    """Normalised weight of every lane of a step before selection, `[N][K]`; 0 throughout if all weights are zero.

    Args:
        carried: log weights of the particles before the step, `[N]`.
    """
    log_weights = [[c + gain for gain in gains] for c, gains in zip(carried, record.log_increments, strict=True)]
    top = max(value for row in log_weights for value in row)
    if top == -math.inf:
        return [[0.0] * len(row) for row in log_weights]
    raw = [[math.exp(value - top) for value in row] for row in log_weights]
    total = sum(sum(row) for row in raw)
    return [[value / total for value in row] for row in raw]


class _Show:
    """Token ids as text on one line."""

    def __init__(self, decode: Decode, ends: Ends) -> None:
        self.decode, self.ends = decode, ends

    def __call__(self, ids: list[int]) -> str:
        pieces, run = "", list[int]()
        for token in ids:
            if token in self.ends:
                pieces, run = pieces + (self.decode(run) if run else "") + "<eos>", []
            else:
                run.append(token)
        return (pieces + (self.decode(run) if run else "")).replace("\n", "\\n")


def _render_step(
    console: Console, number: int, record: StepRecord, carried: list[float], *, show: _Show, weighted: bool
) -> None:
    if record.blocks is None:
        raise ValueError("trace has no drafts: run with keep_drafts = True")
    head = f"step {number}: {record.dlm_rows} DLM rows, {record.ar_rows} AR rows, ESS {record.ess:.2f}"
    head += ", resampled" if record.resampled else ""
    console.print(Text(head + (f", log Z {record.log_evidence:.4f}" if weighted else ""), style="bold"))
    shares = lane_shares(record, carried)
    survivors = list(zip(record.ancestors, record.lanes, strict=True))
    for n, blocks in enumerate(record.blocks):
        if not any(record.length[n]):
            copies = record.ancestors.count(n)
            console.print(Text(f"  {_mark(copies)} particle {n}: finished, {_times(copies)}, W {sum(shares[n]):.3f}"))
            continue
        for k, block in enumerate(blocks):
            copies = survivors.count((n, k))
            name = "log w" if weighted else "score"
            accepted, length = record.accepted[n][k], record.length[n][k]
            line = Text(
                f"  {_mark(copies)} particle {n} lane {k}: {accepted} accepted, {_times(copies)}, "
                f"{name} {record.log_increments[n][k]:+.4f}, W {shares[n][k]:.3f} | ",
                style="bold" if copies else "",
            )
            draft = record.drafts[n][k] if record.drafts else []
            console.print(line.append_text(lane_text(draft, block, length, accepted, show=show)))


def _mark(copies: int) -> str:
    return "*" if copies else " "


def _times(copies: int) -> str:
    return "drops out" if copies == 0 else "survives" if copies == 1 else f"survives {copies} times"


def lane_text(
    draft: list[int], block: list[int], length: int, accepted: int, *, show: Callable[[list[int]], str]
) -> Text:
    """One lane: accepted tokens, the correction, and what was refused of the draft (nothing for a tree)."""
    text = Text(show(block[:accepted]), style=ACCEPTED)
    if length > accepted:
        text.append(f"[+{show(block[accepted:length])}+]", CORRECTED)
    refused = draft[accepted:] if length > accepted else []  # without a correction the block ended, nothing was refused
    if refused:
        more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        text.append(f"[-{show(refused[:SHOWN])}{more}-]", REFUSED)
    return text
