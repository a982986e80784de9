"""Export to xarray: what goes into the tree comes out of it, with named dimensions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from smc_bridge.analysis.export import to_arviz, to_datatree
from smc_bridge.engine.presets import smc
from smc_bridge.result import Result
from tests.analysis.helpers import make_result, two_step_trace
from tests.toys import toy_pair

xr = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def runs() -> list[Result]:
    sampler = smc(toy_pair(), 3, lanes=2, w=0.7, window=1, lookahead=4)
    return sampler.run([[1], [2], [1, 2], [2, 2]], seed=[0, 1, 2, 3], max_new_tokens=4)


def test_weights_make_the_round_trip(runs: list[Result]) -> None:
    tree = to_datatree(runs)
    weights = tree["weights"]
    assert weights["log_weights"].dims == ("prompt", "particle")
    for i, run in enumerate(runs):
        own = weights.to_dataset().sel(prompt=i)
        assert own["log_weights"].values.tolist() == run.log_weights
        assert own["weights"].values.tolist() == run.weights.tolist()
        assert float(own["log_evidence"]) == run.log_evidence
        assert float(own["ess"]) == run.ess
        tokens, lengths = (tree[f"particles/{name}"].values[i] for name in ("tokens", "length"))
        sequences = [padded[:length].tolist() for padded, length in zip(tokens, lengths, strict=True)]
        again = Result(run.prompt, sequences, own["log_weights"].values.tolist())
        assert again.sequences == run.sequences
        assert again.log_evidence == run.log_evidence
        assert tree["particles/text"].values[i].tolist() == run.texts


def test_trace_is_the_runs_own_and_padded(runs: list[Result]) -> None:
    trace = to_datatree(runs)["trace"]
    assert len({len(run.trace) for run in runs}) > 1, "otherwise nothing is padded"
    assert trace["ancestors"].dims == ("prompt", "step", "particle")
    assert trace["log_increments"].dims == ("prompt", "step", "particle", "lane")
    for i, run in enumerate(runs):
        own, count = trace.to_dataset().sel(prompt=i), len(run.trace)
        assert int(own["steps"]) == count
        for t, record in enumerate(run.trace):
            here = own.sel(step=t)
            assert float(here["ess"]) == record.ess
            assert float(here["log_evidence"]) == record.log_evidence
            assert bool(here["resampled"]) == record.resampled
            for name in ("ancestors", "lanes", "length", "accepted", "log_weights", "log_increments"):
                assert here[name].values.tolist() == getattr(record, name), name
        after = own.sel(step=slice(count, None))
        assert np.isnan(after["ess"].values).all()
        assert (after["ancestors"].values == -1).all()
        assert float(own["log_evidence"][count - 1]) == pytest.approx(run.log_evidence, abs=1e-12)


def test_a_netcdf_file_gives_the_tree_back(tmp_path: Path, runs: list[Result]) -> None:
    pytest.importorskip("h5netcdf")
    pytest.importorskip("h5py")
    tree = to_datatree(runs)
    tree.to_netcdf(tmp_path / "runs.nc")
    with xr.open_datatree(tmp_path / "runs.nc") as again:
        assert set(again.children) == set(tree.children)
        for name in tree.children:
            xr.testing.assert_equal(again[name].to_dataset().load(), tree[name].to_dataset())
        assert again.attrs["settings"] == tree.attrs["settings"]


def test_settings_say_how_it_was_made(runs: list[Result]) -> None:
    attributes = to_datatree(runs[0]).attrs
    assert (attributes["method"], attributes["proper"]) == ("smc(3)", 1)
    assert json.loads(attributes["settings"])[0]["particles"] == 3


def test_posterior_draws_follow_the_weights() -> None:
    """A chain for each seed of a prompt, N systematic draws: expectation `sum_k W_k f(x_k)`."""
    first = make_result([math.log(0.5), math.log(0.25), math.log(0.25), -math.inf], [[7], [8, 8], [9, 9, 9], [1] * 4])
    equal = make_result([0.0] * 4, [[1], [2, 2], [3, 3, 3], [4] * 4])
    other = Result([5], [[1]] * 4, [0.0] * 4)
    tree = to_datatree([first, other, equal], {"even": lambda tokens: tokens[0] % 2 == 0}, seed=3)
    posterior = tree["posterior"]
    assert posterior["length"].dims == ("chain", "draw", "prompt")
    assert posterior["prompt"].values.tolist() == [0, 1], "the place of a prompt's first run"
    assert posterior["length"].sel(prompt=0).values.tolist() == [[1, 1, 2, 3], [1, 2, 3, 4]]
    assert posterior["even"].sel(prompt=0).values.tolist() == [[0, 0, 1, 0], [0, 1, 0, 1]]
    assert posterior["length"].sel(prompt=1, chain=0).values.tolist() == [1] * 4
    assert np.isnan(posterior["length"].sel(prompt=1, chain=1).values).all(), "that prompt has one run only"
    with pytest.raises(ValueError, match="functions holds 'length'"):
        to_datatree(first, {"length": len})


def test_draws_of_the_posterior_are_unbiased() -> None:
    weights = [math.log(w) for w in (0.1, 0.2, 0.7)]
    runs = [Result([prompt], [[0], [1], [2]], weights) for prompt in range(400)]
    drawn = to_datatree(runs, {"place": lambda tokens: tokens[0]})["posterior/place"].values
    # Three systematic draws have a mean of 4/3, 5/3 or 2: Hoeffding's bound at failure rate 1e-7.
    bound = (2 / 3) * math.sqrt(math.log(2 / 1e-7) / (2 * 400))
    assert abs(drawn.mean() - 1.6) < bound, (drawn.mean(), bound)


@pytest.mark.filterwarnings("ignore:.*ArviZ is undergoing:FutureWarning")
def test_arviz_sums_up_the_runs(runs: list[Result]) -> None:
    import arviz

    table = arviz.summary(to_arviz(runs, {"short": lambda text: float(len(text) < 3)}), round_to="none")
    assert set(table.index) == {f"{name}[{place}]" for name in ("length", "short") for place in range(len(runs))}
    tree = to_datatree(runs)
    for place in range(len(runs)):
        expected = float(tree["posterior/length"][:, :, place].mean())
        assert table.loc[f"length[{place}]", "mean"] == pytest.approx(expected)


def test_dead_runs_and_runs_without_a_trace_are_kept() -> None:
    tree = to_datatree([make_result([-math.inf, -math.inf]), make_result([0.0, -1.0])])
    assert "trace" not in tree.children
    assert np.isnan(tree["posterior/length"].values[0]).all(), "nothing can be drawn"
    assert (tree["posterior/length"].values[1] == 1).all()
    assert tree["weights/ess"].values[0] == 0
    assert np.isnan(tree["weights/weights"].values[0]).all()
    assert tree["weights/log_weights"].values[0].tolist() == [-math.inf, -math.inf]
    assert "text" not in tree["particles"]


def test_runs_of_different_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"results\[1\] has 3 particles and results\[0\] has 2"):
        to_datatree([make_result([0.0, 0.0]), make_result([0.0, 0.0, 0.0])])
    single = smc(toy_pair(), 3, window=2, lookahead=4).run([[1]], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"results have \[1, 2\] lanes"):
        to_datatree([*single, make_result([0.0] * 3, trace=two_step_trace())])
    with pytest.raises(ValueError, match="results is empty"):
        to_datatree([])
