"""Plots draw the numbers they name."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from analysis.plots import plot_block_lengths, plot_steps
from tests.analysis.helpers import make_record, make_result, two_step_trace


@pytest.fixture(autouse=True)
def _no_window() -> None:
    pytest.importorskip("matplotlib").use("agg")


def test_steps_show_ess_and_ancestors() -> None:
    ax = plot_steps(make_result([0.0] * 3, trace=two_step_trace()))
    ess, ancestors = ax.lines[0], ax.lines[1]
    assert ess.get_ydata() == pytest.approx([2.5, 2.9])
    assert list(ancestors.get_ydata()) == [2, 3]
    assert ax.get_ylabel() == "particles"


def test_block_lengths_are_a_survival_curve() -> None:
    run = make_result([0.0], trace=[make_record(length=[[n]]) for n in (1, 1, 3, 4)])
    line = plot_block_lengths({"m": run}).lines[0]
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.5, 0.5, 0.25])


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="matplotlib"):
        plot_steps(make_result([0.0]))
