"""A family of diffusion models as the tests see it, and the files of a checkpoint as published ones have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from tests.models.checkpoints import make_tokenizer, save_checkpoint

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, POSITIONS = 32, 2, 4, 2, 48, 64
#: Output columns: two more than most of the tokenizers have tokens, as in published checkpoints.
COLUMNS = 22

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """One family of diffusion models.

    Attributes:
        config: contents of `config.json`.
        shapes: of the weights, by the family's own names.
        outputs: `outputs(weights, ids)` gives the outputs of one unpadded row, `[W, columns]`, by an independent
            forward over the family's own weights.
        shift: whether the output at place i - 1 predicts place i.
        mask_id: id of a masked place.
        save_tokenizer, save_target: write the tokenizer's files, and an autoregressive model over the same ids.
        block_size: tokens of a block of a block-causal model.
        generation: contents of `generation_config.json`, if the family has one.
        shards: files of weights.
        kwargs: what the user has to tell `load_pair`.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    outputs: Callable[[Mapping[str, Tensor], list[int]], Tensor]
    shift: bool
    mask_id: int
    save_tokenizer: Callable[[Path], None]
    save_target: Callable[[Path], None]
    block_size: int | None = None
    generation: Mapping[str, Any] | None = None
    shards: int = 1
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, seed: int = 0) -> None:
        """Write a checkpoint with random weights into a new folder."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
        if self.generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(self.generation, indent=2))
        save_weights(folder, random_weights(self.shapes, seed), self.shards)
        self.save_tokenizer(folder)

    def logits(self, weights: Mapping[str, Tensor], ids: list[int]) -> Tensor:
        """Logits of every place of one unpadded row, `[W, columns]`; NaN where no output predicts the first place."""
        outputs = self.outputs(weights, ids)
        return torch.cat([torch.full_like(outputs[:1], torch.nan), outputs[:-1]]) if self.shift else outputs


def random_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Wide random weights, so that a wrong mask, position, bias or norm shows."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and not name.endswith("bias")
        found[name] = 1 + 0.3 * noise if norm else 0.2 * noise
    return found


def save_weights(folder: Path, weights: Mapping[str, Tensor], shards: int) -> None:
    """Write one file of weights, or several with an index."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata=metadata)
        return
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[i::shards]}
        save_file(part, folder / file, metadata=metadata)
        index |= dict.fromkeys(part, file)
    size = sum(value.nbytes for value in weights.values())
    whole = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole, indent=2))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, by the names that they have in its files."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


#: Byte-level pieces, ids 0 to 15, of a tokenizer in the layout of Qwen2's.
PIECES = ["Ġ", *"abcdefghijklmn", "ab"]
MERGES = [("a", "b")]
END, TURN_END = 16, 17
SHARED = {END: "<|endoftext|>", TURN_END: "<|im_end|>"}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_bytes(
    folder: Path, added: Mapping[int, str], settings: Mapping[str, Any], *, whole: bool = True
) -> None:
    """Write a byte-level tokenizer in the layout of Qwen2's: vocabulary, merges, and tokens added after them.

    Args:
        added: special tokens by id, after the pieces.
        settings: entries of `tokenizer_config.json`.
        whole: write `tokenizer.json` too.
    """
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(i): {"content": token} | plain for i, token in sorted(added.items())}
    base = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": decoder, "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": added[END], "errors": "replace",
        "model_max_length": POSITIONS, "pad_token": added[END], "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(base | dict(settings), indent=2))
    if not whole:
        (folder / "added_tokens.json").write_text(json.dumps({token: i for i, token in added.items()}))
        return
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(added[i], normalized=False, special=True) for i in sorted(added)])
    tokenizer.save(str(folder / "tokenizer.json"))


def bytes_target(folder: Path) -> None:
    """An autoregressive Qwen2 over the byte-level ids, which knows none of a family's own tokens."""
    save_checkpoint(folder, "qwen2", seed=2)
    for file in folder.glob("*token*.json"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    (folder / "config.json").write_text(json.dumps(config | ends))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    save_bytes(folder, SHARED, {})


def words_tokenizer(**changes: Any) -> Callable[[Path], None]:
    """Writer of whole words in a generic `tokenizer.json` (`make_tokenizer`)."""

    def save(folder: Path) -> None:
        make_tokenizer(**changes).save_pretrained(folder)

    return save


def words_target(kind: str) -> Callable[[Path], None]:
    """Writer of an autoregressive model of this kind over the same words."""

    def save(folder: Path) -> None:
        save_checkpoint(folder, kind, seed=2, tokenizer=make_tokenizer(mask_token=None))

    return save
