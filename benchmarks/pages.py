"""Pages of docs/benchmarks whose figures a command writes: what is written by hand around them stays.

A page holds the line `<!-- figures -->` and the line `<!-- /figures -->`; what stands between them is the command's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smc_bridge.estimate import Estimate
from smc_bridge.files import write_bytes, write_text

OPEN, CLOSE = "<!-- figures -->", "<!-- /figures -->"
_BETWEEN = re.compile(f"(?<={re.escape(OPEN)}\n).*?(?=^{re.escape(CLOSE)}$)", re.DOTALL | re.MULTILINE)


def check_page(page: Path) -> str:
    """The text of a page; ValueError unless there is one place for figures in it."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--page = {page}: cannot be read ({error.strerror}); give another page") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--page = {page}: is no UTF-8 text; give another page") from error
    if len(_BETWEEN.findall(text)) != 1:
        raise ValueError(f"--page = {page}: has no place for figures; put {OPEN} and {CLOSE} on lines of their own")
    return text


def fill(page: Path, figures: str) -> None:
    """Put figures in their place on a page."""
    text = check_page(page)
    write_text(page, _BETWEEN.sub(lambda _: f"\n{figures.strip()}\n\n", text), argument="--page")


def error_bars(found: Sequence[Estimate]) -> Any:
    """Lengths of error bars, `[2, n]`; none where an end is not known."""
    return np.nan_to_num(np.transpose([each.bars for each in found]), posinf=0.0)


def save_svg(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
    """Draw a picture as SVG: the same bytes every time.

    Args:
        draw: draws on an empty `matplotlib.figure.Figure`.
        size: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = Figure(layout="constrained", figsize=size)
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    write_bytes(path, picture.getvalue(), argument="--page")
