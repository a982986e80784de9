"""One command per table: `python -m benchmarks.NAME`."""
