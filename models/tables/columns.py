"""`ColumnNetwork`: a small transformer over the columns of a row, causal or bidirectional.

Position j holds the token of column j (position 0 the one that begins a row), and every position has embeddings and
outputs of its own: an id means nothing without its column. Outputs that a position does not have are `-inf`.

- *causal*: the output at position j is about column j + 1, `p(x_{j+1} | x_<=j)`;
- *bidirectional*: a masked place has an embedding of its own, and its output is about itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.tables.codec import allowed


class Layer(nn.Module):
    """Attention and a network of one hidden layer, each normed before and added (Vaswani et al. 2017, pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.reads, self.writes = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, sees: Tensor | None) -> Tensor:
        """`x: [B, S, d]` -> `[B, S, d]`; `sees: [B or 1, 1, S, S]`, None where all see all."""
        batch, places, width = x.shape
        q, k, v = self.reads(self.norms[0](x)).view(batch, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x = x + self.writes(mixed.transpose(1, 2).reshape(batch, places, width))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return out


class ColumnNetwork(nn.Module):
    """A transformer over columns.

    Args:
        sizes: ids of every position, position 0 first, with spaces between them.
        causal: 1 for a network that predicts the next column from those before, 0 for one that fills masks.
        width: d, of the embeddings.
        layers, heads: how many.
    Raises:
        ValueError: a width that its heads do not share.
    """

    def __init__(self, *, sizes: str, causal: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if whole_number("width", width) % whole_number("heads", heads):
            raise ValueError(f"width = {width}: give a multiple of {heads}, the heads of attention")
        self.config = {"sizes": sizes, "causal": causal, "width": width, "layers": layers, "heads": heads}
        self.sizes = tuple(map(int, sizes.split()))
        self.causal = bool(causal)
        places = torch.tensor(self.sizes)
        self.embed = nn.Embedding(int(places.sum()) + len(self.sizes), width)  # ids of all positions, then masks
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, int(places.sum()))
        nn.init.normal_(self.embed.weight, std=1 / math.sqrt(width))
        self.register_buffer("start", places.cumsum(0) - places, persistent=False)
        self.register_buffer("most", places - 1, persistent=False)
        self.register_buffer("allowed", allowed(self.sizes), persistent=False)

    @property
    def vocab_size(self) -> int:
        """Alphabet size A: the greatest column's, and the id that begins a row."""
        return max(self.sizes) + 1

    def forward(self, tokens: Tensor, places: Tensor, sees: Tensor | None = None) -> Tensor:
        """Features of tokens.

        Args:
            tokens: ids, -1 where masked, `[B, S]`.
            places: position of each, `[B or 1, S]`.
            sees: which others each sees, bool `[B or 1, S, S]`, None where all see all.
        Returns:
            `[B, S, d]`.
        """
        most = self.get_buffer("most")[places]  # a token that its position does not have is as the last that it has
        at = self.get_buffer("start")[places] + torch.minimum(tokens, most)
        at = torch.where(tokens < 0, self.head.out_features + places, at)
        x = self.embed(at)
        for layer in self.layers:
            x = layer(x, None if sees is None else sees[:, None])
        out: Tensor = self.norm(x)
        return out

    def logits(self, features: Tensor, places: Tensor) -> Tensor:
        """Logits about positions.

        Args:
            features: `[B, S, d]`.
            places: the position that each is about, `[B or 1, S]`.
        Returns:
            `[B, S, A]`, -inf at ids that the position does not have.
        """
        every, ids = self.head(features), torch.arange(self.vocab_size, device=features.device)
        at = (self.get_buffer("start")[places][..., None] + ids).clamp(max=every.shape[-1] - 1)
        found = every.gather(-1, at.expand(*every.shape[:-1], -1))
        known = self.get_buffer("allowed")[places]
        return torch.where(known, torch.where(places[..., None] == 0, 0.0, found), -math.inf)
