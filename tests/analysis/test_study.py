"""`study`: the rows are those of the configuration, however often it was interrupted and however it was spread."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from smc_bridge import registry
from smc_bridge.analysis.bounds import kl_certificate, kl_per_token
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity, run_distance
from smc_bridge.analysis.study import Axes, Config, Prompts, Tabular, load_study, pool, study
from smc_bridge.analysis.study.cells import run_seed
from smc_bridge.analysis.study.config import TabularPoint
from smc_bridge.analysis.study.drawing import plot_study
from smc_bridge.analysis.study.frame import KEYS
from smc_bridge.analysis.study.plan import Setting, make_decoder
from smc_bridge.analysis.study.sources import Limits, tabular_pair
from smc_bridge.decode import decode
from smc_bridge.distributions.intermediate import Mixture, ProductOfExperts, Target
from smc_bridge.distributions.target import ARTarget
from smc_bridge.tasks import Item
from tests.toys import ToyTask, toy_pair

SMALL: dict[str, Any] = {
    "methods": ["smc", "plain-is", "released", "ar"], "intermediates": ["poe", "chernoff"], "particles": [1, 3],
    "w": [0.3, 0.7], "windows": 3, "seeds": [0, 1], "tabular": {"alphabets": 2, "lengths": 3, "runs": 20},
}
ROWS = 2 * (2 * 2 + 2 + 2 + 2 + 1)


def timeless(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="seconds")


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(timeless(left), timeless(right))


def stop_after(count: int) -> Any:
    def report(record: object, done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return study(SMALL)


def test_rows_are_the_product_without_what_does_not_exist(whole: pd.DataFrame) -> None:
    assert len(whole) == ROWS
    names = [name for name in KEYS if name in whole.columns]
    assert not whole[names].duplicated().any(), "no row comes twice"
    assert whole.groupby("method").size().to_dict() == {"smc": 12, "plain-is": 4, "released": 4, "ar": 2}
    none = {
        "plain-is": ["w", "intermediate"], "released": ["intermediate", "particles"],
        "ar": ["w", "particles", "lanes", "window", "intermediate"],
    }
    for method, names in none.items():
        assert whole[whole.method == method][names].isna().all(axis=None), f"{method} has no {names}"
    assert whole[whole.intermediate == "chernoff"].w.isna().all()
    assert list(whole.seed[:2]) == [0, 1], "seeds vary fastest"


def test_figures_are_those_of_the_runs(whole: pd.DataFrame) -> None:
    point = TabularPoint(2, 3, 1, 0.5)
    pair = tabular_pair(point, Tabular())
    setting = Setting("smc", "poe", 3, 1, 0.7, 3, 1.0)
    sampler = make_decoder(setting, pair, Limits(3, 3, 3))
    runs = sampler.run([()] * 20, seed=[run_seed(1, i) for i in range(20)], max_new_tokens=3)
    exact = oracle(ARTarget(pair.ar), max_new_tokens=3, detokenize=pair.decode)
    rows = whole[(whole.intermediate == "poe") & (whole.method == "smc") & (whole.particles == 3)]
    [(_, row)] = rows[(rows.w == 0.7) & (rows.seed == 1)].iterrows()
    assert row.log_evidences == pytest.approx([run.log_evidence for run in runs], abs=1e-12)
    whole, each = kl_certificate(runs), kl_per_token(runs)
    assert (row.kl_bound, row.kl_bound_low, row.kl_bound_high) == (whole.kl, whole.low, whole.high)
    assert row.kl_per_token == pytest.approx(each.value)
    assert row.ess == pytest.approx(sum(run.ess for run in runs) / 20)
    assert row.tv == pytest.approx(output_distance_by_identity(runs, exact).value, abs=1e-12)
    assert row.cost == sum(run.forwards.dlm_forwards + run.forwards.ar_forwards for run in runs) / 20
    assert row.ar_tokens == sum(run.forwards.ar_tokens for run in runs) / 20
    assert row.tokens_per_dlm_forward == pytest.approx(3 * 20 / sum(run.forwards.dlm_forwards for run in runs))


def test_improper_methods_have_a_direct_distance_and_no_evidence(whole: pd.DataFrame) -> None:
    rows = whole[whole.method == "released"]
    assert not rows.proper.any()
    assert rows[["log_evidence", "kl_bound", "ess"]].isna().all(axis=None)
    pair = tabular_pair(TabularPoint(2, 3, 1, 0.5), Tabular())
    sampler = make_decoder(Setting("released", lanes=1, w=0.3, window=3, temperature=1.0), pair, Limits(3, 3, 3))
    runs = sampler.run([()] * 20, seed=[run_seed(0, i) for i in range(20)], max_new_tokens=3)
    exact = oracle(ARTarget(pair.ar), max_new_tokens=3, detokenize=pair.decode)
    assert rows[(rows.w == 0.3) & (rows.seed == 0)].tv.item() == output_distance(runs, exact).value


def test_exact_methods_have_no_distance() -> None:
    frame = study(methods=["ar", "speculative"], windows=3, tabular={"runs": 20})
    assert (frame[["tv", "bias", "kl_bound"]].abs() < 1e-12).all(axis=None)
    assert frame.exact.all()
    assert (frame[["kl_bound_high", "kl_per_token_high"]] == 0).all(axis=None)
    assert (pool(frame).kl_bound_high == 0).all()


@pytest.mark.parametrize("method", [
    "speculative,top_k=1", "speculative,top_p=0.6", "ar,top_k=1", "ar,temperature=0.5,top_p=0.6",
])
def test_the_exact_law_is_that_of_the_decoders_own_target(method: str) -> None:
    [row] = study(methods=[method], particles=1, windows=3, tabular={"runs": 400}).itertuples()
    assert row.run_tv < (1e-12 if "top_k=1" in method else 1), "one token each leaves one sequence"
    setting = Setting(method, particles=1, lanes=1, window=3)
    point = TabularPoint(3, 4, 1, 0.5)
    pair = tabular_pair(point, Tabular())
    sampler = make_decoder(setting, pair, Limits(4, 4, 3))
    runs = decode(sampler, [()] * 400, seed=[run_seed(0, i) for i in range(400)], max_new_tokens=4)
    exact = oracle(sampler.target, max_new_tokens=4, detokenize=pair.decode)
    assert row.run_tv == pytest.approx(run_distance(runs, exact).value, abs=1e-12)
    assert set(runs[0].posterior()) <= set(exact.posterior())


def test_an_intermediate_of_ones_own_may_be_the_target() -> None:
    frame = study(
        methods=["smc"], particles=1, windows=3, intermediates=["poe", "own"], w=0.0, tabular={"runs": 20},
        custom={"poe": lambda w: Mixture(0.5), "own": lambda w: Target()},
    )
    assert frame.set_index("intermediate").exact.to_dict() == {"poe": False, "own": True}
    assert (frame.kl_bound_high == 0).tolist() == frame.exact.tolist()


@pytest.mark.parametrize("stops", [[1], [9], [21], [2, 3, 11]])
def test_interrupted_study_continues_to_the_same_rows(tmp_path: Path, whole: pd.DataFrame, stops: list[int]) -> None:
    path = tmp_path / "s.jsonl"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            study(SMALL, path=path, report=stop_after(stop))
        assert len(load_study(path)) == stop, "what is done can be read"
    fresh: list[int] = []
    continued = study(SMALL, path=path, report=lambda record, done, total: fresh.append(done))
    assert fresh == list(range(stops[-1] + 1, ROWS + 1)), "finished cells are not run again"
    same(continued, whole)
    again: list[int] = []
    pd.testing.assert_frame_equal(study(SMALL, path=path, report=lambda *each: again.append(1)), continued)
    assert again == []
    pd.testing.assert_frame_equal(load_study(path), continued)


def test_line_that_was_cut_short_is_run_again(tmp_path: Path, whole: pd.DataFrame) -> None:
    path = tmp_path / "s.jsonl"
    study(SMALL, path=path)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for kept in ("".join(lines[:-1]) + lines[-1][:50], "".join(lines[:2])[:-1], text[:20], ""):
        path.write_text(kept)
        same(study(SMALL, path=path), whole)
        assert sorted(path.read_text().splitlines()[1:], key=len)[0].endswith("}")
        assert len(path.read_text().splitlines()) == ROWS + 1


def test_order_of_completion_does_not_matter(tmp_path: Path, whole: pd.DataFrame) -> None:
    path = tmp_path / "s.jsonl"
    study(SMALL, path=path)
    first, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *reversed(lines)]))
    same(study(SMALL, path=path), whole)
    same(load_study(path), whole)


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_two_workers_give_the_rows_of_one(whole: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    same(study(SMALL, workers=2), whole)


@pytest.mark.parametrize("change", [
    {"seeds": [0, 2]}, {"methods": "smc"}, {"w": 0.5}, {"tabular": {"alphabets": 2, "lengths": 3, "runs": 21}},
    {"lookahead": 2}, {"temperatures": 0.5},
])
def test_file_of_another_study_is_refused_and_left_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "s.jsonl"
    small = {**SMALL, "methods": ["ar"]}
    study(small, path=path)
    before = path.read_text()
    with pytest.raises(ValueError, match=rf"{next(iter(change))} = .* --fresh, or give another file"):
        study({**small, **change}, path=path)
    assert path.read_text() == before
    study({**small, **change}, path=path, fresh=True)


def _damaged(lines: list[str], record: dict[str, Any]) -> str:
    return "".join([*lines[:-1], json.dumps(record) + "\n"])


#: Figures that no run can have.
IMPOSSIBLE: list[dict[str, Any]] = [
    {"ess": [math.nan] * 24}, {"ess": [-3] * 24}, {"ess": [True] * 24}, {"ess": [4] * 24}, {"ess": None}, {"ess": 2},
    {"tv": 7}, {"tv": None}, {"tv_error": -1}, {"run_tv": -0.1}, {"tokens": None}, {"tokens": [math.inf] * 24},
    {"runs": 2}, {"runs": 0}, {"run_tokens": ["-inf"] * 24}, {"run_tokens": [3] * 23}, {"log_evidences": ["inf"] * 24},
    {"log_evidences": None}, {"proper": 1}, {"exact": None}, {"acceptance": 1.5}, {"dlm_forwards": [-1] * 24},
    {"seconds": "long"}, {"texts": ["x"] * 24}, {"sequences": 0},
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    small = {"particles": 3, "windows": 3, "seeds": [0, 1], "tabular": {"alphabets": 2, "lengths": 3, "runs": 24}}
    path = tmp_path_factory.mktemp("study") / "s.jsonl"
    study(small, path=path)
    return small, path.read_text()


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_figures_that_no_run_can_have_are_refused(
    tmp_path: Path, written: tuple[dict[str, Any], str], change: dict[str, Any]
) -> None:
    small, text = written
    path = tmp_path / "s.jsonl"
    lines = text.splitlines(keepends=True)
    damaged = _damaged(lines, {**json.loads(lines[-1]), **change})
    path.write_text(damaged)
    with pytest.raises(ValueError, match="is not a saved study"):
        study(small, path=path)
    with pytest.raises(ValueError, match="is not a saved study"):
        load_study(path)
    assert path.read_text() == damaged


def test_blank_lines_at_the_end_are_no_records(tmp_path: Path, written: tuple[dict[str, Any], str]) -> None:
    small, text = written
    path = tmp_path / "s.jsonl"
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + "\n  \n\n")
    assert len(load_study(path)) == 1
    assert len(study(small, path=path)) == 2
    assert len(path.read_text().splitlines()) == 3, "records follow one another"
    path.write_text(lines[0] + "\n" + "".join(lines[1:]))
    with pytest.raises(ValueError, match="is not a saved study"):
        load_study(path)


def test_whole_numbers_and_numpys_make_no_other_study(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    common: dict[str, Any] = {"methods": "ar", "windows": 3, "path": path}
    rows = study(temperatures=1, w=[1, 0.5], seeds=[0, 1, 2], tabular={"runs": 3, "noises": 1}, **common)
    ran: list[int] = []
    again = study(
        temperatures=[1.0], w=np.array([1.0, 0.5]), seeds=np.arange(3), lookahead=None,
        tabular={"runs": np.int64(3), "noises": np.float32(1)}, report=lambda *each: ran.append(1), **common,
    )
    assert ran == []
    pd.testing.assert_frame_equal(again, rows)


@pytest.mark.parametrize("damage", ["broken line", "missing figure", "wrong type", "unplanned cell", "foreign"])
def test_corrupt_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.jsonl"
    small = {**SMALL, "methods": ["ar"]}
    study(small, path=path)
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[-1])
    text = {
        "broken line": "".join([lines[0], lines[1][:40] + "\n", lines[2]]),
        "missing figure": _damaged(lines, {k: v for k, v in record.items() if k != "ess"}),
        "wrong type": _damaged(lines, {**record, "log_evidences": "none"}),
        "unplanned cell": _damaged(lines, {**record, "seed": 77}),
        "foreign": "a diary\n",
    }[damage]
    path.write_text(text)
    with pytest.raises(ValueError, match=r"--out = .*s\.jsonl: is not a saved study; give another file"):
        study(small, path=path)
    assert path.read_text() == text
    if damage == "foreign":
        with pytest.raises(ValueError, match="is not a saved study"):
            study(small, path=path, fresh=True)
        assert path.read_text() == text


def test_task_gives_a_row_for_every_block_of_prompts() -> None:
    config = Config(Axes(methods=("smc", "dlm-2", "ar"), windows=(3,), seeds=(0, 1)), Prompts("toy", n=5, batch=2))
    frame = study(config, pair=toy_pair(), problems=ToyTask())
    assert len(frame) == 3 * 3 * 2
    assert frame.runs.tolist() == [2, 2, 2, 2, 1, 1] * 3
    assert frame.accuracy.between(0, 1).all()
    assert frame.tv.isna().all(), "no exact law is at hand"
    pooled = pool(frame)
    assert pooled.method.tolist() == ["smc", "dlm-2", "ar"]
    assert pooled.runs.tolist() == [10, 10, 10]
    part = frame[frame.method == "smc"]
    assert pooled.accuracy[0] == pytest.approx((part.accuracy * part.runs).sum() / 10), "prompts weigh alike"
    share = wilson(round(pooled.accuracy[0] * 10), 10)
    assert (pooled.accuracy_low[0], pooled.accuracy_high[0]) == (share.low, share.high)
    assert pooled.log_evidences[0] == [z for each in part.log_evidences for z in each]
    assert math.isnan(pooled.kl_bound[1])


def test_an_intermediate_of_ones_own_is_swapped_in_by_name() -> None:
    options: dict[str, Any] = {"particles": 2, "windows": 3, "tabular": {"runs": 6}}
    mine = study(intermediates=["mine"], custom={"mine": Mixture}, **options)
    ours = study(intermediates=["mixture"], **options)
    same(mine.drop(columns="intermediate"), ours.drop(columns="intermediate"))
    with pytest.raises(ValueError, match="intermediates = 'mine': choose from poe"):
        study(intermediates=["mine"], **options)


@pytest.mark.parametrize("name", ["mine", "poe"])
def test_another_intermediate_of_the_same_name_is_another_study(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.jsonl"
    options: dict[str, Any] = {
        "intermediates": [name], "particles": 2, "lanes": [1, 2], "windows": 3, "tabular": {"runs": 4}, "path": path,
    }
    rows = study(custom={name: Mixture}, **options)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"custom = {name} \w+ rather than {name} \w+; start anew with --fresh"):
        study(custom={name: ProductOfExperts}, **options)
    assert path.read_bytes() == before
    pd.testing.assert_frame_equal(study(custom={name: lambda w: Mixture(w)}, **options), rows)
    pd.testing.assert_frame_equal(load_study(path), rows)
    study(custom={name: ProductOfExperts}, fresh=True, **options)


@dataclass(frozen=True)
class OtherTask(ToyTask):
    """The toy task with one thing changed."""

    change: str = ""

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        first, *rest = super().problems(n, offset)
        return [Item("2 1" if self.change == "prompt" else first.prompt, self.change or first.answer), *rest]


def test_other_problems_of_the_same_name_are_another_study(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    config = Config(Axes(methods=("ar",), windows=(3,)), Prompts("toy", n=2, batch=2))
    rows = study(config, pair=toy_pair(), problems=ToyTask(), path=path)
    before = path.read_bytes()
    for other in (OtherTask(change="prompt"), OtherTask(change="3"), ToyTask(max_new_tokens=3)):
        with pytest.raises(ValueError, match=r"problems = \w+ rather than \w+; start anew with --fresh"):
            study(config, pair=toy_pair(), problems=other, path=path)
    assert path.read_bytes() == before
    pd.testing.assert_frame_equal(study(config, pair=toy_pair(), problems=OtherTask(), path=path), rows)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"methods": ["beam"]}, "methods = 'beam': .*choose from "),
    ({"methods": ["smc,beams=4"]}, "beams is no option of smc"),
    ({"methods": 3}, "methods = '3': .*choose from "),
    ({"particles": None}, "particles = None: give a value or a list"),
    ({"methods": []}, "methods = .*: give at least one"),
    ({"particles": [4, 4]}, "particles = 4, 4: .* none twice"),
    ({"particles": [0]}, "particles = 0: give whole numbers"),
    ({"lanes": [1.5]}, "lanes = 1.5: give whole numbers"),
    ({"w": [1.5]}, "w = 1.5"),
    ({"w": ["x"]}, "w = 'x'"),
    ({"temperatures": [-0.5]}, "temperatures = -0.5"),
    ({"intermediates": ["pow"]}, r"intermediates = 'pow': did you mean poe\? choose from poe"),
    ({"tabular": {}, "task": {}}, "give one source"),
    ({"tabular": {"alphabets": 40}}, "more than 65536"),
    ({"tabular": {"size": 4}}, r"size is not part of \[tabular\]"),
    ({"task": {"name": "poetry"}}, "task = 'poetry'"),
    ({"task": 5}, "task = 5: give a table"),
    ({"task": {"n": 100000}}, "n = 100000"),
    ({"beams": 3}, "beams is not part of a study"),
    ({"cost": {"dlm": -1}}, "dlm = -1"),
    ({"lookahead": 0}, "lookahead = 0"),
    ({"tabular": 3}, "tabular = 3: give a table"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study(arguments)


def test_models_of_ones_own_need_prompts() -> None:
    with pytest.raises(ValueError, match="pair and problems are for the prompts of a task"):
        study(SMALL, pair=toy_pair())
    with pytest.raises(ValueError, match="particles with a config"):
        study(SMALL, particles=[3])


def test_pooled_bounds_are_those_of_all_evidence(whole: pd.DataFrame) -> None:
    pooled = pool(whole)
    assert len(pooled) == ROWS / 2
    first, rows = pooled.iloc[0], whole.iloc[:2]
    assert first.kl_bound == pytest.approx(rows.kl_bound.mean())
    assert first.kl_bound_low < first.kl_bound < first.kl_bound_high
    assert first.tv == pytest.approx(rows.tv.mean())
    assert first.tv_error == pytest.approx(math.hypot(*rows.tv_error) / 2)
    assert first.cost == pytest.approx(rows.cost.mean())


@pytest.mark.parametrize(("x", "y"), [
    (None, None), ("cost", "kl_bound"), ("kl_per_token", "tokens_per_dlm_forward"), ("w", "ess"), ("particles", "bias"),
])
def test_every_pair_of_columns_has_a_picture(whole: pd.DataFrame, x: str | None, y: str | None) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = plot_study(whole, x, y)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == len(set(labels)), "no two lines have one name"
    pyplot.close(ax.figure)


def test_an_axis_varies_what_a_spelling_leaves_open() -> None:
    axes = Axes(methods=("smc", "smc-2", "smc,w=0.5", "ar"), particles=(1, 3), w=(0.3, 0.7), windows=(3,))
    found = [(s.method, s.particles, s.w) for s in axes.settings()]
    assert found == [
        ("smc", 1, 0.3), ("smc", 1, 0.7), ("smc", 3, 0.3), ("smc", 3, 0.7), ("smc-2", 2, 0.3), ("smc-2", 2, 0.7),
        ("smc,w=0.5", 1, 0.5), ("smc,w=0.5", 3, 0.5), ("ar", None, None),
    ]


def test_the_papers_product_by_name_is_the_papers_own() -> None:
    """Its lanes' temperatures are those of the whole product, whether `poe` is said or not."""
    pair, limits = tabular_pair(TabularPoint(2, 3, 1, 0.5), Tabular()), Limits(3, 3, 3)
    own, named = (
        make_decoder(Setting("paper", intermediate, lanes=2, w=0.3, window=3, temperature=1.0), pair, limits)
        for intermediate in (None, "poe")
    )
    seeds = list(range(6))
    evidence = [[run.log_evidence for run in each.run([()] * 6, seed=seeds, max_new_tokens=3)] for each in (own, named)]
    assert evidence[0] == evidence[1]
    assert any(z != 0 for z in evidence[0])


def test_a_method_of_another_package_is_an_axis_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))

    @registry.method("greedy", role="baseline", targets="AR", proper=False, reference="none", why="cold")
    def greedy(pair: Any, *, temperature: float = 1.0) -> Any:
        """The AR model at a thousandth of the temperature."""
        return registry.METHODS["ar"].make(pair, temperature=temperature / 1000)

    frame = study(methods=["greedy"], temperatures=[1.0, 2.0], particles=[1, 2], windows=3, tabular={"runs": 3})
    assert frame[["method", "temperature"]].to_numpy().tolist() == [["greedy", 1.0], ["greedy", 2.0]]
