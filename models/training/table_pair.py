"""Train the two models of a table: `python -m smc_bridge.models.training.table_pair`, minutes on one thread.

Both are learnt from the same rows, as tokens (`smc_bridge.models.tables.codec`):

- the *autoregressive* one by the cross-entropy of each column given those before it;
- the *diffusion* one by the cross-entropy of masked columns given the others. Every column is masked with a rate that
  is drawn for the row (MDLM: Sahoo et al. 2024, arXiv 2406.07524); in every second row the columns from a place on are
  masked instead, which is what it is asked in a draft from left to right.

A tenth of the rows is held out; its losses are in the files.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from smc_bridge.models.tables import datasets
from smc_bridge.models.tables.codec import Codec
from smc_bridge.models.tables.columns import ColumnNetwork
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.pair import WEIGHTS, save_table_pair, table_pair
from smc_bridge.models.tabular import SEEDS
from smc_bridge.models.training.fit import Trained, fit, initialised

#: Tables by name.
TABLES: dict[str, Callable[[], datasets.Dataset]] = {"adult": datasets.adult, "small": datasets.small}
BATCH, RATE, STEPS, HELD_OUT = 128, 3e-3, 2500, 0.1
#: Of the held-out rows, so that figures of two trainings can be compared.
EVALUATION = 1


def masks(count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Which columns of `count` rows are masked, bool `[count, columns]`, at least one: by a rate or from a place on."""
    chance = torch.rand(count, columns, generator=generator)
    rate = torch.rand(count, 1, generator=generator)
    first = torch.randint(columns, (count, 1), generator=generator)
    column = torch.arange(columns)
    some = torch.where((torch.arange(count) % 2 == 0)[:, None], chance < rate, column >= first)
    return some | (column == first)


def loss_of(network: ColumnNetwork, tokens: Tensor, masked: Tensor | None) -> Tensor:
    """Mean cross-entropy, nats per column.

    Args:
        network: causal, or not.
        tokens: of rows, `[n, 1 + C]`.
        masked: columns that a network that is not causal fills, `[n, C]`.
    """
    places = torch.arange(tokens.shape[1])[None]
    if network.causal:
        sees = torch.ones(1, tokens.shape[1] - 1, tokens.shape[1] - 1, dtype=torch.bool).tril()
        logits = network.logits(network(tokens[:, :-1], places[:, :-1], sees), places[:, 1:])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert masked is not None
    hidden = tokens.clone()
    hidden[:, 1:][masked] = -1
    logits = network.logits(network(hidden, places)[:, 1:], places[:, 1:])
    return functional.cross_entropy(logits[masked], tokens[:, 1:][masked])


def train(
    rows: Table, codec: Codec, *, causal: bool, seed: int = 0, steps: int = STEPS, batch: int = BATCH,
    width: int = 64, layers: int = 2,
) -> Trained:
    """Train one of the two models.

    Args:
        rows: to learn from; a tenth is held out.
        codec: of the rows.
        causal: whether it is the autoregressive one.
        seed: of the held-out rows, initialisation, batches and masks.
        steps: of the optimiser.
        batch: rows of a step.
        width, layers: of the network.
    """
    kind = "ar" if causal else "dlm"
    held, learnt = (codec.tokens(part) for part in rows.split(seed, HELD_OUT))
    sizes = " ".join(map(str, codec.sizes))
    network = initialised(
        lambda: ColumnNetwork(sizes=sizes, causal=int(causal), width=width, layers=layers), seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        chosen = learnt[torch.randint(len(learnt), (batch,), generator=generator)]
        return loss_of(network, chosen, None if causal else masks(batch, len(codec.columns), generator))

    last = fit(network, loss, steps=steps, rate=RATE, name=kind, warmup=min(100, max(1, steps // 10)))
    with torch.no_grad():
        masked = masks(len(held), len(codec.columns), torch.Generator().manual_seed(EVALUATION))
        unseen = float(loss_of(network, held, None if causal else masked))
    facts = {"seed": seed, "steps": steps, "batch": batch, "loss": round(last, 4), "held_out": round(unseen, 4)}
    return Trained(network, last, facts)


def main(arguments: list[str] | None = None) -> None:
    """Train both models of a table and write them, with the codec."""
    program = "python -m smc_bridge.models.training.table_pair"
    parser = argparse.ArgumentParser(program, description="Train the two models of a table.")
    parser.add_argument("--table", choices=sorted(TABLES), default="adult", help="to learn (default: adult)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write to (default: that of the package)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, batches and masks")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each optimiser")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")
    if not 0 <= options.seed < SEEDS:
        parser.error(f"--seed {options.seed}: give a whole number from 0 to {SEEDS - 1}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file: give a folder")
    torch.set_num_threads(1)
    console, started = Console(), time.monotonic()
    rows = TABLES[options.table]().train
    codec = Codec.of(rows)
    found: dict[str, Trained] = {}
    for kind, causal in (("ar", True), ("dlm", False)):
        found[kind] = train(rows, codec, causal=causal, seed=options.seed, steps=options.steps)
        nats = found[kind].facts["held_out"] * (len(codec.columns) if causal else 1)
        per = "row" if causal else "masked column"
        minutes = (time.monotonic() - started) / 60
        console.print(
            f"{kind}: held out {nats:.3f} nats a {per} (uniform {_uniform(codec, causal):.3f}), {minutes:.1f} minutes",
            highlight=False,
        )
    dlm, ar = found["dlm"].module, found["ar"].module
    assert isinstance(dlm, ColumnNetwork)
    assert isinstance(ar, ColumnNetwork)
    pair = table_pair(dlm, ar, codec, name=options.table)
    save_table_pair(pair, options.out, facts={kind: trained.facts for kind, trained in found.items()})


def _uniform(codec: Codec, causal: bool) -> float:
    """What a uniform guess pays, nats a row or a column."""
    total = sum(math.log(size) for size in codec.sizes[1:])
    return total if causal else total / len(codec.columns)


if __name__ == "__main__":
    main(sys.argv[1:])
