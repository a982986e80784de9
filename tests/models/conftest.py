"""Devices present, and tiny random transformers models made from configurations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

SMALL = {"vocab_size": 23, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _configuration(kind: str, **changes: Any) -> Any:
    grouped = SMALL | SPECIAL | {"num_key_value_heads": 2, "max_position_embeddings": 64}
    match kind:
        case "qwen2":
            return transformers.Qwen2Config(**grouped | changes)
        case "llama":
            return transformers.LlamaConfig(**grouped | changes)
        case "mistral":
            return transformers.MistralConfig(**grouped | {"sliding_window": None} | changes)
        case "gpt2":
            sizes = {"vocab_size": 23, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
            return transformers.GPT2Config(**sizes | SPECIAL | changes)
        case "bert":
            return transformers.BertConfig(**SMALL | {"max_position_embeddings": 64, "pad_token_id": 0} | changes)
        case "modernbert":
            shape = {"global_attn_every_n_layers": 2, "local_attention": 4, "max_position_embeddings": 64}
            ids = SPECIAL | {"cls_token_id": 1, "sep_token_id": 2}
            return transformers.ModernBertConfig(**SMALL | ids | shape | changes)
    raise ValueError(kind)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return torch.device(request.param)


@pytest.fixture
def tiny_model(device: torch.device) -> Callable[..., Any]:
    """Make a random model: `tiny_model("qwen2", vocab_size=23, ...)`.

    The weights are wide, so that logits spread over several nats and a wrong mask or position shows.
    """

    def make(kind: str, *, seed: int = 0, **changes: Any) -> Any:
        config = _configuration(kind, **changes)
        masked = kind in ("bert", "modernbert")
        auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        model = auto.from_config(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.to(device)

    return make


@pytest.fixture
def prefixes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Four ragged prefixes; what stands past their lengths must not matter."""
    tokens = torch.randint(4, SMALL["vocab_size"], (4, 9), generator=torch.Generator().manual_seed(1)).to(device)
    return tokens, torch.tensor([9, 1, 6, 4], device=device)
