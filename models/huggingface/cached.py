"""The cached session of a causal model: every prefix is read once, its lanes and trees in one packed row.

Of a row's tokens the first `cached` have keys and values in the buffer; the others are *pending*: at least the last
committed token, whose output gives the next position's law. A `score` is one forward over `[pending | forest]` of each
row (`smc_bridge.models.huggingface.packing`). What it has computed stays behind the prefixes until the next call: a
`commit` looks up the longest path of the forest that its block begins with and keeps the path's keys and values, so
that only tokens that were never scored stay pending, most often the last one alone. `gather` only notes where rows
come from; a commit then copies the columns in which a row differs from its source. Equal prefixes that are all
pending (particles of a new prompt) are read once, in a forward of their own, and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from smc_bridge.models.host import listed, sent
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter, check_prefixes
from smc_bridge.models.huggingface.attention import Attention
from smc_bridge.models.huggingface.cache import KeyValues, Span, as_span
from smc_bridge.models.huggingface.chunks import RowChunks
from smc_bridge.models.huggingface.packing import Forest, chain_forest, fresh_mask, group_lanes, no_forest, tree_forest
from smc_bridge.models.huggingface.scored import Scored
from smc_bridge.models.huggingface.trees import check_trees
from smc_bridge.models.rows import Rows

#: Padded tokens that reading equal prefixes apart must save to be worth a forward of its own.
WORTH_A_FORWARD = 64


class CachedCausalSession(Rows):
    """Session of a causal model over a ragged key-value cache (implements `CausalSession`).

    Args:
        model: the adapter.
        attention: how its model is masked.
        chunks: runs its forwards.
        lanes: "packed": lanes of a row share one packed row; "copied": each has a row and a copy of the cache.
        tokens, length: prefixes `[R, S]`, of which the first `length: [R]` count.
    """

    def __init__(
        self, model: HuggingFaceAdapter, attention: Attention, chunks: RowChunks, lanes: Literal["packed", "copied"],
        tokens: Tensor, length: Tensor,
    ) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model
        self.attention = attention
        self.chunks = chunks
        self.lanes = lanes
        self.cache = KeyValues(tokens.shape[0])
        self.cached = [0] * len(self.lengths)  # columns of each row that hold keys and values; below its length
        self._scored: list[Scored] = []  # since the last commit, of rows that do not overlap
        self._source: list[int] | None = None  # the buffer's row that each row has been gathered from
        self._before = self.texts, self.cached  # of the buffer's rows, while `_source` is set

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Logits along drafts, `[B, V, A]`, over the cached prefixes (`CausalSession.score`).

        Raises:
            ValueError: an empty prefix, or logits that are no law.
        """
        batch, window = drafts.shape
        if batch == 0 or window == 0:
            return self.model.empty(batch, window)
        return self._score(rows, drafts, None)

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after every node of trees, `[B, T + 1, A]`, over the cached prefixes (`CausalSession.score_tree`).

        Raises:
            ValueError: as `score`, and a parent after its child.
        """
        check_trees(tokens, parents)
        batch, nodes = tokens.shape
        if batch == 0:
            return self.model.empty(0, nodes + 1)
        if nodes == 0:
            return self._score(rows, tokens.new_zeros(batch, 1), None)
        return self._score(rows, tokens, parents)

    def _append(self, block: np.ndarray, counts: list[int]) -> None:
        """See `commit`; what of the block was scored is not read again."""
        before = self.lengths
        super()._append(block, counts)
        self._settle(before, self.lengths, block)

    def _follow(self, source: list[int]) -> None:
        """Only note where rows come from: nothing is copied before it is needed."""
        if self._source is None:
            self._source, self._before = list(range(len(self.cached))), (self.texts, self.cached)
        self._source, self.cached = [self._source[r] for r in source], [self.cached[r] for r in source]

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        self._settle(self.lengths, self.lengths)
        super().crop(length)
        self.cached = [min(held, max(n - 1, 0)) for held, n in zip(self.cached, self.lengths, strict=True)]

    def _score(self, rows: Tensor, drafts: Tensor, trees: Tensor | None) -> Tensor:
        """Logits `[B, C, A]` along drafts `[B, C]`, or after the nodes of trees `[B, C - 1]`."""
        index, *given = listed(rows, drafts, *(() if trees is None else (trees,)))
        lengths, size = self.lengths, self.model.vocab_size
        check_prefixes(index, [lengths[r] for r in index])
        lanes = group_lanes(index)
        if self._source is not None or any(not set(lanes.rows).isdisjoint(scored.rows) for scored in self._scored):
            self._settle(lengths, lengths)
        order = np.arange(len(index)) if lanes.entry is None else np.array(lanes.entry).ravel()
        tokens, *parents = (np.array(x)[order].reshape(len(lanes.rows), lanes.width, -1) for x in given)
        packed = self.lanes == "packed"
        forest = tree_forest(tokens, *parents) if parents else chain_forest(tokens, merge=packed)
        alone = None
        if not packed:
            each = [x.reshape(len(order), 1, -1) for x in (tokens, *parents)]
            alone = tree_forest(*each) if parents else chain_forest(*each)
        self._read_equal_prefixes_once(lanes.rows)
        out, scored = self._forward(lanes.rows, lengths, forest, alone, lanes.width)
        self._scored.append(scored)
        out = out.reshape(len(order), -1, size)
        if lanes.entry is not None:
            place = np.empty(len(index), dtype=np.int64)
            place[order] = np.arange(len(order))  # an entry shown twice reads either
            out = out[sent(place, out.device)]

        def about(b: int, c: int) -> tuple[int, int]:
            """Session row and position of an entry of the scores."""
            depth = c
            if parents:
                depth, node = 0, c
                while node:
                    node, depth = given[1][b][node - 1], depth + 1
            return index[b], lengths[index[b]] + depth

        return self.model.check_logits(out, about)

    def _forward(
        self, rows: list[int], lengths: Sequence[int], forest: Forest, alone: Forest | None = None, lanes: int = 1
    ) -> tuple[Tensor, Scored]:
        """One forward over `[pending | forest]` of G distinct rows; prefixes of all R rows end at `lengths`.

        Args:
            alone: the same nodes with every lane in a row of its own (`lanes = "copied"`).
            lanes: K; only read with `alone`.
        Returns:
            wanted logits, `[G, C, A]`, and what is left in the buffer.
        """
        copies, nodes = (1, forest) if alone is None else (lanes, alone)
        of = [row for row in rows for _ in range(copies)]  # session row of each row of the forward
        cached = [self.cached[row] for row in of]
        pending = [lengths[row] - held for row, held in zip(of, cached, strict=True)]
        base, widest = max(cached), max(pending)
        self.cache.reserve(base + widest + forest.tokens.shape[1])
        end = np.array([[lengths[row]] for row in of])
        place = (end + np.arange(-widest, 0)).clip(0)  # [G * copies, widest]
        ids = np.concatenate([self.texts[np.array(of)[:, None], place], nodes.tokens], axis=1)
        position = np.concatenate([place, end - 1 + nodes.depth], axis=1)
        keep = nodes.tokens.shape[1] + 1 if nodes.wanted is None else nodes.wanted + widest - 1
        at = as_span(rows, self.device)

        def forward(part: slice) -> Tensor:
            """Wanted logits of these of the rows."""
            mine = slice(part.start * copies, part.stop * copies)
            self.cache.span = Span(_part(at, part), base, widest, copies)
            seen = fresh_mask(nodes.seen if len(nodes.seen) == 1 else nodes.seen[mine], pending[mine], widest)
            out = self.model.cached_logits(
                ids[mine], position=position[mine], cache=self.cache,
                mask=self.attention.mask(cached[mine], base, seen, position[mine], self.device),
                keep=keep if isinstance(keep, int) or len(keep) == 1 else keep[mine],
            )
            self.cache.settle()
            return out.reshape(part.stop - part.start, -1, out.shape[-1])

        count = keep if isinstance(keep, int) else keep.shape[1]
        scores = self.chunks(
            forward, len(rows), tokens=ids.shape[1] * copies, logits=count * copies * self.model.vocab_size
        )
        return scores, Scored(rows, base, widest, forest)

    def _settle(self, before: Sequence[int], after: Sequence[int], block: np.ndarray | None = None) -> None:
        """Put what was scored and is kept, and rows that were gathered, where they belong.

        Everything is read before anything is written, since rows may change places.

        Args:
            before: where the pending tokens of the last forward end, of each row.
            after: length of each row now; its last token stays pending.
            block: the tokens that followed, `[R, L]`.
        """
        records, source = self._scored, self._source
        self._scored, self._source = [], None
        origin, end, moves = range(len(before)) if source is None else source, self.cached, []
        for scored in records:
            held = self.cached
            kept = scored.kept(origin, held, before, after, block)
            moves += [
                (origin[r], column, r, target)
                for r, columns in enumerate(kept)
                for target, column in enumerate(columns, held[r])
                if column != target or origin[r] != r
            ]
            self.cached = [n + len(columns) for n, columns in zip(held, kept, strict=True)]
        if moves:
            from_row, from_column, row, column = sent(np.array(moves).T, self.device).unbind()
            values = self.cache.read(from_row, from_column)
        if source is not None:
            texts, held = self._before
            if len(source) == len(texts):
                equal = np.logical_and.accumulate(texts == texts[source], axis=1).sum(1)
                self._move(source, np.minimum(equal, held).tolist(), end)
            else:
                self.cache.resize(sent(source, self.device))
        if moves:
            self.cache.write(row, column, values)

    def _move(self, source: Sequence[int], common: Sequence[int], end: Sequence[int]) -> None:
        """Copy the columns in which rows differ from their sources: of R each, from `common` on, up to `end`."""
        changed = [r for r, row in enumerate(source) if row != r]
        if changed:
            at, origin = sent([changed, [source[r] for r in changed]], self.device)
            self.cache.move(at, origin, min(common[r] for r in changed), max(end[r] for r in changed))

    def _read_equal_prefixes_once(self, rows: list[int]) -> None:
        """Read what is pending of rows with equal prefixes in one forward over distinct ones, if that saves enough."""
        held, lengths = self.cached, self.lengths
        pending = [lengths[r] - held[r] for r in rows]
        spare = max(pending) - 1
        if (len(rows) - 1) * spare <= WORTH_A_FORWARD:
            return
        long = [r for r, count in zip(rows, pending, strict=True) if count > 1]
        reader: dict[bytes, int] = {}
        source = list(range(len(lengths)))
        for r in long:
            source[r] = reader.setdefault(self.texts[r, : lengths[r] - 1].tobytes(), r)
        if (len(rows) - len(reader)) * spare <= WORTH_A_FORWARD:
            return
        before, readers = [n - 1 for n in lengths], list(reader.values())
        _, scored = self._forward(readers, before, no_forest(len(readers)))
        self._scored, waiting = [scored], self._scored
        self._settle(before, lengths)
        self._scored = waiting
        self.cached = [self.cached[r] for r in source]
        self._move(source, held, self.cached)


def _part(rows: slice | Tensor, part: slice) -> slice | Tensor:
    """Those of `rows` that `part` names."""
    if isinstance(rows, slice):
        return slice(rows.start + part.start, rows.start + part.stop)
    return rows[part]
