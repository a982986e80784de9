"""Warnings that point at the user's line, however deep in the library they arise."""

from __future__ import annotations

import sys
import warnings

#: Packages whose frames are passed over.
OURS = ("smc_bridge", "torch")


def warn_caller(message: str) -> None:
    """A `UserWarning` at the first frame outside of the library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
