"""A task whose grading dies once; apart from the other tests, for a worker imports what it works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.analysis.jobs import wait_to_be_killed
from tests.toys import ToyTask


@dataclass(frozen=True)
class FragileTask(ToyTask):
    """The toy task, whose first grading waits for a killer."""

    folder: Path = Path()

    def grade(self, text: str, answer: Any) -> bool:
        wait_to_be_killed(self.folder)
        return super().grade(text, answer)
