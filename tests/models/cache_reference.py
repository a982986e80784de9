"""Cache policies by their definitions, row by row: what a batched session with a cache must equal.

A row is a list of tokens, and a dictionary of keys and values by position, each with the number of the forward that
left it. A forward is transformers' own, of one row, over a `DynamicCache` made of what is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from smc_bridge.models.huggingface import HuggingFaceMaskedLM
from smc_bridge.models.protocols import ABSENT, MASKED


@dataclass
class Row:
    tokens: list[int]
    kept: dict[int, tuple[int, list[Tensor]]] = field(default_factory=dict)
    behind: dict[int, tuple[int, int, list[Tensor], Tensor]] = field(default_factory=dict)
    prompt: int | None = None
    begun: tuple[int, int] | None = None  # where the block begins that all was computed for, and by which forward

    def copy(self) -> Row:
        return Row([*self.tokens], {**self.kept}, {**self.behind}, self.prompt, self.begun)

    def identity(self) -> tuple[Any, ...]:
        kept = tuple((i, forward) for i, (forward, _) in sorted(self.kept.items()))
        return tuple(self.tokens), kept, self.begun, self.prompt


class ByDefinition:
    """A `MaskedDiffusionLM` whose sessions keep what a policy says, by name.

    Args:
        like: the model, of which the network and the convention are read.
        policy: "prefix", "freecache:B", "refresh:B", "dual:B" or "window:W".
    """

    block_size = None

    def __init__(self, like: HuggingFaceMaskedLM, policy: str) -> None:
        self.like, (self.policy, _, number) = like, policy.partition(":")
        self.number = int(number or 1)  # tokens of a block, or of the window

    def __getattr__(self, name: str) -> Any:
        return getattr(self.like, name)

    def session(self, tokens: Tensor, length: Tensor) -> Session:
        return Session(self, [row[:n] for row, n in zip(tokens.tolist(), length.tolist(), strict=True)])


class Session:
    has_history = True

    def __init__(self, model: ByDefinition, texts: list[list[int]]) -> None:
        self.model, self.rows, self.forwards = model, [Row(text) for text in texts], 0

    def commit(self, block: Tensor, length: Tensor) -> None:
        for row, tokens, n in zip(self.rows, block.tolist(), length.tolist(), strict=True):
            row.tokens += tokens[:n]

    def gather(self, ancestors: Tensor) -> None:
        self.rows = [self.rows[a].copy() for a in ancestors.tolist()]

    def crop(self, length: Tensor) -> None:
        policy, number = self.model.policy, self.model.number
        for row, n in zip(self.rows, length.tolist(), strict=True):
            row.tokens = row.tokens[:n]
            if row.prompt is not None and n < row.prompt:
                row.prompt = None
            if row.begun is not None and n < row.begun[0]:
                row.kept, row.behind, row.begun = {}, {}, None
            if policy == "freecache" and row.prompt is not None:
                n = row.prompt + (n - row.prompt) // number * number
            row.kept = {i: held for i, held in row.kept.items() if i < n}

    def score(self, rows: Tensor, canvas: Tensor) -> Tensor:
        index, found = rows.tolist(), []
        again = [b for b, r in enumerate(index) if r in index[:b]]
        order = [b for b in range(len(index)) if b not in again]
        while order:  # a row that is given again comes after the first
            before = {r: row.identity() for r, row in enumerate(self.rows)}
            scored = [index[b] for b in order]
            for b in order:
                found.append((b, self._score(self.rows[index[b]], canvas[b].tolist())))
            for r, row in before.items():
                twins = [s for s in scored if before[s] == row]
                if r not in scored and twins:
                    nearest = max((s for s in twins if s < r), default=twins[0])
                    self.rows[r] = self.rows[nearest].copy()
            done = {b for b, _ in found}
            rest = [b for b in again if b not in done]
            order = [b for i, b in enumerate(rest) if index[b] not in [index[c] for c in rest[:i]]]
        return torch.stack([scores for _, scores in sorted(found, key=lambda pair: pair[0])])

    def _score(self, row: Row, canvas: list[int]) -> Tensor:
        policy, number, shift = self.model.policy, self.model.number, int(self.model.shift)
        n, present = len(row.tokens), [token for token in canvas if token != ABSENT]
        prompt = row.prompt = n if row.prompt is None else row.prompt
        place = n + (present.index(MASKED) if MASKED in present else len(present))
        begin = prompt + max(0, place - prompt) // (number or 1) * number
        anew = policy in ("refresh", "dual") and (row.begun is None or row.begun[0] != begin)
        if anew:
            row.kept, row.behind = {}, {}
        end = {"prefix": n, "freecache": n, "window": n - number, "refresh": begin, "dual": begin}[policy]
        read = {i: held for i, (_, held) in row.kept.items() if i < min(end, n - shift)}
        same = {i: held for i, (token, _, held, _) in row.behind.items() if i < n + len(present) and
                present[i - n] == token}
        whole = [*row.tokens, *present]
        run = [i for i in range(len(whole)) if i not in read and i not in same]
        outputs, computed = self._forward(whole, run, {**read, **same})
        self.forwards += 1
        about = {i + shift: row.behind[i][3] for i in same} | {i + shift: out for i, out in outputs.items()}
        final = {"freecache": prompt + max(0, n - prompt) // (number or 1) * number, "refresh": begin, "dual": begin}
        for i in run:
            again = i in row.kept  # a shifted model reads the last token again
            if i < min(n, final.get(policy, n)) and (anew or again or policy not in ("refresh", "dual")):
                row.kept[i] = self.forwards, computed[i]
            if anew and policy == "dual" and begin + number <= i < len(whole) - shift:
                row.behind[i] = present[i - n], self.forwards, computed[i], outputs[i]
        if anew:
            row.begun = begin, self.forwards
        nothing = torch.zeros(self.model.vocab_size, dtype=torch.float64)
        return torch.stack([about[n + j] if j < len(present) else nothing for j in range(len(canvas))])

    def _forward(
        self, whole: list[int], run: list[int], held: dict[int, list[Tensor]]
    ) -> tuple[dict[int, Tensor], dict[int, list[Tensor]]]:
        """Outputs, and keys and values of all layers, of the positions `run`, which see them and what is held."""
        network, cache = self.model.model, DynamicCache()
        for layer in range(network.config.num_hidden_layers if held else 0):
            keys, values = (torch.stack([row[2 * layer + kind] for row in held.values()], 1)[None] for kind in (0, 1))
            cache.update(keys, values, layer)
        ids = torch.tensor([[self.model.mask_id if whole[i] == MASKED else whole[i] for i in run]])
        mask = torch.zeros(1, 1, len(run), len(run) + len(held), dtype=network.dtype)
        with torch.no_grad():
            out = network(
                input_ids=ids, attention_mask=mask, position_ids=torch.tensor([run]), past_key_values=cache,
                use_cache=True,
            ).logits[0]
        states = [state[0, :, len(held) :] for layer in cache.layers for state in (layer.keys, layer.values)]
        computed = {i: [state[:, b].clone() for state in states] for b, i in enumerate(run)}
        return {i: out[b, : self.model.vocab_size] for b, i in enumerate(run)}, computed
