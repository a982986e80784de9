"""Heads: logits that a model's head computes at once, and the memory of a step, with and without a cap.

    python -m benchmarks.heads [--alphabet 152064] [--lanes 4] [--window 32] [--lookahead 256] [--cap 16] [--quick]
        [--threads N] [--seed 0] [--out runs] [--markdown]

Random models of one layer and 8 hidden numbers, over an alphabet as large as that of Qwen2.5: what they take is what
their logits take. The first step of the paper's program, on one prompt; the cap is in MiB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.memory import LargestLogits, step_memory
from benchmarks.overhead import WANTED_MEMORY
from benchmarks.report import Report, Sheet, Verdict, execute
from smc_bridge.commands.base import whole
from smc_bridge.methods.poe_bridge import paper
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM

#: Model types of the pairs, and their type: forwards of our own, heads that run on every place, bounded logits.
PAIRS = (
    ("qwen2", "qwen2", torch.float32), ("qwen2", "qwen2", torch.bfloat16), ("bert", "gpt2", torch.bfloat16),
    ("qwen2", "gemma2", torch.bfloat16),
)
PROMPT = [7, 8, 9]
MEBI = 1 << 20


class Heads(NamedTuple):
    """What the heads of one pair compute at once, and the memory of a step.

    Attributes:
        pair: the model types and their dtype.
        cap: on the bytes that a head computes at once, or None.
        at_once: bytes of the largest logits that a head has computed.
        scores: of both models, in `[K, V, A]` float32 tensors.
        extra: peak beyond these and what was in use before, likewise.
    """

    pair: str
    cap: int | None
    at_once: int
    scores: float
    extra: float


def network(kind: str, alphabet: int, dtype: torch.dtype) -> Any:
    """A random model of a type, the smallest there is."""
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=alphabet, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, max_position_embeddings=1024,
        **({} if kind in ("bert", "gpt2") else {"num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8}),
    )
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    return auto.from_config(config).to(dtype)


def heads(dlm: str, ar: str, dtype: torch.dtype, cap: int | None, options: argparse.Namespace) -> Heads:
    """Measure one pair under one cap."""
    torch.manual_seed(options.seed)
    proposal, target = (network(kind, options.alphabet, dtype) for kind in (dlm, ar))
    pair = SimpleNamespace(
        dlm=HuggingFaceMaskedLM(proposal, mask_id=5, shift=dlm != "bert", eos_id=None, max_logit_bytes=cap),
        ar=HuggingFaceCausalLM(target, eos_id=None, max_logit_bytes=cap),
    )
    sampler = paper(pair, lanes=options.lanes, window=options.window, lookahead=options.lookahead)

    def start() -> Any:
        return sampler.start([PROMPT], seed=options.seed, max_new_tokens=options.lookahead)

    with torch.inference_mode():
        sampler.step(start())  # probes of a few places, of which a cap knows nothing
        with LargestLogits(options.alphabet) as watched:
            sampler.step(start())
    memory = step_memory(sampler, start)
    unit = 4 * options.lanes * options.window * options.alphabet
    name = f"{dlm} and {ar}, {str(dtype).removeprefix('torch.')}"
    return Heads(name, cap, watched.bytes, memory.scores / unit, memory.extra / unit)


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--alphabet", type=whole(16), default=5_000 if quick else 152_064, help="A")
    parser.add_argument("--lanes", type=whole(1), default=4, help="K")
    parser.add_argument("--window", type=whole(1), default=8 if quick else 32, help="V")
    parser.add_argument("--lookahead", type=whole(1), default=16 if quick else 256, help="M")
    parser.add_argument("--cap", type=whole(1), default=1 if quick else 16, help="MiB that a head computes at once")


def measure(options: argparse.Namespace) -> Report:
    """Measure every pair without and with the cap."""
    found = [heads(*pair, cap, options) for pair in PAIRS for cap in (None, options.cap * MEBI)]
    rows = [
        (each.pair, "none" if each.cap is None else f"{each.cap / MEBI:.0f}", f"{each.at_once / MEBI:.1f}",
         f"{each.scores:.2f}", f"{each.extra:.2f}")
        for each in found
    ]
    sheet = Sheet(
        f"A = {options.alphabet:,}, K = {options.lanes}, V = {options.window}, M = {options.lookahead}, one particle",
        ("models", "cap, MiB", "head at once, MiB", "scores", "extra memory"), rows,
        note="Scores: what both sessions return, M places of the diffusion model and K V of the other. Extra memory: "
        "peak of a step beyond the scores and what was in use before it (weights, caches). Both in [K, V, A] float32 "
        "tensors.",
    )
    verdicts = [
        verdict for each in found if each.cap is not None for verdict in (
            Verdict(f"{each.pair}, head at once over the cap", each.at_once / each.cap, 1.0, least=False),
            Verdict(f"{each.pair}, extra memory in [K, V, A] tensors", each.extra, WANTED_MEMORY, least=False),
        )
    ]
    return Report([sheet], {"heads": found}, lambda figure: _draw(figure, found), verdicts=verdicts)


def _draw(figure: Any, found: Sequence[Heads]) -> None:
    ax = figure.subplots()
    place = np.arange(len(PAIRS))
    for shift, capped in ((-0.2, False), (0.2, True)):
        some = [each for each in found if (each.cap is not None) == capped]
        ax.barh(place + shift, [each.extra for each in some], 0.36, label="cap" if capped else "no cap")
    ax.set_yticks(place, [each.pair for each in found[::2]])
    ax.invert_yaxis()
    ax.set_xlabel("memory of a step beyond the scores, in [K, V, A] float32 tensors")
    ax.legend(frameon=False)


main = partial(execute, "heads", __doc__, configure, measure)

if __name__ == "__main__":
    main()
