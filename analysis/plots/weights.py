"""Weights along the sequence: how many particles they are worth, and how their variance grows from token to token.

The horizontal axis counts tokens: after each step, what a lane has committed on average. A line over several runs is
their mean, between steps by linear interpolation; a run that has ended keeps its last value. Bands are 95 % intervals
of the mean over runs (Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from smc_bridge.analysis.effective_size import LogWeights
from smc_bridge.analysis.local import LocalDivergences
from smc_bridge.analysis.plots.curves import Array
from smc_bridge.analysis.plots.style import INK, Look, band, legend, line, looks, new_axes
from smc_bridge.analysis.runs import Runs, as_runs
from smc_bridge.analysis.variance import log_weight_variance, log_weights_before_selection, weight_variance
from smc_bridge.result import Result

#: Confidence of the bands.
LEVEL = 0.95
#: Markers along a line over whole tokens.
MARKS = 8
Measure = Literal["log weight", "weight"]
LABELS: dict[Measure, str] = {
    "log weight": "variance of log weight (nats²)", "weight": "log(1 + Var w / mean² w) (nats)",
}
#: Predicted variance after each token, `[T]`, one or several sequences.
Predicted = LocalDivergences | Sequence[LocalDivergences] | npt.NDArray[Any]


def plot_ess_along(results: Runs | Mapping[str, Runs], ax: Any = None) -> Any:
    """ESS before every selection along the sequence; where a single run is drawn, grey lines mark its resampling.

    Args:
        results: runs of one method, or of several by name; all of one number of particles.
        ax: where to draw.
    Raises:
        ValueError: no runs, no steps, or different numbers of particles.
    """
    groups = _groups(results)
    sizes = {len(run.log_weights) for runs in groups.values() for run in runs}
    if len(sizes) > 1:
        raise ValueError(f"results have {sorted(sizes)} particles: draw runs of one number of particles together")
    particles = sizes.pop()
    ax = new_axes(ax)
    for look, (name, runs) in zip(looks(len(groups)), groups.items(), strict=True):
        _draw(ax, name, look, [(places(run), np.array([r.ess for r in run.trace]), float(particles)) for run in runs])
    every = [run for runs in groups.values() for run in runs]
    if len(every) == 1:
        at = places(every[0])[[record.resampled for record in every[0].trace]]
        for i, place in enumerate(at):
            ax.axvline(place, color="0.8", zorder=0, label="resampled" if i == 0 else None)
    ax.set(xlabel="position (tokens)", ylabel=f"ESS (of {particles} particles)", ylim=(0, particles * 1.05))
    ax.set_xlim(0, None)
    legend(ax)
    return ax


def plot_log_weight_variance(
    results: Runs | Mapping[str, Runs], predicted: Predicted | Mapping[str, Predicted] | None = None, ax: Any = None, *,
    measure: Measure = "log weight",
) -> Any:
    """Variance of the weights along the sequence on the scale of log weights, observed (solid) and predicted (dashed).

    Two measures, equal for log-normal weights: the variance of the log weight, and `log(1 + Var(w) / mean(w)^2)` =
    `log(N / ESS)` of the weight. A few particles that are almost dead make the first huge and leave the second alone;
    the prediction from the local chi-square is about the second.

    Resampling evens the weights out; what it removes is added back, so that the line is what the tokens have earned in
    all, as is the prediction. The prediction is that of one lane for each particle.

    Args:
        results: runs of at least 2 particles each, of one method or of several by name.
        predicted: `smc_bridge.analysis.local.local_divergences` along one or several sequences, of which the mean is
        drawn, or an
            array of the variance after each token, `[T]`; by the same names if `results` has names.
        ax: where to draw.
        measure: "log weight" or "weight".
    Raises:
        ValueError: no runs, no steps, one particle, an unknown measure, or names that do not occur in `results`.
    """
    if measure not in LABELS:
        raise ValueError(f"measure = {measure!r}: choose from {', '.join(map(repr, LABELS))}")
    groups = _groups(results)
    for name, runs in groups.items():
        if any(len(run.log_weights) < 2 for run in runs):
            raise ValueError(f"results of {name!r} have runs of 1 particle: a variance needs at least 2")
    if isinstance(predicted, Mapping):
        forecasts = dict(predicted)
    else:
        forecasts = {} if predicted is None else {next(iter(groups)): predicted}
    if len(groups) > 1 and predicted is not None and not isinstance(predicted, Mapping):
        raise ValueError(f"predicted has no names, results have {len(groups)}: give a mapping with the same names")
    if strange := [name for name in forecasts if name not in groups]:
        raise ValueError(f"predicted has {strange[0]!r}, which results has not: it has {', '.join(groups)}")
    curves = {name: _predicted_mean(given, measure) for name, given in forecasts.items()}
    ax = new_axes(ax)
    for look, (name, runs) in zip(looks(len(groups)), groups.items(), strict=True):
        prefix = f"{name}, " if len(groups) > 1 or isinstance(results, Mapping) else ""
        solid = look._replace(linestyle="-")
        _draw(ax, f"{prefix}observed", solid, [(places(run), accumulated_variance(run, measure), 0.0) for run in runs])
        if name in curves:
            colour = INK if len(groups) == 1 else look.color
            tokens = np.arange(curves[name].size)
            label = f"{prefix}predicted"
            marked: dict[str, Any] = {"marker": look.marker, "markersize": 4, "markevery": max(1, tokens.size // MARKS)}
            ax.plot(tokens, curves[name], color=colour, linestyle="--", linewidth=1.6, label=label, **marked)
    ax.set(xlabel="position (tokens)", ylabel=LABELS[measure])
    ax.set_xlim(0, None)
    ax.set_ylim(0, None)
    legend(ax)
    return ax


def places(run: Result) -> Array:
    """Tokens that a particle has committed after every step, before selection: mean over particles and lanes."""
    committed = np.zeros(len(run.log_weights))
    out = []
    for record in run.trace:
        length = np.asarray(record.length, dtype=np.float64)  # [N, K]
        out.append(float(np.mean(committed + length.mean(axis=1))))
        committed = committed[record.ancestors] + length[record.ancestors, record.lanes]
    return np.array(out)


def accumulated_variance(run: Result, measure: Measure = "log weight") -> Array:
    """Variance of the weights over particles after every step, with what earlier selections took, `[steps]`."""
    of = log_weight_variance if measure == "log weight" else _log_relative
    out, taken = [], 0.0
    for row, record in zip(log_weights_before_selection(run), run.trace, strict=True):
        before, after = of(row), of(record.log_weights)
        out.append(taken + before)
        # What is infinite stays so: a line cannot be continued past it.
        taken += before - after if math.isfinite(before) and math.isfinite(after) else math.inf
    return np.array(out)


def _log_relative(log_weights: LogWeights) -> float:
    """`log(1 + Var(w) / mean(w)^2)`, nats; NaN if every weight is zero."""
    return math.log1p(max(weight_variance(log_weights), 0.0))


def _groups(results: Runs | Mapping[str, Runs]) -> dict[str, list[Result]]:
    named = results if isinstance(results, Mapping) else {as_runs(results)[0].method: results}
    if not named:
        raise ValueError("results is empty: give runs of at least one method")
    groups = {name: as_runs(runs) for name, runs in named.items()}
    for name, runs in groups.items():
        if any(not len(run.trace) for run in runs):
            raise ValueError(f"results of {name!r} have a run without steps: give results with their trace")
    return groups


def _draw(ax: Any, name: str, look: Look, lines: Sequence[tuple[Array, Array, float]]) -> None:
    """One run as points, or the mean of several over whole tokens with its band; each is (x, y, y at 0)."""
    if len(lines) == 1:
        x, y, _ = lines[0]
        line(ax, x, y, look, name, size=4)
        return
    tokens = np.arange(math.ceil(max(float(x[-1]) for x, _, _ in lines)) + 1)
    values = np.array([np.interp(tokens, [0.0, *x], [start, *y]) for x, y, start in lines])
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / math.sqrt(len(lines))
    half = stdtrit(len(lines) - 1, (1 + LEVEL) / 2) * error
    drawn = np.isfinite(mean)
    mean[~drawn] = np.nan
    band(ax, tokens, mean - half, mean + half, look.color)
    marked: dict[str, Any] = {"marker": look.marker, "markersize": 4, "markevery": max(1, len(tokens) // MARKS)}
    ax.plot(tokens, mean, color=look.color, linestyle=look.linestyle, linewidth=1.8, label=name, **marked)


def _predicted_mean(given: Predicted, measure: Measure) -> Array:
    """Mean predicted variance from 0 tokens on; NaN from where it is infinite."""
    if isinstance(given, np.ndarray):
        lines = [np.asarray(given, dtype=np.float64)]
    else:
        group = [given] if isinstance(given, LocalDivergences) else given
        lines = [
            one.predicted_log_variance if measure == "weight" else one.predicted_variance_of_log_weight for one in group
        ]
    lines = [line for line in lines if line.size]
    if not lines or any(line.ndim != 1 for line in lines):
        raise ValueError("predicted has no tokens: give local divergences of at least one sequence, or an array [T]")
    longest = max(line.size for line in lines)
    mean = np.mean([np.concatenate([[0.0], line, np.full(longest - line.size, line[-1])]) for line in lines], axis=0)
    return np.where(np.isfinite(mean), mean, np.nan)
