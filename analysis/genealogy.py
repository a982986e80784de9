"""Genealogy: who descends from whom, and how soon the particles share an ancestor.

Weights can look equal because resampling has just copied one particle N times. The ancestors tell: where the final
particles descend from one particle only, the run holds a single draw of everything before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smc_bridge.result import Result


def offspring_count(result: Result) -> list[list[int]]:
    """Survivors that descend from each particle at every step, `[steps][N]`; each step's numbers sum to N."""
    particles = len(result.log_weights)
    return [np.bincount(record.ancestors, minlength=particles).tolist() for record in result.trace]


def unique_ancestors(result: Result) -> list[int]:
    """Particles that have at least one survivor at every step, `[steps]`; N where nobody is lost."""
    return [len(set(record.ancestors)) for record in result.trace]


def ancestral_lines(result: Result) -> npt.NDArray[np.int64]:
    """Ancestor of every final particle before every step, `[steps, N]`."""
    line = np.arange(len(result.log_weights))
    lines = []
    for record in reversed(result.trace):
        line = np.asarray(record.ancestors, dtype=np.int64)[line]
        lines.append(line)
    return np.array(lines[::-1], dtype=np.int64).reshape(len(lines), len(result.log_weights))


def coalescence(result: Result) -> list[int]:
    """Particles before every step from which the final ones descend, `[steps]`; it never falls along the run.

    1 at a step means that all final particles share what was committed before it.
    """
    return [len(set(line.tolist())) for line in ancestral_lines(result)]
