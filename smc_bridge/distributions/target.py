"""`ARTarget`: the law that the program samples from, an autoregressive model after temperature and truncation.

`p(x_i | c, x_<i)` ends at the end-of-sequence token or at the length limit (the AR law cut at that length). With a
*potential* `phi` the target is `p(x) phi(x) / Z`, and the run's evidence estimates Z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping, as_ids, check_model
from smc_bridge.models.arguments import called, check_callable, is_bool, is_list, said
from smc_bridge.models.checks import refuse
from smc_bridge.models.protocols import CausalLM, ModelPair
from smc_bridge.prefix import Prefix


class Potential(Protocol):
    """A non-negative function of the sequence so far: `phi_t(x_{1:t})`, with `phi = phi_T` at the end.

    The program multiplies the weight by `phi_t / phi_s` when a particle grows from s to t tokens, so a *terminal*
    potential returns 0 (log of 1) for rows that are not done, and an *incremental* one may return a value for every
    row. A row of potential -inf is dead for good: `phi_t = 0` must imply `phi_T = 0` for every continuation.
    """

    def __call__(self, prefix: Prefix) -> Tensor:
        """`log phi` of every row, `[R]`, nats. Rows hold prompt and continuation.

        A bool says whether a row is allowed: `phi` is 1 or 0. Arrays and lists of R entries serve too, all numbers or
        all bools.
        """
        ...


class ARTarget:
    """The autoregressive target law p: a model after temperature and truncation, with an optional potential.

    Args:
        model: gives the logits (`CausalLM`).
        temperature, top_p, top_k: part of the law (see `Shaping`).
        banned_ids: tokens of probability zero besides those that the model itself bans.
        potential: optional `Potential`.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: CausalLM, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None,
        banned_ids: Sequence[int] = (), potential: Potential | None = None,
    ) -> None:
        check_model(model, "autoregressive")
        if isinstance(potential, type):
            raise ValueError(f"potential = {potential.__name__} is a class: give an object, {potential.__name__}()")
        check_callable("potential", potential, "a function of a Prefix")
        self.model = model
        self.shaping = Shaping(temperature, top_p, top_k, as_ids(banned_ids, model.vocab_size, also=model.banned_ids))
        self.potential = potential

    @property
    def temperature(self) -> float:
        """Temperature of the law: it divides the logits."""
        return self.shaping.temperature

    def log_potential(self, prefix: Prefix) -> Tensor:
        """`log phi` of every row of `prefix`, `[R]` float64, nats; the target must have a potential.

        Raises:
            ValueError: the potential returned anything but a number or a bool for each row, NaN, or +inf.
        """
        assert self.potential is not None
        name, rows, device = called(self.potential), prefix.length.numel(), prefix.length.device
        came = self.potential(prefix)
        found = came if isinstance(came, Tensor) else _entries(came)
        # An unsigned byte is what a bool was in old code, and log phi if it is taken at its word: neither is assumed.
        if found is None or found.dtype.is_complex or found.dtype == torch.uint8 or tuple(found.shape) != (rows,):
            kind = str(getattr(came, "dtype", "")).removeprefix("torch.")
            shown = f"a tensor of {kind}, shape {list(came.shape)}," if isinstance(came, Tensor) else said(came)
            raise ValueError(
                f"potential {name} returned {shown} for {rows} rows: return log phi of each row, [{rows}], or whether "
                "the row is allowed"
            )
        if found.dtype == torch.bool:  # log 1 and log 0, not 1 and 0 nats
            return torch.where(found.to(device), 0.0, -math.inf).double()
        log_phi = found.to(device=device, dtype=torch.float64)
        refuse(
            log_phi.isnan() | (log_phi == math.inf),
            lambda row: f"potential {name} returned {float(log_phi[row]):g} for row {row[0]}: return a finite "
            "log-potential, or -inf",
        )
        return log_phi

    def log_probs(self, logits: Tensor) -> Tensor:
        """`log p` from the model's logits, `[..., A]` -> `[..., A]`, normalised."""
        return self.shaping.log_probs(logits)

    def law(self, logits: Tensor, *, chunks: Chunks | None = None, width: int | None = None) -> Law:
        """`log p` from the model's logits `[R, V, A]`, computed where it is read, or at once if it is small.

        Args:
            width: V, if the logits are those of the first W positions (`model_law`).
        """
        return model_law(logits, None, self.shaping, chunks=chunks, width=width)


def as_target(target: ARTarget | ModelPair) -> ARTarget:
    """The target itself, or of a pair of models the AR law at temperature 1.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(target, ARTarget):
        return target
    if hasattr(target, "ar"):
        return ARTarget(target.ar)
    raise ValueError(f"target = {said(target)}: give an ARTarget, or a pair of models")


def _entries(values: Any) -> Tensor | None:
    """A list or an array as a tensor; None if it is none of numbers only, or of bools only."""
    try:
        mixed = isinstance(values, list | tuple) and len({is_bool(value) for value in values}) > 1
        return torch.as_tensor(np.asarray(values)) if is_list(values) and not mixed else None
    except (TypeError, ValueError):
        return None
