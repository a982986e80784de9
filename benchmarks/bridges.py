"""Bridges: what the law of every intermediate costs at the tokens of a draft, over the product of experts.

    python -m benchmarks.bridges [--alphabet 151936] [--windows 1,8,32] [--rounds 15] [--quick] [--threads N] [--seed 0]
        [--out runs] [--markdown]

Two models' random logits; a draft from the first. Timed are the law and its `log pi` at the V tokens alone, and those
of q, p and pi together, as a step reads them. Nothing is kept from one reading to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.harness import interleaved, progress, ratios, spread, timed
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, Verdict, bars, execute, several
from smc_bridge.commands.base import whole
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.law import Law, along
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.estimate import Estimate
from smc_bridge.names import named

TABLE: dict[str, Any] = TABLES["bridges"]
#: Standard deviation of the logits, and of what the second model's differ by.
SPREAD, DIFFERENCE = 3.0, 1.5
#: Ends the name of a reading of pi together with q and p.
TOGETHER = ", with q and p"


def readings(window: int, alphabet: int, seed: int) -> dict[str, Callable[[], float]]:
    """Seconds of a reading: by intermediate, alone and (`TOGETHER`) with q and p."""
    generator = torch.Generator().manual_seed(seed)
    first = SPREAD * torch.randn(1, window, alphabet, generator=generator)
    second = first + DIFFERENCE * torch.randn(1, window, alphabet, generator=generator)
    tokens = torch.multinomial(first[0].softmax(-1), 1, generator=generator).view(1, window)

    @torch.inference_mode()
    def read(intermediate: Any, together: bool) -> float:
        def both() -> list[Law]:
            return [model_law(logits, None, Shaping()) for logits in (first, second)]

        def work() -> None:
            q, p = both() if together else made
            pi = bridge_law(intermediate, q, p, lanes=1)  # small laws are computed here, and looked up below
            along([q, p, pi] if together else [pi], tokens)

        made = both()
        return timed(work)[0]

    return {
        f"{title}{end}": partial(read, named("intermediate", **options), bool(end))
        for title, options in TABLE["intermediates"].items() for end in ("", TOGETHER)
    }


def measure(options: argparse.Namespace) -> Report:
    """A table: each intermediate over the product of experts, by V."""
    with progress("bridges", len(options.windows) * options.rounds * 2 * len(TABLE["intermediates"])) as advance:
        found = {
            window: interleaved(
                readings(window, options.alphabet, options.seed), options.rounds, warmup=2, advance=advance
            )
            for window in options.windows
        }
    base = next(iter(TABLE["intermediates"]))
    columns = ["intermediate"]
    for window in options.windows:
        columns += [f"V = {window}: ms", f"over {base}", "with q and p: ms", f"over {base}"]
    rows, verdicts = [], []
    over = {
        (name, window): ratios(seconds, found[window][base + (TOGETHER if name.endswith(TOGETHER) else "")])
        for window in options.windows for name, seconds in found[window].items()
    }
    for name in TABLE["intermediates"]:
        cells = [
            text for window in options.windows for each in (name, name + TOGETHER)
            for text in (spread(found[window][each]).times(1e3).text(".2f"), over[each, window].text(".2f"))
        ]
        rows.append([name, *cells])
        verdicts += [
            Verdict(f"{name}, V = {window}, over {base}", over[name, window].value, TABLE["most"], least=False)
            for window in options.windows if name != base
        ]
    data = {"seconds": {str(window): each for window, each in found.items()}}
    return Report(
        [Sheet(f"A = {options.alphabet:,}, one row", columns, rows)], data, partial(_draw, options.windows, over),
        verdicts=verdicts,
    )


def _draw(windows: Sequence[int], over: Mapping[tuple[str, int], Estimate], figure: Any) -> None:
    ax = figure.subplots()
    names = list(TABLE["intermediates"])
    bars(ax, names, {f"V = {window}": [over[name, window] for name in names] for window in windows})
    ax.axhline(TABLE["most"], color="0.4", lw=0.8)
    ax.set_ylabel(f"time over that of {names[0]}")
    ax.legend()


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--alphabet", type=whole(2), default=500 if quick else 151_936, help="A")
    parser.add_argument(
        "--windows", type=several(whole(1)), default="1" if quick else "1,8,32", metavar="V,V,..", help="tokens read"
    )
    parser.add_argument("--rounds", type=whole(1), default=1 if quick else 15, help="of every reading")


main = partial(execute, "bridges", __doc__, configure, measure)

if __name__ == "__main__":
    main()
