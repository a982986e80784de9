"""What a kernel is: a rule that turns a draft into a committed block, lossless for the intermediate law.

Every proper kernel here is a *randomised stopping time* of `pi`: it commits tokens with law `pi`, and after each
committed token goes on with a probability that depends on the past only (condition C1). So one function,
`log_continue`, the log-probability `c_i` of going on after the i-th token of a block, gives its whole law:

    kappa(L | x) = prod_{i<L} c_i * (1 - c_L)       stopped at L
                   prod_{i<L} c_i                   if the block must end at L (window, length limit, end of sequence)
    g(x_{1:L}, L) = pi(x_{1:L}) kappa(L | x_{1:L})

and `sum_L g(x_{1:L}, L) / pi(x_{1:L}) = 1` along every path (docs/theory, section 3). `kappa` stands on both sides of
the importance weight and cancels (section 4).

A kernel does not draft. It is given a `Draft`, asks the target about it (`Verifier`), and commits a block. Most kernels
ask along the drafted tokens and need to say no more than `__call__`; a tree walk asks about a tree.

Shapes: R rows (a row is one lane), V window, A alphabet; laws `[R, V, A]` along the block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, full_horizon, log1mexp, prefix_sum, truncate
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.table import as_law
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.tree_build import Tree
from smc_bridge.models.arguments import called, said
from smc_bridge.models.checks import answer, refuse
from smc_bridge.plugins import check_tensor, foreign
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness


class Verifier(Protocol):
    """Answers a kernel's question to the target model, one forward each."""

    @property
    def walks(self) -> int:
        """How many consecutive rows have one law q and one intermediate: they can share a tree."""
        ...

    def along(self, tokens: Tensor) -> tuple[Law, Law]:
        """Target and intermediate along drafts `tokens: [R, V]`, `[R, V, A]` each."""
        ...

    def at_nodes(self, tree: Tree, q: Law) -> tuple[Law, Law]:
        """Target and intermediate after every node of trees of R' rows with proposals `q: [R', V, A]`.

        Returns:
            `[R', T + 1, A]` each; entry 0 is after the root.
        """
        ...


class Verified(NamedTuple):
    """A kernel's move, with the laws along the blocks, `[R, V, A]`.

    Attributes:
        move: what is committed.
        p, pi: target and intermediate along the blocks.
        scored: drafted tokens or tree nodes that the target scored for each row, `[R]`.
    """

    move: Move
    p: Law
    pi: Law
    scored: Tensor


class Kernel(ABC):
    """A rule that turns a draft into a committed block.

    Attributes:
        proper: whether the committed block has law `pi` at a stopping time, so that the importance weight is right.
        reads_marginals: whether it asks q for conditionals that the draft did not lead to. Then q must factorise, or be
            known after any token (`known_off_draft`), and no tokens are drawn for it.
    """

    proper: bool
    reads_marginals: bool = False

    @abstractmethod
    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """Commit a block.

        Args:
            draft: of R rows.
            pi: the intermediate where the kernel asked for it: along the draft, `[R, V, A]`.
            source: draws for R rows.
            horizon: where blocks must end.
        """

    def log_stop(
        self, q: Tensor | Law, pi: Tensor | Law, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """Log-probability `log kappa(length | block)` that the kernel stops after `length` tokens, nats, `[R]`.

        Raises:
            TypeError: the kernel has no stopping law.
        """
        raise TypeError(f"kernel {type(self).__name__} has no stopping law: use a proper kernel, such as Rejection()")

    def log_density(
        self, q: Tensor | Law, pi: Tensor | Law, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """Log-law `log g(block, length)` of what is committed, nats, `[R]`; arguments and errors as `log_stop`."""
        return self.log_stop(q, pi, block, length, horizon=horizon)

    def move(
        self, draft: Draft, verifier: Verifier, *, source: Randomness, horizon: Horizon, pinned: Pinned | None = None
    ) -> Verified:
        """Ask the target, and commit.

        Args:
            draft, source, horizon: see `__call__`.
            verifier: asks the target model.
            pinned: rows that must follow given tokens, which stand in the draft.
        """
        p, pi = verifier.along(draft.tokens)
        move = check_move(self, self(draft, pi, source=source, horizon=horizon), horizon, pi.shape)
        if pinned is not None:
            own = horizon.of_rows(pinned.lane)
            q, law = draft.q.of_rows(pinned.lane), pi.of_rows(pinned.lane)
            move = pinned.stopped(move, going_on(self, q, law, pinned.block, horizon=own), own.end(pinned.block))
        return Verified(move, p, pi, torch.full_like(move.length, pi.shape[-2]))

    def positions(self, lanes: int, window: int, *, walks: int) -> int:
        """Positions that the target scores for one particle with K lanes at most; arguments as `Verifier`."""
        return lanes * window

    def check(self, intermediate: Intermediate) -> None:  # noqa: B027  (most kernels serve all)
        """Raise ValueError unless the kernel can serve this intermediate."""


class StoppingKernel(Kernel):
    """Base of the proper kernels: `log_stop` and `log_density` from `log_continue`."""

    proper = True

    @abstractmethod
    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """`log c_i`: log-probability of going on after the i-th token of `block`, given that it was committed.

        Args:
            q, pi: laws along the block, `[R, V, A]`.
            block: token ids, `[R, V]`; `PAD` past the end, where the result is arbitrary.
            horizon: where blocks must end; a kernel whose draft depends on it needs it here too.
        Returns:
            `[R, V]`, at most 0.
        """

    def log_stop(
        self, q: Tensor | Law, pi: Tensor | Law, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """Log-probability `log kappa(length | block)` that the kernel stops after `length` tokens, nats.

        `kappa = g / pi` along the block (docs/theory, section 3); the same factor on the target side cancels it.

        Args:
            q, pi: log-probabilities along the block, `[R, V, A]`.
            block: token ids, `[R, V]`; entries past `length` are ignored.
            length: committed tokens, `[R]`, at least 1.
            horizon: where blocks must end; by default after V tokens.
        Returns:
            `[R]` float64, `-inf` where the kernel cannot stop there.
        """
        horizon = full_horizon(*block.shape, device=block.device) if horizon is None else horizon
        position = torch.arange(block.shape[1], device=block.device)
        # Tokens past the length must not decide where the block ends.
        known = block.masked_fill(position >= length[:, None], PAD)
        end = horizon.end(known)
        log_c = going_on(self, q, pi, known, horizon=horizon)
        last = log_c.gather(1, (length - 1).clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        refused = torch.where(length == end, 0.0, log1mexp(last))
        total = prefix_sum(log_c, length - 1) + refused
        return torch.where((length >= 1) & (length <= end), total, -math.inf)

    def log_density(
        self, q: Tensor | Law, pi: Tensor | Law, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """Log-law `log g(block, length) = log pi(block) + log kappa(length | block)`, `[R]` float64, nats; arguments as
        `log_stop`."""
        stop = self.log_stop(q, pi, block, length, horizon=horizon)
        inside = prefix_sum(as_law(pi).at(truncate(block, length)), length)
        return torch.where(stop == -math.inf, stop, inside + stop)


def going_on(kernel: Kernel, q: Tensor | Law, pi: Tensor | Law, block: Tensor, *, horizon: Horizon) -> Tensor:
    """`kernel.log_continue` in float64, checked: `[R, V]` nats.

    Raises:
        TypeError: the kernel has no stopping law.
        ValueError: it has another shape or kind, or is no log-probability at a token of the block.
    """
    if not isinstance(kernel, StoppingKernel):
        raise TypeError(f"kernel {type(kernel).__name__} has no stopping law: use a proper kernel, such as Rejection()")
    log_c, source = kernel.log_continue(as_law(q), as_law(pi), block, horizon=horizon), f"{called(kernel)}.log_continue"
    check_tensor(log_c, source, tuple(block.shape), "float", block.device)
    if foreign(kernel.log_continue):
        refuse(
            ~(log_c <= 1e-3) & (block != PAD),  # above 0 by round-off at most
            lambda at: f"{source} returned {float(log_c[at]):g} in row {at[0]}, position {at[1]}: return a "
            "log-probability, at most 0",
        )
    return log_c.double()


def check_move(kernel: object, move: Move, horizon: Horizon, shape: torch.Size) -> Move:
    """Check what a kernel commits: blocks `[R, V]` of tokens, from 1 of them to where the block must end.

    Args:
        shape: `[R, V, A]`.
    Raises:
        ValueError: naming the kernel, and the first bad row and what is bad there.
    """
    name, (rows, window, vocab_size) = called(kernel), shape
    if not (isinstance(move, tuple) and len(move) == 3):
        raise ValueError(f"{name} returned {said(move)}: return a Move(block, length, accepted)")
    move, device = Move(*move), horizon.window.device
    check_tensor(move.block, f"{name} (block)", (rows, window), "int64", device)
    for field, part in (("length", move.length), ("accepted", move.accepted)):
        check_tensor(part, f"{name} ({field})", (rows,), "int64", device)
    if not foreign(kernel):
        return move
    end, corrected = horizon.end(move.block), move.length - move.accepted
    least = torch.where(torch.arange(window, device=device) < move.length[:, None], 0, PAD)
    too_many = (move.length < 1) | (move.length > end)
    unknown = ((move.block < least) | (move.block >= vocab_size)).any(-1)

    def message(at: tuple[int, ...]) -> str:
        row, length = at[0], int(move.length[at])
        if bool(too_many[row]):
            return (
                f"{name} committed {length} tokens in row {row}: commit from 1 to {int(end[row])}, where the window or "
                "the first end of sequence ends the block (`horizon.end`)"
            )
        if bool(unknown[row]):
            return (
                f"{name} committed {said(move.block[row].tolist())} in row {row}: give ids from 0 to "
                f"{vocab_size - 1}, and PAD = {PAD} past the {length} that count"
            )
        return (
            f"{name} says that {int(move.accepted[row])} of {length} tokens in row {row} are the draft's own: all of "
            "them are, or all but the last"
        )

    refuse(too_many | unknown | (corrected < 0) | (corrected > 1), message)
    answer()  # laws are looked up at these tokens next
    return move
