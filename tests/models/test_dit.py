"""The diffusion transformer of MDLM and BD3LM: its logits are the formulas', however it is called and loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from smc_bridge.decode import decode
from smc_bridge.models.conventions import CONVENTIONS
from smc_bridge.models.huggingface import HuggingFaceMaskedLM
from smc_bridge.models.huggingface.adapter import additive_mask
from smc_bridge.models.huggingface.attention import attention_of
from smc_bridge.models.huggingface.dit import DiT, DiTConfig
from smc_bridge.models.huggingface.forwards import KEEPS_BY_ROW
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.registry import METHODS
from tests.models import dit_reference
from tests.models.checkpoints import make_tokenizer, save_checkpoint
from tests.models.dit_checkpoints import HEADS, MASK_ID, SIZE, save_bd3lm, save_mdlm

NATIVE = CONVENTIONS["mdlm"].native
assert NATIVE is not None
SAVE: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "mdlm": save_mdlm,
    "bd3lm": save_bd3lm,
    "bd3lm, no adaptive norm": lambda folder: save_bd3lm(folder, adaln=False),
}


def rename(name: str) -> list[str]:
    """What a checkpoint's weight is called here: one name, or none where it is not used."""
    return [re.sub(pattern, new, name) for pattern, new in NATIVE.renaming.items() if re.search(pattern, name)]


def load(folder: Path, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> DiT:
    """The checkpoint of `folder`, every weight accounted for."""
    config = DiTConfig.from_checkpoint(json.loads((folder / "config.json").read_text()))
    config._attn_implementation = attention
    model = DiT(config).to(dtype)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({new: weight for name, weight in weights.items() for new in rename(name)}, strict=True)
    return model.eval()


def expected(
    weights: dict[str, Tensor], ids: Tensor, *, seen: np.ndarray | None = None, position: np.ndarray | None = None
) -> Tensor:
    """Logits by the formulas; by default all tokens see all and stand at 0, 1, ..."""
    rows, width = ids.shape
    seen = np.ones((rows, width, width), dtype=bool) if seen is None else np.broadcast_to(seen, (rows, width, width))
    position = np.broadcast_to(np.arange(width) if position is None else position, (rows, width))
    arrays = {name.removeprefix("backbone."): weight.numpy() for name, weight in weights.items()}
    return torch.from_numpy(dit_reference.logits(arrays, ids.numpy(), heads=HEADS, seen=seen, position=position))


def some_ids(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SIZE, (rows, width), generator=torch.Generator().manual_seed(seed))


def by_block(width: int, size: int = 4) -> np.ndarray:
    block = np.arange(width) // size
    return block[None, :] <= block[:, None]


def close(actual: Tensor, wanted: Tensor, room: float = 1e-9) -> None:
    gap = float((actual.detach().double() - wanted).abs().max())
    assert actual.shape == wanted.shape
    assert gap <= room, f"logits up to {float(wanted.abs().max()):.2f} differ by {gap:.3g}, more than {room:.0e}"


@pytest.fixture(params=SAVE)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A folder of each layout, and its weights."""
    return tmp_path / "model", SAVE[request.param](tmp_path / "model")


@pytest.fixture
def mdlm(tmp_path: Path) -> tuple[DiT, dict[str, Tensor]]:
    """The model of a tiny MDLM in float64, and its weights by the checkpoint's names."""
    weights = save_mdlm(tmp_path / "model")
    return load(tmp_path / "model"), weights


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_formulas(checkpoint: tuple[Path, dict[str, Tensor]], attention: str) -> None:
    folder, weights = checkpoint
    model, ids = load(folder, attention=attention), some_ids(3, 11)
    close(model(ids).logits, expected(weights, ids))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_and_positions_are_taken_as_they_stand(
    checkpoint: tuple[Path, dict[str, Tensor]], attention: str
) -> None:
    folder, weights = checkpoint
    model, ids = load(folder, attention=attention), some_ids(3, 11)
    random = np.random.default_rng(0)
    seen = by_block(11)[None] & (random.random((3, 11, 11)) < 0.8) | np.eye(11, dtype=bool)
    position = random.permuted(np.tile(np.arange(3, 14), (3, 1)), axis=1)
    mask = additive_mask(torch.from_numpy(seen), torch.float64)
    got = model(ids, attention_mask=mask, position_ids=torch.from_numpy(position)).logits
    close(got, expected(weights, ids, seen=seen, position=position))
    shared = model(ids, attention_mask=mask[:1], position_ids=torch.from_numpy(position[:1])).logits
    close(shared, expected(weights, ids, seen=seen[:1], position=position[:1]))


def test_a_padded_row_is_the_row_alone(mdlm: tuple[DiT, dict[str, Tensor]]) -> None:
    model, weights = mdlm
    ids, lengths = some_ids(3, 9), [9, 1, 6]
    real = torch.arange(9) < torch.tensor(lengths)[:, None]
    got = model(ids, attention_mask=real.long()).logits
    for row, length in enumerate(lengths):
        close(got[row : row + 1, :length], expected(weights, ids[row : row + 1, :length]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_blocks_give_the_logits_of_a_recomputed_row(tmp_path: Path, attention: str) -> None:
    weights = save_bd3lm(tmp_path / "model")
    model, ids = load(tmp_path / "model", attention=attention), some_ids(2, 12)
    wanted = expected(weights, ids, seen=by_block(12))
    out = model(ids[:, :4], use_cache=True)
    parts, cache = [out.logits], out.past_key_values
    parts += [model(ids[:, start : start + 4], past_key_values=cache).logits for start in (4, 8)]
    close(torch.cat(parts, dim=1), wanted)
    assert cache.get_seq_length() == 12


def test_keys_are_cached_after_rotation(mdlm: tuple[DiT, dict[str, Tensor]]) -> None:
    model, weights = mdlm
    ids, cache = some_ids(1, 5), DynamicCache()
    model(ids, past_key_values=cache, position_ids=torch.arange(5)[None] + 7)
    fresh = torch.tensor([[3]])
    got = model(fresh, past_key_values=cache, position_ids=torch.tensor([[2]])).logits
    seen = np.ones((6, 6), dtype=bool)
    seen[:5, 5] = False  # the first tokens were run without the last
    wanted = expected(weights, torch.cat([ids, fresh], 1), seen=seen, position=np.array([7, 8, 9, 10, 11, 2]))
    close(got, wanted[:, -1:])


@pytest.mark.parametrize(
    "keep", [0, 1, 4, torch.tensor([5, 0]), torch.tensor([[1, 5], [0, 0], [4, 2]])], ids=["all", "1", "4", "C", "B, C"]
)
def test_the_head_runs_on_wanted_places_alone(mdlm: tuple[DiT, dict[str, Tensor]], keep: int | Tensor) -> None:
    model, weights = mdlm
    ids, read = some_ids(3, 6), []
    handle = model.head.register_forward_hook(lambda module, inputs, out: read.append(inputs[0].shape[1]))
    got = model(ids, logits_to_keep=keep).logits
    handle.remove()
    if isinstance(keep, int):
        place = torch.arange(6)[-keep:].expand(3, -1) if keep else torch.arange(6).expand(3, -1)
    else:
        place = keep.expand(3, -1)
    close(got, expected(weights, ids).take_along_dim(place[..., None], 1))
    assert read == [place.shape[1]]


@pytest.mark.parametrize(("dtype", "room"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_narrower_types_are_near(
    checkpoint: tuple[Path, dict[str, Tensor]], dtype: torch.dtype, room: float
) -> None:
    folder, weights = checkpoint
    ids = some_ids(2, 8)
    got = load(folder, dtype)(ids, position_ids=torch.arange(40, 48)[None]).logits
    assert got.dtype == dtype
    close(got, expected(weights, ids, position=np.arange(40, 48)), room)


def test_angles_are_not_rounded_with_the_weights(mdlm: tuple[DiT, dict[str, Tensor]]) -> None:
    # In bfloat16, positions 1000 and 1001 would be one.
    model = mdlm[0].to(torch.bfloat16)
    cos, _ = model._rotation(torch.tensor([[1000, 1001]]), torch.bfloat16)
    wanted = torch.cos(torch.tensor([1000.0, 1001.0]))
    assert float((cos[0, 0, :, 0].float() - wanted).abs().max()) < 0.01


def test_every_weight_of_a_checkpoint_is_accounted_for(checkpoint: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = checkpoint
    for name in weights:
        unused = [pattern for pattern in NATIVE.unused if re.search(pattern, name)]
        assert len(rename(name)) + len(unused) == 1, name
    new = [each for name in weights for each in rename(name)]
    assert sorted(new) == sorted(load(folder).state_dict())
    assert not [name for name in new if rename(name)]


def test_a_saved_model_comes_back_whole(checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = checkpoint
    model, ids = load(folder, torch.float32), some_ids(2, 7)
    model.save_pretrained(tmp_path / "own")
    again = DiT.from_pretrained(tmp_path / "own").eval()
    assert again.config.condition_size == model.config.condition_size
    close(again(ids).logits, model(ids).logits.detach().double(), 1e-5)
    assert not list(again.buffers())


def test_a_fresh_model_is_finite() -> None:
    model = DiT(DiTConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, condition_size=3))
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert torch.equal(model.norm.weight.detach(), torch.ones(8))


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_an_adapter_scores_the_canvases_of_ragged_rows(mdlm: tuple[DiT, dict[str, Tensor]], cache: Any) -> None:
    network, weights = mdlm
    assert attention_of(network) is not None
    model = HuggingFaceMaskedLM(
        network, mask_id=MASK_ID, shift=False, eos_id=2, banned_ids=[MASK_ID], causal_backbone=True, cache=cache
    )
    assert (model.vocab_size, model.max_length, model.min_length) == (SIZE, 64, 0)
    tokens, length = some_ids(3, 6, seed=1).clamp_max(19), torch.tensor([6, 0, 3])
    session = model.session(tokens, length)
    canvas = torch.tensor([[MASKED, 4, MASKED], [MASKED, MASKED, ABSENT], [MASKED, MASKED, MASKED]])
    got = session.score(torch.arange(3), canvas)
    for row, n in enumerate(length.tolist()):
        shown = canvas[row][canvas[row] != ABSENT]
        ids = torch.cat([tokens[row, :n], torch.where(shown == MASKED, MASK_ID, shown)])[None]
        close(got[row, : len(shown)], expected(weights, ids)[0, n:])


def test_the_prefix_cache_keeps_what_the_first_forward_computed(mdlm: tuple[DiT, dict[str, Tensor]]) -> None:
    network, weights = mdlm
    model = HuggingFaceMaskedLM(
        network, mask_id=MASK_ID, shift=False, eos_id=2, causal_backbone=True, cache="prefix"
    )
    tokens = some_ids(1, 5, seed=2).clamp_max(19)
    session = model.session(tokens, torch.tensor([5]))
    session.score(torch.tensor([0]), torch.tensor([[MASKED, MASKED]]))
    session.commit(torch.tensor([[7]]), torch.tensor([1]))
    got = session.score(torch.tensor([0]), torch.tensor([[MASKED]]))
    # Columns: five tokens and two masks of the first forward, then the new token and a mask that see the tokens alone.
    ids = torch.cat([tokens, torch.tensor([[MASK_ID, MASK_ID, 7, MASK_ID]])], dim=1)
    seen = np.zeros((9, 9), dtype=bool)
    seen[:7, :7] = seen[7:, :5] = seen[7:, 7:] = True
    close(got, expected(weights, ids, seen=seen, position=np.array([0, 1, 2, 3, 4, 5, 6, 5, 6]))[:, -1:])


def test_columns_by_row_reach_the_model(mdlm: tuple[DiT, dict[str, Tensor]]) -> None:
    network, weights = mdlm
    model = HuggingFaceMaskedLM(network, mask_id=MASK_ID, shift=False, eos_id=None, causal_backbone=True)
    ids, keep = some_ids(2, 5), np.array([[0, 4], [3, 1]])
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    got = model.cached_logits(ids.numpy(), mask=mask, position=np.arange(5)[None], cache=DynamicCache(), keep=keep)
    close(got, expected(weights, ids).take_along_dim(torch.from_numpy(keep)[..., None], 1))
    assert KEEPS_BY_ROW or got.shape[1] == 2


CONFIG = {
    "model_type": "bd3lm", "vocab_size": 21, "model_length": 64, "hidden_dim": 16, "cond_dim": 6, "n_blocks": 2,
    "n_heads": 2, "block_size": 4,
}


def test_sizes_are_read_from_either_family() -> None:
    found = DiTConfig.from_checkpoint(CONFIG)
    assert (found.vocab_size, found.max_position_embeddings, found.hidden_size, found.condition_size) == (21, 64, 16, 6)
    assert (found.num_hidden_layers, found.num_attention_heads) == (2, 2)
    assert not found.tie_word_embeddings
    assert DiTConfig.from_checkpoint(CONFIG | {"tie_word_embeddings": True}).tie_word_embeddings is False
    assert DiTConfig.from_checkpoint(CONFIG | {"adaln": False, "cond_dim": None}).condition_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": None}, r"^hidden_dim = None in the checkpoint's configuration is no number from 1"),
        ({"cond_dim": 0}, r"^cond_dim = 0 in"),
        ({"n_blocks": True}, r"^n_blocks = True in"),
        ({"n_heads": 3}, r"^n_heads = 3 in .* hidden_dim = 16 does not split"),
        ({"n_heads": 16}, r"^n_heads = 16 in .* even size"),
        ({"causal": True}, r"^causal = True in .* autoregressive"),
    ],
)
def test_a_wrong_configuration_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DiTConfig.from_checkpoint(CONFIG | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", ["none", "prefix"])
@pytest.mark.parametrize("kind", SAVE)
def test_a_checkpoint_is_loaded_by_name_scored_by_the_formulas_and_decoded(
    tmp_path: Path, kind: str, cache: Any
) -> None:
    weights = SAVE[kind](tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "llama", seed=2, tokenizer=make_tokenizer(mask_token=None))
    size = None if kind == "mdlm" else 4
    pair: Any = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dlm_cache=cache)
    assert (pair.dlm.shift, pair.dlm.block_size, pair.dlm.mask_id) == (False, size, MASK_ID)
    tokens, length = some_ids(2, 6, seed=1).clamp_max(19), torch.tensor([6, 3])
    canvas = torch.tensor([[MASKED, 4, MASKED], [MASKED, MASKED, MASKED]])
    got = pair.dlm.session(tokens, length).score(torch.arange(2), canvas)
    for row, n in enumerate(length.tolist()):
        ids = torch.cat([tokens[row, :n], torch.where(canvas[row] == MASKED, MASK_ID, canvas[row])])[None]
        seen = None if size is None else by_block(ids.shape[1], size)
        wanted = expected(weights, ids, seen=seen)[0, n:]
        close(got[row], wanted[:, : pair.dlm.vocab_size], 1e-4)
    for name in ("smc", "paper", "tree-walk", "dlm"):
        for result in decode(METHODS[name].make(pair), [tokens[0].tolist()], seed=3, max_new_tokens=5):
            assert all(1 <= len(each) <= 5 and MASK_ID not in each for each in result.sequences), name
