"""The committed diagram is what its script draws, and its worked example is right."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_step", DOCS / "draw_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_diagram_is_what_the_script_draws(tmp_path: Path) -> None:
    fresh = tmp_path / "step.svg"
    subprocess.run([sys.executable, str(DOCS / "draw_step.py"), "--svg", str(fresh)], check=True)
    same = fresh.read_bytes() == (DOCS / "step.svg").read_bytes()
    assert same, "run python docs/draw_step.py and commit docs/step.svg"


def test_weights_of_the_example(script: ModuleType) -> None:
    raw = [math.exp(carried + lane[4]) / 2 for carried, lane in zip((0.0, 0.0, -0.4, -0.4), script.LANES, strict=True)]
    assert script.lane_shares() == pytest.approx([w / sum(raw) for w in raw])
    assert script.log_mean_weight() == pytest.approx(math.log(sum(raw) / 2))
    assert script.survivors() == [0, 3]


def test_blocks_of_the_example_obey_the_kernel(script: ModuleType) -> None:
    """A block is the accepted tokens plus one correction that differs from the draft, or the whole draft."""
    for lane, (draft, probabilities, accepted, correction, _) in enumerate(script.LANES):
        tokens = [token for token, _ in script.block(lane)]
        assert len(probabilities) == len(draft)
        assert tokens[:accepted] == list(draft[:accepted])
        assert (correction is None) == (accepted == len(draft))
        assert correction is None or (tokens[accepted:] == [correction] and correction != draft[accepted])
