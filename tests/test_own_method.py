"""A method of another package, as docs/guides/own_method.md adds it: one file, one entry point, and it has a name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "own_method.md").read_text(encoding="utf-8")
PROMPT = "Jack has 47 candies. Jack sells 2. How many candies does Jack have now?"

#: Runs command lines one after the other, and prints of each its exit code, its output and its errors.
PROGRAM = """
import contextlib, io, json, sys
from smc_bridge.cli import main
told = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""
DECODE = ["decode", PROMPT, "--method", "above,p=0.8", "--temperature", "0.2", "--max-new-tokens", "16"]
COMMANDS = {
    "listed": ["methods"],
    "explained": ["methods", "above", "--json"],
    "decoded": [*DECODE, "--json", "r.json"],
    "refused": [*DECODE, "--particles", "4"],
    "misspelled": ["decode", PROMPT, "--method", "above-haf"],
    "compared": ["compare", "--n", "2", "--methods", "ar,above,p=0.8,above-half", "--json", "c.json", "--fresh"],
    "studied": ["study", "mine.toml", "--out", "rows.jsonl"],
}
STUDY = 'methods = ["above,p=0.8", "smc-1"]\n[tabular]\nalphabets = 3\nlengths = 3\nruns = 20\n'


class Told(NamedTuple):
    """What a command line gave."""

    code: int
    out: str
    err: str


class Seen(NamedTuple):
    """What all of them gave, and the folder that they ran in."""

    told: dict[str, Told]
    folder: Path

    def succeeds(self, name: str) -> str:
        assert self.told[name].code == 0, self.told[name].err
        return self.told[name].out


def block(language: str) -> str:
    """The first block of code of the guide in that language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """All command lines, in one process where the guide's package is installed."""
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

    (work / "mine.toml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([*COMMANDS.values()])], cwd=work,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"PYTHONPATH": path},
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    told = {name: Told(*each) for name, each in zip(COMMANDS, json.loads(done.stdout), strict=True)}
    for each in told.values():
        assert "Traceback" not in each.err, each.err
    return Seen(told, work)


def test_it_is_listed_and_explained_and_a_broken_one_with_its_reason(seen: Seen) -> None:
    listed = seen.succeeds("listed")
    assert "above" in listed
    assert "the DLM's own law" in listed
    assert "broken is unavailable: ModuleNotFoundError: No module named 'not_there'" in listed
    found: dict[str, Any] = json.loads(seen.succeeds("explained"))
    assert [(o["name"], o["default"]) for o in found["options"]] == [
        ("p", "0.9"), ("temperature", "1.0"), ("lookahead", "32"),
    ]
    assert found["options"][0]["help"] == "probability of the likeliest token from which on a place is filled"


def test_it_decodes(seen: Seen) -> None:
    assert "not properly weighted" in seen.succeeds("decoded")
    saved = json.loads((seen.folder / "r.json").read_text(encoding="utf-8"))
    assert saved["settings"]["method"] == "above,p=0.8"
    refused = seen.told["refused"]
    assert (refused.code, refused.out) == (2, "")
    assert "--particles = 4 with --method = above" in refused.err
    assert "did you mean above-half" in seen.told["misspelled"].err


def test_it_is_compared(seen: Seen) -> None:
    seen.succeeds("compared")
    found = (seen.folder / "c.json").read_text(encoding="utf-8")
    assert "above,p=0.8" in found
    assert "above-half" in found


def test_it_is_studied(seen: Seen) -> None:
    seen.succeeds("studied")
    assert "above,p=0.8" in (seen.folder / "rows.jsonl").read_text(encoding="utf-8")
