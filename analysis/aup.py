"""AUP, accuracy under parallelism: one number for a decoder's curve of accuracy over tokens per forward (d3LLM).

Points `(rho_i, y_i)` of one speed dial in the order of rho; rho tokens per forward, y accuracy in per cent. Those with
`y_i < y_1 - 5` are left out, and

    AUP = rho_1 y_1 + sum_{i > 1} 1/2 (rho_i - rho_{i-1}) (y_i W_i + y_{i-1} W_{i-1}),
    W_i = min(exp(-3 (1 - y_i / y_max)), 1):

the area under the curve, where accuracy below the best one counts for less. `y_max` is the best accuracy on the task,
of whatever decoder: a decoder is measured against it.

A forward is one of the diffusion model, which the measure was made for; of a decoder that runs none, one of the
autoregressive model (`Row.tokens_per_forward`). So speculative decoding by a diffusion model has forwards of the
autoregressive model that do not count here, as many as one a block: compare AR forwards per token as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from smc_bridge.analysis.comparison.table import Row
from smc_bridge.models.arguments import real_between

#: Per cent of accuracy below the slowest point's, from which on a point does not count.
DROPPED = 5.0
#: How fast a loss of accuracy devalues an area.
STEEPNESS = 3.0


def aup(points: Iterable[tuple[float, float]], *, best: float) -> float:
    """Accuracy under parallelism of a dial's points.

    Args:
        points: tokens per forward, and accuracy in per cent; in any order.
        best: `y_max`, the best accuracy on the task, per cent; at least 0.
    Returns:
        per cent times tokens per forward; 0 where nothing is right.
    Raises:
        ValueError: no points, a number that is not finite, or an accuracy outside of [0, 100].
    Example:
        >>> aup([(1.0, 80.0)], best=80.0), aup([(1.0, 80.0), (3.0, 80.0)], best=80.0)
        (80.0, 240.0)
    """
    ordered = sorted(points)
    if not ordered:
        raise ValueError("points is empty: give at least one (tokens per forward, accuracy)")
    best = real_between("best", best, 0.0, 100.0, remedy="give an accuracy in per cent")
    for rho, y in ordered:
        if not (math.isfinite(rho) and rho > 0 and 0 <= y <= 100):
            raise ValueError(f"points have ({rho:g}, {y:g}): give tokens per forward above 0, accuracy in [0, 100]")
    least = ordered[0][1] - DROPPED
    kept = [(rho, y, y * _weight(y, best)) for rho, y in ordered if y >= least]
    area = sum((there[0] - here[0]) * (there[2] + here[2]) / 2 for here, there in pairwise(kept))
    return kept[0][0] * kept[0][1] + area


def _weight(y: float, best: float) -> float:
    """What an accuracy is worth beside the best one."""
    return min(math.exp(-STEEPNESS * (1 - y / best)), 1.0) if best > 0 else 1.0


def aup_of(rows: Sequence[Row], *, best: float) -> float | None:
    """The same of rows of a comparison; None unless all have an accuracy and forwards of a model.

    Args:
        rows: the points of one dial.
        best: the best accuracy on the task, per cent.
    """
    points = [(row.tokens_per_forward, 100 * row.accuracy.value) for row in rows if row.accuracy is not None]
    if not points or len(points) < len(rows) or any(math.isnan(rho) for rho, _ in points):
        return None
    return aup(points, best=best)
