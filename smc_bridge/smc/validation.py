"""What a `Sampler` and the arguments of a run must be; each violation is one line that names argument, value and
remedy."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from models.arguments import said, whole_number
from smc_bridge.distributions.intermediate import check_intermediate
from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.kernels.protocol import DraftKernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.smc.conditional import check_whole
from smc_bridge.smc.probe import impurities
from smc_bridge.smc.queue import Request
from smc_bridge.streams import Role, first_repeat

if TYPE_CHECKING:
    from smc_bridge.smc.engine import Sampler


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
            warnings.warn(f"{reason}; results are marked as not proper", stacklevel=4)
        known = sampler.__dict__["_probed"] = (asked, reasons)
    return list(known[1])


def _check_parts(sampler: Sampler) -> None:
    for name in ("particles", "lanes", "window"):
        setattr(sampler, name, whole_number(name, getattr(sampler, name)))
    if sampler.max_logit_bytes is not None:
        sampler.max_logit_bytes = whole_number(
            "max_logit_bytes", sampler.max_logit_bytes, remedy="give a positive whole number of bytes, or None"
        )
    if not isinstance(sampler.compile, bool):
        raise ValueError(f"compile = {sampler.compile!r}: give True or False")
    for name in ("kernel", "weight", "resampler", "intermediate", "trigger"):
        value = getattr(sampler, name)
        if isinstance(value, type):
            raise ValueError(f"{name} = {value.__name__} is a class: give an object, {value.__name__}()")
        if name not in ("intermediate", "trigger") and not isinstance(getattr(value, "proper", None), bool):
            raise ValueError(f"{name} = {value!r} does not say if it is proper: give it a bool `proper`")
    check_intermediate("intermediate", sampler.intermediate)
    exponent = getattr(sampler.intermediate, "target_exponent", None)
    if isinstance(exponent, torch.Tensor) and exponent.numel() != sampler.lanes and exponent.dim():
        raise ValueError(
            f"target_exponent has {exponent.numel()} entries for lanes = {sampler.lanes}: give one per lane"
        )
    if not callable(sampler.trigger):
        raise ValueError(f"trigger = {sampler.trigger!r}: give a function of log weights, such as EssBelow(0.5)")
    if not isinstance(sampler.kernel, DraftKernel | TreeWalk):
        raise ValueError(f"kernel = {sampler.kernel!r}: give a DraftKernel or a TreeWalk")
    if isinstance(sampler.kernel, AcceptAll):
        flat = torch.log_softmax(torch.arange(4.0), -1)
        if not torch.equal(sampler.intermediate.log_prob(flat, flat.flip(0)), flat):
            raise ValueError(
                f"intermediate = {sampler.intermediate!r} with AcceptAll, which commits the proposal's own draft: use "
                "Proposal()"
            )


def check_tokens(sequences: Sequence[Sequence[int]], vocab_size: int, name: str) -> None:
    """Raise ValueError unless these are lists of whole numbers that lie in the alphabet."""
    check_lists(sequences, name)
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, str) or any(
            isinstance(token, bool | str) or not hasattr(token, "__index__") for token in sequence
        ):
            raise ValueError(f"{name}[{i}] = {sequence!r}: give token ids, whole numbers, as the pair's tokenizer does")
        if any(not 0 <= token < vocab_size for token in sequence):
            raise ValueError(
                f"{name}[{i}] has a token outside 0..{vocab_size - 1}: encode it with the pair's tokenizer"
            )


def check_lists(sequences: Sequence[Sequence[int]], name: str) -> None:
    """Raise ValueError unless these are several sequences, whatever is in them."""
    if isinstance(sequences, str) or not (hasattr(sequences, "__len__") and hasattr(sequences, "__iter__")):
        raise ValueError(f"{name} = {sequences!r}: give a list with the token ids of each")
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, str) or not hasattr(sequence, "__iter__"):
            raise ValueError(f"{name}[{i}] = {sequence!r}: give token ids, whole numbers, as the pair's tokenizer does")


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """One seed for each prompt; ValueError if there are not as many as prompts, or one is no whole number."""
    try:
        return [operator.index(seed)] * prompts  # type: ignore[arg-type]
    except TypeError:
        pass
    if isinstance(seed, str) or not hasattr(seed, "__iter__") or getattr(seed, "ndim", 1) != 1 or not all(
        hasattr(x, "__index__") for x in seed
    ):
        raise ValueError(f"seed = {said(seed)}: give a whole number, or one per prompt")
    seeds = [int(own) for own in seed]
    if len(seeds) != prompts:
        raise ValueError(f"seed has {len(seeds)} entries for {prompts} prompts: give one, or one per prompt")
    return seeds


def warn_of_repeats(requests: Sequence[Request]) -> None:
    """Warn, once, of a prompt that stands there twice with one seed: its runs have the same draws."""
    repeat = first_repeat([(tuple(request.prompt), request.seed) for request in requests])
    if repeat is not None:
        again, first = repeat
        warnings.warn(
            f"prompts[{again}] repeats prompts[{first}] with seed {requests[again].seed}: equal draws; give "
            f"seed=range({len(requests)})",
            stacklevel=5,  # the caller of `run`, past its decorator
        )


def check_limit(max_new_tokens: int) -> int:
    """The length limit as an int; ValueError unless it is a whole number of at least 1."""
    return whole_number("max_new_tokens", max_new_tokens, remedy="allow at least 1 token, a whole number")


def make_requests(
    sampler: Sampler, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int], max_new_tokens: int,
    retained: Sequence[Sequence[int]] | None,
) -> list[Request]:
    """The prompts of a run, checked; arguments as `Sampler.run`.

    Raises:
        ValueError: an argument out of range, or lists of different lengths.
    """
    check_sampler(sampler)  # its attributes may have been set since it was made
    check_limit(max_new_tokens)
    size = sampler.target.model.vocab_size
    check_tokens(prompts, size, "prompts")
    seeds = seeds_of(seed, len(prompts))
    role = Role.SMC if retained is None else Role.CONDITIONAL
    if retained is not None:
        if not sampler.proper or not isinstance(sampler.weight, OwnWeights):
            raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
        if len(retained) != len(prompts):
            raise ValueError(f"retained has {len(retained)} sequences for {len(prompts)} prompts: give one per prompt")
        check_tokens(retained, size, "retained")
        check_whole(retained, eos_id=sampler.target.model.eos_id, max_new_tokens=max_new_tokens)
    requests = [
        Request(i, list(map(int, prompt)), seeds[i], role, None if retained is None else list(map(int, retained[i])))
        for i, prompt in enumerate(prompts)
    ]
    warn_of_repeats(requests)
    return requests
