"""The gallery's pictures: all are there, come out the same every time, and say nothing of when they were drawn."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("matplotlib")

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("particles", "weights", "trace")
#: Sizes that take a second or two.
SMALL: dict[str, Callable[[ModuleType], Any]] = {
    "particles": lambda gallery: gallery.particles(runs=20, counts=(1, 2)),
    "weights": lambda gallery: gallery.weights(prompts=2, count=2, limit=12),
    "trace": lambda gallery: gallery.trace(steps=1),
}


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_committed_picture_is_an_svg_without_date(name: str) -> None:
    text = (DOCS / "gallery" / f"{name}.svg").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</svg>")
    assert "<dc:date>" not in text
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    assert width >= 6.4 * 72 - 1
    assert height >= 3.6 * 72 - 1


@pytest.mark.parametrize("name", NAMES)
def test_picture_is_drawn_at_a_small_size(name: str, gallery: ModuleType) -> None:
    assert set(gallery.PICTURES) == set(NAMES)
    for ax in SMALL[name](gallery).axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()


def test_the_same_bytes_every_time(tmp_path: Path, gallery: ModuleType) -> None:
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "particles.svg"
        gallery.save(path, SMALL["particles"](gallery))
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_unknown_picture_is_refused_with_the_names(gallery: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["sunset"])
    assert "sunset: choose from particles, weights, trace" in capsys.readouterr().err
