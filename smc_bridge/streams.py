"""Streams of random numbers by role: who draws from which, in one place.

Tests against exact samples, two-sample tests and pairs of bounds need draws that are independent although the user
gave one seed. So every stream is named by what it is for, the user's seed, and what tells its members apart (a prompt,
a trial, ..), and its generator is a hash of all that:

    SHAKE-256(role, seed, parts)  ->  the 624 words of a Mersenne Twister (Matsumoto & Nishimura 1998)

The hash fills the whole state. (`torch.Generator.manual_seed` uses 32 bits of a seed on the CPU: of 10^5 prompts some
two would share their draws.) Seeds are whole numbers of any size, and every bit of them matters.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch

from smc_bridge.models.arguments import whole_number


class Role(Enum):
    """What a stream is for. Under one seed, streams of different roles are independent.

    Draws of one role are *common random numbers*: two samplers that run the same prompt under one seed share them, and
    need other seeds where they are to be independent.
    """

    SMC = "smc"  # free runs of a sampler
    CONDITIONAL = "conditional"  # its conditional runs
    AR = "ar"  # exact samples of the target
    DLM = "dlm"  # the diffusion model's own decoders
    PYRO = "pyro"  # the program's Pyro form
    SAMPLE = "sample"  # `Result.sample`: draws from the weights of a run
    RETAINED = "retained"  # seeds of the exact samples that conditional runs retain
    TRIAL = "trial"  # seeds of the runs of rank tests
    RANK = "rank"  # what a rank test draws besides: choices, turns, ties
    PERMUTATION = "permutation"  # labels of a two-sample test
    STUDY = "study"  # seeds of the runs behind a row of a study
    NOISE = "noise"  # seed of a study's tabular diffusion model
    REPEAT = "repeat"  # seeds of prompts that stand in a list once more


#: A Mersenne Twister that is about to make its first numbers, as torch writes it, and where its words stand there.
_FRESH = torch.Generator().manual_seed(0).get_state()
_WORDS = slice(24, 24 + 624 * 8)


def _hash(role: Role, seed: int, parts: Sequence[int | str], size: int) -> bytes:
    """`size` bytes that depend on every bit of the arguments; texts and numbers are never taken for each other."""
    own = whole_number("seed", seed, least=None, most=None, remedy="give a whole number")
    whole = [part if isinstance(part, str) else operator.index(part) for part in parts]
    return hashlib.shake_256(repr((role.value, own, *whole)).encode()).digest(size)


def prompt_generator(seed: int, prompt: Sequence[int], *, role: Role) -> torch.Generator:
    """CPU generator of a prompt, which depends on the role, the seed and the prompt's token ids only."""
    state = _FRESH.clone()
    state.numpy()[_WORDS].view(np.uint64)[:] = np.frombuffer(_hash(role, seed, prompt, 624 * 4), dtype="<u4")
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def numpy_generator(role: Role, seed: int, *parts: int | str) -> np.random.Generator:
    """numpy's generator for one member of a role's stream, named by `parts`."""
    return np.random.default_rng(derived_seed(role, seed, *parts))


def derived_seed(role: Role, seed: int, *parts: int | str) -> int:
    """A seed of 128 bits for one member of a role's stream, named by `parts`, where what is run takes a seed itself."""
    return int.from_bytes(_hash(role, seed, parts, 16), "little")


def first_repeat(keys: Sequence[object]) -> tuple[int, int] | None:
    """Places of the first key that stood before, and of where it did: (3, 0) if the fourth equals the first."""
    seen: dict[object, int] = {}
    for i, key in enumerate(keys):
        first = seen.setdefault(key, i)
        if first != i:
            return i, first
    return None


def seeds_apart(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """A seed for each prompt: the user's, and one derived from it for every repetition of a prompt.

    A prompt that stands in a list of problems twice is two problems, whose draws must be independent.
    """
    count: dict[tuple[int, ...], int] = {}
    seeds = []
    for prompt in prompts:
        key = tuple(map(int, prompt))
        before = count[key] = count.get(key, -1) + 1
        seeds.append(derived_seed(Role.REPEAT, seed, before) if before else seed)
    return seeds
