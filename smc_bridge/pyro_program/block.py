"""`Block`: the law of the next V tokens as a Pyro distribution, from autoregressive conditionals.

The three laws of the program differ in their conditionals only: the proposal's ignore the block, the target's come from
the AR model, the intermediate's are built from both, position by position. All of them are `Block`s:

    log P(x_{1:V} | c) = sum_i log_conditional(x_i | c, x_<i)

and `prefix_log_prob` is the law of the first L tokens, which is what a block that is stopped early needs
(`smc_bridge.pyro_program.stopped`). Random draws come from torch's global generator, as Pyro's do: seed it with
`pyro.set_rng_seed`.

Shapes: R sequences in the batch, V window, A alphabet size, B sequences of one call.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from smc_bridge.blocks import prefix_sum
from smc_bridge.distributions.intermediate import Intermediate, checked_log_prob
from smc_bridge.distributions.shaping import check_no_nan
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.protocols import CausalSession
from smc_bridge.models.tabular import ENUMERABLE
from smc_bridge.sampling import inverse_cdf

#: Log-conditionals along blocks: rows `[B]`, tokens `[B, V]` -> `[B, V, A]`; entry i depends on tokens before i only.
Conditional = Callable[[Tensor, Tensor], Tensor]


def at_tokens(log_probs: Tensor, block: Tensor) -> Tensor:
    """Log-probability of each token: `[..., V, A]`, `[..., V]` -> `[..., V]`; entries at `PAD` are arbitrary."""
    return log_probs.gather(-1, block.clamp_min(0)[..., None])[..., 0]


class Block(TorchDistribution):  # type: ignore[misc]
    """Law of the next `window` tokens of every sequence in the batch; events are LongTensors `[V]`.

    Args:
        conditional: gives normalised log-probabilities along blocks (see `Conditional`).
        rows: LongTensor of shape `batch_shape`, which sequence of the conditional each element is.
        window: V.
        vocab_size: A.
        independent: the conditionals do not depend on the block (a proposal), so one call draws all positions.
    Raises:
        ValueError: window or alphabet below 1.
    """

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"rows": constraints.nonnegative_integer}

    def __init__(
        self, conditional: Conditional, rows: Tensor, *, window: int, vocab_size: int, independent: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if window < 1 or vocab_size < 1:
            raise ValueError(f"window = {window}, vocab_size = {vocab_size}: give at least 1 position and 1 token")
        self.conditional = conditional
        self.rows = rows
        self.window = window
        self.vocab_size = vocab_size
        self.independent = independent
        super().__init__(rows.shape, torch.Size([window]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Blocks of V token ids, each in 0 .. A - 1."""
        build: Any = constraints  # its classes carry no types
        legal: constraints.Constraint = build.independent(build.integer_interval(0, self.vocab_size - 1), 1)
        return legal

    def expand(self, batch_shape: Any, _instance: Any = None) -> Block:
        """The same law on a larger batch; its draws are independent."""
        new = copy.copy(self)
        new.rows = self.rows.expand(torch.Size(batch_shape))
        new._batch_shape = torch.Size(batch_shape)
        return new

    def select(self, index: Tensor) -> Block:
        """The law of elements `index: [B]` of the flattened batch, batch shape `[B]`."""
        new = copy.copy(self)
        new.rows = self.rows.reshape(-1)[index]
        new._batch_shape = new.rows.shape
        return new

    def along(self, block: Tensor) -> Tensor:
        """Log-conditionals along `block: [..., V]` (broadcast against the batch), `[..., V, A]`, nats.

        Raises:
            ValueError: the conditional returned NaN.
        """
        shape = broadcast(block.shape[:-1], self.batch_shape)
        rows = self.rows.expand(shape).reshape(-1)
        flat = block.expand(*shape, self.window).reshape(-1, self.window)
        log_probs = self.conditional(rows, flat)
        check_no_nan(log_probs, "conditional")
        return log_probs.reshape(*shape, self.window, self.vocab_size)

    def prefix_log_prob(self, block: Tensor, length: Tensor) -> Tensor:
        """Log-probability of the first `length` tokens of `block`, nats.

        Args:
            block: `[..., V]`; entries past the length are ignored and may be padding.
            length: `[...]`, between 0 and V.
        Returns:
            `[...]` float64.
        """
        known = block.masked_fill(torch.arange(self.window, device=block.device) >= length[..., None], 0)
        log_probs = self.along(known)
        return prefix_sum(at_tokens(log_probs, known.expand(log_probs.shape[:-1])), length)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of whole blocks `[..., V]`, `[...]` float64, nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.prefix_log_prob(value, torch.full(value.shape[:-1], self.window, device=value.device))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw blocks position by position, `[*sample_shape, *batch_shape, V]`.

        It takes V calls of the conditional, one for an independent law.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        rows = self.rows.expand(shape).reshape(-1)
        block = torch.zeros(rows.numel(), self.window, dtype=torch.long, device=rows.device)
        uniform = torch.rand(block.shape, dtype=torch.float64).to(block.device)
        log_probs = self.conditional(rows, block)
        for i in range(self.window):
            if i > 0 and not self.independent:
                log_probs = self.conditional(rows, block)
            block[:, i] = inverse_cdf(log_probs[:, i], uniform[:, i])
        return block.reshape(*shape, self.window)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All `A**V` blocks, `[A**V, *batch_shape, V]` (batch of ones if not expanded).

        Raises:
            ValueError: there are too many to list.
        """
        values = all_blocks(self.vocab_size, self.window, device=self.rows.device)
        values = values.reshape(-1, *(1,) * len(self.batch_shape), self.window)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


def broadcast(first: torch.Size, second: torch.Size) -> torch.Size:
    """The shape that two batch shapes both expand to."""
    return torch.Size(np.broadcast_shapes(tuple(first), tuple(second)))


def all_blocks(vocab_size: int, window: int, *, device: torch.device | str = "cpu") -> Tensor:
    """All blocks of `window` tokens in base-A order, `[A**V, V]`.

    Raises:
        ValueError: more than 65536 of them.
    """
    if vocab_size**window > ENUMERABLE:
        raise ValueError(
            f"window = {window} over {vocab_size} tokens has {vocab_size}**{window} blocks, more than {ENUMERABLE}: "
            "shorten the window or use a smaller alphabet"
        )
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=window)), device=device)


class LastCall:
    """A conditional that remembers its last answer.

    The model and the guide score the same committed block one after the other; this makes it one forward. The rows'
    prefixes must not change meanwhile.
    """

    def __init__(self, conditional: Conditional) -> None:
        self.conditional = conditional
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor, block: Tensor) -> Tensor:
        """See `Conditional`."""
        if self.last is None or not (torch.equal(self.last[0], rows) and torch.equal(self.last[1], block)):
            self.last = (rows.clone(), block.clone(), self.conditional(rows, block))
        return self.last[2]


def proposal_block(log_q: Tensor) -> Block:
    """`q(x_{1:V}) = prod_i q_i(x_i)` of R sequences, from normalised log-marginals `[R, V, A]`.

    Raises:
        ValueError: not of that shape, or not normalised.
    """
    if log_q.dim() != 3:
        raise ValueError(f"log_q has shape {tuple(log_q.shape)}: give log-marginals [R, V, A]")
    check_no_nan(log_q, "log_q")
    if bool((log_q.logsumexp(-1).abs() > 1e-3).any()):
        raise ValueError("log_q is not normalised over its last axis: give DLMProposal.log_probs, not raw logits")
    rows = torch.arange(log_q.shape[0], device=log_q.device)
    return Block(
        lambda rows, block: log_q[rows], rows, window=log_q.shape[1], vocab_size=log_q.shape[2], independent=True
    )


def target_block(session: CausalSession, rows: Tensor, target: ARTarget, *, window: int) -> Block:
    """`p(x_{1:V} | c)` after the prefixes `rows` (shape `batch_shape`) of an AR session, as a `Block` of V = `window`
    tokens.

    The session must not move on while the block is in use.
    """

    def conditional(rows: Tensor, block: Tensor) -> Tensor:
        return target.log_probs(session.score(rows, block))

    return Block(LastCall(conditional), rows, window=window, vocab_size=target.model.vocab_size)


def intermediate_block(intermediate: Intermediate, proposal: Block, target: Block) -> Block:
    """`pi(x_{1:V} | c)`, `log pi_i = intermediate(log q_i, log p_i)` position by position (locally normalised).

    Raises:
        ValueError: the two laws are of different shapes, or the intermediate treats lanes differently.
    """
    check_same_shape(proposal, target)

    def conditional(rows: Tensor, block: Tensor) -> Tensor:
        """`log pi` along the blocks of these rows."""
        log_q = proposal.conditional(proposal.rows.reshape(-1)[rows], block)
        log_p = target.conditional(target.rows.reshape(-1)[rows], block)
        # Intermediates have a lane axis before the window; every row here is the only lane of its sequence.
        log_pi = checked_log_prob(intermediate, log_q[:, None], log_p[:, None].to(log_q.dtype))
        if log_pi.shape[1] != 1:
            raise ValueError(f"intermediate has its own exponent for each of {log_pi.shape[1]} lanes: give a scalar")
        return log_pi[:, 0]

    rows = torch.arange(target.rows.numel(), device=target.rows.device).reshape(target.batch_shape)
    return Block(conditional, rows, window=target.window, vocab_size=target.vocab_size)


def check_same_shape(first: Block, second: Block) -> None:
    """Raise ValueError unless both laws have the same batch, window and alphabet."""
    a, b = ((tuple(law.batch_shape), law.window, law.vocab_size) for law in (first, second))
    if a != b:
        raise ValueError(f"laws of different shapes (batch, V, A): {a} against {b}; build both for the same sequences")
