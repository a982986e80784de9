"""How a diffusion language model is run: the one table of conventions, keyed by the model type of its configuration.

A checkpoint says what its weights are, not how its outputs are to be read. Four things differ between published models:

- *shift*: whether the output at place i - 1 predicts place i (kept from the autoregressive model it was made of) or the
  output at place i does;
- *attention*: how every position gets to see every other one (`Attention`);
- the id of the mask token: the configuration's, the tokenizer's, or the last one of the vocabulary;
- the name under which the configuration keeps the longest input.

Sources: Dream (Ye et al. 2025, arXiv 2508.15487), DiffuLLaMA and DiffuGPT (Gong et al. 2024, arXiv 2410.17891), LLaDA
(Nie et al. 2025, arXiv 2502.09992), MDLM (Sahoo et al. 2024, arXiv 2406.07524), BD3LM (Arriola et al. 2025, arXiv
2503.09573), A2D (github.com/ZHZisZZ/dllm: shifted or not by an option of its trainer, `right_shift_logits`, off by
default; a configuration that carries the option is believed, otherwise a model trained with it needs
`dlm_convention="shifted"`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

#: How a model is made to see the whole row and nothing past its end.
#: - "mask-4d": it takes a `[B, 1, W, W]` additive mask as it stands; a causal architecture becomes bidirectional by it.
#: - "mask-2d": bidirectional by itself; it reads a `[B, W]` mask of the real tokens.
#: - "unpadded": bidirectional by itself and blind to masks: only rows of one length may share a forward.
Attention = Literal["mask-4d", "mask-2d", "unpadded"]
Override = Literal["shifted", "unshifted"]
OVERRIDES: tuple[str, ...] = get_args(Override)

#: Entry of a configuration with the longest input, tokens, unless the convention names another.
LENGTH_KEY = "max_position_embeddings"
#: Entry of a configuration in which a diffusion model states its own convention.
ENTRY = "diffusion"


@dataclass(frozen=True)
class Convention:
    """How one family of diffusion models is run.

    Attributes:
        shift: whether the output at place i - 1 predicts place i.
        attention: see `Attention`.
        auto_class: class of transformers that finds the architecture.
        last_is_mask: the mask token is the last id of the vocabulary, and no tokenizer knows it.
        length_key: entry of the configuration with the longest input, tokens.
        inputs: further inputs of the forward; "zeros" stands for one zero per row.
        configuration: entries of the configuration that are set when the model is loaded.
    """

    shift: bool
    attention: Attention
    auto_class: str = "AutoModelForMaskedLM"
    last_is_mask: bool = False
    length_key: str = LENGTH_KEY
    inputs: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)


_A2D = Convention(shift=False, attention="mask-2d")
#: Masked LMs of transformers that take a mask of the real tokens and let padding through all the same.
_BLIND = Convention(shift=False, attention="unpadded")
#: Conventions by `config.model_type`. Masked LMs of transformers need no entry: they are `NATIVE_MASKED`.
CONVENTIONS: dict[str, Convention] = {
    "Dream": Convention(shift=True, attention="mask-4d", auto_class="AutoModel"),  # and Dream-Coder, DiffuCoder
    "llada": Convention(
        shift=False, attention="unpadded", auto_class="AutoModel", length_key="max_sequence_length",
    ),
    "a2d-llama": _A2D,
    "a2d-qwen2": _A2D,
    "a2d-qwen3": _A2D,
    "mdlm": Convention(
        shift=False, attention="unpadded", last_is_mask=True, length_key="model_length", inputs={"timesteps": "zeros"},
    ),
    "convbert": _BLIND,  # its convolutions reach over padding
    "fnet": _BLIND,
    "funnel": _BLIND,
    "mobilebert": _BLIND,  # every embedding reads its neighbours'
    "nystromformer": _BLIND,
    "reformer": _BLIND,
    "yoso": _BLIND,
    # Its sparse attention reads padding, and gives way to the full one for good at the first short row.
    "big_bird": Convention(shift=False, attention="mask-2d", configuration={"attention_type": "original_full"}),
    "bd3lm": Convention(
        shift=False, attention="unpadded", last_is_mask=True, length_key="model_length",
        inputs={"timesteps": "zeros", "sample_mode": True},
    ),
}
NATIVE_MASKED = Convention(shift=False, attention="mask-2d")
CAUSAL_BACKBONE = Convention(shift=True, attention="mask-4d", auto_class="AutoModelForCausalLM")
#: Prefix of the weights that DiffuLLaMA's and DiffuGPT's trainer writes round a backbone of transformers.
WRAPPED = "denoise_model."
#: Where such weights belong in the backbone, by its model type.
UNWRAPPED: dict[str, dict[str, str]] = {
    "gpt2": {r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."},
    "llama": {r"^denoise_model\.": "model.", r"^embed_tokens\.": "model.embed_tokens."},
}


def _native(model_type: str, auto_class: str) -> bool:
    """Whether transformers itself has the architecture `model_type` under `auto_class`."""
    from transformers.models.auto import modeling_auto

    mapping = {
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return model_type in mapping[auto_class]


def _own_class(config: Mapping[str, Any]) -> str | None:
    """Auto class of the checkpoint's own code, if it has any."""
    own = config.get("auto_map") or {}
    return next((name for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel") if name in own), None)


def _stated(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The `diffusion` entry of a configuration, empty if there is none."""
    entry = config.get(ENTRY)
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"dlm = {str(name)!r}: {ENTRY} = {entry!r} in its configuration is no JSON object: give one, as "
            '{"shift": true, "mask_token_id": 3}'
        )
    shift = entry.get("shift")
    if shift is not None and not isinstance(shift, bool):
        raise ValueError(
            f"dlm = {str(name)!r}: shift = {shift!r} in the {ENTRY} entry of its configuration: give true or false"
        )
    return entry


def convention_of(
    config: Mapping[str, Any], *, name: str, override: Override | None = None, wrapped: bool = False
) -> Convention:
    """How the diffusion model with this configuration is run.

    The output convention is, in this order: `override`; the `shift` of the configuration's `diffusion` entry; its
    `right_shift_logits`; that of the table. What else the convention says is the architecture's.

    Args:
        config: contents of `config.json`.
        name: of the model, for messages.
        override: "shifted" or "unshifted".
        wrapped: whether the weights are DiffuLLaMA's or DiffuGPT's (`WRAPPED`).
    Raises:
        ValueError: the override or the entry is neither, or nothing says how a model of this type is read.
    """
    if override is not None and override not in OVERRIDES:
        raise ValueError(f"dlm_convention = {override!r}: give 'shifted' or 'unshifted', or leave it out")
    model_type = str(config.get("model_type"))
    flag = config.get("right_shift_logits")
    if flag is not None and not isinstance(flag, bool):
        raise ValueError(
            f"dlm = {str(name)!r}: right_shift_logits = {flag!r} in its configuration: give true or false"
        )
    stated = _stated(config, name).get("shift", flag)
    if override is not None:
        stated = override == "shifted"
    if model_type in CONVENTIONS:
        found = CONVENTIONS[model_type]
    elif wrapped:
        found = CAUSAL_BACKBONE
    elif _native(model_type, "AutoModelForMaskedLM") and not config.get("is_encoder_decoder"):
        found = NATIVE_MASKED
    elif stated is None:
        raise ValueError(
            f"dlm = {str(name)!r} has the model type {model_type!r}, whose convention is not known: set dlm_convention "
            "to 'shifted' (the output at place i - 1 predicts place i, as in Dream) or 'unshifted' (as in LLaDA)"
        )
    elif (own := _own_class(config)) is not None:
        found = Convention(shift=stated, attention="unpadded", auto_class=own)
    elif _native(model_type, "AutoModelForCausalLM"):
        found = CAUSAL_BACKBONE
    else:
        raise ValueError(
            f"dlm = {str(name)!r} has the model type {model_type!r}, which transformers has no language model for: "
            "give a masked or causal language model, or a checkpoint with code of its own and trust_remote_code = True"
        )
    return found if stated is None else replace(found, shift=bool(stated))


def mask_id_of(config: Mapping[str, Any], tokenizer: Any, convention: Convention, *, name: str) -> int:
    """Id of the mask token: the configuration's, else the tokenizer's, else the convention's.

    Raises:
        ValueError: nothing tells, or what does is no id.
    """
    size = config.get("vocab_size")
    last = size - 1 if convention.last_is_mask and isinstance(size, int) else None
    found = (
        _stated(config, name).get("mask_token_id"), config.get("mask_token_id"), tokenizer.mask_token_id, last
    )
    known = next((i for i in found if i is not None), None)
    if known is None:
        raise ValueError(
            f"mask_id = None, and neither configuration nor tokenizer of dlm = {str(name)!r} has a mask token: give "
            "the id that stands for a masked position"
        )
    if isinstance(known, bool) or not isinstance(known, int) or known < 0:
        raise ValueError(
            f"dlm = {str(name)!r}: mask_token_id = {known!r} in its configuration is no id: give mask_id, a number "
            "from 0"
        )
    return known
