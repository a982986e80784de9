"""What both Hugging Face adapters share: the alphabet, one ragged forward, and the checks on what comes out of it.

Rows of different length are right-padded: then a real token has the same position and sees the same tokens as it would
alone. Only the columns that some row needs are turned into logits (`logits_to_keep`), and each row's own are gathered;
under a cap on logits each row's own alone are computed (`smc_bridge.models.huggingface.forwards`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.checks import refuse
from smc_bridge.models.ends import EosId, as_eos_id, ends_of
from smc_bridge.models.host import listed, places, sent
from smc_bridge.models.huggingface.forwards import Forwards

#: Attention implementations of transformers that add a 4-D float mask to the scores as it stands, the quickest first.
ADDITIVE_ATTENTION = ("sdpa", "eager")


def output_size(model: Any) -> int:
    """Columns of the model's logits: rows of its output embedding, else `vocab_size` of its configuration."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.get_text_config().vocab_size)


def position_limit(model: Any) -> tuple[int | None, str]:
    """Greatest number of positions at which a model gives one law, or None; and the name of what limits it.

    RoBERTa and its kin count positions from past the padding id, so their tables have rows that no token takes. Rotary
    embeddings of the kind "longrope" (Ding et al. 2024, arXiv 2402.13753) have two sets of frequencies, and
    transformers takes the second for all tokens of a forward as soon as one stands past
    `original_max_position_embeddings`: the law of a token would depend on the drafts and rows beside it.
    """
    config, name = model.config.get_text_config(), "max_position_embeddings"
    limits = {name: getattr(config, name, None)}
    for source in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, source, None) or {}
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "longrope":
            original = "original_max_position_embeddings"
            limits[original] = rope.get(original) or getattr(config, original, None)
    for table in position_tables(model):
        if table.padding_idx is not None:
            limits["positions past the padding id"] = int(table.weight.shape[0]) - table.padding_idx - 1
    known = {name: int(limit) for name, limit in limits.items() if limit is not None}
    if not known:
        return None, name
    name = min(known, key=lambda key: known[key])
    return known[name], name


def counts_past_padding(model: Any) -> bool:
    """Whether positions are counted from past the padding id, as in RoBERTa and its kin."""
    return any(table.padding_idx is not None for table in position_tables(model))


def position_tables(model: Any) -> list[Any]:
    """The model's tables of learned positions: `torch.nn.Embedding`, or what is like it (where it is quantised)."""
    return [
        module for name, module in model.named_modules()
        if name.endswith("position_embeddings") and hasattr(module, "weight") and hasattr(module, "padding_idx")
    ]


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask `[B, 1, Q, K]` from `allowed: [B, Q, K]`: 0 where allowed, the least float elsewhere.

    The least float rather than `-inf`, as in transformers: a query that may attend to nothing then gives no NaN.
    """
    return torch.where(allowed[:, None], *_levels(dtype, allowed.device))


def open_mask(dtype: torch.dtype, device: torch.device) -> Tensor:
    """One zero, `[]`, to be expanded to an additive mask; not to be written to."""
    return _levels(dtype, device)[0]


@lru_cache(maxsize=64)
def _levels(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What an additive mask holds where attention is allowed and elsewhere, a number each, made once."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        low = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=device)
        return torch.zeros_like(low), low


def check_prefixes(rows: Sequence[int], lengths: Sequence[int]) -> None:
    """Raise ValueError, naming the session row, unless each of the B `rows` holds a token of its `lengths`."""
    if min(lengths, default=1) < 1:
        raise ValueError(
            f"length[{rows[lengths.index(0)]}] = 0: a causal model reads at least one token; start the prefix from bos "
            "or a prompt"
        )


class HuggingFaceAdapter(Forwards):
    """A transformers model with an output head, seen as a map from ragged rows of ids to logits.

    Args:
        model: the transformers model; it is put into evaluation mode.
        eos_id: token that ends a sequence, several of them, or None.
        banned_ids: ids that are not text, to be removed from both laws by the caller.
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        max_logit_bytes: see `cap`.
    """

    def __init__(
        self, model: Any, *, eos_id: EosId, banned_ids: Sequence[int] = (), vocab_size: int | None = None,
        max_logit_bytes: int | None = None,
    ) -> None:
        columns = output_size(model)
        size = columns if vocab_size is None else vocab_size
        if not 1 <= size <= columns:
            raise ValueError(f"vocab_size = {size}: give a number from 1 to the model's {columns} output columns")
        ends = ends_of(eos_id, size)
        outside = [i for i in banned_ids if not 0 <= i < size]
        if outside:
            raise ValueError(f"banned_ids contains {outside[0]}: give ids from 0 to {size - 1}")
        banned_end = next((i for i in ends if i in banned_ids), None)
        if banned_end is not None:
            raise ValueError(
                f"banned_ids contains eos_id = {banned_end}: no sequence could end with it; remove it from banned_ids"
            )
        if len(set(banned_ids)) == size:
            raise ValueError(f"banned_ids holds all {size} ids: leave at least one")
        super().__init__(model.eval(), columns, size)
        self.eos_id = as_eos_id(ends)
        self.banned_ids = tuple(sorted(set(banned_ids)))
        #: Positions that the model is read at, or None if it has no limit; and what of its configuration says so.
        self.max_length, self.limited_by = position_limit(model)
        #: Tokens that a prefix needs, so that something predicts the first place after it.
        self.min_length = 1
        weight = getattr(model.get_input_embeddings(), "weight", None)
        if weight is None:
            raise ValueError(f"{type(model).__name__} has no table of input embeddings: give a model that reads ids")
        self._input_size = int(weight.shape[0])
        self.cap(max_logit_bytes)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        kind, dtype = type(self.model).__name__, str(self.model.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({kind}, {size} parameters, {dtype}, {self.vocab_size} ids, {self.device})"

    def logits(
        self, ids: Tensor, wanted: Tensor, *, attention_mask: Tensor, position_ids: Tensor | None, hidden: bool = False
    ) -> Tensor:
        """Logits at the wanted columns of each row, from one forward without gradient.

        Args:
            ids: token ids, padded on the right, `[B, W]`.
            wanted: columns whose output is wanted, `[B, C]`, C at least 1.
            attention_mask: `[B, W]` (1 for real tokens) or additive `[B, 1, W, W]`.
            position_ids: `[B, W]`, or None for the model's own.
            hidden: give what the head reads too.
        Returns:
            `[B, C, A]` of `score_dtype`, or `[B, C, A + D]`.
        Raises:
            ValueError: if an id or a position is outside of what the model knows.
        """
        self.check_inputs(np.array(listed(ids)[0]), ids.shape[1])
        if self.positions_at_once is not None or hidden:
            return self.network(ids, mask=attention_mask, position=position_ids, keep=wanted, hidden=hidden)
        keep = ids.shape[1] - int(wanted.min())
        out = self.scores(self.network(ids, mask=attention_mask, position=position_ids, keep=keep))
        column = wanted - (ids.shape[1] - out.shape[1])  # the width tells whether the model knows `logits_to_keep`
        batch, count = column.shape
        first = int(column[0, 0])
        if bool((column == first + places(count, column.device)).all()):
            return out[:, first : first + count]  # no copy where the rows are not ragged
        return out[places(batch, column.device)[:, None], column]

    def cached_logits(
        self, ids: np.ndarray, *, mask: Tensor | dict[str, Tensor], position: np.ndarray, cache: Any,
        keep: int | np.ndarray,
    ) -> Tensor:
        """Logits of one forward without gradient over what `cache` holds.

        Args:
            ids: fresh token ids, `[B, F]`.
            mask: additive, `[B, 1, F, cached + F]`, or one for each kind of layer.
            position: of the tokens, `[B, F]`.
            cache: a transformers `Cache`.
            keep: how many of the last columns, or which columns, `[B or 1, C]`.
        Returns:
            `[B, C, A]` of `score_dtype`.
        Raises:
            ValueError: if an id or a position is outside of what the model knows.
        """
        device = self.device
        self.check_inputs(ids, int(position.max()) + 1)
        some = keep if isinstance(keep, int) else sent(keep[0] if len(keep) == 1 else keep, device)
        return self.scores(self.network(
            sent(ids, device), mask=mask, position=sent(position, device), cache=cache, keep=some
        ))

    def check_logits(self, logits: Tensor, place: Callable[[int, int], tuple[int, int]]) -> Tensor:
        """Return `logits: [B, C, A]` if every position has a law: no NaN, no `+inf`, not `-inf` throughout.

        Args:
            logits: `[B, C, A]`; single entries of `-inf` are legal.
            place: session row and sequence position that entry `[b, c]` is about, for the message.
        Raises:
            ValueError: naming the first bad row and position; within `gathered()` as that ends.
        """
        peak = logits.amax(-1)  # NaN wins in a maximum, so no [B, C, A] mask is needed

        def message(at: tuple[int, ...]) -> str:
            """What is wrong with the entry, and where it is."""
            value, (row, position) = float(peak[at]), place(*at)
            what = "only -inf" if value == -torch.inf else "NaN" if value != value else "+inf"
            return (
                f"logits of {type(self.model).__name__} hold {what} at row {row}, position {position}: check the "
                "model's weights, or load it with a wider dtype"
            )

        refuse(peak - peak != 0, message)  # NaN unless finite
        return logits

    def check_inputs(self, ids: np.ndarray, reach: int) -> None:
        """Raise ValueError unless the model knows the token ids `[B, W]` and `reach` positions."""
        low, high = ids.min(), ids.max()
        if low < 0 or high >= self._input_size:
            raise ValueError(
                f"tokens contains the id {low if low < 0 else high}: give ids from 0 to {self._input_size - 1}"
            )
        if self.max_length is not None and reach > self.max_length:
            raise ValueError(
                f"rows reach {reach} tokens, more than {self.limited_by} = {self.max_length} of "
                f"{type(self.model).__name__}: shorten the prompt, or allow fewer new tokens"
            )
