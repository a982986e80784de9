"""Tests, mirroring the packages; `tests.oracle` is independent plain numpy."""
