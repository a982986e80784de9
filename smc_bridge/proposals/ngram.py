"""`NGram`: an interpolated n-gram law, fitted on each row's own text or on texts that are given.

    p_0(a) = 1 / A
    p_k(a | h) = (count(h a) + c p_{k-1}(a | h')) / (count(h) + c),     h' = h without its first token

with h the last k - 1 tokens, `count(h)` how often h is followed by anything, and c a prior in tokens (a Dirichlet prior
whose mean is the shorter law: MacKay & Peto 1995). Of an unseen h nothing is known, and `p_k = p_{k-1}`. So the law is
normalised and has no zeros.

Grams are nodes of a trie: one of k tokens is `node * A + token` of the one before, looked up in a sorted list; level 0
is the text. All on the host, without a loop over rows, positions or tokens.

Shapes: R texts, S tokens, n order, A alphabet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smc_bridge.models.arguments import real_between, whole_number
from smc_bridge.models.host import Index
from smc_bridge.requests import check_tokens

Floats = npt.NDArray[np.float64]


class NGram:
    """Interpolated n-gram law of texts (module docstring).

    Args:
        texts: token ids of each.
        size: alphabet size A.
        order: n, tokens of the longest gram.
        prior: c, tokens that the shorter law counts for.
    Raises:
        ValueError: an argument out of range, a token outside of the alphabet, or no text.
    Example:
        >>> import numpy as np
        >>> law = NGram([[0, 1, 0, 1, 0]], 2)
        >>> [round(float(x), 2) for x in np.exp(law.log_prob(0, np.array([[1, 0]]), np.array([[0, 1]])))[0]]
        [0.1, 0.9]
    """

    def __init__(self, texts: Sequence[Sequence[int]], size: int, *, order: int = 3, prior: float = 1.0) -> None:
        ids = check_tokens(texts, whole_number("size", size), "texts[{}]".format)
        if not ids:
            raise ValueError("texts is empty: give the token ids of at least one")
        length = np.array([len(text) for text in ids], dtype=np.int64)
        tokens = np.zeros((len(ids), int(length.max())), dtype=np.int64)
        for row, text in zip(tokens, ids, strict=True):
            row[: len(text)] = text
        self._fit(tokens, length, np.zeros_like(length), size, order, prior)

    @classmethod
    def of_rows(cls, tokens: Index, length: Index, size: int, *, order: int = 3, prior: float = 1.0) -> NGram:
        """R laws in one, each fitted on its own row of `tokens: [R, S]`, of which `length: [R]` count."""
        own = cls.__new__(cls)
        own._fit(tokens, length, np.arange(length.size), size, order, prior)
        return own

    def _fit(self, tokens: Index, length: Index, law: Index, size: int, order: int, prior: float) -> None:
        self.size, self.order = size, whole_number("order", order)
        self.prior = float(real_between("prior", prior, 0.0, np.inf, remedy="give a positive number", strictly=True))
        self.laws = int(law.max(initial=0)) + 1
        #: Of level k: grams of k tokens, sorted, how often each stands there, and how often each of k - 1 goes on.
        self.levels: list[tuple[Index, Index, Index]] = []
        tokens = np.pad(tokens, ((0, 0), (0, self.order)))
        node, nodes = np.repeat(law[:, None], tokens.shape[1], 1), self.laws
        start = np.arange(tokens.shape[1])
        for k in range(self.order):
            inside = start + k < length[:, None]
            last = np.take(tokens, np.minimum(start + k, tokens.shape[1] - 1), axis=1)
            grams, place, count = np.unique(node[inside] * size + last[inside], return_inverse=True, return_counts=True)
            onward = np.bincount(grams // size, count, minlength=nodes).astype(np.int64)
            self.levels.append((grams, count, onward))
            node = np.zeros_like(node)
            node[inside] = place
            nodes = max(1, grams.size)

    def log_prob(self, law: Index | int, context: Index, token: Index) -> Floats:
        """`log p(token | context)`, nats.

        Args:
            law: which of the laws, `[...]` or a number; 0 of one that was fitted on texts.
            context: the tokens before, `[..., n - 1]` at least, last one last; negative where there is none.
            token: `[..., C]`, C candidates for each context.
        Returns:
            `[..., C]`.
        """
        shape = np.broadcast_shapes(context.shape[:-1], token.shape[:-1])
        root = np.broadcast_to(np.asarray(law, dtype=np.int64), shape)
        found = np.full((*shape, token.shape[-1]), 1.0 / self.size)
        for k, (_, count, onward) in enumerate(self.levels):
            node = root
            for i in range(k):
                node = self._child(i, node, context[..., context.shape[-1] - k + i])
            child = self._child(k, node[..., None], token)
            seen = np.where(child >= 0, np.take(count, child.clip(min=0)) if count.size else 0, 0)
            total = np.where(node >= 0, np.take(onward, node.clip(min=0)), 0)
            found = (seen + self.prior * found) / (total + self.prior)[..., None]
        return np.log(found)

    def _child(self, level: int, node: Index, token: Index) -> Index:
        """The node of each gram followed by a token; -1 where there is none."""
        grams = self.levels[level][0]
        wanted = np.where((node < 0) | (token < 0), -1, node * self.size + token)
        if not grams.size:
            return np.full_like(wanted, -1)
        place = np.searchsorted(grams, wanted).clip(max=grams.size - 1)
        return np.where(grams[place] == wanted, place, -1)
