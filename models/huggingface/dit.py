"""The small diffusion transformer of MDLM and BD3LM, so that their checkpoints load without code of their own.

A DiT (Peebles and Xie 2023, arXiv 2212.09748): pre-norm blocks with rotary positions, in which a vector `c` of the time
shifts, scales and gates what each block does ("adaptive layer norm"). With `n` a layer norm without bias,

    h <- h + gate_1(c) * attention(n_1(h) * (1 + scale_1(c)) + shift_1(c)),
    h <- h + gate_2(c) * mlp(n_2(h) * (1 + scale_2(c)) + shift_2(c)),
    c = silu(mlp_t(f(sigma))),    f(sigma) = [cos(sigma w), sin(sigma w)],    w in R^128,

and the output layer shifts and scales likewise. MDLM (Sahoo et al. 2024, arXiv 2406.07524) and BD3LM (Arriola et al.
2025, arXiv 2503.09573) train without time conditioning, which their code does by `sigma = 0` everywhere: `f` is then
128 ones and 128 zeros, and `c` a constant. So it is here, for every checkpoint: one that was trained with time
conditioning is read at `sigma = 0` too. A checkpoint without adaptive layer norm has no `c` at all.

The logits are the network's own. What MDLM's parameterisation "subs" makes of them (no probability for the mask token,
known tokens stay) is left to the caller, who bans the mask id and scores unknown places alone. So is BD3LM's
block-causal mask: all tokens see each other unless `attention_mask` says otherwise. Dropout is for training, and is
not here. Norms, angles and the softmax are computed in float32 at least; both families were trained in bfloat16 with
weights, residuals and norms in float32, so float32 is what their checkpoints are saved in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from smc_bridge.models.huggingface.adapter import additive_mask
from smc_bridge.models.huggingface.head import kept

#: Model type of `DiT`, which no checkpoint has.
MODEL_TYPE = "smc_bridge_dit"
#: Base of the rotary frequencies, numbers of the embedded time (half of them cosines), and growth of the perceptron.
ROTARY_BASE, TIME_SIZE, GROWTH = 10_000, 256, 4

#: Sizes of `DiTConfig`, and their names in a checkpoint's configuration.
_SIZES = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_dim", "num_hidden_layers": "n_blocks",
    "num_attention_heads": "n_heads", "max_position_embeddings": "model_length", "condition_size": "cond_dim",
}


class DiTConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of a `DiT`.

    Args:
        vocab_size: rows of the embedding and of the head, mask token included.
        hidden_size, num_hidden_layers, num_attention_heads: of the blocks.
        condition_size: numbers of the time vector `c`; None: no adaptive layer norm.
        max_position_embeddings: the longest input that it was trained on, tokens.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, vocab_size: int = 50_258, hidden_size: int = 768, num_hidden_layers: int = 12,
        num_attention_heads: int = 12, condition_size: int | None = 128, max_position_embeddings: int = 1024,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.condition_size = num_attention_heads, condition_size
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**rest | {"tie_word_embeddings": False})  # transformers ties by default

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> DiTConfig:
        """The configuration of a checkpoint of MDLM or BD3LM, from the contents of its `config.json`.

        Absent switches of BD3LM are as in its code: adaptive layer norm, not autoregressive.

        Raises:
            ValueError: a size is absent or no size, heads do not divide the hidden size into even parts, or the model
                is autoregressive.
        """
        if config.get("causal"):
            raise ValueError(
                "causal = True in the checkpoint's configuration: it is autoregressive; give a diffusion model"
            )
        adaptive = config.get("adaln", True)
        names = _SIZES if adaptive else {own: name for own, name in _SIZES.items() if own != "condition_size"}
        sizes: dict[str, Any] = {own: _size(config, name) for own, name in names.items()}
        if sizes["hidden_size"] % (2 * sizes["num_attention_heads"]):
            raise ValueError(
                f"n_heads = {sizes['num_attention_heads']} in the checkpoint's configuration: hidden_dim = "
                f"{sizes['hidden_size']} does not split into so many heads of even size; check its config.json"
            )
        return cls(**{"condition_size": None} | sizes)


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{name} = {value!r} in the checkpoint's configuration is no number from 1: check its config.json"
        )
    return value


class DiT(PreTrainedModel):  # type: ignore[misc]
    """A bidirectional transformer over token ids with an output head; see the file's docstring."""

    config_class = DiTConfig
    _supports_sdpa = True
    _no_split_modules = ("DiTBlock",)

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        size, condition = config.hidden_size, config.condition_size
        self.embedding = nn.Embedding(config.vocab_size, size)
        self.time = None if condition is None else nn.Sequential(
            nn.Linear(TIME_SIZE, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        self.blocks = nn.ModuleList(DiTBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(size, bias=False)
        self.modulation = None if condition is None else nn.Linear(condition, 2 * size)
        self.head = nn.Linear(size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Token embeddings, `[rows, hidden]`."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        """The output head, `[rows, hidden]` and a bias."""
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Any = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """Logits of one forward over F fresh tokens, behind what a cache holds.

        Args:
            input_ids: `[B, F]`.
            attention_mask: additive `[B or 1, 1, F, K]` over K places, cached and fresh, taken as it stands; or 1 for
                real tokens, `[B, K]`; or None: all tokens see all.
            position_ids: of the fresh tokens, `[B or 1, F]`; default: they follow what is cached.
            past_key_values: a transformers `Cache`, which the fresh tokens' rotated keys and values are put into.
            use_cache: whether to make such a cache if none is given.
            logits_to_keep: how many of the last places are wanted (0: all), or which, `[C]` or `[B, C]`.
        Returns:
            `logits: [B, C, vocab_size]`, and the cache.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        hidden = self.embedding(input_ids)
        if position_ids is None:
            held = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(held, held + input_ids.shape[1], device=input_ids.device)[None]
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = additive_mask(attention_mask[:, None] != 0, hidden.dtype)
        cos, sin = self._rotation(position_ids, hidden.dtype)
        condition = self._condition(hidden)
        for block in self.blocks:
            hidden = block(hidden, condition, cos, sin, attention_mask, past_key_values)
        shift, scale = _changes(self.modulation, condition, (0.0, 0.0))
        normed = self.norm(kept(hidden, logits_to_keep)) * (1 + scale) + shift
        return CausalLMOutputWithPast(logits=self.head(normed), past_key_values=past_key_values)

    def _condition(self, like: Tensor) -> Tensor | None:
        """The vector `c` at `sigma = 0`, `[1, condition_size]`, of the type and device of `like`."""
        if self.time is None:
            return None
        features = like.new_zeros(1, TIME_SIZE)
        features[:, : TIME_SIZE // 2] = 1
        return functional.silu(self.time(features))

    def _rotation(self, position: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles of positions `[B or 1, F]`: `[B or 1, 1, F, D / 2]` each.

        The frequencies are made anew each time: a buffer would be rounded with the weights, and transformers 5 leaves
        those that no checkpoint holds uninitialised.
        """
        exact = torch.promote_types(dtype, torch.float32)
        size = self.config.hidden_size // self.config.num_attention_heads
        step = torch.arange(0, size, 2, device=position.device).to(exact) / size
        angle = position[:, None, :, None].to(exact) * (1.0 / ROTARY_BASE**step)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class DiTBlock(nn.Module):
    """Attention and perceptron, each behind a layer norm that the time vector shifts, scales and gates."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        size, condition = config.hidden_size, config.condition_size
        self.config, self.index = config, index
        self.norm_attention = nn.LayerNorm(size, bias=False)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm_mlp = nn.LayerNorm(size, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(size, GROWTH * size), nn.GELU(approximate="tanh"), nn.Linear(GROWTH * size, size)
        )
        self.modulation = None if condition is None else nn.Linear(condition, 6 * size)

    def forward(
        self, hidden: Tensor, condition: Tensor | None, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any
    ) -> Tensor:
        """The block's output, `[B, F, hidden]` as its input."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _changes(
            self.modulation, condition, (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
        )
        batch, width, _ = hidden.shape
        fused = self.qkv(self.norm_attention(hidden) * (1 + scale) + shift)
        query, key, value = fused.view(batch, width, 3, self.config.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        attend = _attend if self.config._attn_implementation == "eager" else functional.scaled_dot_product_attention
        mixed = attend(query, key, value, attn_mask=mask)
        hidden = hidden + gate * self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = hidden + mlp_gate * self.mlp(self.norm_mlp(hidden) * (1 + mlp_scale) + mlp_shift)
        return out


def _changes(
    modulation: nn.Module | None, condition: Tensor | None, neutral: tuple[float, ...]
) -> tuple[Tensor | float, ...]:
    """Shifts, scales and gates, `[1, hidden]` each, as many as there are `neutral` ones, which change nothing."""
    if modulation is None:
        return neutral
    changes: tuple[Tensor, ...] = modulation(condition).chunk(len(neutral), dim=-1)
    return changes


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[B, H, F, D]`: entries i and i + D / 2 are turned together."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Attention `[B, H, F, D]` in plain operations."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores + attn_mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=exact).to(value.dtype) @ value
