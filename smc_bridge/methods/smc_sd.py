"""SMC speculative decoding: drafts are never refused, their mistakes are weighed and resampled away."""

from __future__ import annotations

from typing import Any, Literal

from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "smc-sd", role="weighted", targets="AR", proper=True, reference="arXiv 2604.15672", rest=smc,
    without=("w", "beta", "intermediate", "kernel", "nodes", "reuse"),
    examples=("smc-sd", "smc-sd,particles=12", "smc-sd,proposal=chain"),
    published="Llama-3.1-8B with a draft of 3.2-1B, GSM8K: N = 8, gamma = 8 fastest, N = 12 most accurate",
)
def smc_sd(
    pair: ModelPair, *, particles: int = 8, window: int | Literal["auto"] = 8,
    lookahead: int | Literal["auto"] | None = None, name: str = "smc-sd", **options: Any,
) -> Sampler:
    """N particles, each commits its whole draft of gamma tokens; weights `p / q` are carried and resampled.

    In each step every particle drafts `y_1 .. y_gamma ~ q` and keeps them all, so that a step costs the same whatever
    is drafted and nothing is rolled back; `log w += sum_i log p(y_i) - log q(y_i)`. Where the ESS falls below N / 2 the
    particles are resampled (systematic), and the weights reset to their mean.

    Its role is the program with the intermediate left out, `pi = q`: what the bridge to a product is worth is the
    difference to `smc` at the same N and window. Published drafts are of a small AR model; here they are the DLM's,
    gamma marginals of one forward, or with `proposal = chain` its own chain rule (a forward per token, as an AR draft
    takes). Every window is drafted anew: there are no more marginals than gamma unless `lookahead` says so. The
    released program draws its draft at a lower temperature than the target and ends with the particle of greatest
    weight; here a sequence is drawn from the weights, and any `proposal_temperature` keeps them right. Its bonus token,
    a draw of the AR law behind a whole draft, is proper at weight one: `bonus = true`.

    Args:
        particles: N, that survive a step.
        window: gamma, tokens that are drafted and committed at once.
        lookahead: M, masked positions per forward of the DLM, gamma unless it is given.
    """
    return smc(
        pair, particles, window=window, lookahead=window if lookahead is None else lookahead, kernel="accept-all",
        name=name, **options,
    )
