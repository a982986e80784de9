"""`MarkovHead`: what the token before says of the next one, added to a diffusion model's logits of the place.

    logits_i(. | y_<i) = U_i + W2 W1[y_{i-1}]

with U_i the model's logits of place i from one forward, and a rank far below the alphabet's size (the form of DSpark,
deepseek-ai/DeepSpec; there of rank 256). Marginals know neither what was drafted before them nor one another; one token
back is most of what they lack: the rest of a word, the tense, the other half of a phrase.

Shapes: A alphabet, r rank.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.protocols import LanguageModel

#: Alphabets up to this size have `W1 W2` as a table `[A + 1, A]` (of 2,048 tokens: 17 MB): a place is then one read.
TABLE = 2_048


class MarkovHead(nn.Module):
    """`W2 W1[y]`, what is added to the logits after token y (module docstring).

    Args:
        vocabulary: A.
        rank: r, numbers by which a token is known.
    Raises:
        ValueError: an argument is no whole number of at least 1.
    """

    def __init__(self, *, vocabulary: int, rank: int = 64) -> None:
        super().__init__()
        self.config = {"vocabulary": whole_number("vocabulary", vocabulary), "rank": whole_number("rank", rank)}
        self.before = nn.Parameter(torch.randn(vocabulary, rank) / math.sqrt(rank))  # W1
        self.after = nn.Parameter(torch.zeros(rank, vocabulary))  # W2: at first the marginals as they are
        self._table: Tensor | None = None

    @classmethod
    def untrained(cls, model: LanguageModel) -> MarkovHead:
        """A small one for the alphabet of a model, before it is trained."""
        return cls(vocabulary=model.vocab_size, rank=2)

    def forward(self, before: Tensor, hidden: Tensor | None = None) -> Tensor:
        """What is added after tokens `before: [...]`, `[..., A]`, whatever the features of the place; nothing after a
        negative one."""
        added = self.before[before.clamp_min(0)] @ self.after
        return added.masked_fill(before[..., None] < 0, 0.0)

    def rows(self, before: Tensor, place: Tensor | None = None) -> Tensor:
        """`forward` of tokens `[n]`, `[n, A]`, without a gradient; read in a table where the alphabet is small. It is
        the same at every place."""
        table = self.table()
        return self.forward(before).detach() if table is None else table.index_select(0, before + 1)

    def entries(self, before: Tensor, tokens: Tensor, place: Tensor | None = None) -> Tensor:
        """The same at one token each, `[n]` and `[n]` -> `[n]`."""
        table = self.table()
        if table is not None:
            return table[before + 1, tokens]
        added = (self.before[before.clamp_min(0)] * self.after[:, tokens].T).sum(-1)
        return added.masked_fill(before < 0, 0.0).detach()

    def table(self) -> Tensor | None:
        """All of it, `[A + 1, A]`: row y + 1 is added after token y, row 0 after none. None where it would be large.

        It is made when it is first read, and anew after `train`, `to` and `load_state_dict`.
        """
        if self._table is None and self.before.shape[0] <= TABLE:
            with torch.inference_mode(False), torch.no_grad():  # it outlives the caller's mode
                self._table = nn.functional.pad(self.before @ self.after, (0, 0, 1, 0))
        return self._table

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; what was made of the weights is made anew."""
        self._table = None
        return super().train(mode)

    def _apply(self, *args: Any, **options: Any) -> Self:
        self._table = None
        return super()._apply(*args, **options)  # type: ignore[no-any-return, no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._table = None
        super()._load_from_state_dict(*args, **options)
