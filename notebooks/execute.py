"""Run the notebooks: `python notebooks/execute.py [NAME ...]` executes each `NAME.py` into `NAME.ipynb`, with outputs.

The scripts (jupytext py:percent) are what is edited; the notebooks are made from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(script: Path) -> None:
    """Execute one script from the repository's root and write the notebook beside it."""
    notebook = jupytext.read(script)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # the same names every time, so that a new run changes outputs only
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": HERE.parent}}
    )
    client.execute()
    for cell in notebook.cells:
        # Progress bars and warnings are not results, and would put this machine's paths into the notebook.
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def main() -> None:
    """Command line (module docstring)."""
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", help="such as 01_quickstart; by default all")
    names = parser.parse_args().names or sorted(path.stem for path in HERE.glob("[0-9]*.py"))
    for name in names:
        script = HERE / f"{name}.py"
        if not script.is_file():
            parser.error(f"{name}: there is no {script.name}")
        execute(script)
        print(f"{script.stem}: done")


if __name__ == "__main__":
    main()
