"""`Refiner`: one decoder layer that takes a diffusion model's hidden states to those of a canvas with more tokens
known (ADJUST, arXiv 2509.22738).

    z = W [norm(Emb(x)); norm(h)],   z <- z + attention(norm(z)),   z <- z + mlp(norm(z)),   h' = h + norm(z)

column by column of the model: `h` of a place stands beside the token of the column whose output it is, which is the
place's own, or the one before where outputs are shifted (`columns`).
`h` are the states that the model's head reads of the places of a canvas, `x` the canvas with the tokens drawn since,
and `h'` stand for the states that the model would give of it: its own head, frozen, makes their logits. The layer is
shared over steps, is shaped like one of the model's (grouped keys and values, rotary positions, a gated perceptron),
and sees the places of the canvas alone: what stands before them is in `h`.

Shapes: n rows, W places, D hidden size, E size of the model's embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.protocols import FeaturedLM

#: What is added to the mean square in the last norm: places that learn nothing stay as they are, which a norm that
#: gives all the same size does not let them.
SOFT = 1.0


class Refiner(nn.Module):
    """One layer over embeddings and hidden states (module docstring).

    Args:
        hidden: D.
        embedding: E.
        heads, key_heads: of queries, and of keys and values, which divide them.
        size: of a head, even.
        inner: of the perceptron.
        base: of the rotary frequencies.
        places: that it sees at most, the first ones of a canvas; the others stay as they are.
    Raises:
        ValueError: a size is none, odd where it may not be, or does not divide.
    """

    def __init__(
        self, *, hidden: int, embedding: int, heads: int = 4, key_heads: int = 2, size: int = 48, inner: int = 512,
        base: float = 10_000.0, places: int = 16,
    ) -> None:
        super().__init__()
        self.config: dict[str, int | float | str] = {
            "hidden": whole_number("hidden", hidden), "embedding": whole_number("embedding", embedding),
            "heads": whole_number("heads", heads), "key_heads": whole_number("key_heads", key_heads),
            "size": whole_number("size", size), "inner": whole_number("inner", inner), "base": base,
            "places": whole_number("places", places),
        }
        if size % 2 or heads % key_heads:
            raise ValueError(
                f"size = {size} with heads = {heads} and key_heads = {key_heads}: give an even size, and key_heads "
                "that divide heads"
            )
        self.heads, self.key_heads, self.size, self.base, self.places = heads, key_heads, size, base, places
        self.norm_embedding, self.norm_hidden = nn.RMSNorm(embedding), nn.RMSNorm(hidden)
        self.join = nn.Linear(embedding + hidden, hidden, bias=False)
        self.norm_attention, self.norm_mlp = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.norm_out = nn.RMSNorm(hidden, eps=SOFT)
        self.query = nn.Linear(hidden, heads * size)
        self.key, self.value = nn.Linear(hidden, key_heads * size), nn.Linear(hidden, key_heads * size)
        self.out = nn.Linear(heads * size, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    @classmethod
    def untrained(cls, model: FeaturedLM, *, places: int = 16) -> Refiner:
        """A layer for the embeddings and states of a diffusion model, which changes its states little."""
        size = model.embed(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]
        made = cls(hidden=model.hidden_size, embedding=size, places=places)
        nn.init.constant_(made.norm_out.weight, 0.1)
        return made

    def forward(self, embedded: Tensor, hidden: Tensor, there: Tensor) -> Tensor:
        """States of the canvas with the tokens drawn since.

        Args:
            embedded: `[n, W, E]`, of the canvas as it is now.
            hidden: states before, `[n, W, D]`.
            there: places that each row has, bool `[n, W]`; the others are seen by none.
        Returns:
            `[n, W, D]`.
        """
        seen, rest = hidden[:, : self.places], hidden[:, self.places :]
        x = self.join(torch.cat([self.norm_embedding(embedded[:, : self.places]), self.norm_hidden(seen)], -1))
        x = x + self._attend(self.norm_attention(x), there[:, : self.places])
        normed = self.norm_mlp(x)
        x = x + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return torch.cat([seen + self.norm_out(x), rest], 1)

    def _attend(self, x: Tensor, there: Tensor) -> Tensor:
        """Attention of every place to those that are there, `[n, W, D]`."""
        rows, width, _ = x.shape
        query, key, value = (
            part(x).view(rows, width, -1, self.size).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        step = torch.arange(0, self.size, 2, device=x.device).double() / self.size
        angle = torch.arange(width, device=x.device).double()[:, None] / self.base**step
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        each = self.heads // self.key_heads
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None])
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, width, -1))
        return found


def columns(canvas: Tensor, before: Tensor, *, shift: bool) -> Tensor:
    """What stands in the columns whose outputs are about the places of canvases.

    Args:
        canvas: `[n, W]`.
        before: the token before each, `[n]`.
        shift: whether an output is about the next place.
    Returns:
        `[n, W]`.
    """
    return torch.cat([before[:, None], canvas[:, :-1]], 1) if shift else canvas


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[n, H, W, size]`: the halves are turned together."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
