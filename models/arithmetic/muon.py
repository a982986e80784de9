"""Muon (Jordan et al. 2024) in float32: momentum, made orthogonal by a Newton-Schulz iteration.

`torch.optim.Muon` iterates in bfloat16, which is far slower on a processor without instructions for it;
here matrices of one shape go through the iteration together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
#: What of this optimiser decides the weights, for the recipe's fingerprint.
CONSTANTS = (COEFFICIENTS, ITERATIONS, MOMENTUM)


class Muon(torch.optim.Optimizer):
    """Optimiser of matrices; rate and decay as in `torch.optim.Muon`."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step by the gradients that the matrices have; `closure` is not called."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                state: dict[str, Any] = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                buffer = state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
                shapes[tuple(matrix.shape)].append((matrix, matrix.grad.lerp(buffer, MOMENTUM)))
            for (rows, columns), members in shapes.items():
                updates = orthogonal(torch.stack([update for _, update in members]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (matrix, _), update in zip(members, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices `[B, m, n]` with the same singular vectors and singular values near one (0.7 to 1.2), but for
    those that are far below the greatest: five steps raise these, and leave them less than one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
