"""What a `Sampler` and the arguments of a run must be; each violation is one line that names argument, value and
remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.kernels.protocol import DraftKernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.smc.conditional import check_whole
from smc_bridge.smc.queue import Request

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


def _check_parts(sampler: Sampler) -> None:
    for name in ("particles", "lanes", "window"):
        value = getattr(sampler, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value}: give a whole number of at least 1")
    cap = sampler.max_logit_bytes
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise ValueError(f"max_logit_bytes = {cap!r}: give a positive whole number of bytes, or None")
    if not isinstance(sampler.compile, bool):
        raise ValueError(f"compile = {sampler.compile!r}: give True or False")
    for name in ("kernel", "weight", "resampler", "intermediate"):
        value = getattr(sampler, name)
        if isinstance(value, type):
            raise ValueError(f"{name} = {value.__name__} is a class: give an object, {value.__name__}()")
        if name != "intermediate" and not isinstance(getattr(value, "proper", None), bool):
            raise ValueError(f"{name} = {value!r} does not say if it is proper: give it a bool `proper`")
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
    """Raise ValueError if a token is no whole number or lies outside the alphabet."""
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, str) or any(
            isinstance(token, bool | str) or not hasattr(token, "__index__") for token in sequence
        ):
            raise ValueError(f"{name}[{i}] = {sequence!r}: give token ids, whole numbers, as the pair's tokenizer does")
        if any(not 0 <= token < vocab_size for token in sequence):
            raise ValueError(
                f"{name}[{i}] has a token outside 0..{vocab_size - 1}: encode it with the pair's tokenizer"
            )


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """One seed for each prompt; ValueError if there are not as many as prompts, or one is no whole number."""
    own = [seed] if isinstance(seed, int) else seed
    if isinstance(own, str) or not hasattr(own, "__iter__") or not all(hasattr(x, "__index__") for x in own):
        raise ValueError(f"seed = {seed!r}: give a whole number, or one per prompt")
    seeds = [seed] * prompts if isinstance(seed, int) else [int(own) for own in seed]
    if len(seeds) != prompts:
        raise ValueError(f"seed has {len(seeds)} entries for {prompts} prompts: give one, or one per prompt")
    return seeds


def check_limit(max_new_tokens: int) -> None:
    """Raise ValueError unless the length limit is a whole number of at least 1."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens!r}: allow at least 1 token, a whole number")


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
    if retained is not None:
        if not sampler.proper or not isinstance(sampler.weight, OwnWeights):
            raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
        if len(retained) != len(prompts):
            raise ValueError(f"retained has {len(retained)} sequences for {len(prompts)} prompts: give one per prompt")
        check_tokens(retained, size, "retained")
        check_whole(retained, eos_id=sampler.target.model.eos_id, max_new_tokens=max_new_tokens)
    return [
        Request(i, list(map(int, prompt)), seeds[i], None if retained is None else list(map(int, retained[i])))
        for i, prompt in enumerate(prompts)
    ]
