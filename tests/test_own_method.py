"""A method of another package, as docs/guides/own_method.md adds it: one file, one entry point, and it has a name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "own_method.md").read_text(encoding="utf-8")
PROMPT = "Jack has 47 candies. Jack sells 2. How many candies does Jack have now?"

Run = Callable[..., subprocess.CompletedProcess[str]]


def block(language: str) -> str:
    """The first block of code of the guide in that language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A command line where the guide's package is installed."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    project = tomllib.loads(block("toml"))
    [module] = project["tool"]["setuptools"]["py-modules"]
    (site / f"{module}.py").write_text(block("python"), encoding="utf-8")
    info = site / f"{module}-{project['project']['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: {project['project']['version']}\n"
    )
    lines = [
        line for group, entries in project["project"]["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()), "broken = not_there")
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "smc_bridge.cli", *argv], cwd=work, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def succeeds(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_and_explained_and_a_broken_one_with_its_reason(run: Run) -> None:
    listed = succeeds(run("methods"))
    assert "above" in listed
    assert "the DLM's own law" in listed
    assert "broken is unavailable: ModuleNotFoundError: No module named 'not_there'" in listed
    found: dict[str, Any] = json.loads(succeeds(run("methods", "above", "--json")))
    assert [(o["name"], o["default"]) for o in found["options"]] == [
        ("p", "0.9"), ("temperature", "1.0"), ("lookahead", "32"),
    ]
    assert found["options"][0]["help"] == "probability of the likeliest token from which on a place is filled"


def test_it_decodes(run: Run, tmp_path: Path) -> None:
    argv = ["decode", PROMPT, "--method", "above,p=0.8", "--temperature", "0.2", "--max-new-tokens", "16"]
    out = succeeds(run(*argv, "--json", str(tmp_path / "r.json")))
    assert "not properly weighted" in out
    saved = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert saved["settings"]["method"] == "above,p=0.8"
    refused = run(*argv, "--particles", "4")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--particles = 4 with --method = above" in refused.stderr
    assert "did you mean above-half" in run("decode", PROMPT, "--method", "above-haf").stderr


def test_it_is_compared(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    succeeds(run("compare", "--n", "2", "--methods", "ar,above,p=0.8,above-half", "--json", str(file), "--fresh"))
    found = file.read_text(encoding="utf-8")
    assert "above,p=0.8" in found
    assert "above-half" in found


def test_it_is_studied(run: Run, tmp_path: Path) -> None:
    file, rows = tmp_path / "mine.toml", tmp_path / "rows.jsonl"
    file.write_text('methods = ["above,p=0.8", "smc-1"]\n[tabular]\nalphabets = 3\nlengths = 3\nruns = 20\n')
    succeeds(run("study", str(file), "--out", str(rows)))
    assert "above,p=0.8" in rows.read_text(encoding="utf-8")
