"""Credit: tokens that were likeliest in earlier forwards gain on the others (dInfer's credit decoding).

Every place keeps a credit `C` of each token, which fades, and grows by a power of the top probability where the token
is the likeliest one; logits are raised by it before anything reads them, draws as well as rules:

    C <- beta C + [token is the likeliest] p^gamma,     logits <- logits + alpha log(1 + C)

A prediction that stays the same from forward to forward thus reaches a threshold sooner than it would alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc_bridge.canvas.state import CanvasState
from smc_bridge.models.arguments import real_between


@dataclass(frozen=True)
class Credit:
    """What earlier forwards lend to the logits (module docstring).

    Attributes:
        alpha: weight of the credit in the logits, nats.
        beta: share of the credit that is left after a forward.
        gamma: power of the top probability that is added.
    Raises:
        ValueError: one of them is out of range.
    """

    alpha: float = 0.7
    beta: float = 0.8
    gamma: float = 0.2

    def __post_init__(self) -> None:
        for name, high, remedy in (
            ("alpha", 1e6, "give a weight of at least 0"), ("beta", 1.0, "give a share in [0, 1]"),
            ("gamma", 1e6, "give a power of at least 0"),
        ):
            value = real_between(f"{name} of the credit", getattr(self, name), 0.0, high, remedy=remedy)
            object.__setattr__(self, name, float(value))  # the class is frozen

    def grown(self, logits: Tensor, credit: Tensor) -> Tensor:
        """The credit after a forward: logits and credit `[R, T, A]` -> `[R, T, A]`."""
        value, token = logits.log_softmax(-1).max(-1, keepdim=True)
        return (credit * self.beta).scatter_add(-1, token, (value * self.gamma).exp().to(credit.dtype))

    def lend(self, logits: Tensor, state: CanvasState, rows: Tensor) -> tuple[Tensor, CanvasState]:
        """Logits with their credit, and the state that remembers it.

        Args:
            logits: of the first T places of canvases `rows`, `[R, T, A]`.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        memory, width = state.memory, logits.shape[1]
        if memory is None:
            memory = scores.new_zeros(*state.canvas.shape, logits.shape[-1])
        own = memory[rows]
        credit = self.grown(scores, own[:, :width])
        own[:, :width] = credit
        return scores + self.alpha * credit.log1p(), state._replace(memory=memory.index_copy(0, rows, own))
