"""What a `Sampler` and the arguments of a run must be; each violation is one line that names argument, value and
remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from smc_bridge.distributions.intermediate import check_intermediate, checked_log_prob
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.conditional import check_whole
from smc_bridge.engine.names import named
from smc_bridge.engine.probe import impurities
from smc_bridge.engine.queue import Request
from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.kernels.protocol import DraftKernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import (
    check_callable,
    check_text,
    is_list,
    said,
    true_or_false,
    whole_number,
    whole_numbers,
)
from smc_bridge.models.protocols import LanguageModel, ModelPair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.streams import Role, first_repeat
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
    if q.shaping.banned_ids != p.shaping.banned_ids:
        raise ValueError(
            f"banned_ids differ: {q.shaping.banned_ids} in the proposal, {p.shaping.banned_ids} in the target; ban the same"
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


def check_tokens(
    sequences: Sequence[Sequence[int]], vocab_size: int, called: Callable[[int], str]
) -> list[list[int]]:
    """Token ids as lists of ints.

    Args:
        called: what each of the sequences is called in a message.
    Raises:
        ValueError: one is no list of whole numbers, or leaves the alphabet.
    """
    name = called(0).split("[")[0]
    if not is_list(sequences) or not hasattr(sequences, "__len__"):
        raise ValueError(f"{name} = {said(sequences)}: give a list with the token ids of each")
    remedy = "give token ids, whole numbers, as the pair's tokenizer does"
    found = [whole_numbers(called(i), sequence, remedy=remedy) for i, sequence in enumerate(sequences)]
    for i, ids in enumerate(found):
        outside = next((token for token in ids if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise ValueError(
                f"{called(i)} has a token outside 0..{vocab_size - 1}, {outside}: give ids of the models' alphabet"
            )
    return found


def check_room(ids: Sequence[int], model: LanguageModel, kind: str, *, max_new_tokens: int, name: str) -> None:
    """Raise ValueError unless a model can read a prompt and all that may follow it.

    Args:
        ids: of the prompt, which is called `name`.
        kind: of the model, for the message.
        max_new_tokens: length limit of the continuation.
    """
    if len(ids) < model.min_length:
        raise ValueError(f"{name} is empty: the {kind} model reads at least one token; give a text, or its bos")
    limit = model.max_length
    if limit is None or len(ids) + max_new_tokens <= limit:
        return
    room = limit - len(ids)
    reason = f" ({model.limited_by})" if hasattr(model, "limited_by") else ""
    remedy = f"allow at most {room} new tokens, or shorten the prompt" if room > 0 else "shorten the prompt"
    raise ValueError(
        f"{name} has {len(ids)} tokens, with max_new_tokens = {max_new_tokens} more than the {limit} positions of the "
        f"{kind} model{reason}: {remedy}"
    )


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """One seed for each prompt; ValueError if there are not as many as prompts, or one is no whole number."""
    remedy = "give a whole number, or one per prompt"
    if not is_list(seed):
        return [whole_number("seed", seed, least=None, most=None, remedy=remedy)] * prompts
    seeds = whole_numbers("seed", seed, remedy=remedy)
    if len(seeds) != prompts:
        raise ValueError(f"seed has {len(seeds)} entries for {prompts} prompts: give one, or one per prompt")
    return seeds


def warn_of_repeats(requests: Sequence[Request]) -> None:
    """Warn, once, of a prompt that stands there twice with one seed: its runs have the same draws."""
    repeat = first_repeat([(tuple(request.prompt), request.seed) for request in requests])
    if repeat is not None:
        again, first = repeat
        warn_caller(
            f"prompts[{again}] repeats prompts[{first}] with seed {requests[again].seed}: equal draws; give "
            f"seed=range({len(requests)})",
        )


def check_limit(max_new_tokens: int) -> int:
    """The length limit as an int; ValueError unless it is a whole number of at least 1."""
    return whole_number("max_new_tokens", max_new_tokens, remedy="allow at least 1 token, a whole number")


def as_target(target: ARTarget | ModelPair) -> ARTarget:
    """The target itself, or of a pair of models the AR law at temperature 1.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(target, ARTarget):
        return target
    if hasattr(target, "ar"):
        return ARTarget(target.ar)
    raise ValueError(f"target = {said(target)}: give an ARTarget, or a pair of models")


def as_proposal(proposal: DLMProposal | ModelPair) -> DLMProposal:
    """The proposal itself, or that of a pair of models at temperature 1; raises as `as_target`."""
    if isinstance(proposal, DLMProposal):
        return proposal
    if hasattr(proposal, "dlm"):
        return DLMProposal(proposal.dlm)
    raise ValueError(f"proposal = {said(proposal)}: give a DLMProposal, or a pair of models")


def models_of(sampler: Sampler) -> dict[str, LanguageModel]:
    """The models of a sampler by kind."""
    return {"diffusion": sampler.proposal.model, "autoregressive": sampler.target.model}


def check_prompts(
    prompts: Sequence[Sequence[int]], models: Mapping[str, LanguageModel], *, max_new_tokens: int,
    called: Callable[[int], str] | None = None,
) -> list[list[int]]:
    """The prompts of a run, whatever runs them: every entry comes through here before the first forward.

    Args:
        prompts: token ids of each.
        models: who reads them, by kind ("diffusion", "autoregressive"); their alphabet and positions are the limits.
        max_new_tokens: length limit of a continuation.
        called: what each prompt is called in a message, `prompts[i]` by default.
    Raises:
        ValueError: the limit is no number, or a prompt is no list of ids in the models' alphabet, or has no room in
            their positions.
    """
    called = called or "prompts[{}]".format
    limit = check_limit(max_new_tokens)
    ids = check_tokens(prompts, min(model.vocab_size for model in models.values()), called)
    for i, prompt in enumerate(ids):
        for kind, model in models.items():
            check_room(prompt, model, kind, max_new_tokens=limit, name=called(i))
    return ids


def requests_of(
    prompts: Sequence[Sequence[int]], models: Mapping[str, LanguageModel], *, seed: int | Sequence[int],
    max_new_tokens: int, role: Role, retained: Sequence[Sequence[int]] | None = None,
) -> list[Request]:
    """The requests of a run; `prompts`, `models` and errors as `check_prompts`, the others as `Sampler.run`.

    Args:
        role: who draws.

    Raises:
        ValueError: also for seeds or retained sequences that do not fit the prompts.
    """
    ids = check_prompts(prompts, models, max_new_tokens=max_new_tokens)
    seeds = seeds_of(seed, len(ids))
    kept: list[list[int]] | None = None
    if retained is not None:
        kept = check_tokens(retained, models["autoregressive"].vocab_size, "retained[{}]".format)
        if len(kept) != len(ids):
            raise ValueError(f"retained has {len(kept)} sequences for {len(ids)} prompts: give one per prompt")
        check_whole(kept, eos_id=models["autoregressive"].eos_id, max_new_tokens=check_limit(max_new_tokens))
    requests = [Request(i, prompt, seeds[i], role, None if kept is None else kept[i]) for i, prompt in enumerate(ids)]
    warn_of_repeats(requests)
    return requests


def make_requests(
    sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int], max_new_tokens: int,
    retained: Sequence[Sequence[int]] | None = None,
) -> list[Request]:
    """The prompts of a sampler's run, checked; arguments as `Sampler.run`, errors as `requests_of`."""
    check_sampler(sampler)  # its attributes may have been set since it was made
    if retained is not None and not (sampler.proper and isinstance(sampler.weight, OwnWeights)):
        raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
    role = Role.SMC if retained is None else Role.CONDITIONAL
    return requests_of(
        prompts, models_of(sampler), seed=seed, max_new_tokens=max_new_tokens, role=role, retained=retained
    )
