"""Keys and values of R ragged rows: a transformers `Cache` over buffers that grow by doubling and are written in place.

Row r holds the keys and values of its first tokens in columns 0, 1, ...: a token's column is its position, and there is
no padding on the left. A forward writes its fresh keys and values *behind* the longest cached prefix of its rows, all
from one column on, so that what attention reads is a view of the buffer where the forward is over rows that stand
together, and a copy of these rows elsewhere; a mask hides the columns between a row's own prefix and the fresh ones.
What a commit keeps is then moved to its own columns. Layers may live on different devices: those with equal shape, type
and device share one buffer `[planes, R, H, capacity, D]`, two planes a layer, so that a move is one operation for all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from smc_bridge.models.host import sent
from smc_bridge.models.huggingface.chunks import told_as


class Span(NamedTuple):
    """Where a forward reads and writes in the buffer."""

    rows: slice | Tensor
    """The G rows of the buffer, distinct."""
    base: int
    """Columns of the prefix; fresh tokens are written from here on."""
    pending: int
    """Columns of pending tokens at the beginning of the fresh ones."""
    copies: int
    """Rows of the forward for each row of the buffer: 1, or K if lanes are rows of their own."""


def as_span(rows: list[int], device: torch.device) -> slice | Tensor:
    """`rows: [n]` as a slice if they stand together in ascending order, else as an index."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return sent(rows, device)


class KeyValues(Cache):  # type: ignore[misc]
    """Buffers of keys and values of `rows` rows; made by the first forward, which shows the layers' shapes."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.span = Span(slice(0, rows), 0, 0, 1)
        self._buffers: list[Tensor] = []  # [planes, R, H, capacity, D] each
        self._planes: dict[int, tuple[int, int]] = {}  # of every plane: its buffer and its place therein
        self._first: dict[int, Tensor] = {}  # what the first forward has written
        self._capacity = 0

    @property
    def bytes(self) -> int:
        """Memory of all buffers together, bytes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that stand before the fresh ones, for transformers."""
        return self.span.base

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's fresh keys and values, `[G * copies, H, F, D]`; return them behind those of the prefix."""
        return self._extend(2 * layer_idx, key_states), self._extend(2 * layer_idx + 1, value_states)

    def _extend(self, plane: int, fresh: Tensor) -> Tensor:
        span = self.span
        packed = fresh if span.copies == 1 else _packed(fresh, span.copies, span.pending)
        if not self._buffers:  # the first forward has no prefix
            self._first[plane] = packed
            return fresh
        which, place = self._planes[plane]
        held = self._buffers[which][place]  # [R, H, capacity, D]
        end = span.base + packed.shape[2]
        if isinstance(span.rows, slice):
            held[span.rows, :, span.base : end] = packed
            seen = held[span.rows, :, :end]
        else:
            rows = span.rows.to(held.device)
            held[rows, :, span.base : end] = packed
            seen = held[:, :, :end].index_select(0, rows)
        if span.copies == 1:
            return seen
        return torch.cat([seen[:, :, : span.base].repeat_interleave(span.copies, 0), fresh], dim=2)

    def reserve(self, columns: int) -> None:
        """Make room for `columns` columns, keeping what is there; the capacity at least doubles.

        Raises:
            MemoryError: there is no such room; the buffers stay as they were.
        """
        if columns <= self._capacity:
            return
        before = self._capacity
        self._capacity = columns if before == 0 else max(columns, 2 * before)
        try:
            with self._enough(self.rows):
                self._buffers = [self._grown(buffer, self.rows, buffer.shape[3]) for buffer in self._buffers]
        except MemoryError:
            self._capacity = before
            raise

    def _enough(self, rows: int) -> AbstractContextManager[None]:
        """Says in one line that buffers of `rows` rows do not fit."""
        return told_as(
            f"keys and values of {rows} rows of {self._capacity} tokens: use fewer prompts at once or particles, "
            "shorten the prompt, or load the models with a narrower dtype"
        )

    def settle(self) -> None:
        """After a forward: make the buffers if it was the first, from what it has written."""
        if self._buffers or not self._first:
            return
        groups: dict[tuple[object, ...], list[int]] = {}
        for plane, fresh in sorted(self._first.items()):
            groups.setdefault((fresh.device, fresh.dtype, fresh.shape[1], fresh.shape[3]), []).append(plane)
        # Of a model without the attention of some layers, their planes are missing.
        self._planes = {p: (which, place) for which, g in enumerate(groups.values()) for place, p in enumerate(g)}
        rows = self.span.rows
        for group in groups.values():
            stacked = torch.stack([self._first[plane] for plane in group])  # [planes, G, H, F, D]
            buffer = self._grown(stacked, self.rows, 0)
            at = rows if isinstance(rows, slice) else rows.to(buffer.device)
            buffer[:, at, :, : stacked.shape[3]] = stacked
            self._buffers.append(buffer)
        self._first = {}

    def _grown(self, old: Tensor, rows: int, columns: int) -> Tensor:
        """A buffer of `rows` rows that holds the first `columns` columns of `old` (of the same rows).

        Never an inference tensor, so that a session may be used inside and outside of inference mode. It starts from
        zeros: a masked column must still be finite.
        """
        planes, _, heads, _, size = old.shape
        with torch.inference_mode(False), torch.no_grad():
            new = torch.zeros(planes, rows, heads, self._capacity, size, dtype=old.dtype, device=old.device)
        if columns:
            new[:, :, :, :columns] = old
        return new

    def read(self, row: Tensor, column: Tensor) -> list[Tensor]:
        """Keys and values at n places, `[n, planes, H, D]` of each buffer (a copy)."""
        return [b.permute(1, 3, 0, 2, 4)[row.to(b.device), column.to(b.device)] for b in self._buffers]

    def write(self, row: Tensor, column: Tensor, values: list[Tensor]) -> None:
        """Write what `read` has returned, `[n, planes, H, D]` of each buffer, to n other places."""
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.permute(1, 3, 0, 2, 4)[row.to(buffer.device), column.to(buffer.device)] = value

    def move(self, rows: Tensor, source: Tensor, first: int, end: int) -> None:
        """Let columns `first .. end - 1` of rows `rows: [n]` be those that the rows `source: [n]` had before."""
        if first >= end:
            return
        for buffer in self._buffers:
            part = buffer[:, :, :, first:end]
            with self._enough(int(rows.shape[0])):
                part.index_copy_(1, rows.to(buffer.device), part.index_select(1, source.to(buffer.device)))

    def resize(self, source: Tensor) -> None:
        """Let there be as many rows as `source: [R']` has entries, each a copy of the row that it names."""
        self.rows = int(source.shape[0])
        with self._enough(self.rows), torch.inference_mode(False), torch.no_grad():
            self._buffers = [b.index_select(1, source.to(b.device)) for b in self._buffers]


def _packed(fresh: Tensor, copies: int, pending: int) -> Tensor:
    """Fresh states of lanes as rows, `[G * K, H, pending + T, D]`, as those of packed rows: `[G, H, pending + K T, D]`.

    The pending tokens are the same in all lanes.
    """
    _, heads, width, size = fresh.shape
    lanes = fresh.reshape(-1, copies, heads, width, size)
    nodes = lanes[:, :, :, pending:].transpose(1, 2).reshape(lanes.shape[0], heads, -1, size)
    return torch.cat([lanes[:, 0, :, :pending], nodes], dim=2)
