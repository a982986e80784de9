"""Without a package of an extra, whatever needs it says so in one line before it computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from smc_bridge.analysis import plots, smoothed_log_weights, to_arviz, to_datatree
from smc_bridge.analysis.commands.plot import command as plot
from smc_bridge.analysis.commands.study import command as study_command
from smc_bridge.analysis.comparison import Comparison, Settings
from smc_bridge.analysis.comparison.comparing import KIND
from smc_bridge.analysis.study import study
from smc_bridge.cli import main
from smc_bridge.models.extras import MissingExtraError
from tests.analysis.helpers import make_result

HINT = "pip install -e '.[analysis]' in a clone"
RESULT = make_result([i / 10 for i in range(30)])
STUDY = {"particles": [1], "tabular": {"alphabets": 2, "lengths": 2, "runs": 2}}

USES: dict[str, tuple[str, Callable[[], Any], str]] = {
    "study": ("pandas", lambda: study(**STUDY), "studies need pandas"),
    "frame": ("pandas", lambda: Comparison(Settings("t", 1, ("ar",)), [], []).frame(), "data frames need pandas"),
    "plot": ("matplotlib", lambda: plots.plot_steps(RESULT), "plots need matplotlib"),
    "benchmark": ("matplotlib", report._figure, "plots need matplotlib"),
    "export": ("xarray", lambda: to_datatree(RESULT), "exports need xarray"),
    "arviz": ("arviz", lambda: to_arviz(RESULT), "ArviZ's functions need arviz"),
    "smoothing": ("arviz_stats", lambda: smoothed_log_weights(range(30)), "smoothed weights need arviz-stats"),
}


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every import of a package fail."""
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("use", USES)
def test_what_needs_an_extra_names_it(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    package, call, words = USES[use]
    without(package, monkeypatch)
    computing = "smc_bridge.analysis.runner.map_cells"
    monkeypatch.setattr(computing, lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(MissingExtraError) as caught:
        call()
    assert str(caught.value) == f"{words}: {HINT}"


def test_commands_without_an_extra_end_with_one_line_and_write_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"method": "ar", "accuracy": 1.0, "tokens_per_second": 2.0}
    Path("c.json").write_text(json.dumps({"kind": KIND, "format": 2, "rows": [row]}))
    Path("s.toml").write_text("particles = [1]\n[tabular]\nalphabets = 2\nlengths = 2\nruns = 2\n")
    for package, words, argv in (
        ("pandas", "studies need pandas", ["study", "s.toml", "--out", "s.jsonl"]),
        ("matplotlib", "plots need matplotlib", ["plot", "c.json"]),
    ):
        with monkeypatch.context() as patch:
            without(package, patch)
            assert main(argv, commands=[study_command, plot]) == 2
        assert capsys.readouterr() == ("", f"smc-bridge: error: {words}: {HINT}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "s.toml"]
