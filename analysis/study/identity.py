"""Fingerprints of what a configuration only names: intermediates and problems of the user's own.

A saved study is continued only if the names still stand for the same things: an intermediate for the same function (by
its values on fixed log-probabilities), a task for the same prompts, answers and limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from smc_bridge.analysis.comparison.settings import problems_fingerprint
from smc_bridge.analysis.study.config import Config, Prompts, TabularPoint
from smc_bridge.analysis.study.plan import MakeIntermediate, Setting, intermediate_of
from smc_bridge.analysis.study.sources import Problems

#: Methods whose intermediate is the one that the study names.
SWAPPED = ("smc", "tree-walk")
#: Decimals of a log-probability that count, so that sums in another order are the same function.
DECIMALS = 6


def intermediates(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate]) -> dict[str, str]:
    """Hash of every intermediate of the user's own by its name, over all w, lanes and windows of the study.

    Args:
        custom: name -> function of w.
    """
    digests: dict[str, hashlib.blake2b] = {}
    for setting in config.axes.settings():
        name = setting.intermediate
        if setting.method not in SWAPPED or name is None or name not in custom:
            continue
        digest = digests.setdefault(name, hashlib.blake2b(digest_size=8))
        for point in config.source.points():
            # Blocks of prompts have one vocabulary; tabular models have one each.
            if isinstance(point, TabularPoint) or point.block == 0:
                window = problems.limits(point, config.lookahead, setting.window).window
                digest.update(_values(setting, window, _alphabet(problems, point), problems, custom))
    return {name: digest.hexdigest() for name, digest in sorted(digests.items())}


def _alphabet(problems: Problems, point: object) -> int:
    """A, the size of the alphabet at a point of the study."""
    if isinstance(point, TabularPoint):
        return point.alphabet
    assert problems.pair is not None
    return problems.pair.ar.vocab_size


def _values(
    setting: Setting, window: int, alphabet: int, problems: Problems, custom: Mapping[str, MakeIntermediate]
) -> bytes:
    """Values of an intermediate on a fixed probe, `[1, K, V, A]`."""
    generator = torch.Generator().manual_seed(0)
    assert setting.lanes is not None
    shape = (2, 1, setting.lanes, window, alphabet)
    log_q, log_p = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)
    if problems.pair is not None:
        log_q, log_p = log_q.to(problems.pair.ar.device), log_p.to(problems.pair.ar.device)
    found = intermediate_of(setting, custom).log_prob(log_q, log_p).detach().cpu().double()
    # Adding zero turns -0.0 into 0.0.
    return (found.numpy().round(DECIMALS) + 0.0).tobytes()


def prompts(config: Config, problems: Problems) -> str:
    """Hash of a task's prompts, answers and limits; empty for tabular models, which the configuration describes."""
    if not isinstance(config.source, Prompts):
        return ""
    assert problems.task is not None
    return problems_fingerprint(problems.task, problems.items, problems.prompts)
