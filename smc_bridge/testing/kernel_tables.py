"""Small drafting problems whose laws are tables, for the exact law of a kernel (`smc_bridge.testing.kernel_laws`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.models.ends import EosId, ends_of

#: Tokens of one block.
Block = tuple[int, ...]


@dataclass(frozen=True)
class KernelTable:
    """Marginals q, and the intermediate pi as next-token laws after every prefix.

    Attributes:
        name: for messages.
        log_q: `[V, A]`, nats.
        log_pi: after every prefix of n tokens, `[A**n, A]`, for n = 0 .. V - 1; prefixes are numbers in base A.
        window: greatest length of a block, at most V.
        eos_id: token after which nothing follows, several of them, or None.
    """

    name: str
    log_q: Tensor
    log_pi: list[Tensor]
    window: int
    eos_id: EosId = None

    @classmethod
    def of_laws(
        cls, log_q: Tensor, along: Callable[[Tensor], Tensor], *, eos_id: EosId = None, name: str = "table"
    ) -> KernelTable:
        """Tabulate laws that are given as functions, such as those of one step of a program.

        Args:
            log_q: `[V, A]`.
            along: `log pi` along blocks, `[R, V]` -> `[R, V, A]`.
        """
        width, size = log_q.shape
        every = torch.tensor(list(itertools.product(range(size), repeat=width)))
        laws = along(every)
        laws = (laws.dense() if hasattr(laws, "dense") else laws).double()
        return cls(name, log_q.double(), [laws[:: size ** (width - n), n] for n in range(width)], width, eos_id)

    @property
    def size(self) -> int:
        """A, the number of tokens of the alphabet."""
        return self.log_q.shape[1]

    def along(self, block: Tensor) -> Tensor:
        """`log pi` along `block: [R, V]`, `[R, V, A]`; padding counts as token 0."""
        code, found = torch.zeros_like(block[:, 0]), []
        for n, table in enumerate(self.log_pi):
            found.append(table.to(block.device)[code])
            code = code * self.size + block[:, n].clamp_min(0)
        return torch.stack(found, 1)

    def after(self, prefix: Block) -> Tensor:
        """`log pi` of the token after a prefix of fewer than V tokens, `[A]`."""
        code = 0
        for token in prefix:
            code = code * self.size + token
        return self.log_pi[len(prefix)][code]

    def horizon(self, rows: int) -> Horizon:
        """Where the blocks of `rows` rows must end."""
        return Horizon(torch.full((rows,), self.window), ends_of(self.eos_id))

    def mass(self, block: Block) -> float:
        """Probability `pi(block)` of a block's tokens under the intermediate."""
        return float(torch.stack([self.after(block[:i])[token] for i, token in enumerate(block)]).sum().exp())

    def blocks(self) -> list[Block]:
        """All blocks that a kernel may commit, as tuples of token ids."""
        growing: list[Block] = [()]
        found: list[Block] = []
        while growing:
            after = [(*prefix, token) for prefix in growing for token in range(self.size)]
            found += after
            growing = [block for block in after if not self.ends(block)]
        return found

    def ends(self, block: Block) -> bool:
        """Whether nothing may follow the block."""
        return len(block) == self.window or block[-1] in ends_of(self.eos_id)

    def paths(self) -> list[Block]:
        """All blocks at which the sequence must end, as tuples of token ids."""
        return [block for block in self.blocks() if self.ends(block)]

    def drafting_alone(self) -> KernelTable:
        """The same problem with `pi = q`, for kernels that commit the proposal's own draft."""
        laws = [self.log_q[n].expand(table.shape) for n, table in enumerate(self.log_pi)]
        return KernelTable(f"{self.name}, pi = q", self.log_q, laws, self.window, self.eos_id)


def kernel_table(
    size: int = 3, width: int = 2, *, seed: int = 0, window: int | None = None, eos_id: EosId = None,
    zeros: bool = False,
) -> KernelTable:
    """Random laws that favour the last tokens under q and the first under pi, so that a mix-up is seen.

    Args:
        size: alphabet size A.
        width: positions V that are drafted.
        seed: of the laws.
        window: greatest length of a block, by default V.
        eos_id: token that ends a sequence, or several.
        zeros: take a token away from q and another from pi, a different one at every position and prefix.
    """
    rng = np.random.default_rng(seed)
    alpha = 0.8 * np.arange(1, size + 1)
    q = rng.dirichlet(alpha, size=width)
    pi = [rng.dirichlet(alpha[::-1], size=size**n) for n in range(width)]
    if zeros:
        for law, shift in ((q, 1), *((table, n) for n, table in enumerate(pi))):
            row = np.arange(len(law))
            law[row, (row + shift) % size] = 0.0
            law /= law.sum(-1, keepdims=True)
    parts = [f"A{size}V{width}", f"W{window}" if window else "", *["eos"] * len(ends_of(eos_id)),
             "zeros" if zeros else ""]
    tables = [torch.from_numpy(law).log() for law in (q, *pi)]
    return KernelTable("-".join(filter(None, parts)), tables[0], tables[1:], window or width, eos_id)


#: The problems on which kernels are tried: with no end of sequence, one and two, with zeros, with a short window.
TABLES = (
    kernel_table(3, 2, seed=0, eos_id=2), kernel_table(2, 3, seed=1), kernel_table(3, 2, seed=2, zeros=True),
    kernel_table(2, 3, seed=3, window=2, eos_id=0), kernel_table(2, 1, seed=4),
    kernel_table(3, 3, seed=6, eos_id=(0, 2)),
)
#: Where two rows at a time are enumerated: a token that may be refused does not end the sequence, as another row may.
PAIRED = kernel_table(2, 2, seed=5, eos_id=0)
