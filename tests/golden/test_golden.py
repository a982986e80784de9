"""Tokens, weights, evidence and forwards of every decoder and part are those that were recorded."""

from __future__ import annotations

import json

import pytest

from tests.golden.cases import cases
from tests.golden.record import FILE, plain

RECORDED = json.loads(FILE.read_text())
CASES = cases()


def test_every_case_is_recorded_and_every_record_has_a_case() -> None:
    assert set(CASES) == set(RECORDED)


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_recorded(name: str) -> None:
    # Sums of float32 may be added up in another order on another machine; float64 leaves round-off only.
    tolerance = 1e-9 if name.startswith("tabular") else 1e-3
    for found, kept in zip(map(plain, CASES[name]()), RECORDED[name], strict=True):
        for key in ("tokens", "forwards", "proper"):
            assert found[key] == kept[key], f"{name}, {key}"
        assert [float(x) for x in found["log_weights"]] == pytest.approx(
            [float(x) for x in kept["log_weights"]], abs=tolerance
        )
        assert float(found["log_evidence"]) == pytest.approx(float(kept["log_evidence"]), abs=tolerance)
