"""Single parts against what they promise: a kernel's closed form against its draws, a resampler's offspring numbers.

A wrong `log_continue` changes no ordinary weight, because `kappa` cancels; conditional runs, the balance heuristic and
the Pyro program rest on it. A resampler that is a little off changes the whole program too little for a few runs to
see, and its offspring numbers at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.draft import Draft
from smc_bridge.distributions.law import Dense
from smc_bridge.engine.resampling import Resampler
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Kernel, StoppingKernel
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.testing.enumeration import NotEnumerableError, outcomes
from smc_bridge.testing.statistics import chi_square, mean_test

#: Draws where nothing can be enumerated, and the greatest difference that is put down to round-off where it can.
DRAWS, ROUND_OFF = 10_000, 1e-9
#: A, V and the end of sequence of the laws that kernels are tried on.
SIZE, WINDOW, EOS = 3, 2, 2


def _laws(seed: int) -> tuple[Tensor, Tensor]:
    """`log q: [V, A]` and `log pi: [A + 1, A]`, first of position 0, then of position 1 after each token."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(WINDOW + 1 + SIZE, SIZE, generator=generator, dtype=torch.float64)
    laws = torch.log_softmax(scores, -1)
    return laws[:WINDOW], laws[WINDOW:]


def kernel_fault(kernel: Kernel, *, level: float) -> str | None:
    """What is wrong with a linear kernel's own law, in one line, or None.

    Its draws must have the law `log_density`: all of them are enumerated, or `DRAWS` are compared by chi-square. A tree
    walk is not tried, nor is a kernel that commits the proposal's own draft.
    """
    if kernel.reads_marginals or isinstance(kernel, AcceptAll) or not isinstance(kernel, StoppingKernel):
        return None
    faults = (_fault(kernel, *_laws(seed), level=level / 3) for seed in range(3))
    return next((fault for fault in faults if fault), None)


def _fault(kernel: Kernel, log_q: Tensor, log_pi: Tensor, *, level: float) -> str | None:
    """The same on given laws."""

    def move(source: Source, rows: int) -> Move:
        q = log_q.expand(rows, -1, -1)
        tokens = source.categorical(q)
        pi = torch.stack([log_pi[:1].expand(rows, -1), log_pi[1 + tokens[:, 0]]], 1)
        horizon = Horizon(torch.full((rows,), WINDOW), EOS)
        return kernel(Draft(tokens, Dense(q), horizon.window), Dense(pi), source=source, horizon=horizon)

    blocks: list[tuple[int, ...]] = [(a,) for a in range(SIZE)]
    blocks += [(a, b) for a in range(SIZE) if a != EOS for b in range(SIZE)]
    expected = _density(kernel, log_q, log_pi, blocks)
    found = dict.fromkeys(blocks, 0.0)
    name = f"kernel {type(kernel).__name__}: log_density"
    try:
        for probability, drawn in outcomes(lambda source: move(source, 1)):
            (block,) = _blocks(drawn)
            found[block] = found.get(block, 0.0) + probability
        gap = max(abs(found[b] - expected.get(b, 0.0)) for b in found)
        return None if gap < ROUND_OFF else f"{name} differs from the law of its moves by {gap:.3g}"
    except NotEnumerableError:
        drawn = move(PromptSource([torch.Generator().manual_seed(2)], DRAWS), DRAWS)
        for block in _blocks(drawn):
            found[block] = found.get(block, 0.0) + 1.0
        law = np.array([expected.get(b, 0.0) for b in found])
        p_value = 0.0 if abs(law.sum() - 1) > 1e-9 else chi_square(np.array(list(found.values())), law)
        return None if p_value >= level else f"{name} is not the law of {DRAWS} moves (p = {p_value:.2g})"


def _density(
    kernel: Kernel, log_q: Tensor, log_pi: Tensor, blocks: list[tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    rows = len(blocks)
    block = torch.tensor([[*b, *[-1] * (WINDOW - len(b))] for b in blocks])
    pi = torch.stack([log_pi[:1].expand(rows, -1), log_pi[1 + block[:, 0]]], 1)
    horizon = Horizon(torch.full((rows,), WINDOW), EOS)
    length = torch.tensor([len(b) for b in blocks])
    found = kernel.log_density(log_q.expand(rows, -1, -1), pi, block, length, horizon=horizon).exp().tolist()
    return dict(zip(blocks, found, strict=True))


def _blocks(move: Move) -> list[tuple[int, ...]]:
    """What each row commits."""
    return [tuple(row[:n]) for row, n in zip(move.block.tolist(), move.length.tolist(), strict=True)]


def resampler_fault(resampler: Resampler, *, level: float) -> str | None:
    """What is wrong with a resampler's offspring numbers, in one line, or None: `E[offspring_i] = N W_i`, by draws."""
    weights = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3], dtype=torch.float64)
    for count in (2, 5):
        source = PromptSource([torch.Generator().manual_seed(3)], DRAWS)
        drawn = resampler(weights.log().expand(DRAWS, -1), count, generator=source)
        offspring = torch.nn.functional.one_hot(drawn, weights.numel()).sum(1).double().numpy() / count
        p_value = mean_test(offspring, weights.numpy())
        if p_value < level:
            return (
                f"resampler {type(resampler).__name__}: {count} survivors have mean shares "
                f"{np.round(offspring.mean(0), 3).tolist()} for weights {weights.tolist()}"
            )
    return None
