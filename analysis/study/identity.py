"""Fingerprints of what a configuration only names: weights, problems, and intermediates of the user's own.

Saved work is continued only if the names still stand for the same things: models for the same weights, a task for the
same prompts, answers and limits, an intermediate for the same function (by its values on fixed log-probabilities).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from smc_bridge.analysis.study.config import Config, Prompts, TabularPoint
from smc_bridge.analysis.study.plan import MakeIntermediate, Setting
from smc_bridge.analysis.study.sources import Problems
from smc_bridge.models.pairs import Pair

#: Entries of each tensor of a model that enter its fingerprint.
SAMPLED = 4096
#: Decimals of a log-probability that count, so that sums in another order are the same function.
DECIMALS = 6


def fingerprints(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate]) -> dict[str, Any]:
    """Fingerprints of weights, problems and intermediates, as entries of a study's header."""
    return {
        "pair": problems.identity, "models": "" if problems.pair is None else of_models(problems.pair),
        "custom": of_intermediates(config, problems, custom), "problems": of_problems(config, problems),
    }


def of_models(pair: Pair) -> str:
    """Short hash that changes with the weights of a pair's transformers models (empty for models of other kinds)."""
    digest = hashlib.blake2b(digest_size=8)
    found = False
    for model in (pair.dlm, pair.ar):
        network = getattr(model, "model", None)
        if not isinstance(network, torch.nn.Module):
            continue
        found = True
        for name, tensor in sorted(network.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().numpy()
            digest.update(f"{name}|{tuple(tensor.shape)}|".encode() + sample.tobytes())
    return digest.hexdigest() if found else ""


def of_problems(config: Config, problems: Problems) -> str:
    """Short hash of a task's limits, grader, prompts, ids and answers; empty for tabular models, which `config` is of.

    Of a grader the name counts, of an answer that is no plain data the pickled bytes.
    """
    if not isinstance(config.source, Prompts):
        return ""
    task = problems.task
    assert task is not None
    every = [
        [task.max_new_tokens, task.lookahead, task.window, getattr(task, "grader", None)],
        *([item.prompt, item.answer, item.id, ids] for item, ids in zip(problems.items, problems.prompts, strict=True)),
    ]
    text = json.dumps(every, default=lambda value: pickle.dumps(value).hex())
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def of_intermediates(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate]) -> dict[str, str]:
    """Hash of every intermediate of the user's own by its name, over all w, lanes and windows of the study.

    Args:
        custom: name -> function of w.
    """
    digests: dict[str, hashlib.blake2b] = {}
    for setting in config.axes.settings():
        name = setting.intermediate
        if name is None or name not in custom:
            continue
        digest = digests.setdefault(name, hashlib.blake2b(digest_size=8))
        for point in config.source.points():
            # Blocks of prompts have one vocabulary; tabular models have one each.
            if isinstance(point, TabularPoint) or point.block == 0:
                window = problems.limits(point, config.lookahead, setting.window).window
                digest.update(_values(setting, custom[name], window, _alphabet(problems, point), problems))
    return {name: digest.hexdigest() for name, digest in sorted(digests.items())}


def _alphabet(problems: Problems, point: object) -> int:
    """A, the size of the alphabet at a point of the study."""
    if isinstance(point, TabularPoint):
        return point.alphabet
    assert problems.pair is not None
    return problems.pair.ar.vocab_size


def _values(setting: Setting, make: MakeIntermediate, window: int, alphabet: int, problems: Problems) -> bytes:
    """Values of an intermediate on a fixed probe, `[1, K, V, A]`."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, setting.lanes or 1, window, alphabet)
    log_q, log_p = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)
    if problems.pair is not None:
        log_q, log_p = log_q.to(problems.pair.ar.device), log_p.to(problems.pair.ar.device)
    found = make(0.0 if setting.w is None else setting.w).log_prob(log_q, log_p).detach().cpu().double()
    # Adding zero turns -0.0 into 0.0.
    return (found.numpy().round(DECIMALS) + 0.0).tobytes()
