"""A small transformer over the columns of a row: one token for each column, with the noise that it was seen through.

It returns what it knows of every column at once: a clean number, and logits of the categories. No time is given to it:
a number comes with its own level of noise, and what is masked says so itself. Two layers of attention, and between them
one network on the whole row, where most parameters are (the form of TabDiff, arXiv 2410.20626, smaller).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import whole_number

#: Frequencies of the features of a number (Gorishniy et al. 2022), and of its noise.
FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
HEADS = 4


class RowNetwork(nn.Module):
    """Tokens of columns, two layers of attention, and an output for each column.

    Args:
        numbers: columns of numbers.
        sizes: values of each column of categories.
        width: of a token.
        hidden: width of the network on the row.
    Raises:
        ValueError: a width that its heads do not share.
    """

    valid: Tensor
    offsets: Tensor
    frequencies: Tensor

    def __init__(self, numbers: int, sizes: Sequence[int], *, width: int, hidden: int) -> None:
        super().__init__()
        if whole_number("width", width) % HEADS:
            raise ValueError(f"width = {width}: give a multiple of {HEADS}, the heads of attention")
        whole_number("hidden", hidden)
        self.sizes = tuple(sizes)
        most, features = max(sizes, default=0), 2 + 4 * len(FREQUENCIES)
        self.read = nn.Parameter(torch.randn(numbers, features, width) / features**0.5)
        self.shift = nn.Parameter(torch.randn(numbers, width) * 0.1)
        self.embed = nn.Embedding(sum(sizes) + len(self.sizes), width)  # one more for each column: its mask
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        flat = (numbers + len(self.sizes)) * width
        self.row = nn.Sequential(
            nn.LayerNorm(flat), nn.Linear(flat, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, flat),
        )
        self.norm = nn.LayerNorm(width)
        self.to_number = nn.Parameter(torch.zeros(numbers, width))
        self.to_logits = nn.Parameter(torch.zeros(len(self.sizes), most, width))
        self.bias = nn.Parameter(torch.zeros(len(self.sizes), most))
        counts = torch.tensor(self.sizes, dtype=torch.int64)
        self.register_buffer("offsets", (counts + 1).cumsum(0) - counts - 1, persistent=False)
        self.register_buffer("valid", torch.arange(most) < counts[:, None], persistent=False)
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES) * torch.pi, persistent=False)

    def tokens(self, numbers: Tensor, noise: Tensor, categories: Tensor) -> Tensor:
        """Features of the columns of numbers, then of categories, `[R, Cn + Cc, width]`.

        Args:
            numbers: seen through noise, scaled to variance 1, `[R, Cn]`.
            noise: logarithm of its level, `[R, Cn]`.
            categories: ids, `[R, Cc]`; the size of a column is its mask.
        """
        plain = torch.stack([numbers, noise / 4], -1)  # [R, Cn, 2]
        waves = plain[..., None] * self.frequencies
        features = torch.cat([plain, waves.sin().flatten(2), waves.cos().flatten(2)], -1)
        of_numbers = torch.einsum("rcf,cfw->rcw", features, self.read) + self.shift
        x = torch.cat([of_numbers, self.embed(categories + self.offsets)], 1)
        x = self.layers[0](x)
        x = x + self.row(x.flatten(1)).view_as(x)
        out: Tensor = self.norm(self.layers[1](x))
        return out

    def number_of(self, tokens: Tensor) -> Tensor:
        """Outputs of tokens of the columns of numbers, `[R, Cn, width]` to `[R, Cn]`."""
        return (tokens * self.to_number).sum(-1)

    def logits_of(self, tokens: Tensor) -> Tensor:
        """Logits of tokens of the columns of categories, `[R, Cc, width]` to `[R, Cc, A]`; -inf past its size."""
        logits = torch.einsum("rcw,caw->rca", tokens, self.to_logits) + self.bias
        return logits.masked_fill(~self.valid, -torch.inf)
