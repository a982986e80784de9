"""The diffusion model alone, so many places per forward: its standard decoders, as a method and as a function.

Other orders and other sets of places are rules of the same canvas (`smc_bridge.canvas`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from smc_bridge.canvas.cut import CutAtEnd
from smc_bridge.canvas.decoder import Canvas, as_proposal
from smc_bridge.canvas.rules import AllAtOnce, CommitRule, Order, Ordered, Reconsider
from smc_bridge.decode import OnResult, decode
from smc_bridge.engine.presets import check_pair
from smc_bridge.models.arguments import said, true_or_false, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method
from smc_bridge.result import Result

#: A lookahead of more places than a continuation has.
WHOLE = 2**20


@method(
    "dlm", role="baseline", targets="DLM", proper=False, why="the DLM's own law",
    reference="arXiv 2202.04200, 2502.09992, 2508.15487",
    aliases={
        "dlm-<tokens>": {}, "dlm-<tokens>-entropy": {"order": "entropy"},
        "dlm-<tokens>-confidence": {"order": "confidence"}, "dlm-all": {"tokens": None, "lookahead": None},
    },
    examples=("dlm-1", "dlm-1-entropy", "dlm-2", "dlm-4", "dlm-8", "dlm-all"),
)
def dlm(
    pair: ModelPair, *, tokens: int | None = 1, order: Order = "left_to_right", span: int | None = None,
    lookahead: int | None = 256, temperature: float = 1.0, top_p: float = 1.0, tempered: bool = False,
    remask: int = 0, cut_at_end: bool = False,
) -> Canvas:
    """The diffusion model alone: some masked places are filled per forward.

    Args:
        pair: the models, of which the diffusion model decodes.
        tokens: places filled per forward, none for all that are open.
        order: which places come first, by place, least entropy or greatest top probability.
        span: consecutive places that are open at a time, as many as lookahead unless it is given.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        top_p: of that law.
        tempered: whether the order reads that law, or the model's own, at temperature 1 and without truncation.
        remask: least sure tokens that are masked again in each of the first 8 forwards.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range, an order or remasking where all places are filled at once, or
            `tempered = True` for an order by place or at temperature 0.
    """
    check_pair(pair)
    if tokens is None and order != "left_to_right":
        raise ValueError(f"order = {said(order)} with tokens = None: all at once has no order; leave it out")
    remask = whole_number("remask", remask, least=0, remedy="mask none again, or a whole number")
    if tokens is None and remask:
        raise ValueError(f"remask = {said(remask)} with tokens = None: nothing is left to fill; leave it out")
    if tempered and order == "left_to_right":
        raise ValueError(f"tempered = {said(tempered)} with order = {order}, which reads no law: leave it out")
    proposal = DLMProposal(
        pair.dlm, temperature=temperature, top_p=top_p, lookahead=WHOLE if lookahead is None else lookahead
    )
    rule: CommitRule = AllAtOnce() if tokens is None else Ordered(order, tokens, tempered)
    if remask:
        rule = Reconsider(rule, remask)
    if true_or_false("cut_at_end", cut_at_end):
        rule = CutAtEnd(rule, ends_of(pair.dlm.eos_id))
    open_at_once = lookahead if span is None and tokens is not None else span
    return Canvas(proposal, rule, open_at_once, "dlm", getattr(pair, "decode", None))


def diffusion(
    proposal: DLMProposal | ModelPair, prompts: Sequence[Sequence[int]], *, tokens_per_forward: int | None = 1,
    order: Order = "left_to_right", tempered: bool = False, window: int = 32, seed: int | Sequence[int] = 0,
    max_new_tokens: int = 256, batch: int | None = None, on_result: OnResult | None = None,
    detokenize: Callable[[list[int]], str] | None = None, name: str = "DLM",
) -> list[Result]:
    """The diffusion model's standard decoder: per forward, draw some masked positions and keep them.

    Positions are committed within consecutive spans of `window` positions; a row ends when everything before its first
    end of sequence is committed.

    Args:
        proposal: its first lane's law is decoded; `lookahead` masks stand behind what is committed. Or a pair of
            models, whose diffusion model at temperature 1 is it (and whose `decode` makes texts).
        tokens_per_forward: positions committed per forward; None commits all `lookahead` positions at once.
        order: which positions come first within the span.
        tempered: whether the order reads the proposal's law, or the model's own, at temperature 1 and without
            truncation.
        window: span, positions that are open at a time (all of them if `tokens_per_forward` is None).
        seed, batch, on_result: as for `Sampler.run`; under one seed it is independent of other methods.
    Raises:
        ValueError: an argument out of range.
        Interrupted: see `Sampler.run`; of an unfinished continuation it holds what is committed without a gap.
    """
    if tokens_per_forward is not None:
        remedy = "commit at least 1, a whole number, or None for all"
        tokens_per_forward = whole_number("tokens_per_forward", tokens_per_forward, remedy=remedy)
    window = whole_number("window", window, remedy="open at least 1 position, a whole number")
    texts = getattr(proposal, "decode", None) if detokenize is None else detokenize
    rule = Ordered(order, 1 if tokens_per_forward is None else tokens_per_forward, tempered)
    decoder = Canvas(as_proposal(proposal), rule, window, name, texts)
    if tokens_per_forward is None:
        decoder = replace(decoder, rule=AllAtOnce(), span=None)
    return decode(decoder, prompts, seed=seed, max_new_tokens=max_new_tokens, batch=batch, on_result=on_result)
