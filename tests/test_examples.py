"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folder -> the package that it is imported as.
FOLDERS = {"smc_bridge": "smc_bridge", "models": "smc_bridge.models", "analysis": "smc_bridge.analysis"}
MODULES = sorted(
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
    for folder, package in FOLDERS.items() for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
#: What a newcomer calls first.
SHOWN = {"smc", "Sampler.run", "Result.sample", "certify", "check", "load_pair", "ProductOfExperts", "TreeWalk"}


def examples(module: str) -> list[doctest.DocTest]:
    return [found for found in doctest.DocTestFinder().find(import_module(module), module) if found.examples]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_give_what_they_say(module: str) -> None:
    for example in examples(module):
        told: list[str] = []
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append).failed
        assert not failed, "".join(told)


def test_what_a_newcomer_calls_first_has_an_example() -> None:
    named = [f".{found.name}" for module in MODULES for found in examples(module)]
    assert sorted(name for name in SHOWN if not any(full.endswith(f".{name}") for full in named)) == []
