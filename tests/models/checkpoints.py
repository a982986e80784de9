"""Checkpoint folders of tiny random models, as a user would have them, and one that brings code of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<mask>"]
WORDS = [f"w{i}" for i in range(16)]
MASK_ID = 3
SIZE = 22  # two outputs more than the tokenizer has tokens

_SHAPE: dict[str, Any] = {
    "vocab_size": SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
_GROUPED = _SHAPE | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
_GPT2 = {
    "vocab_size": SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}
CONFIGURATIONS: dict[str, Any] = {
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "gemma2": lambda: transformers.Gemma2Config(**_GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "bert": lambda: transformers.BertConfig(**_SHAPE),
    "roberta": lambda: transformers.RobertaConfig(**_SHAPE),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SHAPE, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4
    ),
}
MASKED = ("bert", "roberta", "modernbert")


def make_tokenizer(words: list[str] | None = None, **changes: Any) -> Any:
    """Whole words; ids 0 to 3 are pad, bos, eos and mask."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(words or WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"} | changes
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v is not None})


def spread_weights(model: Any, seed: int) -> Any:
    """Wide random weights, so that a wrong mask or position shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_checkpoint(
    folder: Path, kind: str, *, seed: int = 0, tokenizer: Any = None, entry: dict[str, Any] | None = None
) -> Any:
    """Save a tiny model of `kind` with its tokenizer; returns the model.

    Args:
        entry: the configuration's `diffusion` entry.
    """
    config = CONFIGURATIONS[kind]()
    if entry is not None:
        config.diffusion = entry
    auto = transformers.AutoModelForMaskedLM if kind in MASKED else transformers.AutoModelForCausalLM
    model = spread_weights(auto.from_config(config), seed)
    model.save_pretrained(folder)
    (make_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return model


def edit_config(**changes: object) -> Callable[[Path], None]:
    """Change entries of a folder's configuration; None deletes."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return spoil


CODE = '''
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

open(r"{witness}", "a").write("ran")


class BlindConfig(PretrainedConfig):
    model_type = "blind"

    def __init__(self, vocab_size=22, mask_token_id=3, **rest):
        super().__init__(**rest)
        self.vocab_size, self.mask_token_id = vocab_size, mask_token_id


class BlindModel(PreTrainedModel):
    """Bidirectional, and blind to padding: every place sees the mean of the whole row."""

    config_class = BlindConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = torch.nn.Embedding(config.vocab_size, 16)
        self.place = torch.nn.Embedding(64, 16)
        self.head = torch.nn.Linear(16, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, **rest):
        hidden = self.inner(input_ids)
        hidden = hidden + hidden.mean(1, keepdim=True) + self.place.weight[: input_ids.shape[1]]
        return MaskedLMOutput(logits=self.head(hidden))
'''


def save_with_own_code(folder: Path, *, witness: Path) -> dict[str, torch.Tensor]:
    """Save a checkpoint whose code writes to `witness` when it runs; returns its weights."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "modeling_blind.py").write_text(CODE.replace("{witness}", str(witness)))
    own = {"AutoConfig": "modeling_blind.BlindConfig", "AutoModelForMaskedLM": "modeling_blind.BlindModel"}
    config = {"model_type": "blind", "architectures": ["BlindModel"], "vocab_size": SIZE, "mask_token_id": MASK_ID}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "dtype": "float32"}))
    generator = torch.Generator().manual_seed(5)
    shapes = {"inner.weight": (SIZE, 16), "place.weight": (64, 16), "head.weight": (SIZE, 16), "head.bias": (SIZE,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save_pretrained(folder)
    return weights
