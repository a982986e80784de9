"""`DLMProposal`: independent marginals of the next M positions from one forward of a masked diffusion model.

`q(x_{1:M} | c) = prod_i q_i(x_i | c)`. Lane k may have its own temperature; then it has its own `q^(k)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law, as_ids, check_model, check_temperature, check_top_p
from smc_bridge.distributions.lazy import Chunks, LazyLaw
from smc_bridge.distributions.logits import model_law
from smc_bridge.models.arguments import is_list, whole_number
from smc_bridge.models.protocols import MaskedDiffusionLM


def _several(temperature: Any) -> list[Any] | None:
    """The entries of a list of temperatures, None for a single one of whatever kind."""
    return list(temperature) if is_list(temperature) else None


class DLMProposal:
    """Mean-field proposal of a masked diffusion model.

    Args:
        model: gives the logits (`MaskedDiffusionLM`).
        temperature: one for all lanes, or one per lane.
        top_p: truncation of the proposal. It breaks domination (condition C3) unless the intermediate puts mass
            wherever the target does: combine with `Defensive`.
        banned_ids: tokens of probability zero besides those that the model itself bans.
        lookahead: M, masked positions per forward (fewer where the length limit is nearer).
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: MaskedDiffusionLM, *, temperature: float | Sequence[float] = 1.0, top_p: float = 1.0,
        banned_ids: Sequence[int] = (), lookahead: int = 256,
    ) -> None:
        check_model(model, "diffusion")
        self.model = model
        several = _several(temperature)
        temperatures = [
            check_temperature(x, name="temperature of the proposal")
            for x in ([temperature] if several is None else several)
        ]
        if not temperatures:
            raise ValueError("temperature of the proposal is an empty list: give one number, or one per lane")
        self.lane_temperatures = None if several is None else tuple(map(float, temperatures))
        top_p = check_top_p(top_p, name="top_p of the proposal")
        self.law = Law(temperatures[0], top_p, None, as_ids(banned_ids, model.vocab_size, also=model.banned_ids))
        self.lookahead = whole_number("lookahead", lookahead, remedy="draft at least 1 position, a whole number")

    @property
    def lanes(self) -> int:
        """Lanes that have a temperature of their own; 1 if one temperature serves all."""
        return 1 if self.lane_temperatures is None else len(self.lane_temperatures)

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane draws from the same law."""
        return self.lane_temperatures is None or len(set(self.lane_temperatures)) == 1

    def lazy(self, logits: Tensor, source: Tensor, owner: Tensor, lanes: int, *, chunks: Chunks | None = None) -> (
        LazyLaw
    ):
        """`log q^(k)` of B particles' lanes, computed where it is read; particles and lanes share what they can.

        Args:
            logits: `[U, M, A]`.
            source: which of the `U * M` places each position reads, `[G, V]`.
            owner: which of the G windows each particle has, `[B]`.
            lanes: K.
        Returns:
            `[B * K, V, A]`.
        Raises:
            ValueError: there is one temperature per lane and their number is not `lanes`.
        """
        if self.identical_lanes:
            base = model_law(logits, source, self.law, chunks=chunks, lowest=True)
            return base.of_rows(owner.repeat_interleave(lanes))
        assert self.lane_temperatures is not None
        self._check_lanes(lanes)
        distinct = sorted(set(self.lane_temperatures))
        temperature = torch.tensor(distinct, dtype=torch.float64, device=logits.device)
        base = model_law(
            logits, source.repeat_interleave(len(distinct), 0), self.law,
            temperature=temperature.repeat(source.shape[0]), chunks=chunks, lowest=True,
        )
        of_lane = torch.tensor([distinct.index(t) for t in self.lane_temperatures], device=logits.device)
        return base.of_rows((owner[:, None] * len(distinct) + of_lane).flatten())

    def _check_lanes(self, lanes: int) -> None:
        if self.lane_temperatures is not None and len(self.lane_temperatures) != lanes:
            raise ValueError(
                f"temperature has {len(self.lane_temperatures)} entries for {lanes} lanes: give one per lane"
            )

    def log_probs(self, logits: Tensor, lanes: int) -> Tensor:
        """`log q^(k)` of every lane, `[R, V, A]` -> `[R, K, V, A]`.

        Raises:
            ValueError: there is one temperature per lane and their number is not `lanes`.
        """
        if self.lane_temperatures is None:
            log_q = self.law.log_probs(logits)[:, None]
            return log_q.expand(-1, lanes, -1, -1)
        self._check_lanes(lanes)
        temperature = torch.tensor(self.lane_temperatures, dtype=torch.float64, device=logits.device)[:, None, None]
        return self.law.log_probs(logits[:, None].expand(-1, lanes, -1, -1), temperature)
