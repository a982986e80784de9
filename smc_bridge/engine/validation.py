"""What a `Sampler` and the arguments of its runs must be; each violation is one line that names argument, value and
remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from smc_bridge.distributions.intermediate import check_intermediate, checked_log_prob
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.conditional import check_whole
from smc_bridge.engine.names import named
from smc_bridge.engine.probe import impurities
from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.kernels.protocol import DraftKernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import check_callable, check_text, said, true_or_false, whole_number
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.requests import Request, check_limit, check_tokens, requests_of
from smc_bridge.streams import Role
from smc_bridge.warn import warn_caller

if TYPE_CHECKING:
    from smc_bridge.engine.sampler import Sampler


def check_sampler(sampler: Sampler) -> None:
    """Raise ValueError unless the parts of the sampler fit together."""
    _check_parts(sampler)
    q, p = sampler.proposal, sampler.target
    if q.model.vocab_size != p.model.vocab_size or q.model.eos_id != p.model.eos_id:
        raise ValueError(
            f"the models' alphabets differ: {q.model.vocab_size} tokens ending with {q.model.eos_id} against "
            f"{p.model.vocab_size} ending with {p.model.eos_id}; use a pair that shares its tokenizer"
        )
    if q.law.banned_ids != p.law.banned_ids:
        raise ValueError(
            f"banned_ids differ: {q.law.banned_ids} in the proposal, {p.law.banned_ids} in the target; ban the same"
        )
    if q.lane_temperatures is not None and len(q.lane_temperatures) != sampler.lanes:
        raise ValueError(
            f"temperature has {len(q.lane_temperatures)} entries for lanes = {sampler.lanes}: give one per lane"
        )
    probed(sampler)


def probed(sampler: Sampler) -> list[str]:
    """Reasons found in the intermediate by `impurities`, told as a warning when they are found: once for each object.
    """
    asked = (sampler.intermediate, sampler.lanes, sampler.window, sampler.target.model)
    known = sampler.__dict__.get("_probed")
    if known is None or any(one is not other for one, other in zip(known[0], asked, strict=True)):
        model = sampler.target.model
        reasons = impurities(
            sampler.intermediate, lanes=sampler.lanes, window=sampler.window, size=model.vocab_size, device=model.device
        )
        for reason in reasons:
            warn_caller(f"{reason}; results are marked as not proper")
        known = sampler.__dict__["_probed"] = (asked, reasons)
    return list(known[1])


def _check_parts(sampler: Sampler) -> None:
    for law, kind in (("proposal", DLMProposal), ("target", ARTarget)):
        if not isinstance(getattr(sampler, law), kind):
            raise ValueError(f"{law} = {said(getattr(sampler, law))}: give a {kind.__name__}")
    for name in ("particles", "lanes", "window"):
        setattr(sampler, name, whole_number(name, getattr(sampler, name)))
    if sampler.max_logit_bytes is not None:
        sampler.max_logit_bytes = whole_number(
            "max_logit_bytes", sampler.max_logit_bytes, remedy="give a positive whole number of bytes, or None"
        )
    sampler.compile = true_or_false("compile", sampler.compile)
    check_text("name", sampler.name)
    check_callable("tokenize", sampler.tokenize, "a function of a text")
    check_callable("detokenize", sampler.detokenize, "a function of a list of ids")
    for name in ("kernel", "weight", "resampler", "intermediate", "trigger"):
        value = named(name, getattr(sampler, name))
        setattr(sampler, name, value)
        if isinstance(value, type):
            raise ValueError(f"{name} = {value.__name__} is a class: give an object, {value.__name__}()")
        if name not in ("intermediate", "trigger") and not isinstance(getattr(value, "proper", None), bool):
            raise ValueError(f"{name} = {said(value)} does not say if it is proper: give it a bool `proper`")
    check_intermediate("intermediate", sampler.intermediate)
    exponent = getattr(sampler.intermediate, "target_exponent", None)
    if isinstance(exponent, torch.Tensor) and exponent.numel() != sampler.lanes and exponent.dim():
        raise ValueError(
            f"target_exponent has {exponent.numel()} entries for lanes = {sampler.lanes}: give one per lane"
        )
    if not callable(sampler.trigger):
        raise ValueError(f"trigger = {said(sampler.trigger)}: give a function of log weights, such as EssBelow(0.5)")
    if not isinstance(sampler.kernel, DraftKernel | TreeWalk):
        raise ValueError(f"kernel = {said(sampler.kernel)}: give a DraftKernel or a TreeWalk")
    if isinstance(sampler.kernel, AcceptAll):
        flat = torch.log_softmax(torch.arange(4.0), -1)[None, None, None]  # one lane, one position
        if not torch.equal(checked_log_prob(sampler.intermediate, flat, flat.flip(-1)), flat):
            raise ValueError(
                f"intermediate = {said(sampler.intermediate)} with AcceptAll, which commits the proposal's own draft: "
                "use Proposal()"
            )


def make_requests(
    sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int], max_new_tokens: int,
    retained: Sequence[Sequence[int]] | None = None, keep_drafts: bool = False,
) -> list[Request]:
    """The prompts of a sampler's run, checked; arguments as `Sampler.run`, errors as `requests_of`.

    Raises:
        ValueError: also for retained sequences that do not fit the prompts or the program.
    """
    check_sampler(sampler)  # its attributes may have been set since it was made
    keep_drafts = true_or_false("keep_drafts", keep_drafts)
    if retained is None:
        requests = requests_of(prompts, sampler.models, seed=seed, max_new_tokens=max_new_tokens, role=Role.SMC)
        return [request._replace(keep_drafts=keep_drafts) for request in requests]
    if not (sampler.proper and isinstance(sampler.weight, OwnWeights)):
        raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
    requests = requests_of(prompts, sampler.models, seed=seed, max_new_tokens=max_new_tokens, role=Role.CONDITIONAL)
    model = sampler.target.model
    kept = check_tokens(retained, model.vocab_size, "retained[{}]".format)
    if len(kept) != len(requests):
        raise ValueError(f"retained has {len(kept)} sequences for {len(requests)} prompts: give one per prompt")
    check_whole(kept, eos_id=model.eos_id, max_new_tokens=check_limit(max_new_tokens))
    return [
        request._replace(retained=own, keep_drafts=keep_drafts) for request, own in zip(requests, kept, strict=True)
    ]
