"""Checkouts of the project at work: a process for each, which runs that checkout's package in this environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Folders at the root that are imported as parts of the package.
INSIDE = ("models", "analysis")


@contextmanager
def package_of(checkout: Path) -> Iterator[Path]:
    """A folder from which the checkout's package is imported: links to its files, as `make types` makes them.

    Raises:
        ValueError: the checkout has no such files.
    """
    root = checkout.resolve()
    for name in ("smc_bridge", *INSIDE):
        if not (root / name / "__init__.py").is_file():
            raise ValueError(f"--other = {checkout}: has no package {name}; give a checkout of this project")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "smc_bridge"
        package.mkdir()
        for file in [*(root / "smc_bridge").iterdir(), *(root / name for name in INSIDE)]:
            if file.name != "__pycache__":
                (package / file.name).symlink_to(file)
        yield Path(folder)


class Worker:
    """A process that decodes with a checkout's package.

    Args:
        checkout: its root.
        folder: that its package is imported from.
        threads: of torch.
    """

    def __init__(self, checkout: Path, folder: Path, threads: int) -> None:
        self.checkout = checkout.resolve()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("versus_worker.py")), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()

    def check(self) -> None:
        """Wait until it is there: ValueError if it runs the package of another checkout."""
        for found in self._read():
            if Path(found) != self.checkout:
                raise ValueError(f"--other = {self.checkout}: the package of {found} was imported in its place")

    def ask(self, **request: Any) -> Any:
        """Its answer to a request; ValueError with what it says if it refuses."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self._read()
        if "error" in found:
            raise ValueError(f"{self.checkout}: {found['error']}")
        return found

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self.checkout}: its process ended with code {self._process.wait()}; see above")
        return json.loads(line)
