"""Importance steps: the log weight of a lane's block, and the kernel that accepts everything.

`log w = sum_{i<=L} [log p(x_i) - log pi^(k)(x_i)]` is a proper weight at the random length L, because the target is
extended by the same stopping kernel and `kappa` cancels (docs/theory, section 4): a sum, never a mean over length;
against pi, never against q; log-probabilities, never raw logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.lazy import as_lazy
from smc_bridge.kernels.protocol import (
    Horizon,
    Kernel,
    Move,
    StoppingKernel,
    along_tokens,
    at_tokens,
    full_horizon,
    prefix_sum,
    truncate,
)
from smc_bridge.models.arguments import called
from smc_bridge.plugins import check_tensor, foreign, refuse_rows
from smc_bridge.randomness import Randomness


class Lanes(NamedTuple):
    """All that is known of the K lanes of R particles after the move.

    The three laws are lazy where the engine made them (`smc_bridge.distributions.lazy`): read them through `at_tokens`,
    or use them as dense tensors.

    Attributes:
        log_q: `[R, K, V, A]`, each lane's own proposal.
        log_p: `[R, K, V, A]`, target along each lane's block.
        log_pi: `[R, K, V, A]`, each lane's own intermediate along its block.
        move: blocks, lengths and accepted counts, each with leading dimensions `[R, K]`.
        raw_q, raw_p: the models' logits at the committed tokens before any law, `[R, K, V]`.
        horizon: where blocks must end, `window: [R]`.
    """

    log_q: Tensor
    log_p: Tensor
    log_pi: Tensor
    move: Move
    raw_q: Tensor
    raw_p: Tensor
    horizon: Horizon


class WeightRule(Protocol):
    """An importance step."""

    @property
    def proper(self) -> bool:
        """Whether the increments are proper weights of the committed blocks for the target."""
        ...

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """Log-weight increments of the lanes, `[R, K]` float64, nats; a particle's lanes are averaged (`- log K`)."""
        ...


def checked_increments(
    rule: WeightRule, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate
) -> Tensor:
    """What a weight rule returns, `[R, K]`.

    Raises:
        ValueError: it has another shape or kind, NaN, or +inf; the message names the rule.
    """
    found, source = rule(lanes, kernel=kernel, intermediate=intermediate), f"weight {called(rule)}"
    check_tensor(found, source, tuple(lanes.move.length.shape), "float", lanes.move.length.device)
    if foreign(rule):
        refuse_rows(
            found.isnan() | (found == math.inf),
            lambda at: f"{source} returned {float(found[at]):g} for lane {at[1]} of particle {at[0]}: return log "
            "weights, finite or -inf",
        )
    return found


class OwnWeights:
    """Each lane weighs by its own intermediate: `log p(x) - log pi^(k)(x)` (docs/theory, Theorem 1)."""

    proper = True

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        block, length = lanes.move.block, lanes.move.length
        log_p, log_pi = (x.double() for x in along_tokens(lanes.log_p, lanes.log_pi, block))
        return prefix_sum(torch.where(log_p == -math.inf, -math.inf, log_p - log_pi), length)


class BalanceHeuristic:
    """Lanes as strategies of multiple importance sampling (Veach & Guibas 1995; docs/theory, Proposition 6):

    `w = p(x_{1:L}) sum_j kappa_j(L | x) / sum_j g_j(x, L)`, closed form and without a further forward, because the
    proposals do not depend on the block and the target along the block is known.
    """

    proper = True

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        log_p = prefix_sum(at_tokens(lanes.log_p, lanes.move.block), lanes.move.length)  # [R, K]
        log_stop, log_density = self.cross(lanes, kernel=kernel, intermediate=intermediate)
        total = log_density.logsumexp(-1)
        weight = log_p + log_stop.logsumexp(-1) - total
        # Round-off can refuse a token at which pi and q are equal: no lane has a law of that block, 0 / 0.
        weight = torch.where(total == -math.inf, OwnWeights()(lanes, kernel=kernel, intermediate=intermediate), weight)
        return torch.where(log_p == -math.inf, -math.inf, weight)

    def cross(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> tuple[Tensor, Tensor]:
        """`log kappa_j` and `log g_j` of every lane's block under every lane's law, `[R, K, K]` (block, law)."""
        rows, count, _, _ = lanes.log_q.shape
        horizon = Horizon(lanes.horizon.window.repeat_interleave(count), lanes.horizon.eos_id)
        q, p = as_lazy(lanes.log_q).shaped(rows * count), as_lazy(lanes.log_p).shaped(rows * count)
        first = torch.arange(rows, device=q.device).repeat_interleave(count) * count
        stops, densities = list[Tensor](), list[Tensor]()
        for k in range(count):
            pi = bridge_law(intermediate, q, p.of_rows(first + k), lanes=count)
            block = lanes.move.block[:, k].repeat_interleave(count, 0)
            length = lanes.move.length[:, k].repeat_interleave(count)
            for law, found in ((kernel.log_stop, stops), (kernel.log_density, densities)):
                value = law(q, pi, block, length, horizon=horizon)
                check_tensor(value, called(law), (rows * count,), "float", block.device)
                found.append(value.reshape(rows, count))
        return torch.stack(stops, dim=1), torch.stack(densities, dim=1)


class AcceptAll(StoppingKernel):
    """Plain importance sampling: the whole draft is committed. Lossless for q, so the intermediate must be q.

    Raises:
        ValueError: the intermediate differs from the proposal at a drafted token.
    """

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        """See `StoppingKernel.log_continue`: never stops before the end."""
        return torch.zeros(block.shape, dtype=pi.dtype, device=block.device)

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        """See `DraftKernel.__call__`."""
        horizon = full_horizon(pi) if horizon is None else horizon
        end = horizon.end(draft)
        if q is not pi and bool((prefix_sum((at_tokens(q, draft) - at_tokens(pi, draft)).abs(), end) > 1e-3).any()):
            raise ValueError(
                "intermediate differs from the proposal, but AcceptAll commits the proposal's own draft: use "
                "Proposal() as the intermediate, or the Rejection kernel"
            )
        return Move(truncate(draft, end), end, end)
