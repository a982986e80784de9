"""Texts as vectors, for tests that compare samples of texts: the spectrum kernel (Leslie, Eskin & Noble 2002).

A sequence of tokens (or the characters of a text) is described by how often each n-gram of up to n items occurs in
it, ends included. The inner product of two such counts, scaled to length one, is a positive definite string kernel; it
needs no model and no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from smc_bridge.models.arguments import whole_number

#: A text, or token ids.
Sequential = str | Sequence[int]

#: Stand before the first and after the last item, so that where a sequence begins and ends counts too.
_START, _END = "<start>", "<end>"


def ngrams(value: Sequential, n: int = 3) -> Counter[tuple[Hashable, ...]]:
    """How often every n-gram of 1 to `n` items occurs in a text or sequence, its ends included.

    Raises:
        ValueError: n below 1.
    """
    n = whole_number("n", n, remedy="count n-grams of at least 1 item, a whole number")
    items: list[Hashable] = [_START, *value, _END]
    counts: Counter[tuple[Hashable, ...]] = Counter()
    for size in range(1, n + 1):
        counts.update(tuple(items[i : i + size]) for i in range(len(items) - size + 1))
    return counts


def spectrum_kernel(values: Sequence[Sequential], *, n: int = 3) -> npt.NDArray[np.float64]:
    """Spectrum kernel of all pairs, `[T, T]`: inner products of n-gram counts, scaled so that the diagonal is 1.

    Args:
        values: T texts or sequences of token ids.
        n: longest n-gram.
    """
    from scipy.sparse import csr_array

    column: dict[tuple[Hashable, ...], int] = {}
    rows, columns, data = [], [], []
    for row, value in enumerate(values):
        for gram, count in ngrams(value, n).items():
            rows.append(row)
            columns.append(column.setdefault(gram, len(column)))
            data.append(float(count))
    counts = csr_array((data, (rows, columns)), shape=(len(values), len(column)))
    products = np.asarray((counts @ counts.T).todense(), dtype=np.float64)
    norms = np.sqrt(np.diag(products))
    return np.asarray(products / np.outer(norms, norms))
