"""Every notebook runs from top to bottom, its own assertions included; the committed one is made from its script.

Here they run in a reduced size; `make notebooks` runs them in full.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("[0-9]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("IPython", "matplotlib", "arviz_stats"):
        pytest.importorskip(needed)
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    monkeypatch.setenv("SMC_BRIDGE_NOTEBOOK_SIZE", "reduced")
    runpy.run_path(str(script))
    plt.close("all")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_paired_and_has_outputs(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    remedy = f"run python notebooks/execute.py {script.stem}"
    expected = [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == expected, remedy
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), remedy
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs, remedy
    assert all(output.output_type != "error" for output in outputs), remedy
