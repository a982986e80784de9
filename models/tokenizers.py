"""The tokenizer of a checkpoint, as the checkpoint's own files say it.

A `tokenizer.json` is the whole of a tokenizer: how a text is normalised and cut, the tokens, and how they become text
again. transformers' automatic choice goes by the name of a class, or by the model's type, and some of those classes put
rules of their own in the place of the file's: the same text is then other tokens than those that the model learned. So
what the automatic choice gives is compared with the file, rule by rule, and where they differ the file is right.

Code that a checkpoint brings is not run unless the user trusts it; its files are read without it.
"""

from __future__ import annotations

from typing import Any

from smc_bridge.models.checkpoints import TOKENIZERS, Checkpoint
from smc_bridge.models.loading import one_line, quiet

#: Tokenizer classes that add nothing to what `tokenizer.json` says.
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: Classes of transformers that read the files of a class that checkpoints bring, which are the same.
NATIVE = {"DreamTokenizer": "Qwen2TokenizerFast", "Qwen2Tokenizer": "Qwen2TokenizerFast"}
#: Tokens that a class may name where the checkpoint does not.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: it cannot be loaded, has no tokens, or is made by code that is not trusted and by no file.
    """
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.utils.hub import cached_file

    name, options = checkpoint.name, checkpoint.options
    with quiet(progress=not checkpoint.offline), one_line(checkpoint, "tokenizer"):
        settings = get_tokenizer_config(name, **options)
        kind, own = settings.get("tokenizer_class"), bool(settings.get("auto_map"))
        file = cached_file(name, TOKENIZERS[0], **options, _raise_exceptions_for_missing_entries=False)
        if own and trust_remote_code:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=True, **options)
        elif file is not None:
            by_class = None if own or kind in GENERIC else _by_class(name, options)
            tokenizer = _as_written(name, file, settings, by_class, options)
        elif not own and not (kind in NATIVE and not hasattr(transformers, kind)):
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        elif kind in NATIVE:
            tokenizer = getattr(transformers, NATIVE[kind]).from_pretrained(name, **options)
        else:
            tokenizer = None
    if tokenizer is None:
        raise ValueError(
            f"{checkpoint.said}: its tokenizer is made by code of its own ({kind}), which is not run, and has no "
            f"{TOKENIZERS[0]}: copy one, or read the code, then set trust_remote_code = True"
        )
    if not tokenizer.get_vocab():
        raise ValueError(f"{checkpoint.said}: its tokenizer has no tokens; copy the tokenizer's files too")
    return tokenizer


def _by_class(name: str, options: dict[str, Any]) -> Any:
    """transformers' automatic choice, None where it fails: the file is there to be read without it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception:  # anything: classes that are gone, packages that lack, models that are not known
        return None


def _as_written(name: str, file: str, settings: dict[str, Any], by_class: Any, options: dict[str, Any]) -> Any:
    """The tokenizer with the rules of `file`: `by_class` if these are its own, else a generic one.

    Special tokens are those of the checkpoint's settings; those that `by_class` alone names are taken over, if the file
    has them.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    written = Tokenizer.from_file(file)
    if hasattr(by_class, "backend_tokenizer") and _rules(by_class.backend_tokenizer) == _rules(written):
        return by_class
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
    backend = tokenizer.backend_tokenizer  # which transformers 4 changes by the settings
    for rule in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(backend, rule, getattr(written, rule))
    for token in NAMED:
        default = getattr(by_class, token, None)
        silent = token not in settings and getattr(tokenizer, token) is None
        if silent and default is not None and written.token_to_id(default) is not None:
            setattr(tokenizer, token, default)
    return tokenizer


def _rules(backend: Any) -> tuple[Any, ...]:
    """All that decides how a tokenizer of the package tokenizers cuts, numbers and joins, not what it puts around."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.model, backend.decoder)
    added = {i: repr(token) for i, token in backend.get_added_tokens_decoder().items()}
    return *(part and part.__getstate__() for part in parts), added
