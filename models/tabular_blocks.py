"""A block-causal diffusion model that is a table: what a place is told ends with the block that it stands in.

    q_i(x_i | c, canvas) = p(x_i | the tokens known up to the end of the block of place i), perturbed

where p is a `TabularAR`, masked places are summed over, and blocks are counted from the first token of the prompt. The
perturbation is another one for each state of what is seen, masked or not, so that whoever shows the model something
else, or keeps what was computed beside a mask, is found out. Block diffusion: Arriola et al. 2025, arXiv 2503.09573.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import ENUMERABLE, TabularAR, TabularDiffusionSession, TabularDLM, generator_of


class TabularBlockDLM(TabularDLM):
    """Block-causal marginals of a `TabularAR` (implements `MaskedDiffusionLM`).

    Args:
        ar: the table whose marginals are given.
        block_size: tokens of a block.
        noise: standard deviation, in nats, of the Gaussian perturbation of every log-marginal.
        seed: of the perturbation, which is fixed for each state of the tokens that are seen, place and token.
    Raises:
        ValueError: an argument out of range, or more than 65536 states.
    """

    def __init__(self, ar: TabularAR, *, block_size: int, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__(ar, noise=noise, seed=seed)
        self.block_size = whole_number("block_size", block_size)
        states = (ar.vocab_size + 1) ** ar.depth
        if states > ENUMERABLE:
            raise ValueError(
                f"ar has {ar.depth} places of {ar.vocab_size} tokens or a mask: {states} states are more than "
                f"{ENUMERABLE}, give a smaller table"
            )
        draws = torch.randn(states, ar.depth, ar.vocab_size, generator=generator_of(seed), dtype=torch.float64)
        self._states = self._deviation * draws.to(ar.device)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, blocks of {self.block_size})"

    def session(self, tokens: Tensor, length: Tensor) -> TabularBlockSession:
        """Open a session on prefixes `tokens: [R, S]`, `length: [R]`."""
        return TabularBlockSession(self, tokens, length)

    def perturbation(self, seen: Tensor, place: Tensor) -> Tensor:
        """What is added to the log-marginals of `place: [B, M]` where `seen: [B, S]` is known, `[B, M, A]`.

        Args:
            seen: tokens from the first place on, `MASKED` where there is none.
            place: counted from the first token of the prompt; past the table's depth nothing is added.
        """
        code = torch.zeros_like(seen[:, 0])
        for s in range(self.ar.depth):
            symbol = seen[:, s] + 1 if s < seen.shape[1] else torch.zeros_like(code)
            code = code * (self.vocab_size + 1) + symbol
        found = self._states[code[:, None], place.clamp_max(self.ar.depth - 1)]
        return torch.where((place < self.ar.depth)[..., None], found, 0.0)


class TabularBlockSession(TabularDiffusionSession):
    """Session of a `TabularBlockDLM` (implements `DiffusionSession`)."""

    model: TabularBlockDLM

    def _scores(self, rows: Tensor, canvas: Tensor) -> Tensor:
        """Log-marginals, `[B, M, A]`; each place is told what is known up to the end of its block."""
        length, size = self.length[rows], self.model.block_size
        place = length[:, None] + torch.arange(canvas.shape[1], device=canvas.device)
        block = place // size - length[:, None] // size  # [B, M], that of the first place is 0
        out = torch.zeros(*canvas.shape, self.model.vocab_size, dtype=torch.float64, device=canvas.device)
        for number in range(int(block.max()) + 1 if block.numel() else 0):
            shown = torch.where((block <= number) & (canvas >= 0), canvas, MASKED)
            found = self.marginals(rows, shown)
            seen = torch.nn.functional.pad(self.tokens[rows], (0, canvas.shape[1]), value=MASKED)
            known = torch.arange(seen.shape[1], device=seen.device) < length[:, None]
            seen = torch.where(known, seen, MASKED).scatter(1, place, shown)
            found = torch.where((shown < 0)[..., None], found + self.model.perturbation(seen, place), found)
            out = torch.where((block == number)[..., None], found, out)
        return out
