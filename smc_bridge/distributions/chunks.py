"""`Chunks`: how much of a law is computed at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunks:
    """How much is computed at a time; the results do not depend on it.

    Attributes:
        bytes: of one `[n, A]` tensor of a chunk; about what a core's cache holds. A chunk has at least one cell.
        ahead: cells times alphabet that are worth one more round of looking for the first refusal (see `reach`).
        whole: bytes up to which a law `[R, V, A]` is computed at once, as a tensor (`settled`).
        compile: run the arithmetic of a chunk through `torch.compile`.
    """

    bytes: int = 1 << 20
    ahead: int = 1 << 21
    whole: int = 8 << 20
    compile: bool = False

    def cells(self, size: int, itemsize: int) -> int:
        """Cells of one chunk."""
        return max(1, self.bytes // (size * itemsize))

    def reach(self, rows: int, size: int) -> int:
        """Positions to look at before asking again which of `rows` go on.

        More positions waste the work on those after the first refusal, fewer cost more rounds; the sum of a waste in
        proportion to the width and of rounds in inverse proportion is least at a square root.
        """
        return max(1, round(math.sqrt(self.ahead / max(1, rows * size))))
