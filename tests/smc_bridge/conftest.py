"""Fixtures: devices that are present, and the count of statistical claims."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.smc_bridge import claims


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that is present."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _claims_stay_within_their_number() -> Iterator[None]:
    """The suite-wide failure rate holds for at most `CLAIMS` claims."""
    yield
    assert len(claims.made) <= claims.CLAIMS, f"{len(claims.made)} claims were made, but CLAIMS = {claims.CLAIMS}"


@pytest.fixture(autouse=True)
def _validation_is_what_it_was() -> Iterator[None]:
    """The first `torch.compile` of a process turns off the validation of arguments of all distributions."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)
