"""Any causal language model of transformers as a `CausalLM`.

Its session keeps a cache where the model is known to take one (`smc_bridge.models.huggingface.attention`), and
recomputes
elsewhere: every `score` is then one forward over prefix and draft, and a tree is scored path by path.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.ends import EosId
from smc_bridge.models.host import listed, places, sent
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter, check_prefixes, counts_past_padding
from smc_bridge.models.huggingface.attention import attention_of
from smc_bridge.models.huggingface.cached import CachedCausalSession
from smc_bridge.models.huggingface.causality import check_causal
from smc_bridge.models.huggingface.skipped import layers_of, without
from smc_bridge.models.huggingface.trees import check_trees, leaf_paths
from smc_bridge.models.rows import Rows, append_ragged
from smc_bridge.models.verdicts import subject_of


class HuggingFaceCausalLM(HuggingFaceAdapter):
    """Causal language model of transformers (implements `CausalLM`).

    Args:
        model: a transformers model for causal language modelling; it is put into evaluation mode.
        eos_id: token that ends a sequence, several of them, or None.
        banned_ids: ids that are not text (mask, padding, unused rows).
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        cache: keep keys and values of what was read. A model that is not known to take masks and positions of our own
            over them (another attention implementation than eager and sdpa, recurrent or hybrid layers, a type that
            `smc_bridge.models.huggingface.attention` does not list) recomputes all the same, with a warning: see
            `attention`.
        lanes: how a cached session scores lanes of one prefix: "packed" into one row, or each in a row of its own with
            a copy of the cache ("copied", for comparison).
        max_logit_bytes: cap on the bytes of logits that the head computes at once, or None (`HuggingFaceAdapter.cap`).

    Attributes:
        attention: how a cached session masks the model, or None if sessions recompute.
    Raises:
        ValueError: an argument out of range, or a model that is not causal (`check_causal`).
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_id: EosId,
        banned_ids: Sequence[int] = (),
        vocab_size: int | None = None,
        cache: bool = True,
        lanes: Literal["packed", "copied"] = "packed",
        max_logit_bytes: int | None = None,
    ) -> None:
        super().__init__(
            model, eos_id=eos_id, banned_ids=banned_ids, vocab_size=vocab_size, max_logit_bytes=max_logit_bytes
        )
        if lanes not in ("packed", "copied"):
            raise ValueError(f"lanes = {lanes!r}: give 'packed' or 'copied'")
        self.lanes = lanes
        #: Whether positions are left to the model, because it does not count them from 0.
        self.counts_itself = counts_past_padding(model)
        self.attention = attention_of(model) if cache and "logits_to_keep" in self._accepts else None
        check_causal(self)
        if cache and self.attention is None:
            warnings.warn(
                f"{subject_of('ar_model', model)}: it is not known how to mask a cache of its type "
                f"{model.config.model_type!r} with attention {model.config._attn_implementation!r}, so every score "
                "reads the prefix again; results are the same, and slower",
                stacklevel=2,
            )

    @property
    def layers(self) -> int:
        """How many layers `without` can leave out sub-layers of; 0 if it cannot."""
        found = layers_of(self.model)
        return 0 if found is None else len(found[1])

    def without(self, attention: Collection[int] = (), mlp: Collection[int] = ()) -> HuggingFaceCausalLM:
        """The model without some sub-layers, which shares its weights (`smc_bridge.models.huggingface.skipped`); it has
        sessions and caches of its own.

        Args:
            attention, mlp: layers, counted from 0, whose attention or MLP is left out.
        Raises:
            ValueError: there is no such layer, or no attention would be left.
        """
        other = copy.copy(self)
        other.model = without(self.model, attention, mlp)
        other.cap(self.chunks.max_logit_bytes)
        return other

    def session(self, tokens: Tensor, length: Tensor) -> CachedCausalSession | HuggingFaceCausalSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count (at least one each)."""
        if self.attention is None:
            return HuggingFaceCausalSession(self, tokens, length)
        return CachedCausalSession(self, self.attention, self.chunks, self.lanes, tokens, length)


class HuggingFaceCausalSession(Rows):
    """Session of a `HuggingFaceCausalLM` that recomputes (implements `CausalSession`)."""

    def __init__(self, model: HuggingFaceCausalLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Logits along drafts, `[B, V, A]`, prefixes read anew (`CausalSession.score`).

        Raises:
            ValueError: an empty prefix, or logits that are no law.
        """
        prefix, length = self._prefixes(rows)
        batch, window = drafts.shape
        if batch == 0 or window == 0:
            return self.model.empty(batch, window)
        read = torch.full_like(length, window - 1)
        ids, whole = append_ragged(prefix, length, drafts[:, :-1], read, fill=0)
        column = places(ids.shape[1], ids.device).expand_as(ids)
        attention = (column < whole[:, None]).long()
        position = length[:, None] + places(window, ids.device)

        def forward(part: slice) -> Tensor:
            """Logits of these of the rows."""
            return self.model.logits(
                ids[part], position[part] - 1, attention_mask=attention[part],
                position_ids=None if self.model.counts_itself else column[part],
            )

        out = self.model.chunks(forward, batch, tokens=ids.shape[1], logits=window * self.model.vocab_size)
        return self.model.check_logits(out, lambda b, c: (int(rows[b]), int(position[b, c])))

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after every node of trees, `[B, T + 1, A]`: every path to a leaf is a draft
        (`CausalSession.score_tree`).

        Raises:
            ValueError: as `score`, and a parent after its child.
        """
        check_trees(tokens, parents)
        batch, nodes = tokens.shape
        if batch == 0:
            return self.model.empty(0, nodes + 1)
        if nodes == 0:
            return self.score(rows, tokens.new_zeros(batch, 1))
        shown = (np.array(x) for x in listed(tokens, parents))
        tree, paths, path_of, depth = (sent(x, self.device) for x in leaf_paths(*shown))
        whole = torch.nn.functional.pad(paths, (0, 1))  # the last token of a draft is not read
        along = self.score(rows[tree], whole)  # [L, D + 1, A]
        after_prefix = along[path_of[:, 0], 0]
        return torch.cat([after_prefix[:, None], along[path_of, depth]], dim=1)

    def _prefixes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes `[B, S]` and lengths `[B]` of `rows`, S the longest of them."""
        [index] = listed(rows)
        lengths = [self.lengths[r] for r in index]
        check_prefixes(index, lengths)
        texts = self.texts[index, : max(lengths, default=0)]
        return sent(texts, self.device), sent(np.array(lengths, dtype=np.int64), self.device)
