"""Any causal language model of transformers as a `CausalLM`.

The session recomputes: every `score` is one forward over prefix and draft. A token tree is scored by one *packed*
forward where the model lets a 4-D attention mask through: one row holds the prefix and all T nodes, a node attends to
the prefix, to its ancestors and to itself, and stands at the position `prefix length + depth - 1`, which is where it
would stand in its own path (Miao et al. 2024, SpecInfer, arXiv 2305.09781). Elsewhere each path to a leaf is a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.huggingface.adapter import ADDITIVE_ATTENTION, HuggingFaceAdapter, additive_mask
from models.huggingface.trees import leaf_paths, tree_structure
from models.rows import Rows, append_ragged

#: Model types whose layers all take a 4-D mask as it stands and read positions from `position_ids` alone.
PACKED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def packs_trees(model: Any) -> bool:
    """Whether `model` is known to score a packed tree exactly.

    A sliding window is laid over the *columns* of a row, which in a packed tree are not positions: such a layer would
    need a mask of its own.
    """
    config = model.config
    layers = getattr(config, "layer_types", None)
    slides = any(kind != "full_attention" for kind in layers) if layers else bool(
        getattr(config, "sliding_window", None)
    )
    return (
        config.model_type in PACKED_MODEL_TYPES and config._attn_implementation in ADDITIVE_ATTENTION and not slides
    )


class HuggingFaceCausalLM(HuggingFaceAdapter):
    """Causal language model of transformers (implements `CausalLM`).

    Args:
        model: a transformers model for causal language modelling; it is put into evaluation mode.
        eos_id: token that ends a sequence, or None.
        banned_ids: ids that are not text (mask, padding, unused rows).
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        packed_trees: score a tree in one packed row, or path by path. Default: packed if `packs_trees(model)`.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_id: int | None,
        banned_ids: Sequence[int] = (),
        vocab_size: int | None = None,
        packed_trees: bool | None = None,
    ) -> None:
        super().__init__(model, eos_id=eos_id, banned_ids=banned_ids, vocab_size=vocab_size)
        attention = model.config._attn_implementation
        if packed_trees and attention not in ADDITIVE_ATTENTION:
            raise ValueError(
                f"packed_trees = True with attn_implementation = {attention!r}: load the model with one of "
                f"{ADDITIVE_ATTENTION}, or set packed_trees = False"
            )
        self.packed_trees = packs_trees(model) if packed_trees is None else packed_trees

    def session(self, tokens: Tensor, length: Tensor) -> HuggingFaceCausalSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count (at least one each)."""
        return HuggingFaceCausalSession(self, tokens, length)


class HuggingFaceCausalSession(Rows):
    """Session of a `HuggingFaceCausalLM` that recomputes (implements `CausalSession`)."""

    def __init__(self, model: HuggingFaceCausalLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """See `CausalSession.score`. Raises ValueError on an empty prefix and on logits that are no law."""
        prefix, length = self._prefixes(rows)
        batch, window = drafts.shape
        if batch == 0 or window == 0:
            return self.model.empty(batch, window)
        read = torch.full_like(length, window - 1)
        ids, whole = append_ragged(prefix, length, drafts[:, :-1], read, fill=0)
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        attention = (column < whole[:, None]).long()
        position = length[:, None] + torch.arange(window, device=ids.device)
        out = self.model.logits(ids, position - 1, attention_mask=attention, position_ids=column)
        return self.model.check_logits(out, rows, position)

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """See `CausalSession.score_tree`. Raises ValueError as `score` does, and on a parent after its child."""
        if tokens.shape != parents.shape:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and parents {tuple(parents.shape)}: give both as [B, T]"
            )
        batch, nodes = tokens.shape
        if batch == 0:
            return self.model.empty(0, nodes + 1)
        if nodes == 0:
            return self.score(rows, tokens.new_zeros(batch, 1))
        score = self._score_packed if self.model.packed_trees else self._score_paths
        return score(rows, tokens, parents)

    def _score_packed(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """One row holds the prefix, padding up to the longest prefix, and the T nodes."""
        prefix, length = self._prefixes(rows)
        lineage, depth = tree_structure(parents)
        batch, nodes = tokens.shape
        width = prefix.shape[1]
        column = torch.arange(width, device=prefix.device)
        real = column < length[:, None]  # [B, S]
        allowed = torch.zeros(batch, width + nodes, width + nodes, dtype=torch.bool, device=prefix.device)
        allowed[:, :width, :width] = real[:, None, :] & (column <= column[:, None])
        allowed[:, width:, :width] = real[:, None, :]
        allowed[:, width:, width:] = lineage
        below = length[:, None] + depth - 1  # position of each node
        own = (width + torch.arange(nodes, device=prefix.device)).expand(batch, nodes)  # column of each node
        out = self.model.logits(
            torch.cat([prefix.masked_fill(~real, 0), tokens], dim=1),
            torch.cat([length[:, None] - 1, own], dim=1),
            attention_mask=additive_mask(allowed, self.model.model.dtype),
            position_ids=torch.cat([column.expand(batch, width), below], dim=1),
        )
        return self.model.check_logits(out, rows, torch.cat([length[:, None], below + 1], dim=1))

    def _score_paths(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Every path to a leaf is a draft; one token is added at its end, which `score` never reads."""
        tree, paths, path_of, depth = leaf_paths(tokens, parents)
        along = self.score(rows[tree], torch.nn.functional.pad(paths, (0, 1)))  # [L, D + 1, A]
        after_prefix = along[path_of[:, 0], 0]
        return torch.cat([after_prefix[:, None], along[path_of, depth]], dim=1)

    def _prefixes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes `[B, S]` and lengths `[B]` of `rows`, S the longest of them."""
        length = self.length[rows]
        if bool((length < 1).any()):
            row = int(rows[int((length < 1).nonzero()[0])])
            raise ValueError(
                f"length[{row}] = 0: a causal model reads at least one token; start the prefix from bos or a prompt"
            )
        return self.tokens[rows][:, : int(length.max()) if length.numel() else 0], length
