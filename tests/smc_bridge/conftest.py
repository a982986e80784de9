"""Fixtures: devices that are present, the count of statistical claims, and kernels that are judged once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from smc_bridge.describe import describe
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.testing import checking
from smc_bridge.testing.parts import kernel_fault
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


@pytest.fixture(scope="session", autouse=True)
def _kernels_of_the_package_are_judged_once() -> Iterator[None]:
    """What `check` finds of such a kernel alone, as its class is, is the same in every program around it."""
    judged: dict[Any, str | None] = {}

    def fault(kernel: Kernel, *, level: float) -> str | None:
        own = type(kernel).__module__.startswith("smc_bridge.kernels.")
        if not own or any(map(callable, vars(kernel).values())):
            return kernel_fault(kernel, level=level)
        code = tuple(id(member) for each in type(kernel).__mro__ for member in vars(each).values())
        key = describe(kernel), level, code
        if key not in judged:
            judged[key] = kernel_fault(kernel, level=level)
        return judged[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "kernel_fault", fault)
        yield
