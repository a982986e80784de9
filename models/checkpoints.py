"""What a checkpoint is made of, looked at before anything of it is loaded or run.

A checkpoint is a local folder, or a name of the Hugging Face hub (`owner/name`). It must hold a configuration, weights
in safetensors (no pickle: reading one can run code) and a tokenizer. Every fault is one line that names the argument,
the checkpoint and the remedy.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
#: Configuration of a PEFT adapter.
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)
#: Seconds that the hub has to answer.
PATIENCE = 5.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read.

    Attributes:
        argument: which argument names it, for messages.
        name: local folder, or name on the hub.
        config: contents of `config.json`.
        offline: the hub cannot be reached, or need not be: only local files are read.
        hub: `revision` and `token`, as far as they are given.
    """

    argument: str
    name: str
    config: Mapping[str, Any]
    offline: bool
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The argument and its value, `argument = value`, with which messages start."""
        return f"{self.argument} = {self.name!r}"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments with which transformers finds its files."""
        return {"local_files_only": self.offline, **self.hub}

    def refuse_code(self) -> None:
        """Raise ValueError: it cannot be loaded without code of its own, which the user does not trust."""
        first = next(iter(self.config["auto_map"].values()))
        raise ValueError(
            f"{self.said}: brings code of its own (auto_map in {CONFIG}: {first}), which is not run: read it, then "
            "set trust_remote_code = True"
        )


def hub_answers() -> bool:
    """Whether the hub can be reached; behind a proxy that is left to the proxy."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlparse(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((str(address.hostname), port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def is_path(name: str) -> bool:
    """Whether `name` can only be a local path: `owner/name` is one of the hub's if there is no such folder."""
    return Path(name).exists() or name.startswith((".", "~", "/")) or name.count("/") > 1 or os.sep != "/" in name


def _json(path: Path, said: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{said}: {path.name} cannot be read ({error}): copy the checkpoint anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{said}: {path.name} is no JSON object: copy the checkpoint anew")
    return content


def _check_weights(folder: Path, said: str) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / WEIGHTS_INDEX).is_file():
        files = _json(folder / WEIGHTS_INDEX, said).get("weight_map")
        if not isinstance(files, dict) or not files or not all(isinstance(part, str) for part in files.values()):
            raise ValueError(f"{said}: {WEIGHTS_INDEX} has no weight_map from weights to files: copy it anew")
        parts = set(files.values())
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            raise FileNotFoundError(
                f"{said}: {len(missing)} of {len(parts)} weight files are missing (first {missing[0]}): copy them too"
            )
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{said}: holds its weights as pickle only ({pickles[0]}), which can run code when it is read: save them "
            "as safetensors"
        )
    raise FileNotFoundError(f"{said}: has no weights ({WEIGHTS}): give the folder of a whole checkpoint")


def _local(argument: str, folder: Path, *, weights: bool, tokenizer: bool) -> Checkpoint:
    said = f"{argument} = {str(folder)!r}"
    if not folder.exists():
        raise FileNotFoundError(f"{said}: there is no such folder; give one with a checkpoint, or a name of the hub")
    if not folder.is_dir():
        raise ValueError(f"{said}: is a file; give the folder of a checkpoint")
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER).is_file():
            raise ValueError(_adapter(said))
        raise FileNotFoundError(f"{said}: has no {CONFIG}, so it is no checkpoint; give the folder that holds it")
    config = _json(folder / CONFIG, said)
    if weights:
        _check_weights(folder, said)
    if tokenizer and not has_tokenizer(folder):
        other = ", or name another checkpoint's with dlm_tokenizer" if argument == "dlm" else ""
        raise FileNotFoundError(
            f"{said}: has no tokenizer ({TOKENIZERS[0]}): copy it from where the model is from{other}"
        )
    return Checkpoint(argument, str(folder), config, offline=True)


def _adapter(said: str) -> str:
    """What is said of the folder of a PEFT adapter."""
    return (
        f"{said}: holds a PEFT adapter ({ADAPTER}) and no model; merge it into its base model (merge_and_unload), save "
        "that, and give its folder"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a local folder holds a tokenizer, or names code that makes one."""
    if any((folder / name).is_file() for name in TOKENIZERS):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and "auto_map" in _json(settings, str(folder))


def _from_hub(argument: str, name: str, hub: Mapping[str, Any]) -> Checkpoint:
    from huggingface_hub import constants
    from transformers import PretrainedConfig
    from transformers.utils.hub import cached_file

    said = f"{argument} = {name!r}"

    def found(*, offline: bool) -> Checkpoint:
        """With its configuration."""
        config = PretrainedConfig.get_config_dict(name, local_files_only=offline, **hub)[0]
        return Checkpoint(argument, name, config, offline, hub)

    try:
        return found(offline=True)
    except (OSError, ValueError):
        pass  # not in the cache
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{said}: is no local folder and not in the hub's local cache, and HF_HUB_OFFLINE is set; give a folder "
            "with a checkpoint, or unset it"
        )
    if not hub_answers():
        raise FileNotFoundError(
            f"{said}: is no local folder, not in the hub's local cache, and the hub cannot be reached; give a folder "
            "with a checkpoint, or connect"
        )
    try:
        return found(offline=False)
    except (OSError, ValueError) as error:
        if cached_file(name, ADAPTER, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False, **hub):
            raise ValueError(_adapter(said)) from error
        raise FileNotFoundError(
            f"{said}: is no local folder, and the hub gives no {CONFIG} ({reason(error)}); check the name, or log in "
            "if it is gated"
        ) from error


def find_checkpoint(
    argument: str,
    name: str | os.PathLike[str],
    *,
    weights: bool = True,
    tokenizer: bool = True,
    hub: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Find a checkpoint and refuse one that is not whole.

    Args:
        argument: which argument names it, for messages.
        name: local folder, or name on the hub.
        weights, tokenizer: whether it must have them.
        hub: `revision` and `token` for the hub; a folder has neither.
    Raises:
        ValueError: foreign or unreadable files, or pickle only. FileNotFoundError: something is missing, or the hub has
            no such checkpoint or cannot be reached.
    """
    text = os.fspath(name)
    if not text.strip():
        raise ValueError(f"{argument} = {text!r}: is empty; give a folder or a name of the hub")
    if is_path(text):
        try:
            folder = Path(text).expanduser()
        except RuntimeError as error:
            raise FileNotFoundError(f"{argument} = {text!r}: there is no such home folder; give a path") from error
        found = _local(argument, folder, weights=weights, tokenizer=tokenizer)
    else:
        found = _from_hub(argument, text, hub or {})
    if not isinstance(found.config.get("model_type"), str):
        raise ValueError(f"{found.said}: {CONFIG} has no model_type, so it is none of transformers'; give another")
    code = found.config.get("auto_map")
    if code is not None and not isinstance(code, dict):
        raise ValueError(
            f"{found.said}: auto_map in {CONFIG} is {code!r}, no JSON object from classes to code: copy {CONFIG} anew"
        )
    return found


def generation_ends(checkpoint: Checkpoint) -> list[int]:
    """Ids at which a checkpoint's own generation stops (`eos_token_id` of `generation_config.json`), if it says so.

    Raises:
        ValueError: the file cannot be read, or its entry is no id and no list of ids.
    """
    if is_path(checkpoint.name):
        path = Path(checkpoint.name).expanduser() / GENERATION
        found = path if path.is_file() else None
    else:
        found = _file_of_hub(checkpoint, GENERATION)
    return [] if found is None else _ends_in(_json(found, checkpoint.said), checkpoint, GENERATION)


def configured_ends(checkpoint: Checkpoint) -> list[int]:
    """Ids that end a sequence by a checkpoint's configuration; errors as of `generation_ends`."""
    return _ends_in(checkpoint.config, checkpoint, CONFIG)


def _ends_in(content: Mapping[str, Any], checkpoint: Checkpoint, file: str) -> list[int]:
    """The ids of the entry `eos_token_id` of a file."""
    stated = content.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in listed):
        raise ValueError(
            f"{checkpoint.said}: eos_token_id = {stated!r} in {file} is no id and no list of ids: copy it anew, or "
            "mend it there"
        )
    return listed


def _file_of_hub(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file of a checkpoint of the hub, or None if it has none or that is not known offline."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            checkpoint.name, name, **checkpoint.options, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def reason(error: BaseException) -> str:
    """First sentence of an error, on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[0].split())[:200].rstrip(".:") if lines else type(error).__name__
