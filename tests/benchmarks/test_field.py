"""The page of the field: dials, rows and laws that are kept, verdicts, and labels of which none covers another."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need the extra 'analysis'")

from benchmarks import field, field_laws
from benchmarks.field_dials import Dial, dials, turned
from benchmarks.field_labels import CLEAR, Box, crosses, label_points, places
from benchmarks.field_laws import Found, Tables, find_all
from benchmarks.pages import check_page
from smc_bridge.analysis.claims import Distance, Judgement
from smc_bridge.analysis.comparison import default_methods
from smc_bridge.estimate import Estimate
from smc_bridge.registry import METHODS, spelled

SMALL = Tables(2, 2, 0, {"close": 0.1, "far": 1.5}, 200)


def test_every_dial_of_the_page_turns_a_method_of_the_registry() -> None:
    found = dials(default_methods(), field.TABLE["dials"])
    assert [dial.method for dial in found] == [*field.TABLE["dials"]]
    for dial in found:
        assert dial.points[0] == dial.method
        assert len(dial.points) == len(dial.values) > 1
        meanings = [spelled(text).meaning for text in dial.points]
        assert len(set(meanings)) == len(meanings), dial
        names = {spelled(text).method.name for text in dial.points}
        assert names == {spelled(dial.method).method.name}


def test_a_method_without_examples_stands_in_a_table_of_its_own_with_its_page() -> None:
    own = {name for name, method in METHODS.items() if method.make.__module__.startswith("smc_bridge.")}
    shown = {row[0].strip("`") for row in field._elsewhere().rows}
    assert shown
    assert shown.isdisjoint(by_examples := {spelled(text).method.name for text in default_methods()})
    assert own <= shown | by_examples, "nothing is left out"
    for page in field.TABLE["elsewhere"].values():
        assert field.PAGE.with_name(f"{page}.md").is_file()


def test_a_dial_is_added_by_a_line_and_takes_the_rows_that_there_are() -> None:
    told = {"dlm-1": {"option": "tokens", "values": [1, 2, 3]}, "smc-4": {"option": "w", "values": [0.3, 0.5]}}
    assert dials(["dlm-1", "dlm-2", "ar"], told) == [
        Dial("dlm-1", "tokens", {"1": "dlm-1", "2": "dlm-2", "3": "dlm,tokens=3"})
    ]
    assert dials(["smc-4"], told, most=2) == [Dial("smc-4", "w", {"0.3": "smc-4", "0.5": "smc-4,w=0.5"})]
    with pytest.raises(ValueError, match="nothing-1: is no example of a method"):
        dials(["ar"], {"nothing-1": told["dlm-1"]})
    with pytest.raises(ValueError, match="speed is no option of"):
        dials(["smc-4"], {"smc-4": {"option": "speed", "values": [1, 2]}})


@pytest.mark.parametrize(("text", "option", "value", "found"), [
    ("smc-4", "w", 0.5, "smc-4,w=0.5"), ("smc-4", "particles", 8, "smc,particles=8"),
    ("dlm-2-entropy", "tokens", 4, "dlm,order=entropy,tokens=4"), ("dlm-1", "lookahead", None, "dlm-1,lookahead=none"),
])
def test_a_spelling_is_turned(text: str, option: str, value: Any, found: str) -> None:
    assert spelled(turned(text, option, value)).meaning == spelled(found).meaning
    assert spelled(turned(text, option, value)).options[option] == value


def test_judgements_are_kept_and_those_of_other_tables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["ar", "released", "smc-1"]
    first = find_all(methods, SMALL, tmp_path)
    assert [each.method for each in first] == methods
    monkeypatch.setattr(field_laws, "judge", None)
    again = find_all(methods, SMALL, tmp_path)
    assert [each.verdict for each in again] == [each.verdict for each in first]
    assert [each.on["far"].ar.text() for each in again] == [each.on["far"].ar.text() for each in first]
    other = Tables(2, 2, 1, SMALL.noise, SMALL.runs)
    with pytest.raises(ValueError, match=r"is no judgement of today \(of other tables\); delete it, or give --fresh"):
        find_all(["ar"], other, tmp_path)
    found = find_all(["ar"], SMALL, tmp_path, fresh=True)
    assert found[0].verdict == field_laws.NOT_RUN, "it was tried again"
    assert find_all(["ar"], SMALL, tmp_path)[0].verdict == field_laws.SAMPLES, "what failed is not kept"


def test_a_method_that_does_not_run_on_tables_says_why(tmp_path: Path) -> None:
    [found] = find_all(["generate"], SMALL, tmp_path)
    assert found.verdict == field_laws.NOT_RUN
    assert found.reason
    assert not [*tmp_path.iterdir()]


def distance(value: float, floor: float) -> Distance:
    return Distance(Estimate(value, value, value, 1, "enumeration"), floor)


@pytest.mark.parametrize(("method", "close", "far", "proper", "gap", "verdict"), [
    ("ar", 0.0, 0.0, True, None, field_laws.SAMPLES), ("ar", 0.0, 0.1, True, None, field_laws.OTHER),
    ("released", 0.1, 0.1, False, None, field_laws.OTHER), ("dlm-1", 0.0, 0.0, False, None, field_laws.SAMPLES),
    ("smc-4", 0.1, 0.1, True, 1e-16, field_laws.WEIGHTED), ("smc-4", 0.0, 0.0, True, 1e-16, field_laws.WEIGHTED),
    ("smc-4", 0.1, 0.1, True, None, field_laws.UNSURE), ("smc-4", 0.1, 0.1, True, 1e-3, field_laws.OTHER),
    ("smc-4", 0.1, 0.1, False, None, field_laws.OTHER), ("ar", None, None, True, None, field_laws.NO_LAW),
])
def test_verdicts(
    method: str, close: float | None, far: float | None, proper: bool, gap: float | None, verdict: str
) -> None:
    on = {
        name: Judgement(None if tv is None else distance(tv, 0.02), distance(0.3, 0.02), 1.0, proper)
        for name, tv in (("close", close), ("far", far))
    }
    assert Found(method, on, gap).verdict == verdict


def test_a_weighted_program_whose_output_is_enumerated_to_be_the_law_has_no_bias() -> None:
    """As markov at w = 0; within noise alone it is not told from a small one."""
    exact, noise, off = (Judgement(claim, claim, 1.0, True) for claim in (
        distance(0.0, 0.0), distance(0.01, 0.02), distance(0.1, 0.0)
    ))
    assert Found("markov", {"close": noise, "far": exact}, 1e-16).verdict == field_laws.SAMPLES
    assert Found("markov", {"close": noise, "far": noise}, 1e-16).verdict == field_laws.WEIGHTED
    assert Found("markov", {"close": exact, "far": off}, 1e-16).verdict == field_laws.WEIGHTED


def test_labels_of_a_crowd_cover_neither_each_other_nor_points() -> None:
    """Forty points, half of them at one height and close together, as accuracies near 100 % are."""
    rng = np.random.default_rng(0)
    points = np.concatenate([
        np.column_stack([rng.uniform(40, 400, 20), np.full(20, 380.0)]), rng.uniform(40, 380, (20, 2)),
    ])
    sizes = np.column_stack([rng.uniform(10, 80, 40), np.full(40, 7.0)])
    frame = Box(0, 0, 440, 440)
    found = places(points, sizes, frame)
    for i, box in enumerate(found):
        assert box.inside(frame)
        assert not any(box.meets(other) for other in found[i + 1 :])
        near = points[(abs(points - np.array([box.left, box.bottom])) < 1e3).all(1)]
        for x, y in near.tolist():
            assert not box.meets(Box(x, y, x, y), CLEAR * 0.99)
    with pytest.raises(ValueError, match="40 labels have no room: make the picture larger"):
        places(points, sizes * 12, frame)


def test_labels_are_short_and_tell_the_methods_apart() -> None:
    assert field.short(["a,x=1,y=2", "a,x=1,y=2,z=3", "b", "b,x=1", "a,y=2"]) == ["a", "a,z=3", "b", "b,x=1", "a,y=2"]
    assert field.short(["a,x=1", "a"]) == ["a,x=1", "a"]
    every = field.short(default_methods())
    assert len(set(every)) == len(every)
    assert max(map(len, every)) < 40
    assert all(text.startswith(label.split(",")[0]) for text, label in zip(default_methods(), every, strict=True))


def test_a_line_that_meets_a_label_is_found() -> None:
    box = Box(4, 4, 6, 6)
    assert crosses(np.array([0.0, 0.0]), np.array([10.0, 10.0]), box)
    assert not crosses(np.array([0.0, 0.0]), np.array([10.0, 0.0]), box)


def test_labels_on_axes_stand_where_they_are_said_to() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 1))
    texts = ["a first one", "another", "the third of them"]
    boxes = label_points(ax, [5.0, 5.05, 5.1], [0.5, 0.5, 0.5], texts, 7)
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    for text, box in zip([each for each in ax.texts if each.get_text()], boxes, strict=True):
        seen = text.get_window_extent()
        assert scale * seen.x0 == pytest.approx(box.left, abs=2.0)
        assert scale * (seen.y0 + seen.y1) / 2 == pytest.approx((box.bottom + box.top) / 2, abs=2.0)


def test_points_of_anothers_dial_have_no_aup_of_their_own() -> None:
    def figures(tokens: float, right: float) -> Any:
        return SimpleNamespace(row=SimpleNamespace(
            accuracy=Estimate(right, 0, 1, 100, "Wilson"), tokens_per_forward=tokens
        ))

    made = {"dlm-1": figures(1.0, 0.8), "dlm-2": figures(2.0, 0.8), "ar": figures(1.0, 0.8)}
    own = [Dial("dlm-1", "tokens", {"1": "dlm-1", "2": "dlm-2"})]
    page = field.Field([*made], own, made, {}, SMALL)  # type: ignore[arg-type]
    assert [page.aup(text) for text in made] == ["160", "-", "80"]


def test_the_page_has_a_place_for_figures() -> None:
    check_page(field.PAGE)


def test_the_command_fills_a_page_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(field.PAGE.read_text())
    monkeypatch.setitem(field.TABLE, "quick", ["ar", "smc-1"])
    monkeypatch.setitem(field.TABLE, "dials", {"smc-1": {"option": "w", "values": [0.3, 0.0]}})
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path / "out"), "--page", str(page), "--runs", "100"]
    field.main(arguments)
    told = page.read_text()
    assert (tmp_path / "page.svg").read_bytes().count(b"<svg") == 1
    for title in ("Every method on", "Speed dials", "Total variation between", "Which of them sample what"):
        assert f"**{title}" in told
    assert [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| `")][:2] == [
        "`ar`", "`smc-1`"
    ]
    data = json.loads((tmp_path / "out" / "field.json").read_text())
    assert {row["case"]["method"] for row in data["rows"]} == {"ar", "smc-1", "smc-1,w=0.0"}
    assert data["verdicts_by_method"]["ar"] == field_laws.SAMPLES
    monkeypatch.setattr("smc_bridge.analysis.study.cells.decode", None)
    monkeypatch.setattr(field_laws, "judge", None)
    capsys.readouterr()
    field.main(arguments)
    assert page.read_text().partition("target temperature")[0] == told.partition("target temperature")[0]


def test_a_form_has_the_colour_of_what_it_is_and_other_laws_are_hollow() -> None:
    """A biased form of an exact method is a baseline, a proper one of a baseline is none."""
    def of(text: str, proper: bool) -> tuple[str, bool]:
        page = field.Field([text], [], {text: SimpleNamespace(row=SimpleNamespace(proper=proper))}, {}, SMALL)  # type: ignore[dict-item]
        return field.role(page, text), field.other_law(page, text)

    assert of("diffuspec", True) == ("exact", False)
    assert of("diffuspec,form=ratio", False) == ("baseline", False)
    assert of("edlm,form=one-shot", True) == of("refusion,form=drawn", True) == ("weighted", False)
    assert of("refusion", False) == of("dlm-2", False) == ("baseline", False)
    assert of("apd,w=0.7", True) == of("fef-dllm", False) == ("exact", True)
    assert of("apd,form=as-published", False) == ("baseline", False)
    assert of("power-smc", True) == ("weighted", True)


def test_a_baseline_stands_behind_what_it_is_compared_with() -> None:
    assert field.with_baselines(["a", "b", "c"], {"a": "c", "b": "d"}) == ("a", "c", "b", "d")
    with pytest.raises(ValueError, match=r"field\.baselines = x: is no row"):
        field.with_baselines(["a"], {"x": "a"})
    assert set(field.TABLE["baselines"]) | set(field.TABLE["notes"]) <= set(default_methods())


def test_a_reason_is_told_once_for_all_methods_that_have_it() -> None:
    laws = {text: Found(text, {}, None, "no network") for text in ("ar", "dlm-1")}
    sheet = field._verdicts(field.Field([*laws], [], {}, laws, SMALL))
    assert sheet.note == "`ar`, `dlm-1`: no network."
