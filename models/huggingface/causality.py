"""Whether a model that is given as causal is: what is said of a position must not depend on the tokens after it.

Some bidirectional architectures (BERT, RoBERTa, ELECTRA) load as causal language models and are only told by a switch
of their configuration to look back alone. As a target such a model has no law of the sequence: the score of a token
would depend on the draft behind it. One forward of two short rows tells.
"""

from __future__ import annotations

from typing import Any

import torch

from smc_bridge.models.arguments import ids_of
from smc_bridge.models.checkpoints import reason
from smc_bridge.models.ends import ends_of
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter
from smc_bridge.models.huggingface.chunks import is_out_of_memory

#: Tokens of the two rows, which differ in the second half.
WIDTH = 8
#: Difference of two logits, over the largest one, that is round-off: at least this, and some units of the type's own.
ROUND_OFF, UNITS = 1e-4, 8


def check_causal(adapter: HuggingFaceAdapter) -> None:
    """Refuse a model whose logits at early positions depend on later tokens.

    A model that reads a single position, or a single token, has nothing to look ahead to and is not run.

    Args:
        adapter: of the model, ready to score.
    Raises:
        ValueError: the model looks ahead, or cannot be run. MemoryError: two rows of a few tokens do not fit.
    """
    width = min(WIDTH, WIDTH if adapter.max_length is None else adapter.max_length)
    tokens = _plain_ids(adapter)
    if width < 2 or len(tokens) < 2:
        return
    early = width // 2
    ids = torch.full((2, width), tokens[0], device=adapter.device)
    ids[1, early:] = tokens[1]
    column = torch.arange(width, device=adapter.device).expand(2, -1)
    try:
        first, second = adapter.logits(
            ids, column[:, :early], attention_mask=torch.ones_like(ids), position_ids=column
        )
    except Exception as error:  # anything: the model's own code runs in here
        if is_out_of_memory(error):
            raise MemoryError(
                f"out of memory in a forward of two rows of {width} tokens of {type(adapter.model).__name__}: load it "
                "with a narrower dtype"
            ) from error
        raise ValueError(
            f"ar_model = {type(adapter.model).__name__}: cannot be run on token ids, a mask and positions alone "
            f"({type(error).__name__}: {reason(error)}); give a causal language model of text"
        ) from error
    # Entries of -inf in both are no difference; NaN is told of when the model scores a sequence.
    difference = float((first - second).nan_to_num(nan=0.0).abs().max())
    scale = float(first.masked_fill(~first.isfinite(), 0.0).abs().max())
    if difference > max(ROUND_OFF, UNITS * torch.finfo(adapter.model.dtype).eps) * scale:
        raise ValueError(
            f"ar_model = {type(adapter.model).__name__}: is not causal: its logits at a position change by "
            f"{difference:.2g} with the tokens after it; give a causal language model, or set is_decoder = True in its "
            "configuration if it was trained as one"
        )


def _plain_ids(adapter: HuggingFaceAdapter) -> list[int]:
    """Two different ids that the model reads, of ordinary tokens if there are any; padding could be overlooked."""
    config: Any = adapter.model.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")]
    special = {i for value in named for i in ids_of(value)} | {*adapter.banned_ids, *ends_of(adapter.eos_id)}
    size = min(adapter.vocab_size, adapter._input_size)
    ordinary = [i for i in range(size - 1, -1, -1) if i not in special]
    return (ordinary + [i for i in range(size) if i in special])[:2]
