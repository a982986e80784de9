"""The wheel beside a user's own packages called `models` and `analysis`, and the list of packages in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"smc_bridge": "smc_bridge", "models": "smc_bridge.models", "analysis": "smc_bridge.analysis"}
PROGRAM = """
import sys
import analysis, models
assert models.MINE and analysis.MINE
from smc_bridge.cli import main
sys.exit(main(["decode", "Jack has 2 candies. How many candies does Jack have now?", "--max-new-tokens", "4"]))
"""


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = [
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for folder, name in FOLDERS.items() for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_the_wheel_decodes_beside_a_users_own_models_and_analysis(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files behind
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("smc_bridge-*.whl")
    installed, decoys = tmp_path / "installed", tmp_path / "decoys"
    zipfile.ZipFile(wheel).extractall(installed)
    for name in ("models", "analysis"):
        (decoys / name).mkdir(parents=True)
        (decoys / name / "__init__.py").write_text("MINE = True\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(decoys), str(installed)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "log Z" in done.stdout
