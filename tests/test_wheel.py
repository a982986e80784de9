"""The wheel with what it requires and nothing else, beside a user's own `models` and `analysis`; and its packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = {"smc_bridge": "smc_bridge", "models": "smc_bridge.models", "analysis": "smc_bridge.analysis"}
QUESTION = "Jack has 2 candies. How many candies does Jack have now?"
DECODE = ["decode", QUESTION, "--max-new-tokens", "4"]
#: Runs command lines one after the other, beside a user's own `models` and `analysis`.
PROGRAM = """
import json, sys
paths, commands = json.loads(sys.argv[1])
sys.path[:0] = paths
import analysis, models
assert models.MINE and analysis.MINE
from smc_bridge.cli import main
for command in commands:
    code = main(command)
    if code:
        sys.exit(code)
"""
STUDY = """
methods = ["smc", "ar"]
particles = [1, 2]
windows = 2
tabular = { alphabets = 2, lengths = 2, runs = 20 }
"""


def closure(extra: str) -> set[str]:
    """Names of the distributions that the wheel with an extra requires, and what they require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [Requirement(text) for text in (
        *project["dependencies"], *(project["optional-dependencies"][extra] if extra else ()))]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for chosen in ("", *requirement.extras):
            if (known := (canonicalize_name(requirement.name), chosen)) in seen:
                continue
            seen.add(known)
            for each in map(Requirement, metadata.distribution(requirement.name).requires or ()):
                if each.marker is None or each.marker.evaluate({"extra": chosen}):
                    todo.append(each)
    return {name for name, _ in seen}


def link(names: set[str], folder: Path) -> Path:
    """A folder that holds these distributions, and no other, as links."""
    folder.mkdir()
    for name in names:
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with a user's packages and with the files of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", str(folder), str(source)],
        check=True,
    )
    (built,) = folder.glob("smc_bridge-*.whl")
    installed, decoys = folder / "installed", folder / "decoys"
    zipfile.ZipFile(built).extractall(installed)
    for name in ("models", "analysis"):
        (decoys / name).mkdir(parents=True)
        (decoys / name / "__init__.py").write_text("MINE = True\n")
    return [decoys, installed]


def run(wheel: list[Path], extra: str, commands: list[list[str]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Commands in one process which sees the standard library, the wheel and what it requires."""
    paths = [str(path) for path in (*wheel, link(closure(extra), folder / "site"))]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, json.dumps([paths, commands])], cwd=folder, capture_output=True,
        text=True, check=False,
    )


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = [
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for folder, name in FOLDERS.items() for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_the_wheel_without_extras_decodes_and_names_what_a_study_needs(wheel: list[Path], tmp_path: Path) -> None:
    assert "pandas" not in closure(""), "this tests what lies beyond the requirements"
    (tmp_path / "s.toml").write_text(STUDY)
    done = run(wheel, "", [DECODE, ["study", "s.toml", "--out", "s.jsonl"]], tmp_path)
    assert "log Z" in done.stdout, done.stderr
    assert done.returncode == 2, done.stderr
    assert 'studies need pandas: pip install "smc-bridge[analysis]"\n' in done.stderr


def test_the_wheel_with_the_laboratory_runs_its_commands(wheel: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    done = run(wheel, "analysis", [
        ["compare", "--n", "2", "--methods", "ar,smc-1", "--json", "c.json"],
        ["certify", "--n", "2", "--method", "smc-1", "--json", "k.json"],
        ["study", "s.toml", "--out", "s.jsonl"],
        ["plot", "c.json", "--out", "c.png"],
        ["plot", "s.jsonl", "--out", "s.png"],
    ], tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("2 problems", "KL(r || p)", "s.toml"):
        assert words in done.stdout, done.stdout
    for name in ("c.json", "k.json", "s.jsonl", "c.png", "s.png"):
        assert (tmp_path / name).stat().st_size, name
