"""Importance steps: the log weight of a lane's block, and the kernel that accepts everything.

`log w = sum_{i<=L} [log p(x_i) - log pi^(k)(x_i)]` is a proper weight at the random length L, because the target is
extended by the same stopping kernel and `kappa` cancels (docs/theory, section 4): a sum, never a mean over length;
against pi, never against q; log-probabilities, never raw logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, prefix_sum, truncate
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.intermediate import Intermediate, checked_log_prob, experts_read
from smc_bridge.distributions.law import Law, along
from smc_bridge.distributions.views import Instead
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.protocol import Kernel, StoppingKernel, Verified, Verifier
from smc_bridge.kernels.rejection import commit_residual
from smc_bridge.kernels.tree_build import Tree
from smc_bridge.models.arguments import called, said, true_or_false
from smc_bridge.models.checks import refuse
from smc_bridge.plugins import check_tensor, foreign
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, as_source


class Lanes(NamedTuple):
    """All that is known of the K lanes of R particles after the move.

    Attributes:
        q: `[R, K, V, A]`, each lane's own proposal, along its draft.
        p: `[R, K, V, A]`, target along each lane's block.
        pi: `[R, K, V, A]`, each lane's own intermediate along its block.
        move: blocks, lengths and accepted counts, each with leading dimensions `[R, K]`.
        horizon: where blocks must end, `window: [R]`.
        bonus: place of each lane's bonus token, `[R, K]`, -1 for none; None where no lane has one (`Draft`).
    """

    q: Law
    p: Law
    pi: Law
    move: Move
    horizon: Horizon
    bonus: Tensor | None = None


class WeightRule(Protocol):
    """An importance step: from the lanes of a step to their log-weight increments."""

    @property
    def proper(self) -> bool:
        """Whether the increments are proper weights of the committed blocks for the target."""
        ...

    @property
    def lanewise(self) -> bool:
        """Whether a lane's increment depends on that lane alone: conditional runs need that.

        A rule that is not asks for laws along the other lanes' blocks: then q must factorise.
        """
        ...

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """Log-weight increments of the lanes, `[R, K]` float64, nats; a particle's lanes are averaged (`- log K`)."""
        ...


def checked_increments(
    rule: WeightRule, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate
) -> Tensor:
    """What a weight rule returns, checked: log-weight increments `[R, K]`, nats.

    Raises:
        ValueError: it has another shape or kind, NaN, or +inf; the message names the rule.
    """
    found, source = rule(lanes, kernel=kernel, intermediate=intermediate), f"weight {called(rule)}"
    check_tensor(found, source, tuple(lanes.move.length.shape), "float", lanes.move.length.device)
    if foreign(rule):
        refuse(
            found.isnan() | (found == math.inf),
            lambda at: f"{source} returned {float(found[at]):g} for lane {at[1]} of particle {at[0]}: return log "
            "weights, finite or -inf",
        )
    return found


class OwnWeights:
    """Each lane weighs by its own intermediate: `log p(x) - log pi^(k)(x)` (docs/theory, Theorem 1)."""

    proper = lanewise = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        block, length = lanes.move.block, lanes.move.length
        log_p, log_pi = (x.double() for x in along([lanes.p, lanes.pi], block))
        return prefix_sum(torch.where(log_p == -math.inf, -math.inf, log_p - log_pi), length)


class Unweighed:
    """Every block weighs one, whatever its law: not a weight of anything."""

    proper, lanewise = False, True

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """Zeros, `[R, K]` (`WeightRule.__call__`)."""
        return torch.zeros(lanes.move.length.shape, dtype=torch.float64, device=lanes.move.length.device)


class BalanceHeuristic:
    """Lanes as strategies of multiple importance sampling (Veach & Guibas 1995; docs/theory, Proposition 6):

    `w = p(x_{1:L}) sum_j kappa_j(L | x) / sum_j g_j(x, L)`, closed form and without a further forward, because the
    proposals do not depend on the block and the target along the block is known.
    """

    proper, lanewise = True, False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        log_p = prefix_sum(lanes.p.at(lanes.move.block), lanes.move.length)  # [R, K]
        log_stop, log_density = self.cross(lanes, kernel=kernel, intermediate=intermediate)
        total = log_density.logsumexp(-1)
        weight = log_p + log_stop.logsumexp(-1) - total
        # Round-off can refuse a token at which pi and q are equal: no lane has a law of that block, 0 / 0.
        weight = torch.where(total == -math.inf, OwnWeights()(lanes, kernel=kernel, intermediate=intermediate), weight)
        return torch.where(log_p == -math.inf, -math.inf, weight)

    def cross(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> tuple[Tensor, Tensor]:
        """`log kappa_j` and `log g_j` of every lane's block under every lane's law, `[R, K, K]` (block, law)."""
        rows, count, _, _ = lanes.q.shape
        horizon = lanes.horizon.of_lanes(count)
        q, p = lanes.q.shaped(rows * count), lanes.p.shaped(rows * count)
        bonus = None if lanes.bonus is None else lanes.bonus.flatten()
        first = torch.arange(rows, device=q.device).repeat_interleave(count) * count
        stops, densities = list[Tensor](), list[Tensor]()
        for k in range(count):
            pi = bridge_law(intermediate, q, p.of_rows(first + k), lanes=count, bonus=bonus)
            block = lanes.move.block[:, k].repeat_interleave(count, 0)
            length = lanes.move.length[:, k].repeat_interleave(count)
            for law, found in ((kernel.log_stop, stops), (kernel.log_density, densities)):
                value = law(q, pi, block, length, horizon=horizon)
                check_tensor(value, called(law), (rows * count,), "float", block.device)
                found.append(value.reshape(rows, count))
        return torch.stack(stops, dim=1), torch.stack(densities, dim=1)


@dataclass(frozen=True)
class AcceptAll(StoppingKernel):
    """Plain importance sampling: the whole draft is committed. Lossless for q, so the intermediate must be q.

    Attributes:
        bonus: whether a draft may end with a place that it leaves open (`PAD`, and no mass of q). The target is known
            there when the draft is scored, and a token of p is committed at weight one: pi is p where there is no q.
            One more draw is made for every row.
    Raises:
        ValueError: the intermediate differs from the proposal at a drafted token, or a place has none without `bonus`.
    """

    bonus: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bonus", true_or_false("bonus", self.bonus))  # the class is frozen

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """0 at drafted places, `[R, V]`: the kernel never stops before the end, or the place that is left open; see
        `StoppingKernel.log_continue`."""
        on = torch.zeros(block.shape, dtype=pi.dtype, device=block.device)
        return torch.where(q.at(block) == -math.inf, -math.inf, on) if self.bonus else on

    def move(
        self, draft: Draft, verifier: Verifier, *, source: Randomness, horizon: Horizon, pinned: Pinned | None = None
    ) -> Verified:
        """See `Kernel.move`; with `bonus` the intermediate is the target where the draft has no token."""
        asked = _OpenPlaces(verifier) if self.bonus else verifier
        return super().move(draft, asked, source=source, horizon=horizon, pinned=pinned)

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        q, tokens = draft.q, draft.tokens
        end = horizon.end(tokens)
        silent = (tokens == PAD) & (torch.arange(tokens.shape[1], device=tokens.device) < end[:, None])
        if not self.bonus and bool(silent.any()):
            row, place = silent.nonzero()[0].tolist()
            raise ValueError(
                f"the draft has no token at place {place} of row {row}, and AcceptAll commits the draft as it is: use "
                "Rejection(), or AcceptAll(bonus=True)"
            )
        drafted = torch.where(silent.any(-1), silent.to(torch.uint8).argmax(-1), end) if self.bonus else end
        if q is not pi:
            log_q, log_pi = along([q, pi], tokens)
            if bool((prefix_sum((log_q - log_pi).abs(), drafted) > 1e-3).any()):
                raise ValueError(
                    "intermediate differs from the proposal, but AcceptAll commits the proposal's own draft: use "
                    "Proposal() as the intermediate, or the Rejection kernel"
                )
        if self.bonus:
            own = as_source(source, q.rows, device=q.device)
            return commit_residual(q, pi, tokens, drafted, end, source=own)
        return Move(truncate(tokens, end), end, end)

    def check(self, intermediate: Intermediate) -> None:
        """See `Kernel.check`: the intermediate must be the proposal."""
        flat = torch.log_softmax(torch.arange(4.0), -1)[None, None, None]  # one lane, one position
        others = [flat.flip(-1)] * experts_read(intermediate)
        if not torch.equal(checked_log_prob(intermediate, flat, flat.flip(-1), *others), flat):
            raise ValueError(
                f"intermediate = {said(intermediate)} with AcceptAll, which commits the proposal's own draft: "
                "use Proposal()"
            )


@dataclass(frozen=True)
class _OpenPlaces:
    """A verifier's answers, where the intermediate of places without a token is the target (implements `Verifier`)."""

    verifier: Verifier

    @property
    def walks(self) -> int:
        """See `Verifier.walks`."""
        return self.verifier.walks

    def along(self, tokens: Tensor) -> tuple[Law, Law]:
        """See `Verifier.along`."""
        p, pi = self.verifier.along(tokens)
        return p, Instead(pi, tokens == PAD, p)

    def at_nodes(self, tree: Tree, q: Law) -> tuple[Law, Law]:
        """See `Verifier.at_nodes`."""
        return self.verifier.at_nodes(tree, q)
