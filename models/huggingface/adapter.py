"""What both Hugging Face adapters share: the alphabet, one ragged forward, and the checks on what comes out of it.

Rows of different length are right-padded: then a real token has the same position and sees the same tokens as it would
alone. Only the columns that some row needs are turned into logits (`logits_to_keep`), and each row's own are gathered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import modeling_utils

from smc_bridge.models.checks import refuse
from smc_bridge.models.host import listed, places, sent
from smc_bridge.models.huggingface.chunks import RowChunks
from smc_bridge.models.huggingface.head import in_pieces, kept, plain_head, bypassed
from smc_bridge.models.huggingface.lean import Lean, lean

#: Attention implementations of transformers that add a 4-D float mask to the scores as it stands, the quickest first.
ADDITIVE_ATTENTION = ("sdpa", "eager")

#: Whether this transformers lets `logits_to_keep` name other columns for each row.
KEEPS_BY_ROW = hasattr(modeling_utils, "slice_logits_to_keep")


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


@lru_cache(maxsize=16)
def score_type(dtype: torch.dtype) -> torch.dtype:
    """Type of the scores of a model of type `dtype`: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class HuggingFaceAdapter:
    """A transformers model with an output head, seen as a map from ragged rows of ids to logits.

    Args:
        model: the transformers model; it is put into evaluation mode.
        eos_id: token that ends a sequence, or None.
        banned_ids: ids that are not text, to be removed from both laws by the caller.
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        max_logit_bytes: see `cap`.
    """

    def __init__(
        self, model: Any, *, eos_id: int | None, banned_ids: Sequence[int] = (), vocab_size: int | None = None,
        max_logit_bytes: int | None = None,
    ) -> None:
        columns = output_size(model)
        size = columns if vocab_size is None else vocab_size
        if not 1 <= size <= columns:
            raise ValueError(f"vocab_size = {size}: give a number from 1 to the model's {columns} output columns")
        if eos_id is not None and not 0 <= eos_id < size:
            raise ValueError(f"eos_id = {eos_id}: give an id from 0 to {size - 1}, or None")
        outside = [i for i in banned_ids if not 0 <= i < size]
        if outside:
            raise ValueError(f"banned_ids contains {outside[0]}: give ids from 0 to {size - 1}")
        if eos_id in banned_ids:
            raise ValueError(f"banned_ids contains eos_id = {eos_id}: no sequence could end; remove it from banned_ids")
        if len(set(banned_ids)) == size:
            raise ValueError(f"banned_ids holds all {size} ids: leave at least one")
        self.model = model.eval()
        self.vocab_size = size
        #: Output columns of the model, of which the first `vocab_size` are the alphabet.
        self.columns = columns
        self.eos_id = eos_id
        self.banned_ids = tuple(sorted(set(banned_ids)))
        #: Positions that the model is read at, or None if it has no limit; and what of its configuration says so.
        self.max_length, self.limited_by = position_limit(model)
        #: Tokens that a prefix needs, so that something predicts the first place after it.
        self.min_length = 1
        weight = getattr(model.get_input_embeddings(), "weight", None)
        if weight is None:
            raise ValueError(f"{type(model).__name__} has no table of input embeddings: give a model that reads ids")
        self._input_size = int(weight.shape[0])
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        self._lean: tuple[Any, Lean | None] = None, None
        self._head: tuple[Any, torch.nn.Module | None] = None, None
        self.cap(max_logit_bytes)

    def cap(self, max_logit_bytes: int | None) -> None:
        """Let the head compute at most so many bytes of logits at once, as float32 or wider; None for no cap.

        The body of a model is run for all rows, and its head on a few positions at a time (`plain_head`). Where the
        model changes its head's outputs, the forward is run anew for each few positions; where it does not let the
        wanted ones be named either, in row chunks, and then a single row may exceed the cap.

        Raises:
            ValueError: it is below what one position takes.
        """
        chunks = RowChunks(max_logit_bytes, self._row_bytes)
        if max_logit_bytes is not None and max_logit_bytes < self.position_bytes:
            raise ValueError(
                f"max_logit_bytes = {max_logit_bytes}: one position of {self.columns} output columns takes "
                f"{self.position_bytes}; give at least that, or None for no cap"
            )
        #: Cuts batches into row chunks; remembers what fitted into memory.
        self.chunks = chunks

    @property
    def position_bytes(self) -> int:
        """Bytes of one position's logits, at the type of the scores."""
        return self.columns * self.score_dtype.itemsize

    @property
    def positions_at_once(self) -> int | None:
        """Positions whose logits the head may compute at once, or None if there is no cap."""
        cap = self.chunks.max_logit_bytes
        return None if cap is None else max(1, cap // self.position_bytes)

    def _row_bytes(self, tokens: int, logits: int) -> int:
        """Bytes of logits that a row of a forward under the cap takes at least, as of `RowChunks`."""
        if self.plain_head is not None:
            return 0
        if "logits_to_keep" not in self._accepts:
            return tokens * self.position_bytes
        # Where columns cannot be named by row, those of one row can.
        return logits // self.vocab_size * self.position_bytes if KEEPS_BY_ROW else self.chunks.max_logit_bytes or 0

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        kind, dtype = type(self.model).__name__, str(self.model.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({kind}, {size} parameters, {dtype}, {self.vocab_size} ids, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where scores live: the device of the model's first parameters."""
        return torch.device(self.model.device)

    @property
    def score_dtype(self) -> torch.dtype:
        """Type of the scores: that of the model, but float32 at least."""
        return score_type(self.model.dtype)

    @property
    def lean(self) -> Lean | None:
        """The model's forward in fewer operations, or None if it is not known to be the same (`lean`)."""
        of = self._version()
        if self._lean[0] != of:
            self._lean = of, lean(self.model)
        return self._lean[1]

    @property
    def plain_head(self) -> torch.nn.Module | None:
        """The model's head if it can be run in pieces, else None (`plain_head`)."""
        of = self._version()
        if self._head[0] != of:
            with torch.no_grad():
                self._head = of, plain_head(self.model, self._run, positions=self.positions_at_once or 1)
        return self._head[1]

    def _version(self) -> tuple[Any, ...]:
        """What is found out about a model holds while this is the same."""
        weight = self.model.get_input_embeddings().weight
        return self.model, weight.dtype, weight.device

    def network(
        self, ids: Tensor, *, mask: Tensor | dict[str, Tensor], position: Tensor | None = None, cache: Any = None,
        keep: int | Tensor = 0,
    ) -> Tensor:
        """Outputs of one forward of the network, without gradient; all forwards of the adapter are made here.

        Args:
            ids: token ids, `[B, F]`.
            mask: `[B, F]` (1 for real tokens), additive `[B or 1, 1, F, K]`, or one for each kind of layer.
            position: of the tokens, `[B or 1, F]`, or None for the model's own.
            cache: a transformers `Cache` with what stands before, or None.
            keep: how many of the last columns are wanted (0: all), or which, `[C]` or `[B, C]`.
        Returns:
            `[B, C, columns]`; `[B, F, columns]` of a model that knows no `logits_to_keep`. Under a cap scores `[B, C, A]`
            of `score_dtype`, whatever the model.
        """
        at_once = self.positions_at_once
        with torch.no_grad():  # not inference_mode: a caller may change the scores in place
            quick = None
            if position is not None and (isinstance(mask, dict) or mask.dim() == 4):
                quick = self.lean
                if quick is not None and not quick.fits(mask):
                    quick = None
            if at_once is None:
                run = self._run if quick is None else quick
                return run(ids, mask, position, cache, keep)
            if quick is not None:
                states = quick.states(ids, mask, position, cache, keep)
                return in_pieces(quick.head, states, self.empty(*states.shape[:2]), at_once)
            head = self.plain_head
            if head is None:
                return self._in_few_columns(ids, mask, position, cache, keep, at_once)
            with bypassed(head) as seen:
                states = kept(self._run(ids, mask, position, cache), keep).to(seen[0])
            return in_pieces(head, states, self.empty(*states.shape[:2]), at_once)

    def _run(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor | None = None, cache: Any = None,
        keep: int | Tensor = 0,
    ) -> Tensor:
        """Outputs of the model's own forward; arguments as of `network`."""
        late = None
        if isinstance(keep, Tensor) and keep.dim() == 2 and not KEEPS_BY_ROW:
            late, keep = keep, 0  # all columns
        options: dict[str, Any] = {"use_cache": cache is not None, "logits_to_keep": keep}
        if cache is not None:
            options["past_key_values"] = cache
        if position is not None:
            options["position_ids"] = position
        options = {name: value for name, value in options.items() if name in self._accepts}
        out: Tensor = self.model(input_ids=ids, attention_mask=mask, **options).logits
        return out if late is None else kept(out, late)

    def _in_few_columns(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor | None, cache: Any, keep: int | Tensor,
        at_once: int,
    ) -> Tensor:
        """Scores `[B, C, A]`, by a forward for each few of the C columns if the model lets them be named."""
        if "logits_to_keep" not in self._accepts:
            return kept(self.scores(self._run(ids, mask, position, cache)), keep)
        column = kept(places(ids.shape[1], ids.device)[None], keep)[0] if isinstance(keep, int) else keep
        if column.dim() == 2 and len(column) == 1:
            column = column[0]
        out, each = self.empty(len(ids), column.shape[-1]), max(1, at_once // len(ids))
        for start in range(0, column.shape[-1], each):
            some = column[..., start : start + each]
            out[:, start : start + each] = self.scores(self._run(ids, mask, position, cache, some))
        return out

    def logits(self, ids: Tensor, wanted: Tensor, *, attention_mask: Tensor, position_ids: Tensor | None) -> Tensor:
        """Logits at the wanted columns of each row, from one forward without gradient.

        Args:
            ids: token ids, padded on the right, `[B, W]`.
            wanted: columns whose output is wanted, `[B, C]`, C at least 1.
            attention_mask: `[B, W]` (1 for real tokens) or additive `[B, 1, W, W]`.
            position_ids: `[B, W]`, or None for the model's own.
        Returns:
            `[B, C, A]` of `score_dtype`.
        Raises:
            ValueError: if an id or a position is outside of what the model knows.
        """
        self.check_inputs(np.array(listed(ids)[0]), ids.shape[1])
        if self.positions_at_once is not None:
            return self.network(ids, mask=attention_mask, position=position_ids, keep=wanted)
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

    def scores(self, out: Tensor) -> Tensor:
        """Outputs of the model, `[B, C, columns]`, as scores `[B, C, A]` of `score_dtype`, on the adapter's device."""
        if out.shape[-1] > self.vocab_size:
            out = out[..., : self.vocab_size]
        dtype, device = score_type(out.dtype), self.device
        return out if (out.dtype, out.device) == (dtype, device) else out.to(device=device, dtype=dtype)

    def empty(self, batch: int, count: int) -> Tensor:
        """Scores of no positions or no rows, `[batch, count, A]`."""
        return torch.empty(batch, count, self.vocab_size, dtype=self.score_dtype, device=self.device)

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
