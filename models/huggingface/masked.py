"""A masked diffusion language model of transformers as a `MaskedDiffusionLM`.

One bidirectional forward over prefix and canvas, mask tokens where the canvas is not known, gives independent marginals
of all M positions. Two conventions say which output is about which position:

- `shift=True`: the output at place i - 1 predicts place i, kept from the autoregressive model it was made of (Dream,
  Ye et al. 2025, arXiv 2508.15487; DiffuLLaMA, Gong et al. 2024, arXiv 2410.17891);
- `shift=False`: the output at place i predicts place i (LLaDA, Nie et al. 2025, arXiv 2502.09992; MDLM, Sahoo et al.
  2024, arXiv 2406.07524; every BERT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.huggingface.adapter import ADDITIVE_ATTENTION, HuggingFaceAdapter, additive_mask
from models.protocols import ABSENT, MASKED
from models.rows import Rows, append_ragged


class HuggingFaceMaskedLM(HuggingFaceAdapter):
    """Masked diffusion language model of transformers (implements `MaskedDiffusionLM`).

    Args:
        model: a transformers model with a language-modelling head; it is put into evaluation mode.
        mask_id: id that stands for a masked position in the model's input; it may lie past `vocab_size`.
        shift: whether the output at place i - 1 predicts place i.
        eos_id: token that ends a sequence, or None.
        banned_ids: ids that are not text (mask, padding, unused rows).
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        causal_backbone: the architecture is that of a causal model, made bidirectional by a 4-D attention mask; if
            False it is bidirectional by itself and gets a 2-D mask. Default: whether transformers can generate with it.
    """

    def __init__(
        self,
        model: Any,
        *,
        mask_id: int,
        shift: bool,
        eos_id: int | None,
        banned_ids: Sequence[int] = (),
        vocab_size: int | None = None,
        causal_backbone: bool | None = None,
    ) -> None:
        super().__init__(model, eos_id=eos_id, banned_ids=banned_ids, vocab_size=vocab_size)
        if not 0 <= mask_id < self._input_size:
            raise ValueError(f"mask_id = {mask_id}: give an id from 0 to {self._input_size - 1}")
        self.mask_id = mask_id
        self.shift = shift
        self.causal_backbone = bool(model.can_generate()) if causal_backbone is None else causal_backbone
        attention = model.config._attn_implementation
        if self.causal_backbone and attention not in ADDITIVE_ATTENTION:
            raise ValueError(
                f"attn_implementation = {attention!r} of a causal backbone takes no bidirectional mask: load the model "
                f"with one of {ADDITIVE_ATTENTION}"
            )

    def session(self, tokens: Tensor, length: Tensor) -> HuggingFaceDiffusionSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count."""
        return HuggingFaceDiffusionSession(self, tokens, length)


class HuggingFaceDiffusionSession(Rows):
    """Session of a `HuggingFaceMaskedLM` that recomputes (implements `DiffusionSession`)."""

    def __init__(self, model: HuggingFaceMaskedLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model

    def score(self, rows: Tensor, canvas: Tensor) -> Tensor:
        """See `DiffusionSession.score`.

        Raises:
            ValueError: on an empty prefix if the outputs are shifted, and on logits that are no law.
        """
        model = self.model
        length = self.length[rows]
        batch, lookahead = canvas.shape
        if batch == 0 or lookahead == 0:
            return model.empty(batch, lookahead)
        if model.shift and bool((length < 1).any()):
            row = int(rows[int((length < 1).nonzero()[0])])
            raise ValueError(
                f"length[{row}] = 0: with shifted outputs nothing predicts the first token; "
                "start the prefix from bos or a prompt"
            )
        shown = canvas.masked_fill(canvas == MASKED, model.mask_id)
        present = (canvas != ABSENT).sum(1)
        ids, whole = append_ragged(self.tokens[rows], length, shown, present, fill=0)
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        real = column < whole[:, None]  # [B, W]
        # Places that a row does not have read its last one.
        position = (length[:, None] + torch.arange(lookahead, device=ids.device)).clamp_max(whole[:, None] - 1)
        wanted = position - 1 if model.shift else position
        if model.causal_backbone:
            allowed = real[:, None, :].expand(-1, ids.shape[1], -1)
            attention = additive_mask(allowed, model.model.dtype)
            out = model.logits(ids, wanted, attention_mask=attention, position_ids=column)
        else:
            out = model.logits(ids, wanted, attention_mask=real.long(), position_ids=None)
        return model.check_logits(out, rows, position)
