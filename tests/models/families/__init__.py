"""Tiny checkpoints of every family of diffusion models in the family's own layout, with independent forwards.

`FAMILIES[name].save(folder)` writes what the family publishes: configuration, weights under its own names, tokenizer,
and no code. `FAMILIES[name].logits(weights, ids)` says what every place of a row must score.
"""

from tests.models.families.files import Family, read_weights
from tests.models.families.llada import LLADA
from tests.models.families.qwen import QWEN
from tests.models.families.wrapped import WRAPPED

__all__ = ["FAMILIES", "Family", "read_weights"]

FAMILIES: dict[str, Family] = QWEN | LLADA | WRAPPED
