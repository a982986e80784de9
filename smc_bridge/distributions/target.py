"""`ARTarget`: the law that the program samples from, an autoregressive model after temperature and truncation.

`p(x_i | c, x_<i)` ends at the end-of-sequence token or at the length limit (the AR law cut at that length). With a
*potential* `phi` the target is `p(x) phi(x) / Z`, and the run's evidence estimates Z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.protocols import CausalLM
from smc_bridge.distributions.law import Law, as_ids
from smc_bridge.distributions.lazy import Chunks, LazyLaw
from smc_bridge.distributions.logits import model_law
from smc_bridge.prefix import Prefix


class Potential(Protocol):
    """A non-negative function of the sequence so far: `phi_t(x_{1:t})`, with `phi = phi_T` at the end.

    The program multiplies the weight by `phi_t / phi_s` when a particle grows from s to t tokens, so a *terminal*
    potential returns 0 (log of 1) for rows that are not done, and an *incremental* one may return a value for every
    row. A row of potential -inf is dead for good: `phi_t = 0` must imply `phi_T = 0` for every continuation.
    """

    def __call__(self, prefix: Prefix) -> Tensor:
        """`log phi` of every row, `[R]`, nats. Rows hold prompt and continuation."""
        ...


class ARTarget:
    """Autoregressive target law.

    Args:
        model: gives the logits (`CausalLM`).
        temperature, top_p, top_k: part of the law (see `Law`).
        banned_ids: tokens of probability zero besides those that the model itself bans.
        potential: optional `Potential`.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: CausalLM, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None,
        banned_ids: Sequence[int] = (), potential: Potential | None = None,
    ) -> None:
        if potential is not None and not callable(potential):
            raise ValueError(f"potential = {potential!r}: give a function of a Prefix, or None")
        self.model = model
        self.law = Law(temperature, top_p, top_k, as_ids([*model.banned_ids, *banned_ids], model.vocab_size))
        self.potential = potential

    @property
    def temperature(self) -> float:
        """Temperature of the law."""
        return self.law.temperature

    def log_probs(self, logits: Tensor) -> Tensor:
        """`log p` from the model's logits, `[..., A]` -> `[..., A]`, normalised."""
        return self.law.log_probs(logits)

    def lazy(self, logits: Tensor, *, chunks: Chunks | None = None) -> LazyLaw:
        """`log p` from the model's logits `[R, V, A]`, computed where it is read, `[R, V, A]`."""
        rows, width, _ = logits.shape
        place = torch.arange(rows * width, device=logits.device).reshape(rows, width)
        return model_law(logits, place, self.law, chunks=chunks)
