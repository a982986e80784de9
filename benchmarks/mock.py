"""A pair of models that do nothing: their logits were computed beforehand, over an alphabet as large as one likes.

What a step on this pair takes is the step's own arithmetic. Every forward hands out a copy that was made in advance,
because a step may use its logits' memory; `prepare` makes the copies for one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from smc_bridge.models.protocols import Scored
from smc_bridge.models.rows import Rows


class MockModel:
    """Precomputed logits as a language model (implements `MaskedDiffusionLM` and `CausalLM`).

    Args:
        logits: of the rows of one step, `[B, V, A]`; each row that is scored takes the next.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.vocab_size = self.hidden_size = int(logits.shape[-1])
        self.eos_id: int | None = None
        self.banned_ids: tuple[int, ...] = ()
        self.device = logits.device
        self.max_length: int | None = None
        self.min_length = 0
        self._copy = logits.clone()
        self._next = 0

    def prepare(self) -> None:
        """Copy the logits for one step, into memory that stays the model's own."""
        self._copy.copy_(self.logits)
        self._next = 0

    def session(self, tokens: Tensor, length: Tensor) -> MockSession:
        """A session that returns the prepared logits, whatever the prefixes `[R, S]` hold."""
        return MockSession(self, tokens, length)

    def take(self, rows: int, positions: int) -> Tensor:
        """The next rows' logits, `[rows, positions, A]`; after the last row comes the first.

        Raises:
            ValueError: there are not so many rows.
        """
        total = self._copy.shape[0]
        if rows > total:
            raise ValueError(f"logits hold {total} rows and {rows} are scored: give as many rows as a step has lanes")
        first = self._next if self._next + rows <= total else 0
        self._next = first + rows
        return self._copy[first : self._next, :positions]


class MockSession(Rows):
    """Session of a `MockModel`."""

    def __init__(self, model: MockModel, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens, length)
        self.model = model

    @overload
    def score(self, rows: Tensor, drafts: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, drafts: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, drafts: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """The prepared logits, `[B, V, A]`, whatever the draft; they are the features, too."""
        out = self.model.take(drafts.shape[0], drafts.shape[1])
        return Scored(out, out.clone()) if hidden else out

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """The prepared logits, one position after the prefix and one after each node, `[B, T + 1, A]`."""
        return self.model.take(tokens.shape[0], tokens.shape[1] + 1)


@dataclass(frozen=True)
class MockPair:
    """Two models whose laws resemble each other as those of a real pair do.

    Attributes:
        dlm: drafts.
        ar: the target.
    """

    dlm: MockModel
    ar: MockModel

    @classmethod
    def make(cls, *, alphabet: int, lanes: int, window: int, seed: int, dtype: torch.dtype = torch.float32) -> MockPair:
        """Logits of standard deviation 2 with one token 14 nats above at each position, and 0.5 nats of disagreement.

        Most of the mass is then on one token, as it is in text, so that several tokens of a draft are accepted.
        """
        generator = torch.Generator().manual_seed(seed)
        base = 2.0 * torch.randn(1, window, alphabet, generator=generator, dtype=dtype)
        peak = torch.randint(alphabet, (1, window, 1), generator=generator)
        base.scatter_add_(-1, peak, torch.full(peak.shape, 14.0, dtype=base.dtype))
        noise = 0.5 * torch.randn(lanes, window, alphabet, generator=generator, dtype=dtype)
        return cls(MockModel(base), MockModel(base + noise))

    def prepare(self) -> None:
        """Fresh copies for one step."""
        self.dlm.prepare()
        self.ar.prepare()
