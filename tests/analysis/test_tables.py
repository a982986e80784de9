"""Tables: what they say, not how they look."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from smc_bridge.analysis import step_table, summary
from smc_bridge.engine.presets import smc
from smc_bridge.methods.released import released
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.result import Result
from tests.analysis.helpers import INF, make_record, make_result

AR = TabularAR.random(3, 4, seed=1, eos_id=1)
PAIR = SimpleNamespace(ar=AR, dlm=TabularDLM(AR, noise=0.5))


def _text(table: object, *, styles: bool = False) -> str:
    console = Console(width=220, record=True, force_terminal=styles, color_system="standard" if styles else None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _run(particles: int = 3, **options: bool) -> list[Result]:
    return smc(PAIR, particles, lanes=2, window=3).run([[], []], seed=[0, 1], max_new_tokens=4, **options)


def test_summary_has_a_row_for_each_method() -> None:
    others = released(PAIR, lanes=2, window=3).run([[]], max_new_tokens=4)
    text = _text(summary({"one": _run(), "two": others}))
    assert "one" in text
    assert "not proper" in text
    assert "smc(3)" in _text(summary(_run()))


def test_summary_prints_as_the_table_and_not_as_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    table = summary({"one": _run()})
    print(table)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.strip().startswith(("method", "one"))] == [
        "method", "one",
    ]
    assert repr(table) == str(table) == shown.rstrip("\n")
    assert "object at" not in shown


def test_summary_counts_a_dead_run_as_an_ess_of_zero() -> None:
    row = _text(summary([make_result([-INF, -INF]), make_result([0.0, 0.0])])).splitlines()
    assert any(" 0.5 " in line for line in row), row


def test_summary_survives_dead_runs_and_empty_traces() -> None:
    assert "–" in _text(summary([make_result([-INF, -INF]), make_result([-INF, -INF])]))


def test_step_shows_accepted_corrected_and_refused_tokens() -> None:
    record = make_record(
        length=[[2], [0]], accepted=[[1], [0]], drafts=[[[7, 8, 9]], [[]]], blocks=[[[7, 5]], [[]]], ancestors=[0, 0],
        log_increments=[[-0.25], [0.0]],
    )
    result = make_result([0.0, 0.0], trace=[record])
    plain = _text(step_table(result, 0))
    assert "7 5 8 9" in plain
    assert "-0.250" in plain
    assert "finished" in plain
    coloured = _text(step_table(result, -1, decode=lambda ids: "/".join(map(str, ids)) + "|"), styles=True)
    assert "\x1b[32m7|" in coloured
    assert "\x1b[1;33m5|" in coloured
    assert "\x1b[9;31m8/9|" in coloured


def test_step_of_a_real_run() -> None:
    run = _run(keep_drafts=True)[0]
    assert _text(step_table(run, 0)).count("│") > 0


def test_step_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="step = 9"):
        step_table(_run()[0], 9)
    with pytest.raises(ValueError, match="keep_drafts"):
        step_table(_run()[0], 0)
