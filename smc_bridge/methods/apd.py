"""Adaptive parallel decoding (APD, arXiv 2506.00413): a draft and a sample of the product of experts, by one noise.

Its exact form is a program of parts that stand elsewhere (`smc_bridge.kernels.gumbel`); what is here is what makes the
published forms biased.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch

from smc_bridge.blocks import Horizon, Move, truncate
from smc_bridge.distributions.intermediate import ProductOfExperts, check_w
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.shaping import COLDEST, HOTTEST, check_temperature
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.agreement import Agreement
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import Unweighed
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness
from smc_bridge.registry import method


class FirstForced(Kernel):
    """Commits the draft as far as it agrees with a sample of the intermediate under the draft's own noise, and its
    first token whether it does or not: that one has the proposal's law."""

    proper = False

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        tokens, sample = draft.tokens, GumbelCoupling().sample(draft, pi, source=source, horizon=horizon)
        agreed = (sample == tokens).long().cumprod(-1).sum(-1)
        block = torch.where(tokens < 0, sample, tokens)  # without an opinion the first token is not the draft's
        length = torch.minimum(agreed.clamp_min(1), horizon.end(block))
        return Move(truncate(block, length), length, torch.where(tokens[:, 0] < 0, 0, length))


@method(
    "apd", role="exact", targets="PoE", proper=True, reference="arXiv 2506.00413", rest=smc,
    without=(
        "particles", "lanes", "beta", "kernel", "nodes", "intermediate", "weight", "resampler", "trigger", "proposal",
        "proposal_temperature", "proposal_top_p", "places", "entropy", "head", "slot",
    ),
    examples=("apd,w=0.7", "apd,form=as-published,w=0.7", "apd,form=as-released,w=0.7"),
    published="Dream-7B with Qwen2.5-0.5B, R = 0.7: 'markedly higher throughput with minimal degradation' (abstract)",
)
def apd(
    pair: ModelPair, *, form: Literal["exact", "as-published", "as-released"] = "exact", w: float = 0.7,
    temperature: float = 1.0, name: str = "apd", **options: Any,
) -> Sampler:
    """One draft and one sample of the product of experts by the same noise, as far as they agree.

    At every place of a draft one vector G of Gumbel noise gives the draft `x = argmax(log q + G)` and the sample
    `z = argmax(w log q + (1 - w) log p + G)`; the tokens before the first `x != z` are committed.

    Role: an exact sampler of the PoE. In the exact form z is committed at the first disagreement: every token is a draw
    of the PoE with the marginals of its block, and so is what `Result.sample` gives, for there is one particle. Its
    weight is `p / pi`, and by it the run is a properly weighted one of the AR law as well. In the paper's form no more
    than the agreeing x are committed, but at least the first, which therefore has the diffusion model's law. The
    released code divides by the temperature T and raises the noise to the power T (drafts at `T^2`), and accepts x iff
    it is the likeliest token of the product without a temperature. Neither of these targets anything: biased baselines.

    Changed: the noise is drawn after the draft, given that the draft won, so that any proposal can take the marginals'
    place; drafts are not truncated.

    Args:
        form: exact, or one of the biased ones, of the paper or of its code.
        w: exponent R of the diffusion model.
        temperature: T, of the whole product; at 0 all laws are point masses, and the target's are kept.
    Raises:
        ValueError: an option out of range, or a temperature of 0, or without a square, where `T^2` is that of a draft.
    """
    heat, exponent = check_temperature(temperature), check_w(w)
    if form not in ("exact", "as-published", "as-released"):
        raise ValueError(f"form = {said(form)}: give exact, as-published or as-released")
    if form != "as-released":
        sampler = smc(pair, 1, w=w, kernel="gumbel", temperature=temperature, name=name, **options)
        return sampler if form == "exact" else replace(sampler, kernel=FirstForced(), weight=Unweighed())
    if heat == 0:
        raise ValueError(
            f"temperature = {said(temperature)} with form = as-released, which draws: give a positive temperature, or "
            "form = as-published"
        )
    if not COLDEST <= heat**2 <= HOTTEST:
        raise ValueError(
            f"temperature = {said(temperature)} with form = as-released, whose drafts are at its square: give a number "
            f"between {math.sqrt(COLDEST):.2g} and {math.sqrt(HOTTEST):.2g}"
        )
    # Exponents of q at T^2 and of p at T that undo both temperatures, up to a factor that no argmax sees.
    scale = max(1.0, exponent * heat)
    law = ProductOfExperts(exponent * heat / scale, (1 - exponent) / scale)
    sampler = smc(
        pair, 1, intermediate=law, temperature=heat, proposal_temperature=heat**2, name=name, **options
    )
    return replace(sampler, kernel=Agreement(), weight=Unweighed())
