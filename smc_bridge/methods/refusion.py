"""ReFusion (arXiv 2512.13586): slots are planned by the diffusion model and filled by the AR model."""

from __future__ import annotations

from typing import Any, Literal

from smc_bridge.canvas.build import WHOLE
from smc_bridge.canvas.slot_filling import SlotFilling
from smc_bridge.engine.presets import check_pair, smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.facts import UnsuitedError
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method


@method(
    "refusion", role="baseline", targets="AR", proper=False, reference="arXiv 2512.13586",
    why="slots kept by thresholds",
    examples=("refusion", "refusion,span=4", "refusion,form=drawn"),
    published="Qwen3-8B with slots: average 72.6 at 72.6 tok/s; LLaDA 48.5 at 12.4, Dream 48.3 at 8.8, AR 73.4 at 32.4",
)
def refusion(
    pair: ModelPair, *, form: Literal["thresholded", "drawn"] = "thresholded", slot: int = 4,
    tau_slot: float | None = None, tau_token: float | None = None, span: int | None = None,
    lookahead: int | None = 256, temperature: float = 1.0, top_p: float = 1.0, name: str = "refusion",
) -> SlotFilling | Sampler:
    """Slots of k places: their first tokens by the diffusion model, out of order, the others by the AR model.

    Thresholded, as released: one forward of the diffusion model drafts every masked slot and chooses those whose first
    drafted token has a probability above tau_slot, else the best one. One forward of the AR model reads the chosen
    drafts in order of their places; the longest prefix of tokens above tau_token is accepted, the first token of each
    slot in any case, and slots that are whole in it are kept. If none is, each chosen slot is filled by passes of its
    own: what is above tau_token is accepted, the next token is drawn from the AR law, the rest drafted anew. A biased
    baseline.

    Drawn: its own law with slots drawn from left to right, `q(y | c) = prod over slots of q_D(y_1 | c) prod_{j > 1}
    p_A(y_j | y_<j)`, a chain with a tractable density. Everything drafted is kept and weighs `p / q`, which leaves of a
    slot the ratio of its first token: properly weighted, a forward of the AR model for each token that is not the
    first of its slot. The same law is the proposal refusion of any program.

    Changed: the published model is one network with weights of its own, which plans and fills, and caches slots in the
    order they were finished in. Here the models of a pair play the two roles and need no training. An AR model that was
    trained on text from left to right reads what is finished and chosen in order of the places, with masked slots left
    out; behind a gap its laws are those of a text that jumps, so that a pair like the embedded one gets little right
    unless span keeps the open slots together. What a slot's own passes refuse is drafted anew from the AR laws of the
    pass; the released code asks the network, as a diffusion model, once more. Rows of a prompt accept in lock-step,
    never those of others.

    Args:
        pair: the models; the diffusion model plans, the AR model fills.
        form: thresholded as released, or drawn.
        slot: k, places of a slot.
        tau_slot: probability of its first token above which a slot is chosen, 0.6 unless it is given.
        tau_token: probability above which a drafted token is accepted, 0.3 unless it is given.
        span: consecutive places whose slots are open at a time, 32 unless it is given.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the laws that tokens are drawn from; 0 is greedy. In the drawn form also of the target.
        top_p: truncation of the laws that tokens are drawn from.
        name: for tables.
    Raises:
        ValueError: an argument out of range, or a threshold or a span in the drawn form, which has none.
        UnsuitedError: what a token of the pair means depends on its place, and text with gaps left out means another.
    """
    check_pair(pair)
    if form not in ("thresholded", "drawn"):
        raise ValueError(f"form = {said(form)}: give thresholded or drawn")
    if form == "drawn":
        given: dict[str, Any] = {"tau_slot": tau_slot, "tau_token": tau_token, "span": span}
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option} = {said(value)} with form = drawn, which has none: leave it out")
        return smc(
            pair, 1, proposal="refusion", slot=slot, kernel="accept-all", temperature=temperature,
            lookahead=WHOLE if lookahead is None else lookahead, proposal_top_p=top_p, name=name,
        )
    if getattr(pair.ar, "placed", False):
        raise UnsuitedError(
            f"pair = {said(pair)} with form = thresholded: its tokens mean something at their own places alone, and "
            "the AR model would read them with gaps left out; give form = drawn"
        )
    proposal = DLMProposal(
        pair.dlm, temperature=temperature, top_p=top_p, lookahead=WHOLE if lookahead is None else lookahead
    )
    return SlotFilling(
        proposal, pair.ar, slot, 0.6 if tau_slot is None else tau_slot, 0.3 if tau_token is None else tau_token,
        32 if span is None else span, name, getattr(pair, "decode", None),
    )
