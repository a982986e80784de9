"""What a kernel is: a rule that turns a draft into a committed block, lossless for the intermediate law.

Every proper kernel here is a *randomised stopping time* of `pi`: it commits tokens with law `pi`, and after each
committed token goes on with a probability that depends on the past only (condition C1). So one function,
`log_continue`, the log-probability `c_i` of going on after the i-th token of a block, gives its whole law:

    kappa(L | x) = prod_{i<L} c_i * (1 - c_L)       stopped at L
                   prod_{i<L} c_i                   if the block must end at L (window, length limit, end of sequence)
    g(x_{1:L}, L) = pi(x_{1:L}) kappa(L | x_{1:L})

and `sum_L g(x_{1:L}, L) / pi(x_{1:L}) = 1` along every path (docs/theory, section 3). `kappa` stands on both sides of
the importance weight and cancels (section 4).

Shapes: R rows (a row is one lane), V window, A alphabet; laws are log-probabilities `[R, V, A]` along the block. The
engine hands out *lazy* ones (`smc_bridge.distributions.lazy`), which are computed where `at_tokens`, `row_at` and
`rows_of` read them; any other use of them is that of a dense tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from smc_bridge.distributions.lazy import LazyLaw, along
from smc_bridge.models.arguments import called, said
from smc_bridge.plugins import check_tensor, foreign, refuse_rows
from smc_bridge.prefix import PAD
from smc_bridge.randomness import Randomness, as_source


class Move(NamedTuple):
    """What a kernel commits.

    Attributes:
        block: LongTensor `[R, V]`, `PAD` past the length.
        length: LongTensor `[R]`, committed tokens, at least 1.
        accepted: LongTensor `[R]`, how many of them are the draft's own (`length - accepted` is 0 or 1).
    """

    block: Tensor
    length: Tensor
    accepted: Tensor


class Horizon(NamedTuple):
    """Where a block must end whatever the draws.

    Attributes:
        window: LongTensor `[R]`, greatest length of each row's block, between 1 and V.
        eos_id: token after which nothing follows, or None.
    """

    window: Tensor
    eos_id: int | None

    def end(self, block: Tensor) -> Tensor:
        """Length at which each row of `block: [R, V]` must end at the latest: window, or the first end of sequence."""
        if self.eos_id is None:
            return self.window
        ended = block == self.eos_id
        first = torch.where(ended.any(-1), ended.to(torch.uint8).argmax(-1) + 1, block.shape[-1])
        return torch.minimum(self.window, first)


def check_move(kernel: object, move: Move, horizon: Horizon, *, window: int, vocab_size: int) -> Move:
    """What a kernel commits: blocks `[R, V]` of tokens, from 1 of them to where the block must end.

    Raises:
        ValueError: naming the kernel, and the first bad row and what is bad there.
    """
    name = called(kernel)
    if not (isinstance(move, tuple) and len(move) == 3):
        raise ValueError(f"{name} returned {said(move)}: return a Move(block, length, accepted)")
    move, (rows,), device = Move(*move), horizon.window.shape, horizon.window.device
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

    refuse_rows(too_many | unknown | (corrected < 0) | (corrected > 1), message)
    return move


def check_draft(kernel: DraftKernel, draft: Tensor, q: Tensor) -> Tensor:
    """What a kernel drafts from `q: [R, V, A]`: tokens `[R, V]`.

    Raises:
        ValueError: naming the kernel, and the first row with a token outside of the alphabet.
    """
    source, size = f"{called(kernel)}.draft", q.shape[-1]
    check_tensor(draft, source, tuple(q.shape[:2]), "int64", q.device)
    if foreign(kernel.draft):
        refuse_rows(
            ((draft < 0) | (draft >= size)).any(-1),
            lambda at: f"{source} returned {said(draft[at].tolist())} in row {at[0]}: give ids from 0 to {size - 1}",
        )
    return draft


def going_on(kernel: StoppingKernel, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
    """`kernel.log_continue`, in float64.

    Raises:
        ValueError: it has another shape or kind, or is no log-probability at a token of the block.
    """
    log_c, source = kernel.log_continue(q, pi, block, horizon=horizon), f"{called(kernel)}.log_continue"
    check_tensor(log_c, source, tuple(block.shape), "float", block.device)
    if foreign(kernel.log_continue):
        refuse_rows(
            ~(log_c <= 1e-3) & (block != PAD),  # above 0 by round-off at most
            lambda at: f"{source} returned {float(log_c[at]):g} in row {at[0]}, position {at[1]}: return a "
            "log-probability, at most 0",
        )
    return log_c.double()


def full_horizon(log_pi: Tensor) -> Horizon:
    """The horizon of `[R, V, A]` laws without an end of sequence: every row may commit V tokens."""
    rows, window = log_pi.shape[:2]
    return Horizon(torch.full((rows,), window, device=log_pi.device), None)


def at_tokens(log_probs: Tensor, block: Tensor) -> Tensor:
    """Log-probability of each token: `[..., V, A]`, `[..., V]` -> `[..., V]`; entries at `PAD` are arbitrary."""
    if isinstance(log_probs, LazyLaw):
        return log_probs.at(block)
    return log_probs.gather(-1, block.clamp_min(0)[..., None])[..., 0]


def along_tokens(first: Tensor, second: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """`at_tokens` of two laws of one shape at the same tokens, `[..., V]` each."""
    if isinstance(first, LazyLaw) and isinstance(second, LazyLaw):
        one, other = along([first, second], block)
        return one, other
    return at_tokens(first, block), at_tokens(second, block)


def row_at(log_probs: Tensor, position: Tensor) -> Tensor:
    """`log_probs[r, position[r]]`: `[R, V, A]`, `[R]` -> `[R, A]`; positions past V are clamped."""
    index = position.clamp_max(log_probs.shape[1] - 1)
    if isinstance(log_probs, LazyLaw):
        return log_probs.row(index)
    return log_probs[torch.arange(log_probs.shape[0], device=log_probs.device), index]


def rows_of(log_probs: Tensor, index: Tensor) -> Tensor:
    """`log_probs[index]`: the laws of rows `index: [R']` of `[R, V, A]`, `[R', V, A]`."""
    return log_probs.of_rows(index) if isinstance(log_probs, LazyLaw) else log_probs[index]


def prefix_sum(log_terms: Tensor, length: Tensor) -> Tensor:
    """Sum of the first `length` terms, `[..., V]`, `[...]` -> `[...]` in float64; terms past the length are ignored."""
    inside = torch.arange(log_terms.shape[-1], device=log_terms.device) < length[..., None]
    return torch.where(inside, log_terms.double(), 0.0).sum(-1)


@runtime_checkable
class Kernel(Protocol):
    """What every kernel tells about its law."""

    @property
    def proper(self) -> bool:
        """Whether the committed block has law `pi` at a stopping time, so that the importance weight is right."""
        ...

    def log_density(self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None) -> (
        Tensor
    ):
        """`log g(block, length)`, `[R]`, nats."""
        ...

    def log_stop(self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None) -> (
        Tensor
    ):
        """`log kappa(length | block)`, `[R]`, nats."""
        ...


@runtime_checkable
class DraftKernel(Kernel, Protocol):
    """A kernel that verifies a linear draft."""

    def draft(self, q: Tensor, *, generator: Randomness) -> Tensor:
        """Draw the draft, `[R, V, A]` -> `[R, V]`."""
        ...

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        """Commit a block, given log-laws `q, pi: [R, V, A]` along `draft: [R, V]`."""
        ...


class StoppingKernel(ABC):
    """Base of the proper kernels: `log_stop` and `log_density` from `log_continue`."""

    proper = True

    @abstractmethod
    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        """`log c_i`: log-probability of going on after the i-th token of `block`, given that it was committed.

        Args:
            q, pi: log-probabilities along the block, `[R, V, A]`.
            block: token ids, `[R, V]`; `PAD` past the end, where the result is arbitrary.
            horizon: where blocks must end; a kernel whose draft depends on it needs it here too.
        Returns:
            `[R, V]`, at most 0.
        """

    def log_stop(self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None) -> (
        Tensor
    ):
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
        horizon = full_horizon(pi) if horizon is None else horizon
        position = torch.arange(block.shape[1], device=block.device)
        # Tokens past the length must not decide where the block ends.
        known = block.masked_fill(position >= length[:, None], PAD)
        end = horizon.end(known)
        log_c = going_on(self, q, pi, known, horizon=horizon)
        last = log_c.gather(1, (length - 1).clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        refused = torch.where(length == end, 0.0, log1mexp(last))
        total = prefix_sum(log_c, length - 1) + refused
        return torch.where((length >= 1) & (length <= end), total, -math.inf)

    def log_density(self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None) -> (
        Tensor
    ):
        """Log-law `log g(block, length) = log pi(block) + log kappa(length | block)`, nats; arguments as `log_stop`."""
        stop = self.log_stop(q, pi, block, length, horizon=horizon)
        inside = prefix_sum(at_tokens(pi, truncate(block, length)), length)
        return torch.where(stop == -math.inf, stop, inside + stop)

    def draft(self, q: Tensor, *, generator: Randomness) -> Tensor:
        """Draw the draft from the proposal, `[R, V, A]` -> `[R, V]`."""
        return as_source(generator, q.shape[0], device=q.device).categorical(q)


def log1mexp(log_prob: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x <= 0, accurate at both ends; values above 0 by round-off count as 0."""
    x = log_prob.clamp_max(0.0)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def truncate(block: Tensor, length: Tensor) -> Tensor:
    """Set entries of `block: [R, V]` past `length` to `PAD`."""
    return block.masked_fill(torch.arange(block.shape[1], device=block.device) >= length[:, None], PAD)
