"""A forward over many rows as forwards over few: under a cap on the logits' bytes, and smaller where memory runs out.

Rows of a batch do not see each other, so a batch may be cut anywhere without a change of its scores beyond round-off.
The cap is known beforehand, and what of a row its head computes at once (nothing to speak of where the head runs in
pieces: `smc_bridge.models.huggingface.head`); what else a forward needs is not, so where memory runs out the chunk is
halved and the smaller size is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: What allocators say that have no exception type of their own (CPU; MPS and other accelerators).
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")

#: Bytes of a float32 logit.
LOGIT_BYTES = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device, or of the host, ran out."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):  # the latter of every device, whatever its name
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in _MESSAGES)


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Turn running out of memory outside of a forward into one line.

    Args:
        what: what there was no room for, and the remedy.
    Raises:
        MemoryError: with `what`, in the place of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory for {what}") from error


def wanted_bytes(tokens: int, logits: int) -> int:
    """Bytes of a row's float32 logits, if no others than the wanted ones are computed."""
    return LOGIT_BYTES * logits


class RowChunks:
    """Runs forwards over row chunks; one object per model, since it remembers what fitted.

    Args:
        max_logit_bytes: cap on the bytes that the head computes of one chunk at once, or None. A single row is not cut.
        row_bytes: bytes that the head computes of one row at once, from the row's tokens and wanted logits.

    Attributes:
        max_tokens: tokens of the largest chunk that is tried, or None while memory never ran out.
    """

    def __init__(
        self, max_logit_bytes: int | None = None, row_bytes: Callable[[int, int], int] = wanted_bytes
    ) -> None:
        if max_logit_bytes is not None and max_logit_bytes < 1:
            raise ValueError(f"max_logit_bytes = {max_logit_bytes}: give at least 1 byte, or None for no cap")
        self.max_logit_bytes, self.row_bytes = max_logit_bytes, row_bytes
        self.max_tokens: int | None = None

    def size(self, rows: int, *, tokens: int, logits: int) -> int:
        """Rows of the next chunk out of `rows`, at least 1; arguments as in a call."""
        size = rows
        if self.max_logit_bytes is not None:
            size = min(size, self.max_logit_bytes // max(1, self.row_bytes(tokens, logits)))
        if self.max_tokens is not None:
            size = min(size, self.max_tokens // max(1, tokens))
        return max(1, size)

    def __call__(self, forward: Callable[[slice], Tensor], rows: int, *, tokens: int, logits: int) -> Tensor:
        """Run `forward` over all rows.

        Args:
            forward: from a slice of the rows to their scores `[stop - start, ...]`; where memory runs out it is called
                again with a shorter slice from the same start, so what it does besides must bear being repeated.
            rows: number of rows B, at least 1.
            tokens: tokens of a row that the forward reads.
            logits: numbers in a row's scores, `C * A`.
        Returns:
            the scores of all rows, `[B, ...]`.
        Raises:
            MemoryError: one row does not fit, or the scores of all rows together do not.
        """
        whole: Tensor | None = None
        start = 0
        while start < rows:
            stop = start + self.size(rows - start, tokens=tokens, logits=logits)
            part = _attempt(forward, slice(start, stop))
            if part is None:
                self._shrink(stop - start, tokens, logits)
                continue
            if stop - start == rows:
                return part
            if whole is None:  # filled in place: a concatenation at the end would hold every score twice
                whole = _room(part, rows)
            whole[start:stop] = part
            start = stop
        assert whole is not None
        return whole

    def _shrink(self, failed: int, tokens: int, logits: int) -> None:
        """Remember half of the `failed` rows as the largest chunk."""
        if failed == 1:
            raise MemoryError(
                f"out of memory in a forward of one row: {tokens} tokens, {LOGIT_BYTES * logits} bytes of logits; "
                "shorten the prompt, the window or the lookahead, or load the model with a narrower dtype"
            )
        self.max_tokens = failed // 2 * max(1, tokens)


def _attempt(forward: Callable[[slice], Tensor], rows: slice) -> Tensor | None:
    """The scores of `rows`, or None if memory ran out; what the failed forward held is free on return."""
    try:
        return forward(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _room(part: Tensor, rows: int) -> Tensor:
    """Uninitialised scores of all rows, shaped as the first chunk's."""
    count = rows * part[0].numel() * part.element_size()
    with told_as(f"the scores of {rows} rows, {count} bytes: use fewer prompts at once, particles or lanes"):
        return part.new_empty(rows, *part.shape[1:])
