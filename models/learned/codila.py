"""`SoftAR`: a small causal network that reads soft embeddings of a block and decodes it token by token (CoDiLA, arXiv
2603.20216).

The marginals `pi^j` that a masked diffusion model gives of the places of a block become soft embeddings; the network
reads them between two marks, and then the tokens of the block:

    e^j = sum_v pi^j_v Emb(v)           (begin) e^1 .. e^B (end) b_1 .. b_{B-1}
    p(b | x_t) = prod_j p(b_j | b_<j, pi),    log p(b_j = v | b_<j, pi) = skip log pi^j_v + head(h_j)_v + const

`h_j` stands at the end mark for `b_1`, and at `b_{j-1}` for `b_j`. The published network is a language model of 0.6 B
that was trained on text before, and has no skip: a network this small does not carry an alphabet through its width.
With the skip and a head that starts at zero, training starts at the product of the marginals.

What was read and decoded so far is kept (`Memory`), so that a token costs one position. Shapes: n rows, B places of a
block, A alphabet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.protocols import LanguageModel

#: Positions of a sequence that are not those of a block's places: the two marks.
MARKS = 2


class Memory(NamedTuple):
    """What the layers keep of the positions so far.

    Attributes:
        keys, values: of each layer, `[n, heads, positions, width / heads]`.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def of_rows(self, rows: Tensor) -> Memory:
        """The memory of rows `rows: [n']`."""
        return Memory(tuple(x[rows] for x in self.keys), tuple(x[rows] for x in self.values))


class Layer(nn.Module):
    """A pre-norm layer of causal attention and a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """New positions `x: [n, s, d]` behind those of the memory; returns them and the longer memory."""
        rows, count, width = x.shape
        each = self.joint(self.before(x)).view(rows, count, 3, self.heads, width // self.heads).transpose(1, 3)
        query, key, value = each.unbind(2)  # [n, heads, s, d / heads]
        key = key if keys is None else torch.cat([keys, key], 2)
        value = value if values is None else torch.cat([values, value], 2)
        seen = torch.ones(count, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - count)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(read.transpose(1, 2).reshape(rows, count, width))
        return x + self.narrow(functional.gelu(self.wide(self.between(x)))), key, value


class SoftAR(nn.Module):
    """The small autoregressive network over soft embeddings (module docstring).

    Args:
        size: A, of the alphabet.
        width: of the embeddings, a multiple of `heads`.
        layers, heads: of the network.
        block: greatest B.
        skip: whether the marginals' own logarithms are added to the logits, 1 or 0.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, *, size: int, width: int = 64, layers: int = 2, heads: int = 4, block: int = 16, skip: int = 1
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("width", width), ("layers", layers), ("heads", heads), ("block", block)):
            whole_number(f"{name} of a SoftAR", value)
        if width % heads:
            raise ValueError(f"width = {said(width)} of a SoftAR with heads = {heads}: give a multiple")
        self.config: dict[str, int | float | str] = {
            "size": size, "width": width, "layers": layers, "heads": heads, "block": block, "skip": skip,
        }
        self.block, self.skip = block, skip
        self.tokens, self.places = nn.Embedding(size, width), nn.Embedding(block, width)
        self.kinds = nn.Embedding(MARKS + 1, width)  # begin, end, and a soft embedding
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, size)
        for table in (self.tokens, self.places, self.kinds):
            nn.init.normal_(table.weight, std=0.3)
        if skip:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @classmethod
    def untrained(cls, model: LanguageModel) -> SoftAR:
        """A small one for the alphabet of a model, before it is trained."""
        return cls(size=model.vocab_size, width=8, heads=2)

    def read(self, log_pi: Tensor, held: Tensor) -> tuple[Tensor, Memory]:
        """Read blocks.

        Args:
            log_pi: log-marginals of the places, `[n, B, A]`; -inf is a probability of zero.
            held: places that there are, BoolTensor `[n, B]`; nothing is known of the others.
        Returns:
            logits of the first place, `[n, A]`; the memory.
        Raises:
            ValueError: a block has more places than the network knows.
        """
        if log_pi.shape[1] > self.block:
            raise ValueError(f"a block of {log_pi.shape[1]} places: this network decodes at most {self.block}")
        soft = torch.where(held[..., None], log_pi, -torch.inf).to(self.head.weight.dtype).exp() @ self.tokens.weight
        begin, end, kind = self.kinds.weight.unbind(0)
        marks = (begin + self.places.weight[0], end + self.places.weight[0])
        rows = log_pi.shape[0]
        x = torch.cat([
            marks[0].expand(rows, 1, -1), soft + self.places.weight[: log_pi.shape[1]] + kind,
            marks[1].expand(rows, 1, -1),
        ], 1)
        x, memory = self._through(x, None)
        return self._logits(x[:, -1], log_pi[:, 0]), memory

    def follow(self, memory: Memory, token: Tensor, place: int, log_pi: Tensor) -> tuple[Tensor, Memory]:
        """Read one more token.

        Args:
            memory: of what was read.
            token: at the place before, `[n]`.
            place: that is asked for next, counted from 0.
            log_pi: log-marginals of that place, `[n, A]`.
        Returns:
            its logits `[n, A]`; the longer memory.
        """
        x, memory = self._through((self.tokens(token) + self.places.weight[place])[:, None], memory)
        return self._logits(x[:, 0], log_pi), memory

    def forward(self, log_pi: Tensor, held: Tensor, tokens: Tensor) -> Tensor:
        """Logits along given blocks by one pass, `[n, B, A]`: entry j given `tokens[:, :j]` (`tokens: [n, B]`)."""
        first, memory = self.read(log_pi, held)
        if log_pi.shape[1] == 1:
            return first[:, None]
        x, _ = self._through(self.tokens(tokens[:, :-1]) + self.places.weight[1 : log_pi.shape[1]], memory)
        return torch.cat([first[:, None], self._logits(x, log_pi[:, 1:])], 1)

    def _through(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """New positions `[n, s, d]` through all layers."""
        keys, values = list[Tensor](), list[Tensor]()
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, *((None, None) if memory is None else (memory.keys[i], memory.values[i])))
            keys.append(key)
            values.append(value)
        return x, Memory(tuple(keys), tuple(values))

    def _logits(self, hidden: Tensor, log_pi: Tensor) -> Tensor:
        """Logits `[..., A]` at hidden states `[..., d]`."""
        own: Tensor = self.head(self.last(hidden))
        return own + log_pi.to(own.dtype) if self.skip else own
