"""`StoppedPrefix`: the law of a block that a kernel stops at a random length, as a Pyro distribution.

Kernels that are lossless for the intermediate pi are randomised stopping times: whatever the block, they stop it after
L tokens with probability `kappa(L | x_{1:L})`, a function of the block, q and pi (`smc_bridge.kernels.protocol`). So
every law of blocks has a stopped version,

    StoppedPrefix(base)(x_{1:L}) = base(x_{1:L}) kappa(L | x_{1:L}).

*Why the importance weight is right.* The guide's site is `StoppedPrefix(pi)`: that is the kernel's own law g, so to run
the kernel is to draw from the site. The model's site is `StoppedPrefix(p)`: the target, extended by the same stopping
time, and still normalised because `sum_L kappa(L | x) = 1` along every path. The ratio of the two densities is

    p(x_{1:L}) kappa(L | x_{1:L})     p(x_{1:L})
    ----------------------------- = --------------,
    pi(x_{1:L}) kappa(L | x_{1:L})   pi(x_{1:L})

a sum of log-ratios over the L committed tokens: `kappa` stands on both sides and cancels, although L is random and
differs between particles (stopping-time resampling: Chen, Xie & Liu, JRSS-B 2005).

A value is one LongTensor `[..., V]`: tokens, then padding (-1), so its length can be read off. A row whose window is 0
is *absorbed* (a finished particle): its only value is the empty prefix, of log-probability 0 under every base.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from smc_bridge.blocks import Horizon, prefix_sum, truncate
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.protocol import StoppingKernel, going_on
from smc_bridge.models.ends import is_end
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.pyro_program.block import Block, all_blocks, at_tokens, broadcast, check_same_shape
from smc_bridge.randomness import as_source


class StoppedPrefixes(constraints.Constraint):
    """Non-empty token sequences up to the window and nothing after an end of sequence, padded; empty at window 0."""

    is_discrete = True
    event_dim = 1

    def __init__(self, vocab_size: int, horizon: Horizon) -> None:
        self.vocab_size = vocab_size
        self.horizon = horizon
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each padded block is one that may be committed, `[..., V]` -> BoolTensor `[...]`."""
        length = stopped_length(value)
        position = torch.arange(value.shape[-1], device=value.device)
        inside = position < length[..., None]
        legal = torch.where(inside, (value >= 0) & (value < self.vocab_size), value == PAD).all(-1)
        if self.horizon.ends:
            legal = legal & ~(is_end(value, self.horizon.ends) & (position < length[..., None] - 1)).any(-1)
        return legal & (length <= self.horizon.window) & (length >= self.horizon.window.clamp_max(1))


def stopped_length(value: Tensor) -> Tensor:
    """Tokens in each padded block, `[..., V]` -> `[...]`."""
    return (value != PAD).sum(-1)


class StoppedPrefix(TorchDistribution):  # type: ignore[misc]
    """Law `base(x_{1:L}) kappa(L | x_{1:L})` of stopped blocks (module docstring).

    Args:
        base: law of the tokens; the intermediate for the guide, the target for the model.
        kernel: gives kappa.
        proposal, intermediate: q and pi that kappa depends on.
        horizon: where blocks must end; `window` has the shape of the batch, entries 0 to V.
    Raises:
        ValueError: the kernel has no stopping law, laws of different shapes, or a window out of range.
    """

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, base: Block, kernel: StoppingKernel, proposal: Block, intermediate: Block, horizon: Horizon, *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(kernel, StoppingKernel):
            raise ValueError(f"kernel {type(kernel).__name__} has no stopping law: use a proper kernel")
        check_same_shape(proposal, base)
        check_same_shape(intermediate, base)
        if horizon.window.shape != base.batch_shape:
            raise ValueError(
                f"horizon.window has shape {tuple(horizon.window.shape)} for a batch {tuple(base.batch_shape)}: "
                "give one window per sequence"
            )
        if bool(((horizon.window < 0) | (horizon.window > base.window)).any()):
            raise ValueError(f"horizon.window = {horizon.window.tolist()}: give 0 to {base.window} tokens")
        self.base = base
        self.kernel = kernel
        self.proposal = proposal
        self.intermediate = intermediate
        self.horizon = horizon
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Padded blocks that end at the horizon or before."""
        return StoppedPrefixes(self.base.vocab_size, self.horizon)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StoppedPrefix:
        """The same law on a larger batch; its draws are independent."""
        new = copy.copy(self)
        shape = torch.Size(batch_shape)
        new.base = self.base.expand(shape)
        new.proposal = self.proposal.expand(shape)
        # The kernel may be run only where base and intermediate are one object; see `sample`.
        new.intermediate = new.base if self.base is self.intermediate else self.intermediate.expand(shape)
        new.horizon = Horizon(self.horizon.window.expand(shape), self.horizon.ends)
        new._batch_shape = shape
        return new

    def _owners(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Of every element of a batch of that shape: its place in the flattened batch, and its window; both flat."""
        count = self.horizon.window.numel()
        place = torch.arange(count, device=self.horizon.window.device).reshape(self.batch_shape)
        place = place.expand(shape).reshape(-1)
        return place, self.horizon.window.reshape(-1)[place]

    def _laws(self, place: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """`log q` and `log pi` along `block: [B, V]` of elements `place: [B]` of the flattened batch, `[B, V, A]`."""
        return self.proposal.select(place).along(block), self.intermediate.select(place).along(block)

    def log_prob(self, value: Tensor) -> Tensor:
        """`base.prefix_log_prob + kernel.log_stop` of padded blocks `[..., V]`, `[...]` float64, nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast(value.shape[:-1], self.batch_shape)
        flat = value.expand(*shape, -1).reshape(-1, self.base.window)
        place, window = self._owners(shape)
        length = stopped_length(flat)
        out = torch.where(length == 0, 0.0, -torch.inf).double()
        live = (window > 0).nonzero().flatten()
        if live.numel():
            block, count = flat[live].clamp_min(0), length[live]
            log_q, log_pi = self._laws(place[live], block)
            stop = self.kernel.log_stop(
                log_q, log_pi, block, count, horizon=Horizon(window[live], self.horizon.ends)
            )
            own = self.base is self.intermediate
            log_base = log_pi if own else self.base.select(place[live]).along(block)
            inside = prefix_sum(at_tokens(log_base, block), count)
            impossible = (inside == -torch.inf) | (stop == -torch.inf)
            out[live] = torch.where(impossible, -torch.inf, inside + stop)
        return out.reshape(shape)

    def log_last_accepted(self, value: Tensor) -> Tensor:
        """Log-probability that the last token of a given block was the draft's own, nats, `[...]` float64.

        It can only be where the block ends because it must; there it is the probability `c_L` of going on. Such a block
        leaves the rest of the draft's marginals good for the next one (elastic window).
        """
        shape = broadcast(value.shape[:-1], self.batch_shape)
        flat = value.expand(*shape, -1).reshape(-1, self.base.window)
        place, window = self._owners(shape)
        length = stopped_length(flat)
        out = torch.full((flat.shape[0],), -torch.inf, dtype=torch.float64, device=flat.device)
        live = (window > 0).nonzero().flatten()
        if live.numel():
            horizon = Horizon(window[live], self.horizon.ends)
            block, count = flat[live].clamp_min(0), length[live]
            log_c = going_on(self.kernel, *self._laws(place[live], block), block, horizon=horizon)
            last = log_c.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0]
            if self.kernel.reads_marginals:  # no node stands at the window: who gets there was in the tree
                last = torch.where(count == horizon.window, 0.0, last)
            out[live] = torch.where(count == horizon.end(flat[live]), last, -torch.inf)
        return out.reshape(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw stopped blocks, padded, `[*sample_shape, *batch_shape, V]`.

        From the intermediate, a kernel of linear drafts is run as it is: draft from q, verify, correct. Otherwise the
        tokens are drawn from the base one by one and the stop is simulated by `kernel.log_continue`.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        place, window = self._owners(shape)
        out = torch.full((place.numel(), self.base.window), PAD, dtype=torch.long, device=place.device)
        live = (window > 0).nonzero().flatten()
        if live.numel():
            out[live] = self._stop(place[live], Horizon(window[live], self.horizon.ends))
        return out.reshape(*shape, self.base.window)

    def _stop(self, place: Tensor, horizon: Horizon) -> Tensor:
        """Stopped blocks of elements `place: [B]` of the flattened batch, `[B, V]`."""
        generator = torch.default_generator
        if self.base is self.intermediate and not self.kernel.reads_marginals and self.proposal.independent:
            nothing = torch.zeros(place.numel(), self.base.window, dtype=torch.long, device=place.device)
            log_q = self.proposal.select(place).along(nothing)  # whatever the block
            q = Dense(log_q)
            tokens = as_source(generator, place.numel(), device=log_q.device).categorical(q)
            pi = Dense(self.intermediate.select(place).along(tokens))
            draft = Draft(tokens, q, horizon.window)
            return self.kernel(draft, pi, source=generator, horizon=horizon).block
        block = self.base.select(place).sample()
        log_c = going_on(self.kernel, *self._laws(place, block), block, horizon=horizon)
        uniform = torch.rand(block.shape, dtype=torch.float64).to(block.device)
        going = (uniform < log_c.exp()).long().cumprod(-1).sum(-1)
        return truncate(block, torch.minimum(going + 1, horizon.end(block)))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All stopped blocks, `[C, *batch_shape, V]` (batch of ones if not expanded), shortest first.

        Raises:
            ValueError: there are too many to list, or the windows in the batch differ.
        """
        windows = sorted(set(self.horizon.window.flatten().tolist()))
        if len(windows) != 1:
            raise ValueError(f"horizon.window = {windows}: one list cannot serve different windows; split the batch")
        window, size, device = windows[0], self.base.vocab_size, self.horizon.window.device
        values = [torch.full((int(window == 0), self.base.window), PAD, device=device)]
        for length in range(1, window + 1):
            whole = all_blocks(size, length, device=device)
            if self.horizon.ends:
                whole = whole[~is_end(whole[:, :-1], self.horizon.ends).any(-1)]
            values.append(torch.nn.functional.pad(whole, (0, self.base.window - length), value=PAD))
        listed = torch.cat(values).reshape(-1, *(1,) * len(self.batch_shape), self.base.window)
        return listed.expand(-1, *self.batch_shape, -1) if expand else listed
