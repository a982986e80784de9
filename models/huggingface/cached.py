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

from typing import Literal

import torch
from torch import Tensor

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
        self.cached = torch.zeros_like(self.length)  # [R]: columns that hold keys and values; below `length`
        self._scored: list[Scored] = []  # since the last commit, of rows that do not overlap
        self._source: Tensor | None = None  # [R]: the buffer's row that each row has been gathered from
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
        before = self.length
        super().commit(block, length)
        self._settle(before, self.length, block, length)

    def gather(self, ancestors: Tensor) -> None:
        """Let row r become a copy of the former row `ancestors[r]`; nothing is copied before it is needed."""
        here = torch.arange(self.length.shape[0], device=self.length.device)
        if torch.equal(ancestors, here):
            return
        if self._source is None:
            self._source, self._before = here, (self.tokens, self.cached)
        self._source, self.cached = self._source[ancestors], self.cached[ancestors]
        super().gather(ancestors)

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        self._settle(self.length, self.length)
        super().crop(length)
        self.cached = torch.minimum(self.cached, (length - 1).clamp_min(0))

    def _score(self, rows: Tensor, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Logits `[B, C, A]` along drafts `tokens: [B, C]`, or after the nodes of trees `[B, C - 1]`."""
        lengths = self.length[rows]
        check_prefixes(rows, lengths)
        lanes = group_lanes(rows.tolist())
        if self._source is not None or any(not set(lanes.rows).isdisjoint(scored.rows) for scored in self._scored):
            self._settle(self.length, self.length)
        order = None if lanes.entry is None else torch.tensor(lanes.entry, device=tokens.device).flatten()
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
        out, scored = self._forward(lanes.rows, self.length, forest, alone, lanes.width)
        self._scored.append(scored)
        out = out.reshape(shape[0] * shape[1], -1, self.model.vocab_size)
        depth = torch.nn.functional.pad(forest.depth, (1, 0)).expand(shape[0], -1)  # [G, T + 1]
        if forest.wanted is not None:
            depth = depth.gather(1, forest.wanted.expand(shape[0], -1))
        depth = depth.reshape(out.shape[:2])
        if order is not None:
            place = torch.empty_like(rows)
            place[order] = torch.arange(order.numel(), device=order.device)  # an entry shown twice reads either
            out, depth = out[place], depth[place]
        return self.model.check_logits(out, rows, lengths[:, None] + depth)

    def _forward(
        self, rows: list[int], length: Tensor, forest: Forest, alone: Forest | None = None, lanes: int = 1
    ) -> tuple[Tensor, Scored]:
        """One forward over `[pending | forest]` of G distinct rows, whose prefixes end at `length: [R]`.

        Args:
            alone: the same nodes with every lane in a row of its own (`lanes = "copied"`).
            lanes: K; only read with `alone`.
        Returns:
            wanted logits, `[G, C, A]`, and what is left in the buffer.
        """
        at = as_span(rows, length.device)
        length, cached = length[at], self.cached[at]
        pending = length - cached
        base, widest = int(cached.max()), int(pending.max())
        self.cache.reserve(base + widest + forest.tokens.shape[1])
        place = (length[:, None] + torch.arange(-widest, 0, device=length.device)).clamp_min(0)
        told = self.tokens[at].gather(1, place)  # [G, widest]
        copies = 1
        nodes = forest
        if alone is not None:
            copies, nodes = lanes, alone
            told, place, length, cached, pending = (
                x.repeat_interleave(lanes, 0) for x in (told, place, length, cached, pending)
            )
        ids = torch.cat([told, nodes.tokens], dim=1)
        position = torch.cat([place, length[:, None] + nodes.depth - 1], dim=1)
        keep = nodes.tokens.shape[1] + 1 if nodes.wanted is None else nodes.wanted + widest - 1

        def forward(part: slice) -> Tensor:
            """Wanted logits of these of the rows."""
            mine = slice(part.start * copies, part.stop * copies)
            some = nodes.rows(mine)
            self.cache.span = Span(_part(at, part), base, widest, copies)
            seen = fresh_mask(some.lineage, pending[mine], widest)
            out = self.model.cached_logits(
                ids[mine], position_ids=position[mine], cache=self.cache,
                mask=self.attention.mask(cached[mine], base, seen, position[mine]),
                keep=keep if isinstance(keep, int) or keep.shape[0] == 1 else keep[mine],
            )
            self.cache.settle()
            return out.reshape(part.stop - part.start, -1, out.shape[-1])

        count = keep if isinstance(keep, int) else keep.shape[1]
        scores = self.chunks(
            forward, len(rows), tokens=ids.shape[1] * copies, logits=count * copies * self.model.vocab_size
        )
        slot = torch.full_like(self.length, -1)
        slot[at] = torch.arange(len(rows), device=slot.device)
        return scores, Scored(rows, slot, base, widest, forest)

    def _settle(
        self, before: Tensor, after: Tensor, block: Tensor | None = None, count: Tensor | None = None
    ) -> None:
        """Put what was scored and is kept, and rows that were gathered, where they belong.

        Args:
            before: where the pending tokens of the last forward end, `[R]`.
            after: length of each row now, `[R]`; its last token stays pending.
            block, count: tokens that followed, `[R, L]`, and how many of them count, `[R]`.
        """
        scored, source = self._scored, self._source
        if scored or source is not None:
            self._scored, self._source = [], None
            self._put(scored, source, before, after, block, count)

    def _put(
        self, records: list[Scored], source: Tensor | None, before: Tensor, after: Tensor, block: Tensor | None = None,
        count: Tensor | None = None,
    ) -> None:
        """See `_settle`. Everything is read before anything is written, since rows may change places."""
        here = torch.arange(before.shape[0], device=before.device)
        origin = here if source is None else source
        held, writes = self.cached, []
        for scored in records:
            kept, column = scored.kept(origin, held, before, after, block, count)
            target = held[:, None] + torch.arange(column.shape[1], device=column.device)
            put = (target < kept[:, None]) & ((column != target) | (origin != here)[:, None])
            row, which = put.nonzero(as_tuple=True)
            if row.numel():
                values = self.cache.read(origin[row], column[row, which])
                writes.append((row, target[row, which], values))
            self.cached = torch.maximum(self.cached, kept)
        if source is not None:
            self._move(source, held)
        for row, target, values in writes:
            self.cache.write(row, target, values)

    def _move(self, source: Tensor, end: Tensor) -> None:
        """Copy the columns in which rows differ from their sources, of the first `end: [R]`."""
        tokens, held = self._before
        if source.shape[0] != tokens.shape[0]:
            self.cache.resize(source)
            return
        changed = (source != torch.arange(source.shape[0], device=source.device)).nonzero().flatten()
        if not changed.numel():
            return
        origin = source[changed]
        equal = (tokens[changed] == tokens[origin]).cumprod(1).sum(1)
        first = int(torch.minimum(equal, held[changed]).min())
        self.cache.move(changed, origin, first, int(end[changed].max()))

    def _read_equal_prefixes_once(self, rows: list[int]) -> None:
        """Read what is pending of rows with equal prefixes in one forward over distinct ones, if that saves enough."""
        if len(rows) == 1:
            return
        at = torch.tensor(rows, device=self.length.device)
        pending = self.length[at] - self.cached[at]
        spare = int(pending.max()) - 1
        if (len(rows) - 1) * spare <= WORTH_A_FORWARD:
            return
        long = at[pending > 1]
        column = torch.arange(self.tokens.shape[1], device=at.device)
        told = self.tokens[long].masked_fill(column >= self.length[long][:, None] - 1, -1)
        distinct, group = torch.unique(told, dim=0, return_inverse=True)
        if (len(rows) - distinct.shape[0]) * spare <= WORTH_A_FORWARD:
            return
        first = torch.full((distinct.shape[0],), len(rows), device=at.device)
        first = first.scatter_reduce(0, group, torch.arange(len(long), device=at.device), "amin")
        reader = long[first]
        _, scored = self._forward(reader.tolist(), self.length - 1, no_forest(len(reader), at.device))
        self._put([scored], None, self.length - 1, self.length)
        source = torch.arange(self.length.shape[0], device=at.device)
        source[long] = reader[group]
        self._before = self.tokens, self.cached
        self.cached = self.cached[source]
        self._move(source, self.cached)


def _part(rows: slice | Tensor, part: slice) -> slice | Tensor:
    """Those of `rows` that `part` names."""
    if isinstance(rows, slice):
        return slice(rows.start + part.start, rows.start + part.stop)
    return rows[part]
