"""What holds for every test: no width of a terminal from outside (pytest-xdist sets one), draws that do not depend on
the tests before it, and a mark of those that are parametrised over devices: `pytest -m device`. What stands when all
tests are collected, their imports above all, is no garbage: collections leave it out.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_terminal_width() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which must be undone before its fixtures
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(autouse=True)
def _own_draws() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(getattr(item, "callspec", None), "params", ()):
            item.add_marker("device")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
