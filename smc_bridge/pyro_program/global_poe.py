"""`GlobalProductOfExperts`: the product of experts normalised once per block instead of once per token.

    pi(x_{1:V} | c) = q(x_{1:V} | c)^w p(x_{1:V} | c)^(1-w) / Z(c),   Z(c) = sum over all A^V blocks.

The local one (`ProductOfExperts`) divides by a normaliser at every position, which depends on the tokens before it, so
the two are different laws of blocks for 0 < w < 1. Here the normaliser is one number per block, but **it depends on the
prefix c**: an importance weight against the unnormalised product `q^w p^(1-w)` lacks the factor `Z(c)`, which differs
between particles as soon as their prefixes do, and is therefore not proper. With `Z(c)` it is; but `Z(c)` is a sum over
all blocks, and the conditionals `pi(x_i | c, x_<i)` look ahead to the end of the block, so no kernel that goes from
left to right can use them on a real model. This law is for study on models small enough to enumerate.

After a prefix where q and p share no block, as they may after a truncation or at temperature 0, it is p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import check_w
from smc_bridge.models.tabular import ENUMERABLE
from smc_bridge.pyro_program.block import Block, all_blocks, at_tokens, check_same_shape


class GlobalProductOfExperts(Block):
    """Block-level globally normalised product of experts (module docstring).

    It is a `Block`, so a kernel can be run with it as its intermediate. Blocks are listed whatever the end of sequence.

    Args:
        proposal: q.
        target: p, of the same batch, window and alphabet.
        w: exponent of the proposal, in [0, 1].
    Raises:
        ValueError: w outside [0, 1], or laws of different shapes; on use, more than 65536 blocks.
    """

    def __init__(self, proposal: Block, target: Block, w: float = 0.3, *, validate_args: bool | None = None) -> None:
        check_w(w)
        check_same_shape(proposal, target)
        self.proposal = proposal
        self.target = target
        self.w = float(w)
        self._tables: dict[str, Tensor] = {}
        rows = torch.arange(target.rows.numel(), device=target.rows.device).reshape(target.batch_shape)
        super().__init__(
            self._conditional, rows, window=target.window, vocab_size=target.vocab_size, validate_args=validate_args
        )

    @property
    def log_normaliser(self) -> Tensor:
        """`log Z(c)` of every prefix, shape `batch_shape`, nats; at most 0 (Hölder's inequality), and 0 where p stands
        in for a product without mass."""
        return self._unnormalised().logsumexp(-1)[self.rows]

    def _unnormalised(self) -> Tensor:
        """`w log q + (1 - w) log p` of every block in base-A order, or `log p` where that has no mass, `[R, A**V]`
        float64, computed once."""
        if "joint" in self._tables:
            return self._tables["joint"]
        if self.vocab_size**self.window > ENUMERABLE:
            raise ValueError(
                f"window = {self.window} over {self.vocab_size} tokens: the block-level product of experts sums over "
                f"{self.vocab_size}**{self.window} blocks, more than {ENUMERABLE}; use the locally normalised "
                "ProductOfExperts"
            )
        every = all_blocks(self.vocab_size, self.window, device=self.rows.device)
        place = torch.arange(self.target.rows.numel(), device=self.rows.device)
        joint = []
        for r in place:  # one prefix at a time: [A**V, V, A] is the memory peak
            log_q, log_p = (
                at_tokens(law.select(r.expand(every.shape[0])).along(every).double(), every).sum(-1)
                for law in (self.proposal, self.target)
            )
            # 0 * -inf = 0: an expert of exponent zero excludes nothing.
            parts = [weight * law for weight, law in ((self.w, log_q), (1.0 - self.w, log_p)) if weight > 0]
            product = torch.stack(parts).sum(0)
            joint.append(torch.where((product == -torch.inf).all(), log_p, product))
        self._tables["joint"] = torch.stack(joint)
        return self._tables["joint"]

    def _conditional(self, rows: Tensor, block: Tensor) -> Tensor:
        """Conditionals of the joint table (see `block.Conditional`); uniform after a prefix of probability zero."""
        joint, size = self._unnormalised(), self.vocab_size
        code = torch.zeros(block.shape[0], dtype=torch.long, device=block.device)
        out = []
        for i in range(self.window):
            marginal = joint.reshape(joint.shape[0], size**i, size, -1).logsumexp(-1)  # [R, A**i, A]
            scores = marginal[rows, code]
            dead = (scores == -torch.inf).all(-1, keepdim=True)
            out.append(torch.log_softmax(torch.where(dead, 0.0, scores), -1))
            code = code * size + block[:, i]
        return torch.stack(out, dim=1)
