"""Draw the gallery: `python docs/gallery.py NAME [--png]` writes `docs/gallery/NAME.svg`; without a name, all three.

    particles   bias against particles on tabular models whose law is known
    weights     ESS and weight variance along the sequence, observed and predicted, on the embedded pair
    trace       what became of every drafted token in the first steps of a run, on the embedded pair

Every picture takes less than a minute on one core, is seeded throughout, and comes out the same every time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch

from smc_bridge import ARTarget, Result, Sampler, plain_is, released, smc
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity
from smc_bridge.analysis.local import local_divergences
from smc_bridge.analysis.plots import (
    plot_against_particles,
    plot_ess_along,
    plot_log_weight_variance,
    plot_trace_grid,
)
from smc_bridge.models.arithmetic.problems import held_out
from smc_bridge.models.ends import ends_of
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.tabular import TabularAR, TabularDLM

FOLDER = Path(__file__).parent / "gallery"
#: Half a 95 % interval in standard errors.
Z = 1.96


class _Toy:
    """Three tokens, one of which ends the sequence, and marginals with an error of 0.7 nats."""

    def __init__(self) -> None:
        self.ar = TabularAR.random(3, 4, seed=1, eos_id=1)
        self.dlm = TabularDLM(self.ar, noise=0.7, seed=2)


def particles(*, runs: int = 600, counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)) -> Any:
    """Total variation between the law of one output sequence and the AR law: proper methods fall like 1/N."""
    toy = _Toy()
    exact = oracle(ARTarget(toy.ar), max_new_tokens=4)
    methods: dict[str, Callable[[int], Sampler]] = {
        "smc, N particles": lambda n: smc(toy, n, w=0.5, window=3),
        "one particle, N lanes": lambda n: smc(toy, 1, lanes=n, w=0.5, window=3),
        "plain IS, N particles": lambda n: plain_is(toy, lanes=1, particles=n, window=3),
        "released, N lanes": lambda n: released(toy, lanes=n, window=3),
    }
    lines = {}
    for name, make in methods.items():
        found = []
        for count in counts:
            sampler = make(count)
            results = sampler.run([[]] * runs, seed=list(range(runs)), max_new_tokens=4)
            distance = (output_distance_by_identity if sampler.proper else output_distance)(results, exact)
            found.append((distance.value, distance.value - Z * distance.error, distance.value + Z * distance.error))
        lines[name] = (counts, *zip(*found, strict=True))
    ax = plot_against_particles(lines)
    ax.set_xlabel("N (particles, or lanes of one particle)")
    return ax.figure


def weights(*, prompts: int = 7, count: int = 8, limit: int = 64) -> Any:
    """Along the sequence: ESS, and the growth of the weights' variance with what the local chi-square predicts."""
    # Particles share forwards: with a prefix cache their laws cannot be had again.
    pair = load_pair("arithmetic", dlm_cache="none")
    ids = [pair.encode(problem.prompt).tolist() for problem in held_out()[:prompts]]
    runs: dict[str, list[Result]] = {}
    predicted = {}
    for w in (0.3, 0.7):
        sampler = smc(pair, count, w=w, window=16, lookahead=32)
        found = sampler.run(ids, seed=1, max_new_tokens=limit)
        runs[f"w = {w}"] = found
        predicted[f"w = {w}"] = [local_divergences(sampler, result, max_new_tokens=limit) for result in found]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    plot_ess_along(runs, left)
    plot_log_weight_variance(runs, predicted, right, measure="weight")
    return figure


def trace(*, steps: int = 4) -> Any:
    """The first steps of two particles with three lanes each."""
    pair = load_pair("arithmetic")
    sampler = smc(pair, 2, lanes=3, w=0.3, window=12, lookahead=32)
    result = sampler.decode(held_out()[3].prompt, seed=3, max_new_tokens=40, keep_drafts=True)
    return plot_trace_grid(result, range(steps), _shown(pair)).figure


def _shown(pair: Pair) -> Callable[[list[int]], str]:
    """Text of tokens, with a sign for the end of a sequence."""
    ends = ends_of(pair.ar.eos_id)
    return lambda ids: "end" if ids and ids[0] in ends else pair.decode(ids)


PICTURES: dict[str, Callable[[], Any]] = {
    "particles": particles, "weights": weights, "trace": trace,
}


def save(path: Path, figure: Any) -> None:
    """Write the figure; the same bytes every time."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line (module docstring)."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the gallery.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)}; by default all")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where they go")
    parser.add_argument("--png", action="store_true", help="also write a bitmap, to look at")
    options = parser.parse_args(arguments)
    for name in options.names or PICTURES:
        if name not in PICTURES:
            parser.error(f"{name}: choose from {', '.join(PICTURES)}")
    torch.set_num_threads(1)  # sums in another order would round differently
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
            figure = PICTURES[name]()
            for ending in ("svg", "png") if options.png else ("svg",):
                save(options.out / f"{name}.{ending}", figure)
        plt.close(figure)
        print(options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
