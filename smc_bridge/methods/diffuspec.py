"""DiffuSpec (arXiv 2510.02358): a path through the diffusion model's candidates, verified by the AR model.

Search, n-gram law and length rule are a proposal (`smc_bridge.proposals.search`); here they get the published sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.adaptive import AdaptiveLength
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.ngram import NGram
from smc_bridge.proposals.search import PathSearch
from smc_bridge.registry import method


@method(
    "diffuspec", role="exact", targets="AR", proper=True, reference="arXiv 2510.02358", rest=smc,
    without=(
        "w", "beta", "intermediate", "proposal", "proposal_temperature", "proposal_top_p", "window", "lookahead",
        "places", "entropy", "head", "slot",
    ),
    examples=("diffuspec", "diffuspec,form=ratio"),
    published="Dream-7B drafts for Qwen2.5-32B at T = 0 (A100): 6.99 tokens a round, 3.08 times the AR speed; 6.05 and "
    "2.69 times without search and adaptive length",
)
def diffuspec(
    pair: ModelPair, *, form: Literal["exact", "ratio"] = "exact", particles: int = 1, beam: int = 3,
    share: float = 0.5, mass: float = 0.8, most: int = 15, order: int | None = None, ngram: NGram | None = None,
    shortest: int = 20, longest: int = 30, step: int = 10, bonus: bool = True, temperature: float = 1.0,
    name: str = "diffuspec", **options: Any,
) -> Sampler:
    """A path by beam search with an n-gram law, verified as a point mass; drafts as long as the last ones allow.

    Candidates of a place are its fewest likeliest tokens of mass .8, 15 at most, and ends of sequence. The path has the
    greatest `sum_i s log q_i(y_i) + (1 - s) log p_ngram(y_i | c, y_<i)` up to its first end of sequence, by a beam of
    three. With moving averages (rate 1/2) g of the tokens before the end of sequence and b of those accepted, the next
    draft has `clip(floor(g) + step [b >= g], shortest, longest)` places, which are also the masks of its forward.

    Role: an exact sampler of the AR law; its proposal (`proposal = search`) serves any intermediate that dominates the
    target by itself. At temperature 0 every token is the AR model's likeliest. At any other a path is no draw of the
    marginals: the token y is accepted with probability `p(y)`, else one is drawn from p without y. The form ratio
    accepts by `p(y) / q(y)` of the marginals instead: a biased baseline.

    Changed: the point-mass rule; an n-gram law fitted on the prompt and what is committed, or given, in place of a
    model trained elsewhere; the search ends where the best path has ended, as only paths of one length are compared.

    Args:
        form: exact, or ratio for the biased test of a path against the marginals.
        particles: N, that survive a step; their weights are one.
        beam: paths that are kept.
        share: s, of the diffusion model in the score; 1 asks no n-gram law.
        mass: of the candidates of a place, at least.
        most: candidates of a place, at most.
        order: n of the n-gram law, 3 unless it is given.
        ngram: fitted on texts, an object, instead of each row's own.
        shortest: fewest places of a draft.
        longest: most places of a draft; as many as shortest for a fixed length.
        step: places more after drafts that were accepted whole.
        bonus: whether a draft accepted whole is followed by one more token of the target.
    """
    if form not in ("exact", "ratio"):
        raise ValueError(f"form = {said(form)}: give exact or ratio")
    if share == 1:
        for option, value in (("order", order), ("ngram", ngram)):
            if value is not None:
                raise ValueError(f"{option} = {said(value)} with share = 1, which asks no n-gram law: leave it out")
    if order is not None and ngram is not None:
        raise ValueError(f"order = {said(order)} with ngram = {said(ngram)}, which has its own: leave it out")
    lengths = AdaptiveLength(shortest, longest, step)
    sampler = smc(
        pair, particles, window=lengths.longest, temperature=temperature, bonus=bonus, name=name,
        **{"intermediate": "target", **options},
    )
    base = sampler.proposal
    assert isinstance(base, DLMProposal)
    search = PathSearch(
        base, beam=beam, share=share, mass=mass, most=most, order=3 if order is None else order, ngram=ngram,
        lengths=lengths, ratio=form == "ratio",
    )
    return replace(sampler, proposal=search)
