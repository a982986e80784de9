"""Export to `xarray.DataTree` and to ArviZ.

    to_datatree(results)["weights"]["log_weights"]                   # [prompt, particle]
    arviz.summary(to_arviz(results, {"right": lambda text: ...}))    # mean, sd, interval, R-hat

Groups, with named dimensions:

    posterior   length and functions of your own [chain, draw, prompt]
    particles   tokens [prompt, particle, position], length [prompt, particle], text [prompt, particle] if there is any
    weights     log_weights, weights [prompt, particle], log_evidence, ess [prompt]
    trace       steps [prompt], and by step: ess, log_evidence, resampled [prompt, step], ancestors, lanes, log_weights
                [prompt, step, particle], length, accepted, log_increments [prompt, step, particle, lane]

Integers are padded with -1 and numbers with NaN, past the end of a sequence and after the last step of a prompt.
Logarithms are in nats. Of a run whose weights are all zero the ESS is 0, and weights and posterior are NaN.

ArviZ knows chains of draws that weigh alike. So a chain is a run, its draws are N systematic draws from the weights in
the order of the particles (each particle once if they weigh alike), and runs of one prompt under several seeds are the
chains of that prompt, NaN where it has fewer than others; `prompt` is there the place of its first run. ArviZ's own ESS
counts draws; what the weights are worth is `weights/ess`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from smc_bridge.analysis.runs import Runs, as_runs, require_independent
from smc_bridge.engine.resampling import from_points
from smc_bridge.models.extras import need
from smc_bridge.result import Result
from smc_bridge.streams import Role, numpy_generator
from smc_bridge.trace import StepRecord

if TYPE_CHECKING:
    import xarray as xr

#: Pads integers; no token, ancestor or length is negative.
PAD = -1


#: Functions of a continuation (its text, or its token ids without a tokenizer), by name.
Functions = Mapping[str, Callable[[Any], float]]


def to_datatree(results: Runs, functions: Functions | None = None, *, seed: int = 0) -> xr.DataTree:
    """Posterior, particles, weights and trace of runs of one sampler.

    Args:
        results: runs with one N (and one K, where they have a trace); a run's place is its coordinate `prompt`.
        functions: what the posterior holds besides `length`.
        seed: of the draws from the weights.
    Returns:
        A tree that `to_netcdf` can write; its attributes hold method, properness and settings.
    Raises:
        ValueError: no runs, numbers of particles or lanes that differ, or the same prompt and seed twice.
        MissingExtraError: xarray is not installed.
    """
    need("xarray", "exports", extra="analysis")
    import xarray as xr

    runs = as_runs(results)
    _check_alike(runs)
    require_independent(runs, "a chain")
    groups: dict[str, Any] = {"particles": _particles(runs), "weights": _weights(runs)}
    if any(len(run.trace) for run in runs):
        groups["trace"] = _trace(runs)
    first, drawn = _posterior(runs, functions or {}, seed=seed)
    tree = xr.DataTree.from_dict({
        "posterior": xr.Dataset(drawn, coords={**_coordinates(drawn), "prompt": first}),
        **{name: xr.Dataset(variables, coords=_coordinates(variables)) for name, variables in groups.items()},
    })
    tree.attrs.update({
        "method": runs[0].method, "proper": int(all(run.proper for run in runs)),
        "has_potential": int(any(run.has_potential for run in runs)),
        "settings": json.dumps([run.settings for run in runs]), "inference_library": "smc-bridge",
    })
    return tree


def to_arviz(results: Runs, functions: Functions | None = None, *, seed: int = 0) -> Any:
    """What the installed ArviZ works on: the tree from version 1 on, before it an `InferenceData` with its groups.

    Arguments and errors as `to_datatree`.
    """
    need("arviz", "ArviZ's functions", extra="analysis")
    import arviz

    tree = to_datatree(results, functions, seed=seed)
    legacy: Any = getattr(arviz, "InferenceData", None)
    return tree if legacy is None else legacy.from_datatree(tree)


#: Variables of a group: dimensions and data, and perhaps attributes.
Variables = dict[str, tuple[Any, ...]]
NATS = {"units": "nats"}


def _check_alike(runs: Sequence[Result]) -> None:
    first = len(runs[0].log_weights)
    for i, run in enumerate(runs):
        if len(run.log_weights) != first:
            raise ValueError(
                f"results[{i}] has {len(run.log_weights)} particles and results[0] has {first}: export runs of one "
                "sampler at a time"
            )
    lanes = {len(record.length[0]) for run in runs for record in run.trace[:1]}
    if len(lanes) > 1:
        raise ValueError(f"results have {sorted(lanes)} lanes: export runs of one sampler at a time")


def _coordinates(variables: Variables) -> dict[str, npt.NDArray[np.int64]]:
    """0, 1, .. along every dimension."""
    sizes = {name: size for dims, data, *_ in variables.values() for name, size in zip(dims, data.shape, strict=True)}
    return {name: np.arange(size) for name, size in sizes.items()}


def _posterior(
    runs: Sequence[Result], functions: Functions, *, seed: int
) -> tuple[npt.NDArray[np.int64], Variables]:
    """Place of the first run of every distinct prompt, and the variables `[chain, draw, prompt]`."""
    if "length" in functions:
        raise ValueError("functions holds 'length', which is there already: give it another name")
    chains: dict[tuple[int, ...], list[int]] = {}
    for place, run in enumerate(runs):
        chains.setdefault(tuple(run.prompt), []).append(place)
    size = len(runs[0].log_weights)
    shape = (max(map(len, chains.values())), size, len(chains))
    found = {name: np.full(shape, math.nan) for name in ("length", *functions)}
    rng = numpy_generator(Role.SAMPLE, seed, "posterior")
    for p, places in enumerate(chains.values()):
        for c, place in enumerate(places):
            run, points = runs[place], (np.arange(size) + rng.random()) / size
            if not run.alive:
                continue
            drawn = from_points(torch.as_tensor(run.weights)[None], torch.as_tensor(points)[None])[0].tolist()
            values = run.values
            for name, f in {"length": None, **functions}.items():
                value = {i: len(run.sequences[i]) if f is None else float(f(values[i])) for i in set(drawn)}
                found[name][c, :, p] = [value[i] for i in drawn]
    units = {"length": {"units": "tokens"}}
    first = np.array([places[0] for places in chains.values()])
    return first, {name: (("chain", "draw", "prompt"), data, units.get(name, {})) for name, data in found.items()}


def _particles(runs: Sequence[Result]) -> Variables:
    dims = ("prompt", "particle")
    sequences = [run.sequences for run in runs]
    longest = max(len(tokens) for run in sequences for tokens in run)
    tokens = np.full((len(runs), len(sequences[0]), longest), PAD, dtype=np.int64)
    for place, own in zip(tokens.reshape(-1, longest), (own for run in sequences for own in run), strict=True):
        place[: len(own)] = own
    found: Variables = {
        "tokens": ((*dims, "position"), tokens),
        "length": (dims, np.array([[len(own) for own in run] for run in sequences]), {"units": "tokens"}),
    }
    if all(run.texts is not None for run in runs):
        found["text"] = (dims, np.array([run.texts for run in runs], dtype=np.str_))
    return found


def _weights(runs: Sequence[Result]) -> Variables:
    dims = ("prompt", "particle")
    blank = np.full(len(runs[0].log_weights), math.nan)
    return {
        "log_weights": (dims, np.array([run.log_weights for run in runs], dtype=np.float64), NATS),
        "weights": (dims, np.array([run.weights if run.alive else blank for run in runs])),
        "log_evidence": (dims[:1], np.array([run.log_evidence for run in runs]), NATS),
        "ess": (dims[:1], np.array([run.ess for run in runs])),
    }


def _trace(runs: Sequence[Result]) -> Variables:
    steps = [len(run.trace) for run in runs]
    particles = len(runs[0].log_weights)
    lanes = next(len(run.trace[0].length[0]) for run in runs if len(run.trace))
    by_step, by_particle = ("prompt", "step"), ("prompt", "step", "particle")

    def stacked(read: Callable[[StepRecord], Any], *shape: int, whole: bool) -> npt.NDArray[Any]:
        """`[prompt, step, ..]` of what `read` takes from a record."""
        kind: Any = np.int64 if whole else np.float64
        out = np.full((len(runs), max(steps), *shape), PAD if whole else math.nan, dtype=kind)
        for p, run in enumerate(runs):
            for t, record in enumerate(run.trace):
                out[p, t] = read(record)
        return out

    by_lane = (*by_particle, "lane")
    return {
        "steps": (by_step[:1], np.array(steps)),
        "ess": (by_step, stacked(lambda r: r.ess, whole=False), {"units": "particles"}),
        "log_evidence": (by_step, stacked(lambda r: r.log_evidence, whole=False), NATS),
        "resampled": (by_step, stacked(lambda r: int(r.resampled), whole=True)),
        "ancestors": (by_particle, stacked(lambda r: r.ancestors, particles, whole=True)),
        "lanes": (by_particle, stacked(lambda r: r.lanes, particles, whole=True)),
        "log_weights": (by_particle, stacked(lambda r: r.log_weights, particles, whole=False), NATS),
        "length": (by_lane, stacked(lambda r: r.length, particles, lanes, whole=True), {"units": "tokens"}),
        "accepted": (by_lane, stacked(lambda r: r.accepted, particles, lanes, whole=True), {"units": "tokens"}),
        "log_increments": (by_lane, stacked(lambda r: r.log_increments, particles, lanes, whole=False), NATS),
    }
