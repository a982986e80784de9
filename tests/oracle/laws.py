"""Kernel laws and intermediates from their definitions, in plain numpy and without any code of the library.

A `Toy` is one small drafting problem: independent marginals q, and the intermediate pi as a table of next-token laws
after every prefix. A kernel's law is a dictionary from (committed block, number of the draft's own tokens) to
probability. Nothing here is fast, and everything is written as the papers write it: the draft is enumerated, and every
trial of the algorithm with it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np

Block = tuple[int, ...]
#: Probability of every (block, accepted).
Law = dict[tuple[Block, int], float]


class Toy(NamedTuple):
    """Marginals `q: [V, A]`, the law after every prefix of fewer than V tokens, the window (at most V), the EOS ids."""

    name: str
    q: np.ndarray
    pi: dict[Block, np.ndarray]
    window: int
    eos: int | tuple[int, ...] | None

    @property
    def size(self) -> int:
        """A."""
        return self.q.shape[1]

    def ends(self, block: Block) -> bool:
        """Whether nothing may follow `block`."""
        return len(block) == self.window or block[-1] in (self.eos if isinstance(self.eos, tuple) else (self.eos,))

    def paths(self) -> list[Block]:
        """Every block at which the sequence must end."""
        every = itertools.chain.from_iterable(
            itertools.product(range(self.size), repeat=n) for n in range(1, self.window + 1)
        )
        return [b for b in every if self.ends(b) and not any(self.ends(b[:i]) for i in range(1, len(b)))]

    def mass(self, block: Block) -> float:
        """`pi(block)`."""
        return float(np.prod([self.pi[block[:i]][token] for i, token in enumerate(block)]))


def random_toy(
    size: int, window: int, *, seed: int, allowed: int | None = None, eos: int | tuple[int, ...] | None = None,
    zeros: bool = False, flat: bool = False,
) -> Toy:
    """Asymmetric Dirichlet laws that depend on the past.

    Args:
        allowed: window of the block, if shorter than the V = `window` positions that are drafted.
        zeros: take a token away from q and another from pi, a different one at every position and prefix.
        flat: pi = q.
    """
    rng = np.random.default_rng(seed)
    alpha = 0.8 * np.arange(1, size + 1)
    q = rng.dirichlet(alpha, size=window)
    pi = {
        prefix: q[n] if flat else rng.dirichlet(alpha[::-1])
        for n in range(window)
        for prefix in itertools.product(range(size), repeat=n)
    }
    if zeros:
        for i in range(window):
            q[i, (i + 1) % size] = 0.0
            q[i] /= q[i].sum()
        for j, (prefix, law) in enumerate(pi.items()):
            law[(j + len(prefix)) % size] = 0.0
            pi[prefix] = law / law.sum()
    end = "two-eos" if isinstance(eos, tuple) else "" if eos is None else "eos"
    parts = [f"A{size}V{window}", f"W{allowed}" if allowed else "", end, "zeros" if zeros else "",
             "flat" if flat else ""]
    return Toy("-".join(filter(None, parts)), q, pi, allowed or window, eos)


def toys() -> list[Toy]:
    """The problems on which every kernel is enumerated."""
    return [
        random_toy(2, 1, seed=1),
        random_toy(2, 2, seed=2),
        random_toy(2, 3, seed=3),
        random_toy(3, 1, seed=4, zeros=True),
        random_toy(3, 2, seed=5),
        random_toy(3, 2, seed=6, zeros=True),
        random_toy(3, 2, seed=7, eos=2),
        random_toy(2, 3, seed=8, eos=0),
        random_toy(2, 3, seed=9, allowed=2),
        random_toy(3, 3, seed=10, allowed=2, eos=1),
        random_toy(3, 3, seed=11, zeros=True, eos=1),
        random_toy(3, 3, seed=12, eos=(0, 2)),
        random_toy(2, 3, seed=12, flat=True),
    ]


def rejection(toy: Toy) -> Law:
    """Token-level speculative rejection (Leviathan et al. 2023): accept with min(1, pi/q), else draw (pi - q)_+."""
    law: Law = defaultdict(float)

    def at(prefix: Block, mass: float) -> None:
        q, pi = toy.q[len(prefix)], toy.pi[prefix]
        residual = np.maximum(pi - q, 0.0)
        refused = 0.0
        for token in range(toy.size):
            if q[token] == 0.0:
                continue
            accept = min(1.0, pi[token] / q[token])
            refused += q[token] * (1.0 - accept)
            block = (*prefix, token)
            if toy.ends(block):
                law[block, len(block)] += mass * q[token] * accept
            else:
                at(block, mass * q[token] * accept)
        if residual.sum() > 0.0:
            for token in range(toy.size):
                law[(*prefix, token), len(prefix)] += mass * refused * residual[token] / residual.sum()

    at((), 1.0)
    return dict(law)


def block_verification(toy: Toy) -> Law:
    """Algorithm of Sun et al. 2024 (arXiv 2403.10444): every draft, every outcome of the trials `h_i`."""
    law: Law = defaultdict(float)
    for draft in itertools.product(range(toy.size), repeat=toy.window):
        drawn = float(np.prod([toy.q[i, token] for i, token in enumerate(draft)]))
        if drawn == 0.0:
            continue
        end = next(n for n in range(1, toy.window + 1) if toy.ends(draft[:n]))
        acceptance = [1.0]
        for i in range(end):
            acceptance.append(min(1.0, acceptance[-1] * toy.pi[draft[:i]][draft[i]] / toy.q[i, draft[i]]))
        missed = drawn
        for i in range(end, -1, -1):
            scaled = np.zeros(toy.size) if i == end else np.maximum(acceptance[i] * toy.pi[draft[:i]] - toy.q[i], 0.0)
            surplus = scaled.sum()
            if i == end:
                passes = acceptance[i]
            elif i == 0:
                passes = 1.0
            else:
                slack = surplus + 1.0 - acceptance[i]
                passes = surplus / slack if slack > 0.0 else 1.0
            if i == end:
                law[draft[:i], i] += missed * passes
            elif surplus > 0.0:
                for token in range(toy.size):
                    law[(*draft[:i], token), i] += missed * passes * scaled[token] / surplus
            missed *= 1.0 - passes
    return dict(law)


def gumbel_joint(q: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """`P(argmin E/q = a, argmin E/pi = b)` for one vector of Exp(1) noise, `[A, A]`.

    Off the diagonal, with `r = E_b / E_a`, it is the integral over r in `[q_b/q_a, pi_b/pi_a]` of
    `(1 + r + sum_c max(q_c/q_a, r pi_c/pi_b))^-2`, which is rational between the points where a maximum switches.
    """
    size = len(q)
    joint = np.zeros((size, size))
    for a, b in itertools.product(range(size), repeat=2):
        if q[a] == 0.0 or pi[b] == 0.0:
            continue
        if a == b:
            joint[a, b] = 1.0 / np.maximum(pi / pi[a], q / q[a]).sum()
            continue
        low, high = q[b] / q[a], (pi[b] / pi[a] if pi[a] > 0.0 else np.inf)
        if low >= high:
            continue
        others = [c for c in range(size) if c not in (a, b)]
        switches = [q[c] * pi[b] / (q[a] * pi[c]) for c in others if pi[c] > 0.0]
        edges = [low, *sorted(s for s in switches if low < s < high), high]
        for left, right in itertools.pairwise(edges):
            middle = left + 1.0 if right == np.inf else (left + right) / 2
            constant, slope = 1.0, 1.0
            for c in others:
                if q[c] / q[a] >= middle * pi[c] / pi[b]:
                    constant += q[c] / q[a]
                else:
                    slope += pi[c] / pi[b]
            start = constant + slope * left
            joint[a, b] += 1.0 / (slope * start) if right == np.inf else (right - left) / (
                start * (constant + slope * right)
            )
    return joint


def gumbel(toy: Toy) -> Law:
    """Shared-noise coupling: commit the intermediate's own sample, go on while it equals the draft."""
    law: Law = defaultdict(float)

    def at(prefix: Block, mass: float) -> None:
        joint = gumbel_joint(toy.q[len(prefix)], toy.pi[prefix])
        for token in range(toy.size):
            agreed = joint[token, token]
            block = (*prefix, token)
            law[block, len(prefix)] += mass * (joint[:, token].sum() - agreed)
            if toy.ends(block):
                law[block, len(block)] += mass * agreed
            elif agreed > 0.0:
                at(block, mass * agreed)

    at((), 1.0)
    return dict(law)


def accept_all(toy: Toy) -> Law:
    """The whole draft is committed; pi plays no part."""
    return {(b, len(b)): float(np.prod([toy.q[i, token] for i, token in enumerate(b)])) for b in toy.paths()}


def tree_nodes(toy: Toy, budget: int, *, at_least: float = 0.0, power: float = 1.0) -> set[Block]:
    """The `budget` likeliest continuations under the product of the normalised powers of q, of those after which a
    token is drawn and which are at least so likely."""
    q = toy.q**power
    q = q / q.sum(-1, keepdims=True)
    every = itertools.chain.from_iterable(
        itertools.product(range(toy.size), repeat=n) for n in range(1, toy.window)
    )
    open_ended = [b for b in every if not any(toy.ends(b[:i]) for i in range(1, len(b) + 1))]
    score = {b: float(np.prod([q[i, token] for i, token in enumerate(b)])) for b in open_ended}
    ranked = sorted((b for b in open_ended if score[b] > 0.0 and score[b] >= at_least), key=lambda b: -score[b])
    return set(ranked[:budget])


def tree_walk(toy: Toy, budget: int, *, at_least: float = 0.0, power: float = 1.0) -> Law:
    """Draw from pi, stop after the first token that leaves the tree; tokens on the tree count as the draft's own, and
    so does the last one of a full window."""
    nodes = tree_nodes(toy, budget, at_least=at_least, power=power)
    law: Law = defaultdict(float)

    def at(prefix: Block, mass: float) -> None:
        for token in range(toy.size):
            block = (*prefix, token)
            here = mass * toy.pi[prefix][token]
            if block in nodes:
                at(block, here)
            else:
                law[block, len(block) if len(block) == toy.window else len(prefix)] += here

    at((), 1.0)
    return dict(law)


def blocks(law: Law) -> dict[Block, float]:
    """The law of the block (and so of its length) alone."""
    out: dict[Block, float] = defaultdict(float)
    for (block, _), probability in law.items():
        out[block] += probability
    return dict(out)


def mean_length(law: Law) -> float:
    """Expected number of committed tokens."""
    return sum(len(block) * probability for (block, _), probability in law.items())


def stopping_defect(law: dict[Block, float], toy: Toy) -> float:
    """How far a law of blocks is from a randomised stopping time of pi.

    It is one if and only if `sum_L g(x_{1:L}) / pi(x_{1:L}) = 1` along every path of positive probability, and nothing
    is committed where pi has none. Returns the largest deviation.
    """
    defect = sum(probability for block, probability in law.items() if toy.mass(block) == 0.0)
    for path in toy.paths():
        if toy.mass(path) > 0.0:
            total = sum(law.get(path[:n], 0.0) / toy.mass(path[:n]) for n in range(1, len(path) + 1))
            defect = max(defect, abs(total - 1.0))
    return defect
