"""What a model's configuration does not say plainly: what padding leaks into, where positions start and end, and which
token ends a sequence."""

import json
import warnings

import pytest
import torch
import transformers

from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.target import load_causal
from tests.models.checkpoints import (
    CONFIGURATIONS,
    MASK_ID,
    SIZE,
    edit_config,
    make_tokenizer,
    save_checkpoint,
    spread_weights,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


SIZES = {
    "vocab_size": SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0,
}
#: Masked models whose own mask lets padding through, with what makes it show.
LEAKY = {
    "fnet": {}, "nystromformer": {}, "yoso": {}, "convbert": {},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "num_decoder_layers": 1},
    "reformer": {
        "attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 8,
        "attention_head_size": 8, "feed_forward_size": 48, "is_decoder": False,
    },
    "big_bird": {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1},
}


def edit_generation(**changes):
    """Write the generation configuration of a folder."""
    return lambda folder: (folder / "generation_config.json").write_text(json.dumps(changes))


@pytest.mark.parametrize("kind", LEAKY)
def test_a_masked_model_that_padding_leaks_into_scores_a_short_row_as_it_does_alone(tmp_path, kind):
    unsaid = {"funnel": ("num_hidden_layers",), "reformer": ("num_hidden_layers", "intermediate_size")}.get(kind, ())
    sizes = {name: value for name, value in SIZES.items() if name not in unsaid}
    model = transformers.AutoModelForMaskedLM.from_config(transformers.CONFIG_MAPPING[kind](**sizes | LEAKY[kind]))
    spread_weights(model, 1).save_pretrained(tmp_path / "dlm")
    make_tokenizer().save_pretrained(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "llama")
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    tokens = torch.randint(4, 20, (2, 30), generator=torch.Generator().manual_seed(1))
    canvas = torch.full((2, 4), MASKED)
    together = pair.dlm.session(tokens, torch.tensor([6, 30])).score(torch.arange(2), canvas)
    again = pair.dlm.session(tokens, torch.tensor([6, 30])).score(torch.arange(2), canvas)
    torch.testing.assert_close(together, again, **CLOSE)
    for r, n in enumerate([6, 30]):
        alone = pair.dlm.session(tokens[r : r + 1, :n], torch.tensor([n])).score(torch.arange(1), canvas[:1])
        torch.testing.assert_close(together[r : r + 1], alone, **CLOSE)


def test_a_quantised_table_of_positions_is_no_longer_than_it_reads(tmp_path):
    config = transformers.IBertConfig(**SIZES | {"max_position_embeddings": 40, "pad_token_id": 1})
    spread_weights(transformers.AutoModelForMaskedLM.from_config(config), 1).save_pretrained(tmp_path / "dlm")
    make_tokenizer().save_pretrained(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "llama")
    dlm = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm
    tokens = torch.randint(4, 20, (1, 32), generator=torch.Generator().manual_seed(1))
    assert dlm.max_length == 38
    with pytest.raises(ValueError, match="rows reach 40 tokens, more than"):
        dlm.session(tokens, torch.tensor([32])).score(torch.arange(1), torch.full((1, 8), MASKED))


def test_longrope_targets_end_where_their_frequencies_would_change(tmp_path):
    """Past that place a token's law would depend on how long the drafts and rows beside it are."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 16}
    config = transformers.Phi3Config(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=rope,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    spread_weights(transformers.AutoModelForCausalLM.from_config(config), 1).save_pretrained(tmp_path / "ar")
    make_tokenizer().save_pretrained(tmp_path / "ar")
    with pytest.warns(UserWarning, match="every score reads the prefix again"):
        model = load_causal(tmp_path / "ar", device="cpu").model
    tokens, rows = torch.randint(4, 20, (1, 12)), torch.zeros(1, dtype=torch.long)
    session = model.session(tokens, torch.tensor([12]))
    assert session.score(rows, tokens[:, :5]).shape == (1, 5, SIZE)
    with pytest.raises(ValueError, match="rows reach 17 tokens, more than original_max_position_embeddings = 16"):
        session.score(rows, tokens[:, :6])


def test_a_decoder_that_counts_positions_from_past_its_padding_scores_what_transformers_scores(tmp_path):
    config = CONFIGURATIONS["roberta"]()
    config.is_decoder = True
    model = spread_weights(transformers.AutoModelForCausalLM.from_config(config), 1)
    model.save_pretrained(tmp_path / "ar")
    make_tokenizer().save_pretrained(tmp_path / "ar")
    with pytest.warns(UserWarning, match="every score reads the prefix again"):
        target = load_causal(tmp_path / "ar", device="cpu").model
    tokens = torch.randint(4, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    scores = target.session(tokens, torch.tensor([4, 9])).score(torch.arange(2), tokens[:, :3])
    for r, n in enumerate([4, 9]):
        with torch.no_grad():
            own = model(input_ids=torch.cat([tokens[r, :n], tokens[r, :3]])[None]).logits[0, n - 1 : n + 2]
        torch.testing.assert_close(scores[r], own, **CLOSE)


def test_the_ends_of_a_sequence_are_those_given_else_all_that_the_checkpoint_names(tmp_path):
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry={"shift": True, "mask_token_id": MASK_ID})
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    two = tmp_path / "dlm", tmp_path / "ar"
    assert load_pair(*two, device="cpu").ar.eos_id == 2
    with pytest.warns(UserWarning, match=r"2 \('<eos>'\), 7 \('w3'\); a sequence ends with the latter"):
        pair = load_pair(*two, device="cpu", eos_id=7)
    assert (pair.ar.eos_id, pair.dlm.eos_id) == (7, 7)
    edit_config(eos_token_id=[7, 2])(tmp_path / "ar")
    assert load_causal(tmp_path / "ar", device="cpu").model.eos_id == (2, 7)
    edit_generation(eos_token_id=[9, 7, 0])(tmp_path / "ar")  # 0 is the padding too, as in Qwen's chat models
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*end")
        pair, causal = load_pair(*two, device="cpu"), load_causal(tmp_path / "ar", device="cpu")
    for model in (pair.ar, pair.dlm, causal.model):
        assert (model.eos_id, tuple(model.banned_ids)[:2]) == ((0, 2, 7, 9), (1, 3))
    assert pair.decode([4, 7, 0, 5, 9, 2]) == pair.decode([4, 5])
    assert load_causal(tmp_path / "ar", device="cpu", eos_id=[7, 9]).model.eos_id == (7, 9)
    assert load_pair(*two, device="cpu", eos_id=[2, 9]).dlm.eos_id == (2, 9)
    edit_generation(eos_token_id=[9, 3, SIZE])(tmp_path / "ar")  # the mask, and an id that no model has
    with pytest.warns(UserWarning, match=rf"eos_id = {SIZE} is no token .*, so it ends no .*; eos_id = \(2, 3, 7, 9\)"):
        assert load_causal(tmp_path / "ar", device="cpu").model.eos_id == (2, 3, 7, 9)
    with pytest.warns(UserWarning, match=r"mask_id = 3 is eos_id too: .* so it ends no sequence here; eos_id = \(2, 7"):
        assert load_pair(*two, device="cpu").ar.eos_id == (2, 7, 9)
    with pytest.raises(ValueError, match=rf"eos_id = {SIZE} is no token that the models and their tokenizers share"):
        load_pair(*two, device="cpu", eos_id=[2, SIZE])
    for wrong in ([2, "x"], -1, {"a": 1}):
        edit_generation(eos_token_id=wrong)(tmp_path / "ar")
        with pytest.raises(ValueError, match=r"ar = .*: eos_token_id = .* in generation_config.json is no id"):
            load_causal(tmp_path / "ar", device="cpu")
        assert load_causal(tmp_path / "ar", device="cpu", eos_id=2).model.eos_id == 2
    (tmp_path / "ar/generation_config.json").unlink()
    edit_config(eos_token_id=2)(tmp_path / "ar")
    make_tokenizer(eos_token=None).save_pretrained(tmp_path / "ar")
    assert load_causal(tmp_path / "ar", device="cpu").model.eos_id == 2
    for name in ("mask_id", "eos_id"):
        for value in ("3", -1, True):
            with pytest.raises(ValueError, match=f"{name} = {value!r}: give an id, a number from 0"):
                load_pair(*two, device="cpu", **{name: value})
    with pytest.raises(ValueError, match="mask_id = 3 is eos_id too"):
        load_pair(*two, device="cpu", eos_id=3)


def test_a_model_without_a_table_of_input_embeddings_is_refused(tmp_path):
    config = transformers.PerceiverConfig(
        vocab_size=SIZE, num_latents=4, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=32,
    )
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "dlm")
    make_tokenizer().save_pretrained(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "llama")
    with pytest.raises(ValueError, match="PerceiverForMaskedLM has no table of input embeddings"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
