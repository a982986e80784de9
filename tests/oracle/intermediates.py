"""Model laws and intermediate distributions in plain numpy, one law `[A]` at a time."""

from __future__ import annotations

import itertools

import numpy as np


def model_law(
    logits: np.ndarray, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
    banned: tuple[int, ...] = (),
) -> np.ndarray:
    """Probabilities after banned ids, temperature, top-k and top-p, in this order.

    Tokens are ranked by their logits, and a mass counts as top-p if it falls short by 1e-5 top_p (1 - top_p) or less.
    At temperature 0 the first of the greatest logits has all the mass.
    """
    allowed = np.array([i not in banned and logits[i] > -np.inf for i in range(len(logits))])
    if temperature == 0.0:
        best = max((i for i in range(len(logits)) if allowed[i]), key=lambda i: (logits[i], -i))
        return np.eye(len(logits))[best]
    prob = np.where(allowed, np.exp((logits - logits[allowed].max()) / temperature), 0.0)
    prob /= prob.sum()
    order = np.argsort(-np.where(allowed, logits, -np.inf), kind="stable")
    if top_k is not None:
        prob[order[top_k:]] = 0.0
        prob /= prob.sum()
    if top_p < 1.0:
        mass = 0.0
        for token in order:
            if mass >= top_p - 1e-5 * top_p * (1.0 - top_p):
                prob[token] = 0.0
            mass += prob[token]
        prob /= prob.sum()
    return prob


def product_of_experts(q: np.ndarray, p: np.ndarray, a: float, b: float) -> np.ndarray:
    """`q^a p^b`, normalised (0^0 = 1); p where nothing is left."""
    weight = q**a * p**b
    return weight / weight.sum() if weight.sum() > 0.0 else p


def power_mean(q: np.ndarray, p: np.ndarray, alpha: float, w: float) -> np.ndarray:
    """`(w q^alpha + (1 - w) p^alpha)^(1/alpha)`, normalised; p where nothing is left."""
    with np.errstate(divide="ignore"):
        weight = (w * q**alpha + (1.0 - w) * p**alpha) ** (1.0 / alpha)
    return weight / weight.sum() if weight.sum() > 0.0 else p


def clamp(q: np.ndarray, p: np.ndarray, beta: float) -> np.ndarray:
    """`max(c p, min(q, c beta p))`, c in [1 / beta, 1] by bisection of its logarithm such that it sums to one."""
    low, high = -np.log(beta), 0.0
    for _ in range(200):
        c = np.exp((low + high) / 2)
        pi = np.maximum(c * p, np.minimum(q, c * beta * p))
        low, high = (low, np.log(c)) if pi.sum() > 1.0 else (np.log(c), high)
    return pi / pi.sum()


def kl(left: np.ndarray, right: np.ndarray) -> float:
    """`KL(left || right)`, nats."""
    inside = left > 0.0
    with np.errstate(divide="ignore"):
        return float((left[inside] * (np.log(left[inside]) - np.log(right[inside]))).sum())


def chernoff_weight(q: np.ndarray, p: np.ndarray) -> float:
    """The w that minimises `log sum q^w p^(1-w)` over the common support, by ternary search."""
    inside = (q > 0.0) & (p > 0.0)
    low, high = 0.0, 1.0
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        at_left, at_right = ((q[inside] ** w * p[inside] ** (1.0 - w)).sum() for w in (left, right))
        low, high = (low, right) if at_left < at_right else (left, high)
    return (low + high) / 2


def sequence_law(tables: list[np.ndarray], prompt: tuple[int, ...], limit: int, eos: int | None) -> dict[
    tuple[int, ...], float
]:
    """Probability of every continuation of `prompt` under a tabular AR model, cut at `limit` tokens or at EOS.

    Args:
        tables: `tables[d]: [A**d, A]`, rows in base-A order of the prefix.
    """
    size = tables[0].shape[1]
    law = {}
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(size), repeat=length):
            ended = eos is not None and tokens[-1] == eos
            if (eos is not None and eos in tokens[:-1]) or (length < limit and not ended):
                continue
            probability = 1.0
            for i, token in enumerate(tokens):
                row = 0
                for earlier in (*prompt, *tokens[:i]):
                    row = row * size + earlier
                probability *= tables[len(prompt) + i][row, token]
            law[tokens] = probability
    return law
