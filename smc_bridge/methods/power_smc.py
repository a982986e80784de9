"""Power-SMC: whole sequences of the law `p(x)^alpha / Z`, by a program whose potential is `p(x)^(alpha - 1)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts, check_w
from smc_bridge.distributions.power import SequencePower
from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import DEFAULT_W
from smc_bridge.registry import method


@method(
    "power-smc", role="weighted", targets="AR^alpha", proper=True, reference="arXiv 2602.10273", rest=smc,
    without=("beta", "potential"), examples=("power-smc", "power-smc,w=0"),
    published="1.4 to 3.3 times the latency of plain decoding",
)
def power_smc(
    pair: ModelPair, *, particles: int = 8, alpha: float = 4.0, w: float | None = None, temperature: float = 1.0,
    proposal_temperature: float | Sequence[float] | None = None, intermediate: Intermediate | str | None = None,
    name: str = "power-smc", **options: Any,
) -> Sampler:
    """Sequences of the AR model's law to the power alpha, `p(x)^alpha / Z`, with Z estimated.

    Each token multiplies the weight by `p^alpha / pi`: the program's `p / pi`, and a potential `p^(alpha - 1)` of the
    same AR laws, so that no forward is added. The intermediate aims at the locally tempered target, `pi ∝ (q^w
    p^(1-w))^alpha`; `intermediate = poe` aims at p instead, and loses particles.

    Its role is an importance step beyond the AR model. As published there is no diffusion model: w = 0, where
    `pi ∝ p^alpha` is the published proposal (an AR model at temperature 1 / alpha, the one of least variance that looks
    at the prefix only) and the weight the published one; the DLM drafts for it and changes speed alone. Published
    particles meet after every token, here after every block: `window = 1` is the published program. Its ramp of
    exponents is left out, and so is nothing of the law. As -log Z is not 0, `-log Z_hat` alone bounds no divergence:
    `certificate` asks for log Z.

    Args:
        particles: N, that survive a step.
        alpha: the power; below 1 the law is flatter than the model's.
        w: exponent of the DLM in the intermediate before the power, 0.3 unless it is given.
        temperature: of the AR law p that is raised to the power.
        proposal_temperature: of the DLM's marginals, `temperature / alpha` unless it is given.
        intermediate: law between proposal and target, the tempered product unless it is given.
    Raises:
        ValueError: options contradict each other, or are out of range for the pair.
    """
    potential, law = SequencePower(alpha), check_temperature(temperature)
    own = law / potential.alpha if proposal_temperature is None else proposal_temperature
    plain = isinstance(options.get("kernel"), AcceptAll) or options.get("kernel") == "accept-all"
    if intermediate is None and not plain:
        share = DEFAULT_W if w is None else check_w(w)
        intermediate, w = ProductOfExperts(share, (1 - share) * potential.alpha), None
    return smc(
        pair, particles, w=w, temperature=temperature, proposal_temperature=own, intermediate=intermediate,
        potential=potential, name=name, **options,
    )
