"""`ARTarget`: the law that the program samples from, an autoregressive model after temperature and truncation.

`p(x_i | c, x_<i)` ends at the end-of-sequence token or at the length limit (the AR law cut at that length). With a
*potential* `phi` the target is `p(x) phi(x) / Z`, and the run's evidence estimates Z. A potential is a function of the
sequence, or a product over its tokens of a function of their probability under the target, which is known anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import prefix_sum
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping, as_ids, check_model
from smc_bridge.models.arguments import called, check_callable, is_bool, is_list, said
from smc_bridge.models.checks import refuse
from smc_bridge.models.protocols import CausalLM, ModelPair
from smc_bridge.plugins import check_tensor
from smc_bridge.prefix import PAD, Prefix


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


@runtime_checkable
class TokenPotential(Protocol):
    """A potential that is made of the target's own probabilities, `log phi(x) = sum_i f(log p(x_i | c, x_<i))`.

    A step knows them when it weighs a block, so that no further forward is made; the sum runs over the tokens after the
    prompt, and grows with the sequence (an incremental potential).
    """

    def of_tokens(self, log_p: Tensor) -> Tensor:
        """`f` of every log-probability, `[...]` float64 -> `[...]`, finite, nats. None is asked for at a token of
        probability 0, which is dead whatever phi is."""
        ...


class ARTarget:
    """The autoregressive target law p: a model after temperature and truncation, with an optional potential.

    Args:
        model: gives the logits (`CausalLM`).
        temperature, top_p, top_k: part of the law (see `Shaping`).
        banned_ids: tokens of probability zero besides those that the model itself bans.
        potential: optional `Potential` or `TokenPotential`.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: CausalLM, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None,
        banned_ids: Sequence[int] = (), potential: Potential | TokenPotential | None = None,
    ) -> None:
        check_model(model, "autoregressive")
        if isinstance(potential, type):
            raise ValueError(f"potential = {potential.__name__} is a class: give an object, {potential.__name__}()")
        if not isinstance(potential, TokenPotential):
            check_callable("potential", potential, "a function of a Prefix")
        self.model = model
        self.shaping = Shaping(temperature, top_p, top_k, as_ids(banned_ids, model.vocab_size, also=model.banned_ids))
        self.potential = potential

    @property
    def temperature(self) -> float:
        """Temperature of the law: it divides the logits."""
        return self.shaping.temperature

    def log_potential(self, prefix: Prefix, *, start: Tensor | None = None) -> Tensor:
        """`log phi` of every row of `prefix`, `[R]` float64, nats; the target must have a potential.

        A `TokenPotential` is found by scoring the rows anew, with one forward.

        Args:
            start: where each row's continuation begins, `[R]`: a `TokenPotential` needs it, another is not told.
        Raises:
            ValueError: the potential returned anything but a number or a bool for each row, NaN, or +inf; or it is a
                `TokenPotential` and the start is not given.
        """
        assert self.potential is not None
        if isinstance(self.potential, TokenPotential):
            if start is None:
                raise ValueError(
                    f"start is missing: potential {called(self.potential)} is of the tokens after the prompt, say how "
                    "many tokens of each row the prompt has"
                )
            return self._rescored(prefix, start)
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

    def _rescored(self, prefix: Prefix, start: Tensor) -> Tensor:
        """What a `TokenPotential` gives for the tokens of every row past its start, `[R]` float64, nats."""
        grown = prefix.length - start
        columns = start[:, None] + torch.arange(max(1, int(grown.max())), device=start.device)
        block = torch.nn.functional.pad(prefix.tokens, (0, columns.shape[1]), value=PAD).gather(1, columns)
        session = self.model.session(prefix.tokens.clamp_min(0), start)
        scores = session.score(torch.arange(start.numel(), device=start.device), block.clamp_min(0))
        return self.log_potential_along(self.law(scores), block, grown)

    def log_potential_along(self, p: Law, block: Tensor, length: Tensor) -> Tensor:
        """What blocks add to `log phi`, where the potential is a `TokenPotential`: no forward is made.

        Args:
            p: target along the blocks, `[..., V, A]`.
            block: `[..., V]`.
            length: committed tokens, `[...]`.
        Returns:
            `[...]` float64, nats; -inf where the target gives a token of the block probability 0.
        Raises:
            ValueError: the potential returned anything but finite numbers, as many as it was given.
        """
        assert isinstance(self.potential, TokenPotential)
        log_p, source = p.at(block).double(), f"potential {called(self.potential)}.of_tokens"
        inside = torch.arange(block.shape[-1], device=block.device) < length[..., None]
        possible = torch.where(inside, log_p, 0.0) > -math.inf
        asked = torch.where(inside & possible, log_p, 0.0)
        found = check_tensor(self.potential.of_tokens(asked), source, tuple(block.shape), "float", block.device)
        refuse(
            ~found.isfinite(),
            lambda at: f"{source} returned {float(found[at]):g} for log-probability {float(asked[at]):g}: return a "
            "finite number for each",
        )
        return prefix_sum(torch.where(possible, found.double(), -math.inf), length)

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
