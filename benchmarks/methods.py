"""The decoders whose speed is compared, each as a function from prompts and a batch size to results.

`batch` prompts are in work at a time: when one is done, the next takes its place. transformers' `generate` knows no
refill; it decodes one batch after the other.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.canvas import diffusion
from smc_bridge.methods.released import released
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.pairs import Pair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed
from smc_bridge.tasks import Task

#: Results of prompts (token ids), `batch` of them in work at a time.
Decode = Callable[[Sequence[Sequence[int]], int], list[Result]]

METHODS = (
    "generate", "ar", "dlm-1", "dlm-2", "dlm-8", "speculative", "released", "paper", "smc-1", "smc-4", "smc-8",
    "tree-32", "tree-128", "paper+prefix", "smc-4+prefix", "tree-32+prefix",
)
KNOWN = (
    "generate, ar, dlm-<tokens per forward>, speculative, released, paper, smc-<particles>, tree-<nodes>; the last "
    "five also as <name>+prefix (prefix cache of the diffusion model)"
)
_FORM = re.compile(
    r"generate|ar|dlm-[1-9]\d*|(?:speculative|released|paper|(?:smc|tree)-[1-9]\d*)(?:\+prefix)?"
)


def known(name: str) -> str:
    """Argument type: the name of a method."""
    if not _FORM.fullmatch(name):
        raise argparse.ArgumentTypeError(f"= {name!r}: choose from {KNOWN}")
    return name


def decoder(
    name: str, pair: Pair, task: Task, *, temperature: float, seed: int, max_new_tokens: int | None = None
) -> Decode:
    """The decoder of that name, with the limits that suit the task; all draw at the same target temperature."""
    limit = max_new_tokens or task.max_new_tokens
    if name.endswith("+prefix"):
        dlm: Any = pair.dlm
        program = sampler(
            name.removesuffix("+prefix"), replace(pair, dlm=dlm.with_cache("prefix")), task, temperature=temperature
        )
        return lambda prompts, batch: program.run(prompts, seed=seed, max_new_tokens=limit, batch=batch)
    if name == "generate":
        return lambda prompts, batch: [
            result for start in range(0, len(prompts), batch) for result in generate(
                pair, prompts[start : start + batch], temperature=temperature, seed=seed, max_new_tokens=limit,
            )
        ]
    if name == "ar":
        target = ARTarget(pair.ar, temperature=temperature)
        return lambda prompts, batch: ar_sampling(
            target, prompts, seed=seed, max_new_tokens=limit, batch=batch, detokenize=pair.decode, name=name,
        )
    kind, _, number = name.partition("-")
    if kind == "dlm":
        proposal = DLMProposal(pair.dlm, temperature=temperature, lookahead=task.lookahead)
        return lambda prompts, batch: diffusion(
            proposal, prompts, tokens_per_forward=int(number), window=task.lookahead, seed=seed, max_new_tokens=limit,
            batch=batch, detokenize=pair.decode, name=name,
        )
    program = sampler(name, pair, task, temperature=temperature)
    return lambda prompts, batch: program.run(prompts, seed=seed, max_new_tokens=limit, batch=batch)


def sampler(name: str, pair: Pair, task: Task, *, temperature: float) -> Sampler:
    """The preset of a name such as `paper`, `smc-4` or `tree-32`."""
    options: dict[str, Any] = {
        "temperature": temperature, "lookahead": task.lookahead, "window": task.window, "name": name,
    }
    kind, _, number = name.partition("-")
    if kind == "smc":
        return presets.smc(pair, int(number), **options)
    if kind == "tree":
        return tree_walk(pair, nodes=int(number), **options)
    preset: Callable[..., Sampler] = {
        "speculative": presets.speculative, "released": released, "paper": presets.paper,
    }[kind]
    return preset(pair, **options)


@torch.inference_mode()
def generate(
    pair: Pair, prompts: Sequence[Sequence[int]], *, temperature: float, seed: int, max_new_tokens: int
) -> list[Result]:
    """Samples of the AR model by transformers' own `generate`, with its cache and the prompts padded on the left."""
    model: Any = getattr(pair.ar, "model", None)
    if model is None:
        raise ValueError(f"--methods = generate: the AR model of the pair {pair.name!r} is no transformers model")
    width, device = max(map(len, prompts)), pair.ar.device
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(Role.AR, seed, *(token for prompt in prompts for token in prompt)) % 2**64)
        out = model.generate(
            input_ids=ids, attention_mask=real, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
            max_new_tokens=max_new_tokens, eos_token_id=pair.ar.eos_id, pad_token_id=0,
            suppress_tokens=list(pair.ar.banned_ids) or None,
        )
    sequences = [_cut(row, pair.ar.eos_id) for row in out[:, width:].tolist()]
    return [
        Result(prompt=list(prompt), sequences=[s], log_weights=[0.0], texts=[pair.decode(s)], method="generate")
        for prompt, s in zip(prompts, sequences, strict=True)
    ]


def _cut(tokens: list[int], eos_id: int | None) -> list[int]:
    """Everything up to the end of sequence, which `generate` pads behind."""
    return tokens[: tokens.index(eos_id) + 1] if eos_id is not None and eos_id in tokens else tokens
