"""Whether a model that is given as causal is: what is said of a position must not depend on the tokens after it.

Some bidirectional architectures (BERT, RoBERTa, ELECTRA) load as causal language models and are only told by a switch
of their configuration to look back alone. As a target such a model has no law of the sequence: the score of a token
would depend on the draft behind it. One forward of two short rows tells, and one with another row beside the first
whether scores depend on the rest of the batch, as where activations are scaled by all of it (8-bit quantisation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from smc_bridge.models.arguments import ids_of
from smc_bridge.models.checkpoints import reason
from smc_bridge.models.ends import ends_of
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter
from smc_bridge.models.huggingface.chunks import is_out_of_memory
from smc_bridge.models.huggingface.initialised import unsound
from smc_bridge.models.verdicts import Verdict, settle, subject_of

#: Tokens of the two rows, which differ in the second half.
WIDTH = 8
#: Difference of two logits, over the largest one, that is round-off: at least this, and some units of the type's own.
ROUND_OFF, UNITS = 1e-4, 8
#: Different ids that the rows are made of, as far as there are so many.
VARIETY = 6


def check_causal(adapter: HuggingFaceAdapter) -> None:
    """Refuse a model whose logits at early positions depend on later tokens, and one that `probe_causal` finds other
    faults with; warn of scores that depend on the batch.

    Args:
        adapter: of the model, ready to score.
    Raises:
        ValueError: the model looks ahead, or cannot be run. MemoryError: two rows of a few tokens do not fit.
    """
    if adapter.device.type == "meta":  # a network without numbers, whose arguments are looked at
        return
    settle(subject_of("ar_model", adapter.model), probe_causal(adapter))


def probe_causal(adapter: HuggingFaceAdapter) -> Iterator[Verdict]:
    """What is found of a causal model in two tiny forwards.

    A model that reads a single position, or a single token, has nothing to look ahead to and is not run.

    Raises:
        MemoryError: two rows of a few tokens do not fit.
    """
    weights = Verdict("parameters and buffers are numbers", unsound(adapter.model))
    yield weights
    if weights.fault is not None:  # what else fails would only follow from it
        return
    width = min(WIDTH, WIDTH if adapter.max_length is None else adapter.max_length)
    tokens = ordinary_ids(adapter, VARIETY)
    if width < 2 or len(tokens) < 2:
        return
    early = width // 2
    ids = torch.full((2, width), tokens[0], device=adapter.device)
    others = tokens[1:] * width
    ids[1, early:] = torch.tensor(others[: width - early], device=adapter.device)
    column = torch.arange(width, device=adapter.device).expand(2, -1)

    def score(shown: Tensor) -> Tensor:
        """Logits of the first half of two rows."""
        mask = torch.ones_like(shown)
        return adapter.logits(shown, column[:, :early], attention_mask=mask, position_ids=column)

    try:
        first, second = score(ids)
        beside, _ = score(ids[:1].repeat(2, 1))
    except Exception as error:  # anything: the model's own code runs in here
        yield Verdict("runs", not_run(error, adapter, "a causal language model of text"))
        return
    yield Verdict("runs")
    scale = float(first.masked_fill(~first.isfinite(), 0.0).abs().max())
    difference = greatest(first - second)
    looks_ahead = (
        f"is not causal: its logits at a position change by {difference:.2g} with the tokens after it; give a causal "
        "language model, or set is_decoder = True in its configuration if it was trained as one"
    )
    ahead = difference > round_off(adapter) * scale
    yield Verdict("later tokens change no earlier output", looks_ahead if ahead else None)
    # Of one shape both times, so that kernels round alike.
    yield neighbours(greatest(first - beside), max(ROUND_OFF, unit(adapter)) * scale)


def neighbours(difference: float, room: float) -> Verdict:
    """Whether a row's logits differ by more than `room` with other rows beside it."""
    fault = (
        f"the logits of a row change by {difference:.2g} with the rows beside it, as where 8-bit quantisation scales "
        "activations by the whole batch: the law, and what is drawn, depends on what is decoded together; load it "
        "without, or decode one prompt and one lane at a time"
    )
    return Verdict("rows beside it change no output", fault if difference > room else None, fatal=False)


def not_run(error: Exception, adapter: HuggingFaceAdapter, wanted: str) -> str:
    """The fault of a model whose forward raises `error`.

    Args:
        wanted: what is to be given instead.
    Raises:
        MemoryError: that is what it was.
    """
    name = type(adapter.model).__name__
    if is_out_of_memory(error):
        raise MemoryError(
            f"out of memory in a forward of a few rows of a few tokens of {name}: load it with a narrower dtype"
        ) from error
    return (
        f"cannot be run on token ids, a mask and positions alone ({type(error).__name__}: {reason(error)}); give "
        f"{wanted}"
    )


def round_off(adapter: HuggingFaceAdapter) -> float:
    """Difference of two logits of equal inputs, over the largest logit, that is round-off."""
    return max(ROUND_OFF, UNITS * unit(adapter))


def unit(adapter: HuggingFaceAdapter) -> float:
    """Unit of the last place that products are made with."""
    eps = torch.finfo(adapter.model.dtype).eps
    tf32 = adapter.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return max(eps, 2.0**-10) if tf32 else eps


def greatest(difference: Tensor) -> float:
    """The greatest absolute difference of logits; where both are -inf there is none, and NaN is told of elsewhere."""
    return float(difference.nan_to_num(nan=0.0).abs().max()) if difference.numel() else 0.0


def ordinary_ids(adapter: HuggingFaceAdapter, count: int) -> list[int]:
    """Up to `count` different ids that the model reads, of ordinary tokens if there are any; padding could be
    overlooked."""
    config: Any = adapter.model.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")]
    special = {i for value in named for i in ids_of(value)} | {*adapter.banned_ids, *ends_of(adapter.eos_id)}
    size = min(adapter.vocab_size, adapter._input_size)
    ordinary = [i for i in range(size - 1, -1, -1) if i not in special]
    return ordinary[:count] if len(ordinary) > 1 else (ordinary + [i for i in range(size) if i in special])[:2]
