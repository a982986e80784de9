"""`SelectorHead`: what the token before says of the next one, as far as the place itself lets it.

    S_i(a, b) = U_i(b) + <A(a) * H(h_i) + G(h_i), B(b)>,      * elementwise

with U_i the diffusion model's logits of place i, h_i its features there (what its own head makes the logits from) and a
the token before (the form of DFlash 2, which keeps G = 0 and looks at the 16 likeliest tokens of a place alone). A
`MarkovHead` adds the same after a token wherever it stands; the features know whether the place is one for a digit of a
sum or for a verb, and which, so they choose among transitions.

Shapes: A alphabet, D features, r rank, U * M places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.protocols import FeaturedLM

#: What features are divided by before they are read: the same rate then suits all weights.
SCALE = 4.0


class SelectorHead(nn.Module):
    """`(A(y) * H(h) + G(h)) B`, what is added to the logits after token y at a place of features h (module docstring).

    Args:
        vocabulary: A.
        hidden: D.
        rank: r, numbers by which a token, and a place, is known.
    Raises:
        ValueError: an argument is no whole number of at least 1.
    """

    def __init__(self, *, vocabulary: int, hidden: int, rank: int = 64) -> None:
        super().__init__()
        self.config = {
            "vocabulary": whole_number("vocabulary", vocabulary), "hidden": whole_number("hidden", hidden),
            "rank": whole_number("rank", rank),
        }
        first = torch.randn(vocabulary, rank) / math.sqrt(rank)
        self.before = nn.Parameter(nn.functional.pad(first, (0, 0, 1, 0)))  # A: row y + 1 is token y, row 0 none
        self.after = nn.Parameter(torch.zeros(rank, vocabulary))  # B: at first the marginals as they are
        self.place = nn.Linear(hidden, 2 * rank)  # H and G
        with torch.no_grad():
            self.place.weight.mul_(0.5)
            self.place.bias[:rank], self.place.bias[rank:] = 1.0, 0.0  # at first nearly a Markov head

    @classmethod
    def untrained(cls, model: FeaturedLM) -> SelectorHead:
        """A small one for a diffusion model, before it is trained."""
        return cls(vocabulary=model.vocab_size, hidden=model.hidden_size, rank=2)

    def forward(self, before: Tensor, hidden: Tensor) -> Tensor:
        """What is added after tokens `[...]` at places of features `[..., D]`, `[..., A]`; a negative token is none."""
        gate, own = self.kept(hidden).chunk(2, -1)
        return (self.before[before + 1] * gate + own) @ self.after

    def kept(self, hidden: Tensor) -> Tensor:
        """H and G of features `[..., D]`, `[..., 2 r]`."""
        found: Tensor = self.place(hidden.to(self.after) / SCALE)
        return found

    @torch.no_grad()
    def features(self, hidden: Tensor) -> Tensor:
        """What is kept of the features of places, `[U, M, D]` -> `[U, M, 2 r]`."""
        return self.kept(hidden)

    def at(self, features: Tensor) -> Selected:
        """What it adds at places of which this is kept, `[U, M, 2 r]`."""
        return Selected(self, features.flatten(0, 1))


class Selected:
    """What a `SelectorHead` adds at given places, without a gradient.

    Args:
        head: the network.
        kept: of each place, `[U * M, 2 r]`.
    """

    def __init__(self, head: SelectorHead, kept: Tensor) -> None:
        self.before, self.after = head.before.detach(), head.after.detach()
        self.gate, self.own = kept.detach().chunk(2, -1)

    def mixed(self, before: Tensor, place: Tensor) -> Tensor:
        """`A(y) * H + G` of tokens `[n]` at places `[n]`, `[n, r]`."""
        return torch.addcmul(self.own[place], self.before[before + 1], self.gate[place])

    def rows(self, before: Tensor, place: Tensor) -> Tensor:
        """What is added after tokens `[n]` at places `[n]`, `[n, A]`."""
        return self.mixed(before, place) @ self.after

    def entries(self, before: Tensor, tokens: Tensor, place: Tensor) -> Tensor:
        """The same at one token each, `[n]`."""
        return (self.mixed(before, place) * self.after[:, tokens].T).sum(-1)
