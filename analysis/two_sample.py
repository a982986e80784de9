"""Two-sample tests: do a sampler's texts have the target's law? No classifier is trained.

- `goodness_of_fit`: counts of draws against the exact law of an enumerable model (Pearson's chi-square; cells of small
  expectation are pooled).
- `chi_square_test`: two samples of values that repeat, by a contingency table.
- `mmd_test`: two samples of texts that hardly ever repeat, by the maximum mean discrepancy under a string kernel
  (Gretton et al. 2012), with a permutation p-value, which is exact whatever the kernel and the sizes. The spectrum
  kernel sees mean n-gram counts only, so it is blind to dependence beyond the reach of an n-gram. Labels are permuted
  over all texts: samples of several prompts must be tested prompt by prompt.

Draw *one* value per independent run (`Result.sample`): the law that is tested is then the output law r, which for a
proper method of few particles differs from p by the bias that its certificate bounds: enough draws find it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from smc_bridge.analysis.features import Sequential, spectrum_kernel
from smc_bridge.models.arguments import whole_number
from smc_bridge.streams import Role, numpy_generator

#: Least expected count of a cell of a chi-square test (Cochran 1954).
LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class TestResult:
    """A test of the claim that two laws are equal.

    Attributes:
        name: of the test.
        statistic: its value.
        p_value: probability of a statistic at least so large if the laws are equal.
        sizes: of the samples.
        cells: cells after pooling (chi-square), or permutations.
    """

    __test__ = False  # not a test class of pytest

    name: str
    statistic: float
    p_value: float
    sizes: tuple[int, ...]
    cells: int

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return f"{self.name}: statistic {self.statistic:.4g}, p = {self.p_value:.3g} (samples of {sizes})"


def goodness_of_fit(values: Sequence[Hashable], law: Mapping[Hashable, float]) -> TestResult:
    """Pearson's chi-square of draws against an exact law.

    Args:
        values: independent draws.
        law: probability of every value; what `oracle(...).posterior()` returns.
    Returns:
        p-value 0 if a value has probability zero under the law.
    Raises:
        ValueError: no draws, so few that only one cell is left, or values that are no keys, such as lists.
    """
    count = len(values)
    if count == 0:
        raise ValueError("values is empty: give at least one draw")
    if not all(isinstance(value, Hashable) for value in values):
        raise ValueError("values has entries that are not hashable, such as lists of token ids: give tuples or texts")
    total = sum(law.values())
    observed = Counter(values)
    if any(law.get(value, 0.0) <= 0 for value in observed):
        return TestResult("goodness of fit", float("inf"), 0.0, (count,), len(law))
    expected = {value: count * mass / total for value, mass in law.items() if mass > 0}
    pools = _pools(expected)
    if len(pools) < 2:
        raise ValueError(f"{count} draws leave one cell of expectation {LEAST_EXPECTED:g} or more: draw more")
    seen = np.array([sum(observed[value] for value in pool) for pool in pools], dtype=np.float64)
    wanted = np.array([sum(expected[value] for value in pool) for pool in pools])
    statistic = float((np.square(seen - wanted) / wanted).sum())
    return TestResult(
        "goodness of fit", statistic, float(chdtrc(len(pools) - 1, statistic)), (count,), len(pools)
    )


def chi_square_test(left: Sequence[Hashable], right: Sequence[Hashable]) -> TestResult:
    """Chi-square test of homogeneity of two samples of values that repeat.

    Raises:
        ValueError: an empty sample, or so few repetitions that only one cell is left.
    """
    sizes = len(left), len(right)
    if min(sizes) == 0:
        raise ValueError(f"samples of {sizes[0]} and {sizes[1]} values: give at least one in each")
    a, b = Counter(left), Counter(right)
    both = a + b
    share = min(sizes) / sum(sizes)
    pools = _pools({value: share * count for value, count in both.items()})
    if len(pools) < 2:
        raise ValueError("values hardly repeat, one cell is left: draw more, or use mmd_test")
    table = np.array([[sum(c[value] for value in pool) for pool in pools] for c in (a, b)], dtype=np.float64)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    statistic = float((np.square(table - expected) / expected).sum())
    return TestResult("chi-square", statistic, float(chdtrc(len(pools) - 1, statistic)), sizes, len(pools))


def mmd_test(
    left: Sequence[Sequential], right: Sequence[Sequential], *, n: int = 3, permutations: int = 999, seed: int = 0,
    kernel: npt.NDArray[np.float64] | None = None,
) -> TestResult:
    """Maximum mean discrepancy of two samples of texts, with a permutation p-value.

    `MMD^2` is the unbiased estimate of Gretton et al. 2012, eq. 3. The p-value `(1 + #{as large}) / (1 + permutations)`
    is exact.

    Args:
        left, right: texts or token ids, at least two of each, all independent.
        n: longest n-gram of the spectrum kernel.
        permutations, seed: of the labels.
        kernel: another kernel's values of all pairs, `[T, T]`, left first.
    Raises:
        ValueError: samples that are too small, no permutations, or a kernel of another shape or not finite.
    """
    m, total = len(left), len(left) + len(right)
    if m < 2 or total - m < 2:
        raise ValueError(f"samples of {m} and {total - m} texts: give at least 2 in each")
    permutations = whole_number("permutations", permutations, remedy="permute at least once, a whole number of times")
    gram = spectrum_kernel([*left, *right], n=n) if kernel is None else np.asarray(kernel, dtype=np.float64)
    if gram.shape != (total, total):
        raise ValueError(f"kernel has shape {gram.shape}: give [{total}, {total}], the left sample first")
    if not np.isfinite(gram).all():
        raise ValueError(f"kernel has {int((~np.isfinite(gram)).sum())} entries that are not finite: give numbers")
    rng = numpy_generator(Role.PERMUTATION, seed)
    labels = np.zeros((permutations + 1, total))
    labels[0, :m] = 1.0
    for row in labels[1:]:
        row[rng.permutation(total)[:m]] = 1.0
    found = _mmd(gram, labels, m)
    # Equal arrangements must count as equal in spite of round-off, which has the scale of the kernel.
    larger = int((found[1:] >= found[0] - 1e-12 * np.abs(gram).max()).sum())
    return TestResult("MMD", float(found[0]), (1 + larger) / (1 + permutations), (m, total - m), permutations)


def _mmd(gram: npt.NDArray[np.float64], labels: npt.NDArray[np.float64], m: int) -> npt.NDArray[np.float64]:
    """Unbiased `MMD^2` of every labelling, `[B]`; `labels: [B, T]` is 1 for the left sample."""
    own = np.diag(gram)
    other = gram.shape[0] - m
    left = np.einsum("bt,bt->b", labels @ gram, labels)
    total = gram.sum()
    cross = (labels @ gram).sum(1) - left
    right = total - left - 2 * cross
    inside = labels @ own
    within_left = (left - inside) / (m * (m - 1))
    within_right = (right - (own.sum() - inside)) / (other * (other - 1))
    return np.asarray(within_left + within_right - 2 * cross / (m * other))


def _pools(expected: Mapping[Hashable, float]) -> list[list[Hashable]]:
    """Values grouped so that every group's expectation is large enough: the small ones, in order of size, together.

    Equal sizes come in the order of the values, which no draw decides: an order of appearance would put values of one
    sample together.
    """
    pools: list[list[Hashable]] = []
    open_, mass = [], 0.0
    try:
        ordered = sorted((size, value) for value, size in expected.items())
    except TypeError:
        raise ValueError("values have no order among themselves: give texts, numbers or tuples of one kind") from None
    for size, value in ordered:
        open_.append(value)
        mass += size
        if mass >= LEAST_EXPECTED:
            pools.append(open_)
            open_, mass = [], 0.0
    if open_:
        if pools:
            pools[-1].extend(open_)
        else:
            pools.append(open_)
    return pools
