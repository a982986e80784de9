"""`python -m smc_bridge.models.training [NAME] [--out FILE] [--seed 0] [--steps N]`: train a part of the embedded pair.

Without a name it lists the parts. The file that it writes by itself is the one that the package ships.
"""

import argparse
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import torch
from rich.console import Console

from smc_bridge.models.learned.store import save
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.training import TRAININGS

WEIGHTS = Path(__file__).parents[1] / "arithmetic" / "weights"


def main(arguments: list[str] | None = None) -> None:
    """Train a part and write it."""
    parser = argparse.ArgumentParser("python -m smc_bridge.models.training", description="Train a learned part.")
    parser.add_argument("name", nargs="?", choices=sorted(TRAININGS), help="of the part (default: list them)")
    parser.add_argument("--out", help="file to write (default: that of the package)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data")
    parser.add_argument("--steps", type=int, help="of the optimiser (default: the recipe's)")
    options = parser.parse_args(arguments)
    console = Console()
    if options.name is None:
        console.print("pair: the embedded pair itself (smc_bridge.models.arithmetic.train)", highlight=False)
        console.print("adult: the pair of a table (smc_bridge.models.training.table_pair)", highlight=False)
        console.print("table_diffusion: TabDiff (smc_bridge.models.training.table_diffusion)", highlight=False)
        for name, place in sorted(TRAININGS.items()):
            told = " ".join((resolve_name(place.partition(":")[0]).__doc__ or "").split())
            console.print(f"{name}: {told.partition('. ')[0].rstrip('.')}", highlight=False, soft_wrap=True)
        return
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")
    out = Path(options.out) if options.out else WEIGHTS / f"{options.name}.safetensors"
    if out.is_dir():
        parser.error(f"--out {out}: is a folder; give the path of a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out}: its folder cannot be made ({error.strerror}); give another path")
    torch.set_num_threads(1)  # what a seed gives does not depend on the machine's cores
    started = time.monotonic()
    trained = resolve_name(TRAININGS[options.name])(load_pair(), seed=options.seed, steps=options.steps)
    save(trained.module, out, kind=options.name, facts=trained.facts)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{options.name}: loss {trained.loss:.4f}, {minutes:.1f} minutes, {out}", highlight=False)


if __name__ == "__main__":
    main(sys.argv[1:])
