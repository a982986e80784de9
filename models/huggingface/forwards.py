"""The forwards of a transformers model: the lean one where it is the same, else the model's own; under a cap if wanted.

The logits of all wanted places are the largest tensor of a forward with a large alphabet, and what a model itself makes
may be larger still: a head that runs on every column of a padded row, in a narrower type that is then converted. Under
a cap the scores are made once, at their own type, and filled by heads that compute a few positions at a time.

Features are what the head reads, one vector for each of its outputs. Where they are wanted they stand after the scores
in one *wide* tensor, so that whatever is done to scores (chunks of rows, places of a cache, outputs of one column that
are about another's place) is done to them.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_utils

from smc_bridge.models.host import places
from smc_bridge.models.huggingface.chunks import RowChunks
from smc_bridge.models.huggingface.head import bypassed, heard, in_pieces, kept, plain_head
from smc_bridge.models.huggingface.lean import Lean, lean

#: Bytes of logits that the head computes at once where they are put beside features and there is no cap.
PIECE_BYTES = 2**26

#: Whether this transformers lets `logits_to_keep` name other columns for each row.
KEEPS_BY_ROW = hasattr(modeling_utils, "slice_logits_to_keep")


@lru_cache(maxsize=16)
def score_type(dtype: torch.dtype) -> torch.dtype:
    """Type of the scores of a model of type `dtype`: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class Forwards:
    """A transformers model with an output head, as a map from ids of one width to logits.

    Args:
        model: in evaluation mode.
        columns: of its outputs.
        vocab_size: A, of which the first so many are the alphabet.
    """

    def __init__(self, model: Any, columns: int, vocab_size: int) -> None:
        self.model, self.columns, self.vocab_size = model, columns, vocab_size
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        self._lean: tuple[Any, Lean | None] = None, None
        self._head: tuple[Any, torch.nn.Module | None] = None, None

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
                f"{self.position_bytes}; give at least that, or leave it out, for no cap"
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
        """The model's head if it can be run in pieces, else None (`smc_bridge.models.huggingface.head`)."""
        compiled = getattr(self.model, "_compiled_call_impl", None)
        of = (*self._version(), self.model.get_output_embeddings(), self.model.forward, compiled)
        if self._head[0] != of:
            with torch.no_grad():
                self._head = of, plain_head(self.model, self._run, positions=self.positions_at_once or 1)
        return self._head[1]

    @property
    def hidden_size(self) -> int:
        """D, numbers that the head reads for each of its outputs."""
        head = self.model.get_output_embeddings()
        for name in ("in_features", "embedding_dim"):
            if isinstance(size := getattr(head, name, None), int):
                return size
        return int(self.model.config.get_text_config().hidden_size)

    def _version(self) -> tuple[Any, ...]:
        """What is found out about the model's forward holds while this is the same."""
        weight = self.model.get_input_embeddings().weight
        return self.model, weight.dtype, weight.device

    def network(
        self, ids: Tensor, *, mask: Tensor | dict[str, Tensor], position: Tensor | None = None, cache: Any = None,
        keep: int | Tensor = 0, hidden: bool = False,
    ) -> Tensor:
        """Outputs of one forward of the network, without gradient; all forwards of the adapter are made here.

        Args:
            ids: token ids, `[B, F]`.
            mask: `[B, F]` (1 for real tokens), additive `[B or 1, 1, F, K]`, or one for each kind of layer.
            position: of the tokens, `[B or 1, F]`, or None for the model's own.
            cache: a transformers `Cache` with what stands before, or None.
            keep: how many of the last columns are wanted (0: all), or which, `[C]` or `[B, C]`.
            hidden: give what the head reads too.
        Returns:
            `[B, C, columns]`; `[B, F, columns]` of a model that knows no `logits_to_keep`. Under a cap of any model
            scores, `[B, C, A]` of `score_dtype`. With `hidden` of any model wide scores, `[B, C, A + D]`.
        Raises:
            ValueError: what the head reads is wanted, and cannot be known.
        """
        at_once, quick = self.positions_at_once, None
        if position is not None and (isinstance(mask, dict) or mask.dim() == 4):
            quick = self.lean
        with torch.no_grad():  # not inference_mode: a caller may change the scores in place
            if quick is not None and position is not None and quick.fits(mask):
                if at_once is None and not hidden:
                    return quick(ids, mask, position, cache, keep)
                head, states = quick.head, quick.states(ids, mask, position, cache, keep)
            elif at_once is None and not hidden:
                return self._run(ids, mask, position, cache, keep)
            elif self.plain_head is None:
                return self._in_few_columns(ids, mask, position, cache, keep, at_once, hidden)
            else:
                head = self.plain_head
                with bypassed(head) as seen:
                    states = kept(self._run(ids, mask, position, cache), keep).to(seen[0])
            out = self.empty(*states.shape[:2], hidden=hidden)
            in_pieces(head, states, out[..., : self.vocab_size], at_once or max(1, PIECE_BYTES // self.position_bytes))
            if hidden:
                out[..., self.vocab_size :] = states
            return out

    def _run(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor | None = None, cache: Any = None,
        keep: int | Tensor = 0, hidden: bool = False,
    ) -> Tensor:
        """Outputs of the model's own forward, or wide scores; arguments as of `network`."""
        late = None
        if isinstance(keep, Tensor) and keep.dim() == 2 and not KEEPS_BY_ROW:
            late, keep = keep, 0  # all columns
        options: dict[str, Any] = {"use_cache": cache is not None, "logits_to_keep": keep}
        if cache is not None:
            options["past_key_values"] = cache
        if position is not None:
            options["position_ids"] = position
        options = {name: value for name, value in options.items() if name in self._accepts}
        out = (self._wide if hidden else self._logits)(input_ids=ids, attention_mask=mask, **options)
        return out if late is None else kept(out, late)

    def _logits(self, **inputs: Any) -> Tensor:
        """Logits of one call of the model."""
        out: Tensor = self.model(**inputs).logits
        return out

    def _wide(self, **inputs: Any) -> Tensor:
        """Scores of one call of the model and what its head read for them, `[B, C, A + D]`."""
        head, model = self.model.get_output_embeddings(), self.model
        if not isinstance(head, torch.nn.Module) or head is model.get_input_embeddings():
            raise ValueError(self._unheard("has no head that is a module of its own"))
        # A compiled forward calls what the head was when it was compiled.
        call = model if getattr(model, "_compiled_call_impl", None) is None else model._call_impl
        with heard(head) as seen:
            out = self.scores(call(**inputs).logits)
        rows = len(out)
        if len(seen) > 1 and rows > 1:  # rows of one length at a time
            each = ({n: x[b : b + 1] if isinstance(x, Tensor) else x for n, x in inputs.items()} for b in range(rows))
            return torch.cat([self._wide(**one) for one in each])
        if len(seen) != 1 or seen[0].dim() != 3:
            raise ValueError(self._unheard(f"calls its head {len(seen)} times in a forward of one row"))
        states = torch.nn.functional.pad(seen[0], (0, 0, 0, out.shape[1] - seen[0].shape[1]))  # it may skip padding
        return torch.cat([out, states.to(out)], -1)

    def _unheard(self, what: str) -> str:
        return (
            f"hidden = True: {type(self.model).__name__} {what}, so that what it reads is not known; use methods "
            "that need scores alone"
        )

    def _in_few_columns(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor | None, cache: Any, keep: int | Tensor,
        at_once: int | None, hidden: bool,
    ) -> Tensor:
        """Scores `[B, C, A]`, or wide ones, by a forward for each few of the C columns if the model lets them be
        named."""
        def run(some: int | Tensor = 0) -> Tensor:
            """Scores of some columns."""
            out = self._run(ids, mask, position, cache, some, hidden)
            return out if hidden else self.scores(out)

        if "logits_to_keep" not in self._accepts:
            return kept(run(), keep)
        if at_once is None:
            return run(keep)
        column = kept(places(ids.shape[1], ids.device)[None], keep)[0] if isinstance(keep, int) else keep
        if column.dim() == 2 and len(column) == 1:
            column = column[0]
        out, each = self.empty(len(ids), column.shape[-1], hidden=hidden), max(1, at_once // len(ids))
        for start in range(0, column.shape[-1], each):
            some = column[..., start : start + each]
            out[:, start : start + each] = run(some)
        return out

    def scores(self, out: Tensor) -> Tensor:
        """Outputs of the model, `[B, C, columns]`, as scores `[B, C, A]` of `score_dtype`, on the adapter's device."""
        if out.shape[-1] > self.vocab_size:
            out = out[..., : self.vocab_size]
        dtype, device = score_type(out.dtype), self.device
        return out if (out.dtype, out.device) == (dtype, device) else out.to(device=device, dtype=dtype)

    def empty(self, batch: int, count: int, *, hidden: bool = False) -> Tensor:
        """Room for scores, `[batch, count, A]`, or for wide ones, `[batch, count, A + D]`."""
        width = self.vocab_size + (self.hidden_size if hidden else 0)
        return torch.empty(batch, count, width, dtype=self.score_dtype, device=self.device)
