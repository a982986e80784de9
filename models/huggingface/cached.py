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
import torch
from torch import Tensor

from smc_bridge.models.host import counting, listed, sent
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter, check_prefixes
from smc_bridge.models.huggingface.attention import Attention
from smc_bridge.models.huggingface.cache import KeyValues, Span, as_span
from smc_bridge.models.huggingface.chunks import RowChunks
from smc_bridge.models.huggingface.packing import Forest, chain_forest, fresh_mask, group_lanes, no_forest, tree_forest
from smc_bridge.models.huggingface.scored import Scored
from smc_bridge.models.huggingface.trees import check_trees, depth_of
from smc_bridge.models.rows import Rows

#: Padded tokens that reading equal prefixes apart must save to be worth a forward of its own.
WORTH_A_FORWARD = 64

#: Of each record of what was scored, what its forest has of the blocks of all rows (`Scored.match`).
Found = list[list[list[int]] | None]


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
        self._before = self.tokens, self.cached  # of the buffer's rows, while `_source` is set

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

    def commit(self, block: Tensor, length: Tensor) -> None:
        """Append the first `length[r]` tokens of `block[r]` to row r; what of them was scored is not read again."""
        before, (counts, found, equal) = self.lengths, self._look(block, length)
        self._append(block, length, counts)
        self._settle(before, self.lengths, found, equal)

    def _follow(self, source: list[int]) -> None:
        """Only note where rows come from: nothing is copied before it is needed."""
        if self._source is None:
            self._source, self._before = list(range(len(self.cached))), (self.tokens, self.cached)
        self._source, self.cached = [self._source[r] for r in source], [self.cached[r] for r in source]

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        self._catch_up()
        super().crop(length)
        self.cached = [min(held, max(n - 1, 0)) for held, n in zip(self.cached, self.lengths, strict=True)]

    def _score(self, rows: Tensor, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Logits `[B, C, A]` along drafts `tokens: [B, C]`, or after the nodes of trees `[B, C - 1]`."""
        [index], lengths, trees = listed(rows), self.lengths, parents
        check_prefixes(index, [lengths[r] for r in index])
        lanes = group_lanes(index)
        if self._source is not None or any(not set(lanes.rows).isdisjoint(scored.rows) for scored in self._scored):
            self._catch_up()
        order = None if lanes.entry is None else sent(lanes.entry, tokens.device).flatten()
        shape = len(lanes.rows), lanes.width, tokens.shape[1]
        tokens = (tokens if order is None else tokens[order]).view(shape)
        if parents is None:
            forest = chain_forest(tokens, merge=self.lanes == "packed")
            alone = None if self.lanes == "packed" else chain_forest(tokens.flatten(0, 1)[:, None])
        else:
            parents = (parents if order is None else parents[order]).view(shape)
            forest = tree_forest(tokens, parents)
            alone = None if self.lanes == "packed" else tree_forest(
                tokens.flatten(0, 1)[:, None], parents.flatten(0, 1)[:, None]
            )
        self._read_equal_prefixes_once(lanes.rows)
        out, scored = self._forward(lanes.rows, lengths, forest, alone, lanes.width)
        self._scored.append(scored)
        out = out.reshape(shape[0] * shape[1], -1, self.model.vocab_size)
        if order is not None:
            place = torch.empty_like(rows)
            place[order] = counting(order.numel(), order.device)  # an entry shown twice reads either
            out = out[place]

        return self.model.check_logits(
            out, lambda b, c: (index[b], lengths[index[b]] + (c if trees is None else depth_of(trees[b], c)))
        )

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
        device = self.tokens.device
        copies, nodes = (1, forest) if alone is None else (lanes, alone)
        of = [row for row in rows for _ in range(copies)]  # session row of each row of the forward
        cached = [self.cached[row] for row in of]
        end = np.array([[lengths[row]] for row in of])
        pending = [lengths[row] - held for row, held in zip(of, cached, strict=True)]
        base, widest, count = max(cached), max(pending), nodes.tokens.shape[1]
        self.cache.reserve(base + widest + forest.tokens.shape[1])
        place = (end + np.arange(-widest, 0)).clip(0)  # [G * copies, widest]
        flat = np.array(of)[:, None] * self.tokens.shape[1] + place
        ids = torch.cat([self.tokens.take(sent(flat, device)), nodes.tokens], dim=1)
        if nodes.chains:
            depth = np.tile(np.arange(count // nodes.chains) + 1, (len(of), nodes.chains))
            position = sent(np.concatenate([place, end - 1 + depth], axis=1), device)
        else:
            position = torch.cat([sent(place, device), sent(end - 1, device) + nodes.depth], dim=1)
        keep: int | Tensor = count + 1
        if nodes.wanted is not None:
            keep = nodes.wanted if widest == 1 else nodes.wanted + widest - 1
        at = as_span(rows, device)

        def forward(part: slice) -> Tensor:
            """Wanted logits of these of the rows."""
            mine = slice(part.start * copies, part.stop * copies)
            longest = int(end[mine].max()) - 1 + count

            def own(x: Tensor) -> Tensor:
                """What belongs to these rows."""
                return x if x.shape[0] == 1 or mine == slice(0, len(of)) else x[mine]

            where = own(position)
            self.cache.span = Span(_part(at, part), base, widest, copies)
            seen = fresh_mask(own(nodes.seen), pending[mine], widest)
            out = self.model.cached_logits(
                own(ids), position_ids=where, longest=longest, cache=self.cache,
                keep=keep if isinstance(keep, int) else own(keep),
                mask=self.attention.mask(cached[mine], base, seen, where, longest),
            )
            self.cache.settle()
            return out.reshape(part.stop - part.start, -1, out.shape[-1])

        wanted = keep if isinstance(keep, int) else keep.shape[1]
        scores = self.chunks(
            forward, len(rows), tokens=ids.shape[1] * copies, logits=wanted * copies * self.model.vocab_size
        )
        return scores, Scored(rows, base, widest, forest)

    def _look(self, block: Tensor | None = None, count: Tensor | None = None) -> tuple[list[int], Found, list[int]]:
        """What has to be read before `_settle`, in one read.

        Args:
            block, count: tokens that follow, `[R, L]`, and how many of them count, `[R]`.
        Returns:
            what `count` holds; for each record of what was scored, what its forest has of the blocks; and how many of
            their first tokens rows share with the buffer's rows that they replace.
        """
        source, before = self._source, self._before[0]
        origin = range(len(self.cached)) if source is None else source
        found = [None if block is None else scored.match(origin, block) for scored in self._scored]
        moved = source is not None and len(source) == before.shape[0]
        asked = [x for x in found if x is not None]
        if moved:
            asked.append((before == before[sent(source, before.device)]).cumprod(1).sum(1))
        if count is not None:
            asked.append(count)
        answers = iter(listed(*asked))
        matches = [None if x is None else next(answers) for x in found]
        equal = next(answers) if moved else []
        return next(answers, []), matches, equal

    def _catch_up(self) -> None:
        """Settle what was scored and gathered, without a block that follows."""
        lengths, (_, found, equal) = self.lengths, self._look()
        self._settle(lengths, lengths, found, equal)

    def _settle(self, before: Sequence[int], after: Sequence[int], found: Found, equal: Sequence[int]) -> None:
        """Put what was scored and is kept, and rows that were gathered, where they belong.

        Everything is read before anything is written, since rows may change places.

        Args:
            before: where the pending tokens of the last forward end, of each row.
            after: length of each row now; its last token stays pending.
            found, equal: see `_look`.
        """
        scored, source = self._scored, self._source
        self._scored, self._source = [], None
        held = self.cached
        moves = self._kept(scored, range(len(held)) if source is None else source, before, after, found)
        if moves:
            from_row, from_column, row, column = sent(np.array(moves).T, self.tokens.device).unbind()
            values = self.cache.read(from_row, from_column)
        if source is not None:
            if equal:
                self._move(source, [min(n, own) for n, own in zip(equal, self._before[1], strict=True)], held)
            else:
                self.cache.resize(sent(source, self.tokens.device))
        if moves:
            self.cache.write(row, column, values)

    def _kept(
        self, records: Sequence[Scored], origin: Sequence[int], before: Sequence[int], after: Sequence[int],
        found: Found,
    ) -> list[tuple[int, int, int, int]]:
        """Count what rows keep of some forwards as cached; returns from which row and column to which it moves."""
        moves = []
        for scored, nodes in zip(records, found, strict=True):
            held = self.cached
            kept = scored.kept(origin, held, before, after, nodes)
            moves += [
                (origin[r], column, r, target)
                for r, columns in enumerate(kept)
                for target, column in enumerate(columns, held[r])
                if column != target or origin[r] != r
            ]
            self.cached = [n + len(columns) for n, columns in zip(held, kept, strict=True)]
        return moves

    def _move(self, source: Sequence[int], common: Sequence[int], end: Sequence[int]) -> None:
        """Copy the columns in which rows differ from their sources: of R each, from `common` on, up to `end`."""
        changed = [r for r, row in enumerate(source) if row != r]
        if changed:
            at, origin = sent([changed, [source[r] for r in changed]], self.tokens.device)
            self.cache.move(at, origin, min(common[r] for r in changed), max(end[r] for r in changed))

    def _read_equal_prefixes_once(self, rows: list[int]) -> None:
        """Read what is pending of rows with equal prefixes in one forward over distinct ones, if that saves enough."""
        held, lengths = self.cached, self.lengths
        pending = [lengths[r] - held[r] for r in rows]
        spare = max(pending) - 1
        if (len(rows) - 1) * spare <= WORTH_A_FORWARD:
            return
        long = [r for r, count in zip(rows, pending, strict=True) if count > 1]
        prefixes = self.tokens[sent(long, self.tokens.device)].tolist()
        reader: dict[tuple[int, ...], int] = {}
        source = list(range(len(lengths)))
        for r, tokens in zip(long, prefixes, strict=True):
            source[r] = reader.setdefault(tuple(tokens[: lengths[r] - 1]), r)
        if (len(rows) - len(reader)) * spare <= WORTH_A_FORWARD:
            return
        before, readers = [n - 1 for n in lengths], list(reader.values())
        _, scored = self._forward(readers, before, no_forest(len(readers), self.tokens.device))
        self._scored, waiting = [scored], self._scored
        self._settle(before, lengths, [None], [])
        self._scored = waiting
        self.cached = [self.cached[r] for r in source]
        self._move(source, held, self.cached)


def _part(rows: slice | Tensor, part: slice) -> slice | Tensor:
    """Those of `rows` that `part` names."""
    if isinstance(rows, slice):
        return slice(rows.start + part.start, rows.start + part.stop)
    return rows[part]
