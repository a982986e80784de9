"""Plots draw the numbers they name on labelled axes, keep legends off the data, and refuse what they cannot draw."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from smc_bridge.analysis.local import LocalDivergences
from smc_bridge.analysis.plots import (
    plot_acceptance,
    plot_against_particles,
    plot_block_lengths,
    plot_cost,
    plot_ess_along,
    plot_frontier,
    plot_genealogy,
    plot_log_weight_variance,
    plot_steps,
    plot_trace_grid,
)
from smc_bridge.analysis.plots.labels import label
from smc_bridge.analysis.plots.style import MOST, looks
from smc_bridge.result import Result
from tests.analysis.helpers import INF, make_record, make_result, two_step_trace

NAN = math.nan


class Columns:
    """As much of a data frame as plots need."""

    def __init__(self, **data: list[Any]) -> None:
        self.data = data

    @property
    def columns(self) -> list[str]:
        return list(self.data)

    def __getitem__(self, name: str, /) -> list[Any]:
        return self.data[name]


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    pytest.importorskip("matplotlib").use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def line(ax: Any, label: str) -> Any:
    """The drawn line of that name."""
    found = [drawn for drawn in ax.lines if drawn.get_label() == label]
    assert len(found) == 1, f"{len(found)} lines {label!r} among {[drawn.get_label() for drawn in ax.lines]}"
    return found[0]


def run() -> Result:
    return make_result([0.4, 0.1, -0.1], trace=two_step_trace())


def drafted(**fields: Any) -> Result:
    """Two particles with two lanes: a correction after two tokens, a whole draft, one corrected at once, finished."""
    first = make_record(
        length=[[3, 4], [1, 4]], accepted=[[2, 4], [0, 4]], ancestors=[0, 0], lanes=[1, 1], resampled=True,
        drafts=[[[1, 2, 3, 4]] * 2] * 2, blocks=[[[1, 2, 9], [1, 2, 3, 4]], [[8], [1, 2, 3, 4]]],
    )
    second = make_record(
        length=[[0, 0], [2, 1]], accepted=[[0, 0], [2, 1]], ancestors=[0, 1], lanes=[0, 0],
        drafts=[[[], []], [[5, 6], [7, 6]]], blocks=[[[], []], [[5, 6], [7]]],
    )
    return make_result([0.0, 0.0], trace=[first, second], **fields)


# One run, step by step


def test_steps_show_ess_and_ancestors() -> None:
    ax = plot_steps(run())
    assert line(ax, "ESS before selection").get_ydata() == pytest.approx([2.5, 2.9])
    assert list(line(ax, "ancestors of the final particles").get_ydata()) == [2, 3]
    assert ax.get_ylabel() == "particles"


def test_genealogy_draws_every_ancestor_and_tells_survivors() -> None:
    """Survivors (0, 0, 2) of step 0, (0, 1, 2) of step 1: particle 1 of the start has no descendants."""
    ax = plot_genealogy(run())
    lost, kept = (sorted(segment.tolist() for segment in drawn.get_segments()) for drawn in ax.collections)
    assert lost == []
    assert kept == [
        [[0, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [0, 2]], [[1, 1], [1, 2]], [[2, 0], [2, 1]], [[2, 1], [2, 2]],
    ]
    hollow = [d for d in ax.lines if d.get_markerfacecolor() == "white" and len(d.get_xdata())]
    assert [(list(d.get_xdata()), list(d.get_ydata())) for d in hollow] == [([1], [0])]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("particle", "step")
    assert ax.yaxis_inverted()


def test_lines_that_die_out_are_drawn_thin() -> None:
    trace = [make_record(length=[[1], [1]]), make_record(length=[[1], [1]], ancestors=[1, 1])]
    lost, kept = plot_genealogy(make_result([0.0, 0.0], trace=trace)).collections
    assert [segment.tolist() for segment in lost.get_segments()] == [[[0, 0], [0, 1]]]
    assert len(kept.get_segments()) == 3
    assert lost.get_linewidths()[0] < kept.get_linewidths()[0]


# The grid of lanes


def grid(ax: Any) -> dict[str, list[tuple[float, float]]]:
    """Row and left end of the cells of every kind, by reading order."""
    cells: dict[str, list[tuple[float, float]]] = {}
    for patch in ax.patches:
        cells.setdefault(patch.get_label().removeprefix("_"), []).append((round(patch.get_y() - 0.1, 6), patch.get_x()))
    return cells


def test_grid_colours_what_became_of_every_token() -> None:
    """Columns of single digits are 3 wide: the cell of position i starts at 3 (i - 1)."""
    ax = plot_trace_grid(drafted(), 0)
    cells = grid(ax)
    assert cells["accepted"] == [(0, 0), (0, 3), *((1, x) for x in (0, 3, 6, 9)), *((3, x) for x in (0, 3, 6, 9))]
    assert cells["corrected"] == [(0, 6), (2, 0)]
    assert cells["refused"] == [(0, 9), (2, 3), (2, 6), (2, 9)]
    assert cells["chosen"] == [(1, 0)]
    frame = next(p for p in ax.patches if p.get_label() == "_chosen")
    assert frame.get_width() == 12


def test_grid_names_lanes_and_counts_survivors() -> None:
    result = drafted()
    ax = plot_trace_grid(result, 0, decode=lambda ids: "abcdefghij"[ids[0]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0, 0", "0, 1 ×2", "1, 0", "1, 1"]
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["normal", "bold", "normal", "normal"]
    assert [text.get_text() for text in ax.texts][:4] == ["b", "c", "j", "e"]
    assert ax.get_xlabel() == "position in the window (tokens)"
    assert ax.get_ylabel() == "particle, lane"
    every = plot_trace_grid(result, "all")
    assert every.get_ylabel() == "step, particle, lane"
    assert "1, 1, 0" in [label.get_text() for label in every.get_yticklabels()]
    assert "finished" in [text.get_text() for text in every.texts]
    assert grid(plot_trace_grid(result, [1])) == grid(plot_trace_grid(result, -1))


def test_grid_says_how_many_tokens_do_not_fit() -> None:
    draft = list(range(10**8, 10**8 + 30))
    record = make_record(length=[[30]], drafts=[[draft]], blocks=[[draft]])
    ax = plot_trace_grid(make_result([0.0], trace=[record]))
    shown = len(grid(ax)["accepted"])
    assert 0 < shown < 30
    assert ax.texts[-1].get_text() == f"+{30 - shown}"


def test_tokens_are_shown_by_the_texts_that_the_result_was_saved_with() -> None:
    saved = drafted(settings={"tokens": {str(i): "abcdefghij"[i] for i in range(10)}})
    ax = plot_trace_grid(saved, 0)
    assert [text.get_text() for text in ax.texts][:4] == ["b", "c", "j", "e"]
    assert plot_trace_grid(saved, 0, decode=lambda ids: "x").texts[0].get_text() == "x"


def test_text_of_tokens_stays_on_one_line_and_is_no_mathematics() -> None:
    words = {1: "\n", 2: " ", 3: "$x$", 4: "extraordinarily", 5: ""}
    record = make_record(length=[[5]], drafts=[[list(words)]], blocks=[[list(words)]])
    ax = plot_trace_grid(make_result([0.0], trace=[record]), decode=lambda ids: words[ids[0]])
    assert [text.get_text() for text in ax.texts] == ["↵", "␣", "$x$", "extraord…", "#5"]
    assert not any(text.get_parse_math() for text in ax.texts)


# Blocks


def test_block_lengths_are_a_survival_curve() -> None:
    blocks = make_result([0.0], trace=[make_record(length=[[n]]) for n in (1, 1, 3, 4)])
    drawn = plot_block_lengths({"m": blocks}).lines[0]
    np.testing.assert_allclose(drawn.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(drawn.get_ydata(), [1.0, 0.5, 0.5, 0.25])


def test_acceptance_is_a_histogram_of_the_drafts_own_tokens() -> None:
    """Accepted tokens of the blocks of two steps: 3, 0, 1, 2, 3, 4 and 2, 0, 0, 1 (the finished particle has none)."""
    ax = plot_acceptance({"m": run()})
    outline = ax.patches[-1]
    values, edges, _ = outline.get_data()
    np.testing.assert_allclose(values, [0.3, 0.2, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(edges, np.arange(6) - 0.5)
    assert outline.get_label() == "m (mean 1.6)"
    assert "tokens" in ax.get_xlabel()
    assert ax.get_ylabel() == "share of blocks"


# Weights along the sequence


def test_ess_along_the_sequence_counts_tokens() -> None:
    """Step 0 commits 2, 2 and 4 tokens on average over lanes; its survivors 3, 1 and 4, then 1.5, 0 and 1 more."""
    ax = plot_ess_along(run())
    drawn = line(ax, "smc")
    assert drawn.get_xdata() == pytest.approx([8 / 3, (3 + 1.5 + 1 + 0 + 4 + 1) / 3])
    assert drawn.get_ydata() == pytest.approx([2.5, 2.9])
    assert line(ax, "resampled").get_xdata()[0] == pytest.approx(8 / 3)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position (tokens)", "ESS (of 3 particles)")


def one_token_steps(sizes: Sequence[float], rows: Sequence[Sequence[float]], *, reset: bool = False) -> Result:
    """Steps of one token each; `rows` are what the particles earn; with `reset` every step levels the weights."""
    carried, trace = np.zeros(len(rows[0])), []
    for size, row in zip(sizes, rows, strict=True):
        carried = carried + np.asarray(row)
        after = np.full(carried.size, np.logaddexp.reduce(carried) - math.log(carried.size)) if reset else carried
        trace.append(make_record(
            length=[[1]] * carried.size, log_increments=[[x] for x in row], log_weights=after.tolist(), ess=size,
            resampled=reset,
        ))
        carried = after
    return make_result(list(carried), trace=trace)


def test_several_runs_are_averaged_and_keep_their_last_value() -> None:
    runs = [one_token_steps([2.0, 1.0], [[0.0, 0.0]] * 2), one_token_steps([1.6], [[0.0, 0.0]])]
    ax = plot_ess_along({"m": runs})
    assert line(ax, "m").get_xdata() == pytest.approx([0, 1, 2])
    assert line(ax, "m").get_ydata() == pytest.approx([2.0, 1.8, 1.3])
    assert len(ax.collections) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_variance_accumulates_through_resampling(reset: bool) -> None:
    """Independent steps: (0, 2) then (0, 2): without selection 2 then 8, with selection 2 then 2 + 2."""
    ax = plot_log_weight_variance(one_token_steps([1, 1], [[0.0, 2.0]] * 2, reset=reset))
    assert line(ax, "observed").get_ydata() == pytest.approx([2.0, 4.0 if reset else 8.0])
    assert "nats²" in ax.get_ylabel()


def test_predicted_variance_is_the_mean_over_sequences_from_zero() -> None:
    def local(*chi2: float) -> LocalDivergences:
        size = len(chi2)
        zeros, places = np.zeros(size), np.arange(size)
        return LocalDivergences(places, places, zeros, zeros, zeros, np.array(chi2), 2 * np.array(chi2), zeros)

    runs, given = one_token_steps([1, 1], [[0.0, 2.0]] * 2), [local(math.e - 1, 0.0), local(0.0)]
    ax = plot_log_weight_variance(runs, given, measure="weight")
    assert line(ax, "predicted").get_xdata() == pytest.approx([0, 1, 2])
    assert line(ax, "predicted").get_ydata() == pytest.approx([0, 0.5, 0.5])
    ax = plot_log_weight_variance(runs, given)
    assert line(ax, "predicted").get_ydata() == pytest.approx([0, math.e - 1, math.e - 1])
    named = plot_log_weight_variance(
        {"a": one_token_steps([1], [[0.0, 1.0]]), "b": one_token_steps([1], [[0.0, 1.0]])}, {"b": np.array([0.1, INF])}
    )
    np.testing.assert_allclose(line(named, "b, predicted").get_ydata(), [0, 0.1, NAN])


def test_the_other_measure_is_log_particles_per_ess() -> None:
    ax = plot_log_weight_variance(one_token_steps([1], [[0.0, math.log(3.0)]]), measure="weight")
    assert line(ax, "observed").get_ydata() == pytest.approx([math.log(2 / 1.6)])


def test_a_dead_particle_leaves_the_relative_variance_finite() -> None:
    dead = one_token_steps([1, 1], [[0.0, -INF], [0.0, 0.0]])
    drawn = line(plot_log_weight_variance(dead, measure="weight"), "observed")
    assert drawn.get_ydata() == pytest.approx([math.log(2)] * 2)
    assert not np.isfinite(line(plot_log_weight_variance(dead), "observed").get_ydata()).any()


# Studies

STUDY = Columns(
    method=["smc", "smc", "plain-is", "smc", "ar"], particles=[4, 1, 1, 16, NAN], tv=[0.05, 0.2, 0.4, -0.001, NAN],
    tv_low=[0.04, 0.19, 0.3, -0.004, NAN], tv_high=[0.06, 0.21, 0.5, 0.002, NAN], cost=[8.0, 2.0, 2.0, 32.0, 9.0],
    bias=[-0.1, 0.3, 0.2, 0.01, NAN], bias_low=[-0.2, 0.2, -0.1, -0.02, NAN], bias_high=[-0.05, 0.4, 0.5, 0.04, NAN],
)


def test_lines_are_sorted_and_negative_estimates_become_limits() -> None:
    ax = plot_against_particles(STUDY, "tv")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert line(ax, "smc").get_xdata() == pytest.approx([1, 4, 16])
    np.testing.assert_allclose(line(ax, "smc").get_ydata(), [0.2, 0.05, NAN])
    limit = next(drawn for drawn in ax.lines if drawn.get_marker() == "v" and drawn.get_linestyle() == "None")
    assert (list(limit.get_xdata()), list(limit.get_ydata())) == ([16], [0.002])
    band = ax.collections[0].get_paths()[0].vertices
    assert {(1.0, 0.19), (1.0, 0.21), (4.0, 0.04), (4.0, 0.06)} <= {(x, y) for x, y in band.tolist()}
    guide = line(ax, "slope of 1/N")
    assert guide.get_ydata() == pytest.approx([0.2, 0.2 / 16])
    assert ax.get_xlabel() == "particles N"
    assert ax.get_ylabel() == "total variation from the target"
    assert "ar" not in [text.get_text() for text in ax.get_legend().get_texts()]


def test_bias_is_drawn_by_its_size_with_a_folded_interval() -> None:
    ax = plot_against_particles(STUDY, "bias", guide=False)
    assert line(ax, "smc").get_ydata() == pytest.approx([0.3, 0.1, 0.01])
    band = {(x, y) for x, y in ax.collections[0].get_paths()[0].vertices.tolist()}
    assert {(4.0, 0.05), (4.0, 0.2), (16.0, 0.04)} <= band
    assert ax.get_ylabel() == "absolute bias (units of f)"


def test_a_mapping_serves_as_well_and_exact_methods_are_named() -> None:
    ax = plot_against_particles({"m": ([1, 2], [0.4, 0.2]), "exact": ([1, 2], [0, 0], [0, 0], [0, 0])})
    assert line(ax, "m").get_ydata() == pytest.approx([0.4, 0.2])
    assert line(ax, "exact (0)").get_xdata().size == 0


def test_data_frames_of_pandas_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    ax = plot_against_particles(pandas.DataFrame(STUDY.data), "tv")
    np.testing.assert_allclose(line(ax, "smc").get_ydata(), [0.2, 0.05, NAN])


def test_lines_may_be_named_by_several_columns() -> None:
    ax = plot_cost(Columns(method=["a", "a"], w=[0.3, 0.5], cost=[1, 1], tv=[0.1, 0.2]), "tv", by=("method", "w"))
    assert line(ax, "a, w = 0.3").get_ydata() == pytest.approx([0.1])


def test_cost_is_what_lines_run_along() -> None:
    ax = plot_cost(STUDY, "bias", unit="nats")
    assert line(ax, "smc").get_xdata() == pytest.approx([2, 8, 32])
    assert line(ax, "smc").get_ydata() == pytest.approx([0.3, -0.1, 0.01])
    assert ax.get_ylabel() == "bias (nats)"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert "forwards" in ax.get_xlabel()
    assert plot_cost(STUDY, "bias", work="rows").get_xlabel() == "cost (c_D DLM rows + c_A AR rows)"


FRONTIER = Columns(
    intermediate=["poe", "poe", "chernoff", "poe"], w=[0.9, 0.0, NAN, 0.3], tokens_per_dlm_forward=[9.0, 5.0, 6.0, 5.5],
    kl_per_token=[0.5, 0.0, 0.02, 0.001], kl_per_token_low=[0.4, 0.0, 0.01, -0.001],
    kl_per_token_high=[0.6, 0.0, 0.03, 0.003],
)


def test_frontier_runs_along_w_and_notes_it() -> None:
    ax = plot_frontier(FRONTIER)
    assert line(ax, "poe").get_xdata() == pytest.approx([0, 1, 500])
    assert line(ax, "poe").get_ydata() == pytest.approx([5, 5.5, 9])
    assert [text.get_text() for text in ax.texts] == ["w = 0", "w = 0.9"]
    bars = ax.collections[0].get_segments()
    assert [s[:, 0].tolist() for s in bars] == [pytest.approx(x) for x in ([0, 0], [-1, 3], [400, 600])]
    assert ax.get_xlabel() == "KL bound (nats per 1,000 tokens)"
    assert ax.get_ylabel() == "tokens per DLM forward"
    low, high = ax.get_xlim()
    assert low < 0 < 500 < high


def test_a_line_of_the_frontier_names_what_it_runs_along() -> None:
    data = {"PoE": ([0.1, 0.9], [0.01, 0.1], [5, 9]), "Clamp": ([4, 1e5], [0.3, 1], [6, 7]), "Target": ([0], [0], [4])}
    ax = plot_frontier(data, symbols={"Clamp": "beta", "Target": ""})
    assert {text.get_text() for text in ax.texts} == {"w = 0.1", "w = 0.9", "beta = 4", "beta = 100,000"}


def test_notes_of_the_frontier_cover_no_marker_and_no_other_note() -> None:
    """Lines that run close together, as those of the gallery do."""
    w = [0.3, 0.7, 0.9]
    ax = plot_frontier({
        "a": (w, [0.003, 0.08, 2.5], [5.6, 5.7, 7.1]), "b": (w, [0.17, 2.9, 7.2], [5.7, 6.8, 14.2]),
        "c": (w, [1.0, 3.6, 7.3], [5.2, 7.1, 12.8]),
    })
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 6
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        for name in "abc":
            for point in ax.transData.transform(line(ax, name).get_xydata()):
                assert not box.contains(*point), f"{ax.texts[i].get_text()} covers a marker of {name}"


def test_frontier_of_noise_around_zero() -> None:
    ax = plot_frontier({"m": ([0.1, 0.2], [-0.002, 0.004], [5, 6], [-0.01, -0.01], [0.006, 0.018])})
    low, high = ax.get_xlim()
    assert low <= -2
    assert high >= 4


def test_labels_of_the_frontier_are_of_what_is_drawn() -> None:
    ax = plot_frontier(FRONTIER, x="tokens_per_dlm_forward", y="kl_per_token")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tokens per DLM forward", "KL bound (nats per token)")
    assert line(ax, "poe").get_xdata() == pytest.approx([5, 5.5, 9]), "only nats are counted by 1,000 tokens"
    assert plot_frontier(Columns(**FRONTIER.data, ess=[1, 2, 3, 4]), y="ess").get_ylabel() == label("ess")


def test_notes_of_many_lines_stand_apart_and_inside() -> None:
    w = [0.1, 0.9]
    ax = plot_frontier({str(i): (w, [0.001 + i / 1e5, 0.002 + i / 1e5], [5.0 + i / 100, 5.1]) for i in range(16)})
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert boxes
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert ax.bbox.x0 <= box.x0 <= box.x1 <= ax.bbox.x1


def test_no_two_lines_have_one_look() -> None:
    every = looks(MOST)
    assert len({(look.color, look.marker) for look in every}) == MOST, "points that no line joins"
    assert len({(look.color, str(look.linestyle)) for look in every}) == MOST, "lines without markers"
    with pytest.raises(ValueError, match="it gives 97 lines, of which 96 can be told apart"):
        looks(MOST + 1)


def test_means_over_runs_of_many_methods_differ_in_colour_or_marker() -> None:
    runs = [one_token_steps([1, 1], [[0.0, 2.0], [0.0, 1.0]]) for _ in range(2)]
    ax = plot_log_weight_variance({str(i): runs for i in range(10)})
    drawn = [(each.get_color(), each.get_marker()) for each in ax.lines if "observed" in each.get_label()]
    assert len(set(drawn)) == 10


def test_a_long_legend_does_not_take_the_room_of_the_data() -> None:
    heights = []
    for count in (2, 20):
        ax = plot_cost({f"a method of some length, {i}": ([1, 2], [i, i + 1]) for i in range(1, count)}, "tv")
        ax.figure.canvas.draw()
        heights.append(ax.get_window_extent().height)
    assert heights[1] > 0.8 * heights[0], f"{heights} pixels"


# What all have in common


def every_plot() -> dict[str, Any]:
    two = {"a": run(), "b": run()}
    return {
        "steps": plot_steps(run()), "genealogy": plot_genealogy(run()), "grid": plot_trace_grid(drafted()),
        "lengths": plot_block_lengths(two), "acceptance": plot_acceptance(two),
        "ess": plot_ess_along(run()), "variance": plot_log_weight_variance(run(), np.array([0.1])),
        "particles": plot_against_particles(STUDY), "cost": plot_cost(STUDY, "tv"), "frontier": plot_frontier(FRONTIER),
    }


def test_axes_are_labelled_and_legends_stand_beside_the_data() -> None:
    for name, ax in every_plot().items():
        ax.figure.canvas.draw()
        assert ax.get_xlabel(), f"{name}: no label on x"
        assert ax.get_ylabel(), f"{name}: no label on y"
        assert ax.get_title() == "", f"{name}: has a title"
        frame, key = ax.get_window_extent(), ax.get_legend().get_window_extent()
        assert key.y0 >= frame.y1 - 1, f"{name}: the legend starts at {key.y0:.0f} in a frame up to {frame.y1:.0f}"
        width, height = ax.figure.canvas.get_width_height()
        assert key.x0 >= -1, f"{name}: the legend starts at {key.x0:.0f}"
        assert key.x1 <= width + 1, f"{name}: the legend ends at {key.x1:.0f} of {width}"
        assert key.y1 <= height + 1, f"{name}: the legend ends at {key.y1:.0f} of {height}"


def test_given_axes_are_used() -> None:
    import matplotlib.pyplot as plt

    _, (a, b, c, d) = plt.subplots(1, 4)
    assert plot_ess_along(run(), a) is a
    assert plot_against_particles(STUDY, "tv", b) is b
    assert plot_genealogy(run(), c) is c
    assert plot_trace_grid(drafted(), 0, ax=d) is d


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="matplotlib"):
        plot_steps(make_result([0.0]))


def _bare() -> Result:
    return make_result([0.0, 0.0])


REFUSED: Mapping[str, tuple[Any, str]] = {
    "no drafts": (lambda: plot_trace_grid(run()), "run with keep_drafts=True"),
    "no such step": (lambda: plot_trace_grid(drafted(), 2), "steps = 2: the trace has 2 steps"),
    "no step at all": (lambda: plot_trace_grid(drafted(), []), "steps = "),
    "no such word": (lambda: plot_trace_grid(drafted(), "some"), "steps = 'some'"),  # type: ignore[arg-type]
    "no steps": (lambda: plot_trace_grid(_bare()), "no steps"),
    "no genealogy": (lambda: plot_genealogy(_bare()), "no steps"),
    "no trace": (lambda: plot_ess_along(_bare()), "without steps"),
    "no runs": (lambda: plot_ess_along([]), "results is empty"),
    "no names": (lambda: plot_ess_along({}), "results is empty"),
    "two numbers of particles": (
        lambda: plot_ess_along([run(), one_token_steps([1], [[0.0, 0.0]])]), r"\[2, 3\] particles"
    ),
    "one particle": (
        lambda: plot_log_weight_variance(make_result([0.0], trace=[make_record(length=[[1]])])), "at least 2"
    ),
    "strange prediction": (lambda: plot_log_weight_variance({"a": run()}, {"b": np.ones(2)}), "'b', which results has"),
    "nameless prediction": (lambda: plot_log_weight_variance({"a": run(), "b": run()}, np.ones(2)), "no names"),
    "empty prediction": (lambda: plot_log_weight_variance(run(), []), "predicted has no tokens"),
    "unknown measure": (lambda: plot_log_weight_variance(run(), measure="x"), "measure = 'x'"),  # type: ignore[arg-type]
    "no acceptance": (lambda: plot_acceptance({}), "results_by_name is empty"),
    "no blocks": (lambda: plot_acceptance({"a": _bare()}), "no blocks"),
    "unknown y": (lambda: plot_against_particles(STUDY, "ess"), "y = 'ess'"),  # type: ignore[arg-type]
    "no particles": (lambda: plot_against_particles({"a": ([0], [0.1])}), "count of 0"),
    "missing column": (lambda: plot_cost(STUDY, "ess"), "no column 'ess': it has method, particles"),
    "no data": (lambda: plot_cost({}, "tv"), "no point"),
    "nothing finite": (lambda: plot_cost({"a": ([1.0], [NAN])}, "tv"), "no point"),
    "not a frame": (lambda: plot_cost([1, 2], "tv"), "data is a list"),  # type: ignore[arg-type]
    "free of charge": (lambda: plot_cost({"a": ([0.0], [1.0])}, "tv"), "cost of 0"),
    "two rows at one point": (
        lambda: plot_cost(Columns(method=["a", "a"], cost=[1, 1], tv=[1, 2]), "tv"), "several rows of 'a' at one cost"
    ),
    "words for numbers": (lambda: plot_cost(STUDY, "method"), "data's 'method' holds 'smc'"),
    "words in a mapping": (lambda: plot_cost({"a": (["x"], [1.0])}, "tv"), "data's 'a' holds 'x'"),
    "lengths differ": (lambda: plot_against_particles({"a": ([1, 2], [0.1])}), r"\(2,\), \(1,\)"),
    "upside down": (lambda: plot_against_particles({"a": ([1], [0.1], [0.2], [0.0])}), "low is above its high"),
    "no w": (lambda: plot_frontier({"a": ([1.0], [2.0])}), r"\(along, x, y\)|\(w, x, y\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(case: str) -> None:
    draw, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)
