"""Draft & Verify (Zhang et al. 2023, arXiv 2309.08168, ACL 2024): the AR model without some layers drafts for itself;
and that cheap model as a third expert beside the diffusion model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from smc_bridge.distributions.experts import Experts, check_exponent
from smc_bridge.distributions.intermediate import Target
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import check_pair, codec, smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.arguments import real_between, said, true_or_false, whole_number
from smc_bridge.models.protocols import CausalLM, ModelPair
from smc_bridge.names import DEFAULT_W, named
from smc_bridge.proposals.skip_search import drafter_of
from smc_bridge.proposals.skipped import CausalProposal
from smc_bridge.randomness import Stream
from smc_bridge.registry import method

FORMS = ("sampled", "point", "greedy")


class GreedyDrafts(CausalProposal):
    """The likeliest token of each place, handed on with the law that it was *not* drawn from: the published default."""

    proper = False

    def drawn(self, law: Law, draw: Stream, rows: Tensor) -> Tensor:
        """The likeliest tokens of rows `[n]` under `law: [n, 1, A]`, `[n, 1]`; nothing is drawn (the bias)."""
        return law.dense().argmax(-1)


def _drafter(
    pair: ModelPair, draft: CausalLM | None, *, search: int, search_seed: int | None,
    attention: int | Sequence[float] | None, mlp: int | Sequence[float] | None,
    prompts: Sequence[Sequence[int]] | None = None, window: int = 8, temperature: float,
) -> CausalLM:
    """The model that is given, or what is left of the target's; ValueError where an option would not be read."""
    of_search = (("search_seed", search_seed), ("prompts", prompts))
    for option, value in (("attention", attention), ("mlp", mlp), ("search", search or None), *of_search):
        if draft is not None and value is not None:
            raise ValueError(f"{option} = {said(value)} with a draft model, of which nothing is left out: leave it out")
    for option, value in of_search:
        if value is not None and not search:
            raise ValueError(f"{option} = {said(value)} with search = 0, which has none: leave it out, or give search")
    return draft if draft is not None else drafter_of(
        pair.ar, attention=attention, mlp=mlp, trials=search, seed=0 if search_seed is None else search_seed,
        window=window, temperature=temperature, prompts=prompts,
    )


@method(
    "draft-verify", role="exact", targets="AR", proper=True, reference="arXiv 2309.08168 (ACL 2024)",
    examples=("draft-verify", "draft-verify,search=30", "draft-verify,form=greedy"),
    published="about twice the speed of LLaMA-2, text unchanged",
)
def draft_verify(
    pair: ModelPair, *, window: int = 8, form: Literal["sampled", "point", "greedy"] = "sampled",
    kernel: Kernel | str = "rejection", attention: int | Sequence[float] | None = None,
    mlp: int | Sequence[float] | None = None, search: int = 0, search_seed: int | None = None,
    threshold: float = 0.5, adapt: bool = True, acceptance: float | None = None, step: float | None = None,
    bonus: bool = True, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None,
    draft: CausalLM | None = None, prompts: Sequence[Sequence[int]] | None = None, name: str = "draft-verify",
) -> Sampler:
    """The AR model drafts without some of its attention and MLP sub-layers, and verifies the draft whole: exact.

    Drafting goes on token by token, `y_i ~ r(. | c, y_<i)`, until r gives a drafted token less than a threshold, which
    follows the acceptance of the past. The AR model reads the draft in one forward; `y_i` stays with probability
    `min(1, p_i / r_i)`, the first refusal is corrected by `(p_i - r_i)_+`. In the program: a chain proposal with a
    tractable density under the intermediate `pi = p`. The token that ends drafting is itself verified, so that where a
    draft ends is known from what is committed, and every kernel stays exact. The diffusion model is not asked; forwards
    of the model that drafts are counted where a proposal's are (`dlm_forwards`).

    Changed: the published default drafts the likeliest tokens and tests them against the full softmax, `form =
    greedy`, which is biased at every temperature but 0. `form = point` takes the same tokens for the point masses that
    they are and is exact. The acceptance that the threshold follows counts tokens up to the first refusal. What is left
    out is named, found by a seeded search over 2 L booleans that counts its costs in layers (once, when the decoder is
    made: its forwards are in no result), or the attention and the MLP of every third layer but for the first and the
    last.

    Args:
        pair: the models, of which the autoregressive model decodes.
        window: tokens drafted at most.
        form: sampled: drawn, exact; point: the likeliest, as point masses, exact; greedy: the likeliest, tested as if
            drawn, biased.
        kernel: rejection is the published rule; block accepts more.
        attention: layers whose attention is left out, with / between them.
        mlp: layers whose MLP is left out, with / between them.
        search: trials of a search for what to leave out, 0 for none.
        search_seed: of the search, 0 unless it is given.
        threshold: confidence below which a drafted token is the last, at first; 0 for never.
        adapt: let the threshold follow the past.
        acceptance: share of accepted tokens that it follows, 0.9 unless it is given.
        step: how far it is moved at a time, before it is averaged, 0.01 unless it is given.
        bonus: whether a draft accepted whole is followed by one more token of the target.
        temperature: of both; 0 is greedy.
        top_p: of the target.
        top_k: of the target, none keeps all tokens.
        draft: another causal model that drafts, an object.
        prompts: token ids that the search continues, a list; by default the model's own beginning.
    Raises:
        ValueError: options contradict each other, or are out of range for the pair.
    """
    check_pair(pair)
    if form not in FORMS:
        raise ValueError(f"form = {said(form)}: give one of {', '.join(FORMS)}")
    window = whole_number("window", window, remedy="draft at least 1 token, a whole number")
    share = "give a number in [0, 1]"
    threshold = real_between("threshold", threshold, 0.0, 1.0, remedy=share)
    for option, value in (("acceptance", acceptance), ("step", step)):
        if value is not None and not (true_or_false("adapt", adapt) and threshold):
            why = f"threshold = {said(threshold)}" if adapt else "adapt = False"
            raise ValueError(f"{option} = {said(value)} with {why}, which follows no past: leave it out")
    follows = real_between("acceptance", 0.9 if acceptance is None else acceptance, 0.0, 1.0, remedy=share)
    model = _drafter(
        pair, draft, attention=attention, mlp=mlp, search=search, search_seed=search_seed, window=window,
        temperature=temperature, prompts=prompts,
    )
    kind = GreedyDrafts if form == "greedy" else CausalProposal
    proposal = kind(
        model, temperature=0.0 if form == "point" else temperature, lookahead=window, threshold=threshold,
        adapt=true_or_false("adapt", adapt) and threshold > 0, target=follows, step=0.01 if step is None else step,
    )
    return Sampler(
        proposal, ARTarget(pair.ar, temperature=temperature, top_p=top_p, top_k=top_k), Target(),
        kernel=named("kernel", kernel), window=window, bonus=bonus, name=name, **codec(pair),
    )


@method(
    "three-experts", role="weighted", targets="AR", proper=True, reference="arXiv 2309.08168 in a product", rest=smc,
    without=("intermediate", "beta", "weight"),
)
def three_experts(
    pair: ModelPair, *, particles: int = 4, w: float | None = None, expert: float = 0.3,
    attention: int | Sequence[float] | None = None, mlp: int | Sequence[float] | None = None, search: int = 0,
    search_seed: int | None = None, temperature: float = 1.0, draft: CausalLM | None = None,
    name: str = "three-experts", **options: Any,
) -> Sampler:
    """The diffusion model drafts; the bridge is a product of it, the AR model, and the AR model without some layers.

    `pi ∝ q^w p^(1 - w - c) r^c`, with r the AR model without some of its layers, asked where the AR model is. A
    negative c moves away from r (contrast, guidance); 0 is the product of two. Weights are `p / pi`, and all is as in
    `smc` besides. Forwards of r are counted with the AR model's.

    Args:
        w: exponent of the diffusion model, 0.3 unless it is given.
        expert: c, exponent of the AR model without some layers.
        attention: layers whose attention is left out, with / between them.
        mlp: layers whose MLP is left out, with / between them.
        search: trials of a search for what to leave out, 0 for none.
        search_seed: of the search, 0 unless it is given.
        draft: another causal model as the third expert, an object.
    """
    check_pair(pair)
    exponent = check_exponent("expert", expert)
    model = _drafter(
        pair, draft, attention=attention, mlp=mlp, search=search, search_seed=search_seed, temperature=temperature
    )
    bridge = Experts([exponent], w=DEFAULT_W if w is None else w)
    return smc(
        pair, particles, temperature=temperature, experts=[model], intermediate=bridge, name=name, **options
    )
