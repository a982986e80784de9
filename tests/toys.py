"""A pair of tabular models with a tokenizer of digits, and a task on it: the command line in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from smc_bridge.models.pairs import Pair
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.tasks import Item
from smc_bridge.testing import tabular_pair

EOS = 0
#: Length limit and lookahead that the tables have room for, with prompts of up to two tokens.
LIMIT = 4


class Digits:
    """Token a is written as the number a, with blanks between tokens."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(i) for i in ids)


def toy_pair(*, seed: int = 1, size: int = 3, dlm_size: int | None = None) -> Pair:
    """Tables of `size` tokens; another size for the diffusion model makes a pair that does not fit."""
    ar = TabularAR.random(size, LIMIT + 2, seed=seed, concentration=1.5, eos_id=EOS)
    other = ar if dlm_size is None else TabularAR.random(dlm_size, LIMIT + 2, seed=seed, eos_id=EOS)
    return Pair("toy", TabularDLM(other, noise=0.5), ar, Digits(), lambda tokenizer, text: tokenizer.encode(text))


def bare_pair() -> Any:
    """Two tables and nothing else: no tokenizer, no learned part."""
    return SimpleNamespace(**tabular_pair()._asdict())


@dataclass(frozen=True)
class ToyTask:
    """Six prompts; right is a continuation that starts with the prompt's last token."""

    name: str = "toy"
    pair: str = "toy"
    max_new_tokens: int = LIMIT
    lookahead: int = LIMIT
    window: int = 3

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        prompts = ["1", "2", "1 1", "1 2", "2 1", "2 2"]
        if n > len(prompts):
            raise ValueError(f"n = {n}: the task 'toy' has {len(prompts)} problems")
        return [Item(prompt, prompt[-1]) for prompt in prompts[offset : offset + n]]

    def grade(self, text: str, answer: Any) -> bool:
        return text.startswith(str(answer))
