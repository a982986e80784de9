"""A bidirectional model that is blind to attention masks, behind the interface of one that reads them.

LLaDA, MDLM and BD3LM attend to every column of a row, padding included, so the outputs of a short row would depend on
the longest row beside it. Here the rows of one length share a forward of exactly that width, and the outputs are put
together; columns past the end of a row are left at 0. Models that are conditioned on time get one time per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Unpadded(nn.Module):
    """`model` as a map from padded rows and a 2-D mask to logits.

    Args:
        model: transformers model, its output a tensor of logits or an object with `logits`.
        inputs: further inputs of its forward; "zeros" stands for a float zero per row.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self.inputs = dict(inputs or {})
        self.config = model.config

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameters."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        found: torch.dtype = self.model.dtype
        return found

    def can_generate(self) -> bool:
        """False: a bidirectional model does not generate."""
        return False

    def get_output_embeddings(self) -> Any:
        """Output embedding of the model, or None where it does not tell."""
        try:
            return self.model.get_output_embeddings()
        except (NotImplementedError, AttributeError):
            return None

    def get_input_embeddings(self) -> Any:
        """Input embedding of the model; where it does not tell, one with the `vocab_size` rows of its configuration."""
        try:
            found = self.model.get_input_embeddings()
        except (NotImplementedError, AttributeError):
            found = None
        if getattr(found, "weight", None) is not None:
            return found
        return SimpleNamespace(weight=torch.empty(self.config.vocab_size, 0, device="meta"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Logits `[B, W, A]` of right-padded `input_ids: [B, W]` of which `attention_mask: [B, W]` tells the real ones.

        Returns:
            An object with `logits`.
        """
        length = attention_mask.sum(1)
        logits: Tensor | None = None
        for n in sorted(set(length.tolist())):
            rows = (length == n).nonzero()[:, 0]
            given = {
                name: torch.zeros(len(rows), device=input_ids.device) if value == "zeros" else value
                for name, value in self.inputs.items()
            }
            out = self.model(input_ids=input_ids[rows, : int(n)], **given)
            part = out if isinstance(out, Tensor) else out.logits
            if logits is None:
                logits = part.new_zeros(*input_ids.shape, part.shape[-1])
            logits[rows, : int(n)] = part
        return SimpleNamespace(logits=logits)
