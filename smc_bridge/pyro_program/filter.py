"""`EvidenceSMCFilter`: Pyro's `SMCFilter`, repaired.

`pyro.infer.SMCFilter` runs a model and a guide step by step over a plate of particles. Three things stand in the way of
using it for research, and are mended here:

1. *It throws log Z away* (weights are shifted to maximum 0 and reset to 0 on resampling, in float32). Here weights are
   carried in float64, resampling resets them to their mean, and `log_evidence` is their log-mean at any time.
2. *It breaks on auxiliary guide sites*, which the model does not have (`KeyError`). Here such a site's factor is 1: the
   target is extended by the very law that the guide drew it from, given what was drawn before it, which is proper
   whatever the site is, unless a later `Delta` site is a function of it (then the model must say how it came about).
3. *Its systematic resampler can return an index out of range* when the cumulative weights do not reach 1 by round-off.
   Here the resampler is an argument (`smc_bridge.engine.resampling`), as are the trigger and the generator.

Draws at sample sites come from torch's global generator, as everywhere in Pyro: seed it with `pyro.set_rng_seed`.
Only the resampler's draws come from the `generator`. If every weight is 0 the evidence is 0 (`-inf`): that is an
estimate, not an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from pyro.infer import SMCFilter
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from smc_bridge.engine.resampling import Resampler, Systematic, check_ancestors
from smc_bridge.engine.weights import EssBelow, Trigger, check_log_weights, check_trigger, ess, log_mean
from smc_bridge.randomness import Randomness


class FilterStep(NamedTuple):
    """What one step did.

    Attributes:
        log_increments: log weight that each particle earned, `[N]` nats.
        ess: effective sample size before resampling, particles.
        ancestors: `[N]`; the particles themselves if `resampled` is False.
        resampled: whether particles interacted.
        log_weights: carried log weights afterwards, `[N]` nats.
    """

    log_increments: Tensor
    ess: float
    ancestors: Tensor
    resampled: bool
    log_weights: Tensor


class EvidenceSMCFilter(SMCFilter):  # type: ignore[misc]
    """`SMCFilter` with an evidence estimate, auxiliary guide sites and a pluggable resampler (module docstring).

    Args:
        model, guide, num_particles, max_plate_nesting: as for `SMCFilter`.
        resampler: draws ancestors.
        trigger: decides from the log weights `[1, N]` whether to.
        may_resample: decides from the state whether resampling is of any use (default: always).
        generator: of the resampler's draws; torch's global one by default.
    """

    def __init__(
        self, model: Any, guide: Any, num_particles: int, max_plate_nesting: int, *,
        resampler: Resampler | None = None, trigger: Trigger | None = None,
        may_resample: Callable[[Any], bool] | None = None, generator: Randomness | None = None,
    ) -> None:
        super().__init__(model, guide, num_particles, max_plate_nesting)
        self.resampler = Systematic() if resampler is None else resampler
        self.trigger = EssBelow() if trigger is None else trigger
        self.may_resample = may_resample or (lambda state: True)
        self.generator: Randomness = torch.default_generator if generator is None else generator
        self.state._log_weights = torch.zeros(num_particles, dtype=torch.float64)
        self.model_trace: Any = None
        self.history: list[FilterStep] = []

    @property
    def log_weights(self) -> Tensor:
        """Carried log weights, `[N]` float64, nats."""
        weights: Tensor = self.state._log_weights
        return weights

    @property
    def log_evidence(self) -> float:
        """`log Z_hat` of the sites so far, nats."""
        return float(log_mean(self.log_weights))

    @torch.no_grad()
    def _update_weights(self, model_trace: Any, guide_trace: Any) -> None:
        """Add `log p - log q` of the sites they share and `log p` of the model's observed sites.

        Raises:
            ValueError: a weight is NaN or +inf, the guide observes a site, or an auxiliary site decides a `Delta`.
        """
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        increments = torch.zeros_like(self.log_weights)
        auxiliary = False
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                raise ValueError(f"guide site {name!r} is observed: observe it in the model")
            if name not in model_trace.nodes or model_trace.nodes[name]["is_observed"]:
                auxiliary = True
                continue
            if auxiliary and isinstance(innermost(site["fn"]), Delta):
                raise ValueError(
                    f"guide site {name!r} is a Delta after an auxiliary site: give the model the auxiliary site too"
                )
            # A particle of weight zero stays there: -inf - log q needs log q > -inf, which a drawn value has.
            increments += self._per_particle(model_trace.nodes[name]) - self._per_particle(site)
        for site in model_trace.nodes.values():
            if site["type"] == "sample" and site["is_observed"]:
                increments += self._per_particle(site)
        self.state._log_weights = check_log_weights(self.log_weights + increments)
        self.model_trace = model_trace
        self._increments = increments

    def _per_particle(self, site: Any) -> Tensor:
        """A site's log-probability, summed to `[N]` float64, where the weights live."""
        log_prob: Tensor = site["log_prob"]
        return log_prob.reshape(self.num_particles, -1).double().sum(-1).to(self.log_weights.device)

    def _maybe_importance_resample(self) -> None:
        """Resample if the trigger fires, and note the step in `history`."""
        before = self.log_weights
        size = float(ess(before))
        alive = bool((before > -torch.inf).any())
        resample = bool(self.state) and alive and self.may_resample(self.state)
        resample = resample and bool(check_trigger(self.trigger, before[None])[0])
        ancestors = torch.arange(self.num_particles)
        if resample:
            ancestors = check_ancestors(self.resampler, before, self.num_particles, source=self.generator)
            carried = log_mean(before).expand(self.num_particles).clone()
            self.state._resample(ancestors)  # which sets the weights to zero in place
            self.state._log_weights = carried
        self.history.append(FilterStep(self._increments, size, ancestors, resample, self.log_weights))


def innermost(fn: Any) -> Any:
    """A distribution without its wrappers (masked, expanded, independent)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
