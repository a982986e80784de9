"""Train TabDiff on UCI Adult.

    python -m smc_bridge.models.training.table_diffusion [--out FILE] [--seed 0] [--steps N]

AdamW on `TabDiff.loss`, batches of rows in a drawn order; what is kept is the exponential average of the weights, as
published. Each step draws from a generator of its own: the same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from smc_bridge.models.learned.store import save
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.datasets import adult
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.models.tabular import SEEDS
from smc_bridge.models.training.fit import Trained, fit, initialised

WEIGHTS = Path(__file__).parents[1] / "tables" / "weights" / "adult-table_diffusion.safetensors"
STEPS, BATCH, RATE, WARMUP = 3_500, 512, 2e-3, 50
#: Weight of the past in the average of weights, at most; at the start it forgets sooner.
AVERAGE = 0.997


def train(
    table: Table, *, seed: int = 0, steps: int = STEPS, batch: int = BATCH, rate: float = RATE, width: int = 32,
    hidden: int = 320,
) -> Trained:
    """A TabDiff of the rows of a table.

    Args:
        table: rows to learn from.
        seed: of the initialisation, the order of rows, times, noise and masks.
        steps: of the optimiser.
        batch: rows of a step.
        rate: greatest learning rate.
        width, hidden: of the network.
    """
    model = initialised(lambda: TabDiff.of(table, width=width, hidden=hidden), seed=seed)
    kept, first = copy.deepcopy(model), _losses_at(model, table, batch, seed)
    scores, categories = model.encode(table)

    def loss(step: int) -> Tensor:
        """Of rows drawn by the step's own generator."""
        _average(kept, model, step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        at = torch.randint(len(table), (batch,), generator=generator)
        return model.loss(scores[at], categories[at], generator)

    last = fit(model, loss, steps=steps, rate=rate, name="table diffusion", warmup=min(WARMUP, 1 + steps // 10))
    _average(kept, model, steps)
    facts = {
        "seed": seed, "steps": steps, "batch": batch, "rate": rate, "rows": len(table), "loss": round(last, 4),
        "loss_at_first": round(first, 4), "loss_of_average": round(_losses_at(kept, table, batch, seed), 4),
        "rho": [round(x, 3) for x in kept.noise.rho.tolist()], "k": [round(x, 3) for x in kept.noise.k.tolist()],
    }
    return Trained(kept.eval().requires_grad_(False), last, facts)


@torch.no_grad()
def _average(kept: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average of weights towards those after `step` steps."""
    weight = 1 - min(AVERAGE, (1 + step) / (10 + step))
    for average, parameter in zip(kept.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, weight)


@torch.no_grad()
def _losses_at(model: TabDiff, table: Table, batch: int, seed: int) -> float:
    """Mean loss of eight batches that no step draws."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 999_999)
    scores, categories = model.encode(table)
    losses = []
    for _ in range(8):
        at = torch.randint(len(table), (batch,), generator=generator)
        losses.append(float(model.loss(scores[at], categories[at], generator)))
    return sum(losses) / len(losses)


def main(arguments: list[str] | None = None) -> None:
    """Train on Adult and write the weights."""
    program = "python -m smc_bridge.models.training.table_diffusion"
    parser = argparse.ArgumentParser(program, description="Train TabDiff.")
    parser.add_argument("--out", default=str(WEIGHTS), help="file to write (default: that of the package)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and batches")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimiser")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")
    if not 0 <= options.seed < SEEDS:
        parser.error(f"--seed {options.seed}: give a whole number from 0 to {SEEDS - 1}")
    if not options.out or Path(options.out).is_dir():
        parser.error(f"--out {options.out!r} is no file: give the path of one")
    torch.set_num_threads(1)
    started = time.process_time()
    trained = train(adult().train, seed=options.seed, steps=options.steps)
    seconds = round(time.process_time() - started)
    save(trained.module, options.out, kind="table_diffusion", facts={**trained.facts, "cpu_seconds": seconds})
    print(f"TabDiff: loss {trained.loss:.4f}, {seconds} CPU seconds, {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
