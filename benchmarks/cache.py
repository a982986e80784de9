"""Cache: the AR session with a cache against one that recomputes, and packed lanes against copies of the cache.

    python -m benchmarks.cache [--prompts 32,128,512] [--lanes 1,4,8] [--tokens 96] [--repetitions 5] [--quick]
        [--threads N] [--seed 0] [--out runs] [--markdown]

On the embedded pair, three sessions of the same AR model: *recomputed* (every score is a forward over prefix and
draft), *copied* (a cache, repeated for the K lanes of a particle) and *packed* (a cache, the K lanes side by side in
one row). Measured are a whole run (one particle with K lanes, the end of sequence banned, so that all three do the same
work) and a single score of K drafts of 32 tokens behind a prefix that is already encoded. The three must commit the
same tokens; the table counts the runs in which they did (round-off can part them).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from benchmarks.harness import Advance, interleaved, progress, ratios, spread, timed
from benchmarks.problems import embedded
from benchmarks.report import Report, Sheet, bars, execute, several
from smc_bridge.commands.base import whole
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.estimate import Estimate
from smc_bridge.models.ends import ends_of
from smc_bridge.models.huggingface import HuggingFaceCausalLM
from smc_bridge.models.pairs import Pair
from smc_bridge.models.protocols import CausalLM
from smc_bridge.proposals.mean_field import DLMProposal

WINDOW, LOOKAHEAD = 32, 64
#: Scores of one repetition.
CALLS = 5


def sessions(pair: Pair) -> dict[str, CausalLM]:
    """The pair's AR model with each kind of session."""
    known: dict[str, Any] = {
        "eos_id": pair.ar.eos_id, "banned_ids": pair.ar.banned_ids, "vocab_size": pair.ar.vocab_size,
    }
    network: Any = pair.ar
    return {
        "recomputed": HuggingFaceCausalLM(network.model, cache=False, **known),
        "copied": HuggingFaceCausalLM(network.model, cache=True, lanes="copied", **known),
        "packed": HuggingFaceCausalLM(network.model, cache=True, lanes="packed", **known),
    }


@dataclass(frozen=True)
class Cell:
    """One prompt length and number of lanes.

    Attributes:
        prompt: its length, tokens.
        lanes: K.
        run, call: seconds of a whole run and of one call, by kind of session, a value for each round.
        same: whether all kinds committed the same tokens.
    """

    prompt: int
    lanes: int
    run: dict[str, list[float]]
    call: dict[str, list[float]]
    same: bool

    def figures(self, what: str) -> tuple[dict[str, Estimate], tuple[Estimate, Estimate]]:
        """Seconds of a "run" or a "call" by kind of session; recomputing over packed lanes, and copied over packed."""
        seconds: dict[str, list[float]] = getattr(self, what)
        packed = seconds["packed"]
        return (
            {name: spread(times) for name, times in seconds.items()},
            (ratios(seconds["recomputed"], packed), ratios(seconds["copied"], packed)),
        )


#: The two ratios that are shown, by the names of their columns.
RATIOS = ("recomputed / packed", "copied / packed")


def whole_run(pair: Pair, ar: CausalLM, prompt: list[int], *, lanes: int, tokens: int, seed: int) -> (
    Callable[[], tuple[float, list[list[int]]]]
):
    """A function that decodes `tokens` tokens and gives its seconds and what it committed."""
    banned = ends_of(ar.eos_id)
    sampler = Sampler(
        DLMProposal(pair.dlm, lookahead=LOOKAHEAD, banned_ids=banned), ARTarget(ar, banned_ids=banned), lanes=lanes,
        window=WINDOW,
    )

    def run() -> tuple[float, list[list[int]]]:
        seconds, results = timed(lambda: sampler.run([prompt], seed=seed, max_new_tokens=tokens))
        return seconds, results[0].sequences

    return run


def score_call(ar: CausalLM, prompt: list[int], drafts: torch.Tensor) -> Callable[[], float]:
    """A function that gives the seconds of one score of `drafts: [K, V]` behind an encoded prefix."""
    session = ar.session(torch.tensor([prompt], device=ar.device), torch.tensor([len(prompt)], device=ar.device))
    rows = torch.zeros(drafts.shape[0], dtype=torch.long, device=ar.device)

    @torch.inference_mode()
    def call() -> float:
        session.score(rows, drafts)
        return timed(lambda: [session.score(rows, drafts) for _ in range(CALLS)])[0] / CALLS

    return call


def measure_cell(
    pair: Pair, models: dict[str, CausalLM], text: Sequence[int], *, prompt: int, lanes: int,
    options: argparse.Namespace, advance: Advance,
) -> Cell:
    """Both measurements at one prompt length and number of lanes."""
    ids = [text[i % len(text)] for i in range(prompt)]
    drafts = torch.tensor([text[k : k + WINDOW] for k in range(lanes)], device=pair.ar.device)
    warmup = 0 if options.quick else 1
    runs = interleaved(
        {name: whole_run(pair, ar, ids, lanes=lanes, tokens=options.tokens, seed=options.seed)
         for name, ar in models.items()}, options.repetitions, warmup=warmup, advance=advance,
    )
    calls = interleaved(
        {name: score_call(ar, ids, drafts) for name, ar in models.items()}, options.repetitions, warmup=warmup,
        advance=advance,
    )
    committed = [sequences for measured in runs.values() for _, sequences in measured]
    return Cell(
        prompt, lanes, {name: [seconds for seconds, _ in measured] for name, measured in runs.items()}, calls,
        all(sequences == committed[0] for sequences in committed),
    )


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--prompts", type=several(whole(1)), default="32" if quick else "32,128,512", metavar="S,S,..",
                        help="prompt lengths, tokens")
    parser.add_argument("--lanes", type=several(whole(1)), default="2" if quick else "1,4,8", metavar="K,K,..",
                        help="lanes K")
    parser.add_argument("--tokens", type=whole(1), default=8 if quick else 96, help="of a run")
    parser.add_argument("--repetitions", type=whole(1), default=1 if quick else 5, help="of every measurement")


def measure(options: argparse.Namespace) -> Report:
    """Every prompt length with every number of lanes."""
    pair, _, prompts = embedded(16)
    models, text = sessions(pair), list(chain.from_iterable(prompts))
    sizes = [(prompt, lanes) for prompt in options.prompts for lanes in options.lanes]
    with progress("cache", len(sizes) * options.repetitions * 2 * len(models)) as advance:
        cells = [
            measure_cell(pair, models, text, prompt=prompt, lanes=lanes, options=options, advance=advance)
            for prompt, lanes in sizes
        ]
    return Report(
        [_sheet(cells, "run", f"A whole run of {options.tokens} tokens"),
         _sheet(cells, "call", f"One score of K drafts of {WINDOW} tokens")],
        {"cells": [
            {"prompt": cell.prompt, "lanes": cell.lanes, "same_tokens": cell.same,
             **{what: dict(zip(("seconds", "ratios"), cell.figures(what), strict=True)) for what in ("run", "call")}}
            for cell in cells
        ]}, lambda figure: _draw(figure, cells), size=(9.6, 4.2),
    )


def _sheet(cells: Sequence[Cell], what: str, title: str) -> Sheet:
    rows = []
    for cell in cells:
        seconds, gains = cell.figures(what)
        rows.append((
            f"{cell.prompt}, {cell.lanes}", *(each.times(1000).text() for each in seconds.values()),
            *(gain.text(".2f") for gain in gains),
            *((("yes" if cell.same else "no"),) if what == "run" else ()),
        ))
    columns = (
        "prompt, K", "recomputed, ms", "copied, ms", "packed, ms", *RATIOS,
        *(("same tokens",) if what == "run" else ()),
    )
    return Sheet(title, columns, rows)


def _draw(figure: Any, cells: Sequence[Cell]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    places = [f"{cell.prompt}\nK = {cell.lanes}" for cell in cells]
    for ax, what in zip(axes, ("run", "call"), strict=True):
        gains = zip(*(cell.figures(what)[1] for cell in cells), strict=True)
        bars(ax, places, dict(zip(RATIOS, gains, strict=True)))
        ax.axhline(1.0, color="0.4", lw=0.8)
        ax.set_xlabel("prompt, tokens; lanes")
        ax.set_title("whole run" if what == "run" else "one score")
    axes[0].set_ylabel("ratio of times")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


main = partial(execute, "cache", __doc__, configure, measure)

if __name__ == "__main__":
    main()
