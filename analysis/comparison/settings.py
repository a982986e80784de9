"""What decides the figures of a comparison: settings, and fingerprints of the models and of the prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.models.arguments import check_text, is_list, real_between, said, whole_number
from smc_bridge.models.pairs import Pair
from smc_bridge.tasks import Item, Task

#: Entries of each tensor that enter the fingerprint.
SAMPLED = 4096


@dataclass(frozen=True)
class Settings:
    """Everything but the models that the figures depend on.

    Attributes:
        task: its name.
        n: problems, the first ones of the task.
        methods: by name, in the order of the table.
        temperature: of the target and of the proposals.
        weight: w of the products of experts.
        seed: of all draws.
        batch: prompts that are decoded together; they are the same however the work is interrupted.
    """

    task: str
    n: int
    methods: tuple[str, ...]
    temperature: float = 0.2
    weight: float = 0.3
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        set_once = object.__setattr__  # the class is frozen
        check_text("task", self.task)
        for name, least in (("n", 1), ("batch", 1), ("seed", 0)):
            set_once(self, name, whole_number(name, getattr(self, name), least=least, most=None))
        set_once(self, "temperature", check_temperature(self.temperature))
        weight = real_between("weight", self.weight, 0.0, 1.0, remedy="give a number in [0, 1]")
        set_once(self, "weight", weight)
        if not is_list(self.methods) or not all(isinstance(name, str) for name in self.methods):
            raise ValueError(f"methods = {said(self.methods)}: give a list of names")
        set_once(self, "methods", tuple(self.methods))
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods = {','.join(self.methods)}: give at least one, and none twice")

    @property
    def batches(self) -> int:
        """Batches of every method."""
        return -(-self.n // self.batch)

    def problems(self, batch: int) -> range:
        """Indices of the problems of a batch."""
        return range(batch * self.batch, min(self.n, (batch + 1) * self.batch))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "methods": list(self.methods)}


def problems_fingerprint(task: Task, items: Sequence[Item], prompts: Sequence[Sequence[int]]) -> str:
    """Short hash of a task's limits and grader, and of its prompts with their answers and ids."""
    limits = (task.max_new_tokens, task.lookahead, task.window, *([task.grader] if hasattr(task, "grader") else []))
    digest = hashlib.blake2b(repr(limits).encode(), digest_size=8)
    for item, ids in zip(items, prompts, strict=True):
        named = () if item.id is None else (item.id,)
        digest.update(repr((item.prompt, item.answer, tuple(ids), *named)).encode())
    return digest.hexdigest()


def fingerprint(pair: Pair) -> str:
    """Short hash that changes with the weights of a pair's transformers models (empty for models of other kinds)."""
    digest = hashlib.blake2b(digest_size=8)
    found = False
    for model in (pair.dlm, pair.ar):
        network = getattr(model, "model", None)
        if not isinstance(network, torch.nn.Module):
            continue
        found = True
        for name, tensor in sorted(network.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().numpy()
            digest.update(f"{name}|{tuple(tensor.shape)}|".encode() + sample.tobytes())
    return digest.hexdigest() if found else ""
