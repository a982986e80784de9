"""A pair has one vocabulary, bans the same ids in both laws, and turns text into prompts that both models can read."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smc_bridge.models.arithmetic import architecture
from smc_bridge.models.huggingface import check_shared_vocabulary, shared_vocabulary
from smc_bridge.models.pairs import Pair, load_pair, pair_from_models
from smc_bridge.models.protocols import MASKED, CausalLM, MaskedDiffusionLM

SPECIAL = ["<pad>", "<bos>", "<eos>", "<mask>"]
WORDS = [f"w{i}" for i in range(16)]


def make_tokenizer(words: Iterable[str] = WORDS, special: Iterable[str] = SPECIAL, **names: str | None) -> Any:
    """A tokenizer of whole words: ids 0 to 3 are pad, bos, eos, mask, the words follow."""
    vocabulary = {token: i for i, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    known = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in known.items() if v is not None})


@pytest.fixture
def pair(tiny_model) -> Pair:
    dlm, ar = tiny_model("qwen2", vocab_size=24, seed=1), tiny_model("qwen2", vocab_size=22, seed=2)
    return pair_from_models(dlm, ar, make_tokenizer(), shift=True, name="toy")


def test_both_models_of_a_pair_share_alphabet_end_and_banned_ids(pair):
    assert isinstance(pair.dlm, MaskedDiffusionLM)
    assert isinstance(pair.ar, CausalLM)
    assert pair.dlm.vocab_size == pair.ar.vocab_size == 22  # the smaller of the two outputs
    assert pair.dlm.eos_id == pair.ar.eos_id == 2
    assert tuple(pair.dlm.banned_ids) == tuple(pair.ar.banned_ids) == (0, 1, 3, 20, 21)  # specials and unused rows


def test_both_models_of_a_pair_score_the_same_columns(pair, device):
    prompt = pair.encode("w1 w2 w3")[None]
    length, row = torch.tensor([3], device=device), torch.tensor([0], device=device)
    q = pair.dlm.session(prompt, length).score(row, torch.full((1, 4), MASKED, device=device))
    p = pair.ar.session(prompt, length).score(row, torch.full((1, 4), 5, device=device))
    assert q.shape == p.shape == (1, 4, 22)


def test_encoding_then_decoding_gives_the_text_without_end_and_banned_ids(pair, device):
    ids = pair.encode("w5 w1 w15")
    assert (ids.tolist(), ids.dtype, ids.device.type) == ([9, 5, 19], torch.long, device.type)
    assert pair.decode([1, *ids.tolist(), 21, 2, 0, 0]).split() == ["w5", "w1", "w15"]
    assert pair.decode(ids) == pair.decode(ids.tolist())


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(pair, text):
    with pytest.raises(ValueError, match=r"prompt = .* is empty: give a text"):
        pair.encode(text)


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused(pair):
    assert len(pair.encode("w1 " * 63)) == 63
    with pytest.raises(ValueError, match=r"has 64 tokens but the pair 'toy' reads at most 64.*: shorten the prompt"):
        pair.encode("w1 " * 64)


@pytest.mark.parametrize(("asked", "found"), [("none", "none"), ("prefix", "prefix"), ("auto", "prefix")])
def test_the_diffusion_model_of_a_pair_may_keep_its_prefix(asked, found, device):
    dlm: Any = load_pair("arithmetic", device=device, dlm_cache=asked).dlm
    assert dlm.cache == found
    default: Any = load_pair("arithmetic", device=device).dlm
    assert default.cache == "prefix"


def test_a_cap_on_the_logits_of_a_forward_holds_for_both_models(device):
    pair: Any = load_pair("arithmetic", device=device, max_logit_bytes=5000, dlm_cache="prefix")
    assert pair.dlm.chunks.max_logit_bytes == pair.ar.chunks.max_logit_bytes == 5000
    with pytest.raises(ValueError, match="max_logit_bytes = 0: give a whole number of bytes, at least 1"):
        load_pair("arithmetic", device=device, max_logit_bytes=0)


def test_an_unknown_cache_is_refused():
    wrong: Any = "all"
    with pytest.raises(ValueError, match="dlm_cache = 'all': give one of auto, none, prefix"):
        load_pair("arithmetic", dlm_cache=wrong)


def test_an_unknown_pair_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"pair = 'poetry' is unknown: use one of \['adult', 'arithmetic'\]"):
        load_pair("poetry")


# Vocabularies


def test_tokenizers_that_differ_are_refused_with_the_ids_that_differ():
    swapped = ["w0", "w2", "w1", *WORDS[3:]]
    with pytest.raises(ValueError, match=r"differ in 2 ids \(5: 'w1' against 'w2', 6: 'w2' against 'w1'\)"):
        check_shared_vocabulary(make_tokenizer(), make_tokenizer(swapped))


def test_only_the_first_few_of_many_differing_ids_are_listed():
    with pytest.raises(ValueError, match=r"differ in 16 ids \(4: .*, 8: 'w4' against 'v4', \.\.\.\)"):
        check_shared_vocabulary(make_tokenizer(), make_tokenizer(w.replace("w", "v") for w in WORDS))


def test_a_token_that_only_one_tokenizer_has_is_a_difference():
    with pytest.raises(ValueError, match=r"differ in 1 ids \(20: 'extra' against None\)"):
        check_shared_vocabulary(make_tokenizer([*WORDS, "extra"]), make_tokenizer())


def test_a_pair_whose_vocabularies_differ_is_refused(tiny_model):
    model = tiny_model("qwen2")
    with pytest.raises(ValueError, match="differ in 1 ids"):
        pair_from_models(model, model, make_tokenizer(), dlm_tokenizer=make_tokenizer([*WORDS[:-1], "x"]), shift=True)


def test_a_mask_token_that_only_the_diffusion_model_knows_is_banned_and_no_difference(tiny_model, device):
    """As in Dream: the tokenizer of its AR model, with a mask token added past the end of the AR model's output."""
    ar_tokenizer = make_tokenizer(special=["<pad>", "<bos>", "<eos>"], mask_token=None)  # ids 0 to 18
    dlm_tokenizer = make_tokenizer([*WORDS, "<mask>"], special=["<pad>", "<bos>", "<eos>"])  # the mask is 19
    dlm, ar = tiny_model("qwen2", vocab_size=20), tiny_model("qwen2", vocab_size=19)
    pair = pair_from_models(dlm, ar, ar_tokenizer, dlm_tokenizer=dlm_tokenizer, shift=True)
    assert (pair.dlm.vocab_size, tuple(pair.dlm.banned_ids)) == (19, (0, 1))
    prompt, row = pair.encode("w1")[None], torch.tensor([0], device=device)
    canvas = torch.full((1, 2), MASKED, device=device)
    session = pair.dlm.session(prompt, torch.tensor([1], device=device))
    assert session.score(row, canvas).shape == (1, 2, 19)
    wider = tiny_model("qwen2", vocab_size=20)
    assert tuple(pair_from_models(dlm, wider, ar_tokenizer, dlm_tokenizer=dlm_tokenizer, shift=True).ar.banned_ids) == (
        0, 1, 19,
    )  # fmt: skip


def test_the_end_of_sequence_is_never_banned_even_where_it_is_also_padding(tiny_model):
    model, tokenizer = tiny_model("qwen2", vocab_size=20), make_tokenizer(pad_token="<eos>")
    pair = pair_from_models(model, model, tokenizer, shift=True)
    assert (pair.ar.eos_id, tuple(pair.ar.banned_ids)) == (2, (1, 3))


def test_a_loaded_models_own_generation_names_ends_and_a_configurations_class_does_not(tiny_model):
    model, tokenizer = tiny_model("qwen2", vocab_size=20), make_tokenizer()
    model.generation_config = transformers.GenerationConfig(eos_token_id=[0, 5])
    pair = pair_from_models(model, model, tokenizer, shift=True)
    assert (pair.ar.eos_id, pair.dlm.eos_id, pair.ar.banned_ids) == ((0, 2, 5), (0, 2, 5), (1, 3))
    assert pair_from_models(model, model, tokenizer, shift=True, eos_id=[5]).ar.eos_id == 5
    assert pair_from_models(model, model, tokenizer, shift=True, eos_id=[]).ar.eos_id is None
    model.config.eos_token_id = 9
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    assert pair_from_models(model, model, tokenizer, shift=True).ar.eos_id == 2


def test_an_end_that_the_models_do_not_share_is_left_out_unless_it_is_asked_for_or_the_only_one(tiny_model):
    """The diffusion model has another token where the target has its padding, one of its ends."""
    model, other = tiny_model("qwen2", vocab_size=20), make_tokenizer(special=["<mask>", "<bos>", "<eos>", "<pad>"])
    ar = tiny_model("qwen2", vocab_size=20)
    ar.generation_config = transformers.GenerationConfig(eos_token_id=[0, 2])
    options = {"dlm_tokenizer": other, "mask_id": 3, "shift": True}
    with pytest.warns(UserWarning, match=r"eos_id = 0 is not the same token .*, '<mask>' .*; eos_id = 2 does"):
        pair = pair_from_models(model, ar, make_tokenizer(), **options)
    assert (pair.ar.eos_id, pair.ar.banned_ids) == (2, (0, 1, 3))
    for given in (0, [0, 2]):
        with pytest.raises(ValueError, match="tokenizers differ in 1 ids"):
            pair_from_models(model, ar, make_tokenizer(), **options, eos_id=given)
    with pytest.raises(ValueError, match="eos_id = 0 is not the same token in both"):
        pair_from_models(model, ar, make_tokenizer(), **options, eos_id=[0, 2], reduce=True)


def test_reduce_bans_the_ids_that_differ(tiny_model):
    model, other = tiny_model("qwen2", vocab_size=20), make_tokenizer(["v0", *WORDS[1:]])
    with pytest.warns(UserWarning, match="reduce = True: both laws are restricted to 16 of 20 ids"):
        pair = pair_from_models(model, model, make_tokenizer(), dlm_tokenizer=other, shift=True, reduce=True)
    assert tuple(pair.ar.banned_ids) == (0, 1, 3, 4)


def test_another_end_of_sequence_is_told_and_the_targets_own_ends(tiny_model):
    model, other = tiny_model("qwen2", vocab_size=20), make_tokenizer(eos_token="w5")
    with pytest.warns(UserWarning, match=r"9 \('w5'\), 2 \('<eos>'\); a sequence ends with the latter"):
        pair = pair_from_models(model, model, make_tokenizer(), dlm_tokenizer=other, shift=True)
    assert pair.dlm.eos_id == pair.ar.eos_id == 2
    assert 9 not in pair.ar.banned_ids


def test_reduce_does_not_help_where_the_end_of_sequence_differs(tiny_model):
    model, other = tiny_model("qwen2", vocab_size=20), make_tokenizer(special=["<pad>", "<bos>", "<mask>", "<eos>"])
    with pytest.raises(ValueError, match="eos_id = 2 is not the same token in both tokenizers"):
        pair_from_models(model, model, make_tokenizer(), dlm_tokenizer=other, mask_id=3, shift=True, reduce=True)


def test_tokens_without_an_output_are_refused(tiny_model):
    big, small, tokenizer = tiny_model("qwen2"), tiny_model("qwen2", vocab_size=18), make_tokenizer()
    with pytest.raises(ValueError, match=r"2 ids past the models' outputs \(first 18; 23 columns of .*, 18 of"):
        shared_vocabulary(big, small, tokenizer, tokenizer, mask_id=3, eos_id=2)


def test_a_diffusion_model_without_a_mask_token_is_refused(tiny_model):
    model = tiny_model("qwen2")
    with pytest.raises(ValueError, match="mask_id = None and the tokenizer has no mask token: give"):
        pair_from_models(model, model, make_tokenizer(mask_token=None), shift=True)


# The embedded pair


def test_the_embedded_pair_loads_with_its_convention(device):
    pair = load_pair("arithmetic", device=device)
    assert (pair.dlm.shift, pair.dlm.mask_id) == (True, 3)
    assert pair.dlm.vocab_size == pair.ar.vocab_size == 640
    assert pair.ar.eos_id == 2
    assert {0, 1, 3} <= set(pair.ar.banned_ids)
    assert tuple(pair.ar.banned_ids) == tuple(pair.dlm.banned_ids)
    assert pair.ar.device.type == device.type


def test_the_embedded_adapter_runs_the_diffusion_model_as_it_was_trained(device):
    pair = load_pair("arithmetic", device=device)
    prompt = pair.encode("Tom has 3 apples. He buys 4 more. How many apples does he have?")
    canvas = torch.full((1, 16), MASKED, device=device)
    length = torch.tensor([len(prompt)], device=device)
    scores = pair.dlm.session(prompt[None], length).score(torch.tensor([0], device=device), canvas)
    whole = torch.cat([prompt, torch.full((16,), 3, device=device)])[None].cpu()
    own = architecture.masked_logits(architecture.load("dlm"), whole, torch.tensor([whole.shape[1]]))
    torch.testing.assert_close(scores.cpu(), own[:, len(prompt) :], rtol=1e-4, atol=1e-4)


def test_a_prompt_of_the_embedded_pair_decodes_to_its_text():
    pair = load_pair("arithmetic", device="cpu")
    text = "Ann has 12 pens. She loses 5. How many pens are left?"
    assert pair.decode(pair.encode(text)).strip() == text
