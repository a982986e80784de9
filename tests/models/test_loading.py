"""A user's own checkpoints become a pair that scores what transformers scores, and runs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from smc_bridge import smc
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.target import load_causal
from smc_bridge.models.weights import unmatched
from tests.models.checkpoints import MASK_ID, make_tokenizer, save_checkpoint, save_with_own_code

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
AR = ["qwen2", "llama", "gpt2", "gemma2", "gemma3"]
ENTRY = {"shift": True, "mask_token_id": MASK_ID}
#: Architecture, `diffusion` entry, override, and whether the outputs are shifted.
DLM = {
    "qwen2 with an entry": ("qwen2", ENTRY, None, True),
    "llama unshifted": ("llama", None, "unshifted", False),
    "gpt2 shifted": ("gpt2", None, "shifted", True),
    "gemma2 shifted": ("gemma2", None, "shifted", True),  # transformers has it without sdpa
    "bert": ("bert", None, None, False),
    "roberta": ("roberta", None, None, False),
    "modernbert": ("modernbert", None, None, False),
}


def first_row(pair: Pair, words: str) -> tuple[Any, Any, Any]:
    prompt = pair.encode(words)[None]
    return prompt, torch.tensor([prompt.shape[1]], device=prompt.device), torch.zeros(1, dtype=torch.long)


def marginals(pair: Pair, words: str, count: int) -> Any:
    prompt, length, row = first_row(pair, words)
    return pair.dlm.session(prompt, length).score(row, torch.full((1, count), MASKED))[0]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A diffusion model with an entry, and an autoregressive one."""
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry=ENTRY)
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    return tmp_path / "dlm", tmp_path / "ar"


@pytest.mark.parametrize("kind", AR)
def test_a_target_scores_what_transformers_scores_and_runs(tmp_path, kind):
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry=ENTRY)
    model = save_checkpoint(tmp_path / "ar", kind, seed=2)
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    prompt, length, row = first_row(pair, "w1 w2 w3 w9 w4 w4")
    drafts = torch.tensor([[5, 9, 4, 12]])
    with torch.no_grad():
        own = model(input_ids=torch.cat([prompt, drafts], 1)).logits[0, 5:9]
    scores = pair.ar.session(prompt, length).score(row, drafts)[0]
    torch.testing.assert_close(scores, own[:, : scores.shape[1]], **CLOSE)
    [result] = smc(pair, particles=2, window=4, lookahead=8).run([prompt[0].tolist()], seed=3, max_new_tokens=6)
    assert math.isfinite(result.log_evidence)


@pytest.mark.parametrize("case", DLM)
def test_a_diffusion_model_is_run_in_its_convention(tmp_path, case):
    kind, entry, override, shift = DLM[case]
    model = save_checkpoint(tmp_path / "dlm", kind, seed=1, entry=entry)
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dlm_convention=override)
    whole = torch.cat([pair.encode("w1 w2 w3"), torch.full((4,), MASK_ID)])[None]
    everything = {} if kind in ("bert", "roberta", "modernbert") else {"attention_mask": torch.zeros(1, 1, 7, 7)}
    with torch.no_grad():
        own = model(input_ids=whole, **everything).logits[0]
    expected = own[2:6] if shift else own[3:]
    scores = marginals(pair, "w1 w2 w3", 4)
    torch.testing.assert_close(scores, expected[:, : scores.shape[1]], **CLOSE)
    [result] = smc(pair, particles=2, window=4, lookahead=8).run([pair.encode("w1 w2").tolist()], max_new_tokens=6)
    assert math.isfinite(result.log_evidence)


def test_a_position_table_that_starts_past_the_padding_is_no_longer_than_it_reads(tmp_path):
    save_checkpoint(tmp_path / "dlm", "roberta")
    save_checkpoint(tmp_path / "ar", "qwen2")
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert pair.max_length == 63  # 64 rows, of which padding id 0 takes one
    assert marginals(pair, "w1", 62).shape[0] == 62
    with pytest.raises(ValueError, match="rows reach 64 tokens"):
        marginals(pair, "w1", 63)


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "transformer."), ("llama", "model.")])
def test_weights_of_diffullamas_trainer_load_into_their_backbone(tmp_path, kind, head):
    """`denoise_model.` stands for the backbone, the embedding is taken out, and it has a row for the mask token."""
    model = save_checkpoint(tmp_path / "dlm", kind, seed=1)
    file, table = tmp_path / "dlm" / "model.safetensors", {"gpt2": "wte", "llama": "embed_tokens"}[kind]
    wrapped = {}
    for name, value in load_file(file).items():
        inner = name.removeprefix(head)
        wrapped[{f"{table}.weight": "embed_tokens.weight"}.get(inner, name.replace(head, "denoise_model."))] = value
    wrapped["lm_head.weight"] = model.lm_head.weight.detach().clone()
    config = transformers.AutoConfig.from_pretrained(tmp_path / "dlm")
    config.vocab_size -= 1  # as published: that of the model before a mask token was added
    config.save_pretrained(tmp_path / "dlm")
    save_file(wrapped, file, metadata={"format": "pt"})
    save_checkpoint(tmp_path / "ar", kind, seed=2)
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    whole = torch.cat([pair.encode("w1 w2 w3"), torch.full((2,), MASK_ID)])[None]
    with torch.no_grad():
        own = model(input_ids=whole, attention_mask=torch.zeros(1, 1, 5, 5)).logits[0, 2:4]
    torch.testing.assert_close(marginals(pair, "w1 w2 w3", 2), own, **CLOSE)


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Folder of a diffusion model with its own code, of a target, and the former's weights."""
    modules = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    weights = save_with_own_code(tmp_path / "blind", witness=tmp_path / "witness")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    return tmp_path / "blind", tmp_path / "ar", weights


def test_code_of_a_checkpoint_never_runs_untrusted(own_code, tmp_path):
    dlm, ar, _ = own_code
    for convention in (None, "unshifted"):
        with pytest.raises(ValueError, match=r"brings code of its own \(auto_map in config.json: modeling_b"):
            load_pair(dlm, ar, device="cpu", dlm_convention=convention)
    with pytest.raises(ValueError, match=r"ar = .*brings code of its own"):
        load_pair("arithmetic", dlm, device="cpu")
    assert not (tmp_path / "witness").exists()


def test_trusted_code_runs_and_a_model_blind_to_padding_scores_each_row_as_if_alone(own_code, tmp_path):
    dlm, ar, weights = own_code
    pair = load_pair(dlm, ar, device="cpu", trust_remote_code=True, dlm_convention="unshifted")
    assert (tmp_path / "witness").exists()
    tokens = torch.tensor([[4, 5, 6, 7, 8], [9, 10, 0, 0, 0]])
    session = pair.dlm.session(tokens, torch.tensor([5, 2]))
    scores = session.score(torch.tensor([0, 1]), torch.full((2, 3), MASKED))
    for r, n in enumerate((5, 2)):
        row = torch.cat([tokens[r, :n], torch.full((3,), MASK_ID)])
        hidden = weights["inner.weight"][row]
        hidden = hidden + hidden.mean(0) + weights["place.weight"][: n + 3]
        own = hidden @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(scores[r], own[n:, : scores.shape[-1]], **CLOSE)
    [result] = smc(pair, particles=2, window=4, lookahead=8).run([[4, 5]], max_new_tokens=4)
    assert math.isfinite(result.log_evidence)


def test_weights_that_trusted_code_needs_and_the_checkpoint_lacks_are_refused(own_code):
    dlm, ar, weights = own_code
    kept = {name: value for name, value in weights.items() if name != "head.weight"} | {"foreign": torch.ones(2)}
    save_file(kept, dlm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError,
        match=r"1 weights of BlindModel are not in it \(first head.weight; 1 others .*, first foreign\) and would be",
    ):
        load_pair(dlm, ar, device="cpu", trust_remote_code=True, dlm_convention="unshifted")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_tied_weights_and_a_body_without_its_prefix_are_not_missing(tmp_path, prefix):
    save_checkpoint(tmp_path, "llama")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.tie_word_embeddings = True
    model = transformers.AutoModelForCausalLM.from_config(config)
    names = [name.replace("model.", prefix) for name in load_file(tmp_path / "model.safetensors")]
    assert unmatched(model, [name for name in names if name != "lm_head.weight"]) == ([], [])
    missing, unknown = unmatched(model, [name for name in names if "embed" not in name and name != "lm_head.weight"])
    assert (missing, unknown) == (["lm_head.weight", "model.embed_tokens.weight"], [])


def test_trusted_code_of_an_unknown_type_still_needs_a_convention(own_code):
    dlm, ar, _ = own_code
    with pytest.raises(ValueError, match="model type 'blind', whose convention is not known: set dlm_convention"):
        load_pair(dlm, ar, device="cpu", trust_remote_code=True)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_weights_have_the_type_that_is_asked_for_and_scores_are_float32(folders, dtype):
    pair = load_pair(*folders, device="cpu", dtype=dtype)
    assert pair.dlm.model.dtype == pair.ar.model.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert marginals(pair, "w1", 2).dtype == torch.float32


def test_loading_prints_nothing(folders, capfd):
    load_pair("arithmetic", device="cpu")
    load_pair(*folders, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype = 'int8': use one of float32, bfloat16"),
        ({"device": "tpu9"}, "device = 'tpu9': is not there"),
        ({"device": "meta"}, "device = 'meta': holds no numbers"),
        ({"device": 3.5}, r"device = '3\.5': is not there"),
        ({"device": 2**63}, "device = '9223372036854775808': is not there"),
        ({"device": "cpu", "device_map": "auto"}, "device = 'cpu' with device_map: device_map places the weights"),
        ({"device_map": "auto", "tp_plan": "auto"}, "device_map and tp_plan exclude each other"),
        ({"tp_plan": "auto"}, "tp_plan = 'auto': needs one process per device; start the program with torchrun"),
        ({"dlm_convention": "both"}, "dlm_convention = 'both': give 'shifted' or 'unshifted'"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(folders, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_pair(*folders, **options)
    assert "\n" not in str(caught.value)


def test_options_for_own_models_are_refused_with_a_named_pair():
    with pytest.raises(ValueError, match="trust_remote_code = True is for two models of your own: leave it out"):
        load_pair("arithmetic", trust_remote_code=True)


def test_tokenizers_that_differ_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "dlm", "bert")
    save_checkpoint(tmp_path / "ar", "qwen2", tokenizer=make_tokenizer([f"v{i}" for i in range(16)]))
    monkeypatch.setattr("smc_bridge.models.loading._load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"tokenizers differ in 16 ids \(4: 'w0' against 'v0', .*\.\.\.\)"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


def test_a_pair_reduced_to_the_shared_ids_bans_the_others(tmp_path):
    save_checkpoint(tmp_path / "dlm", "bert")
    save_checkpoint(tmp_path / "ar", "qwen2", tokenizer=make_tokenizer([*(f"w{i}" for i in range(15)), "x"]))
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", reduce=True)
    assert 19 in pair.ar.banned_ids
    assert 18 not in pair.ar.banned_ids


def test_prompts_follow_the_chat_template_where_there_is_one(tmp_path):
    template = "{% for m in messages %}w7 {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} w8{% endif %}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    save_checkpoint(tmp_path / "ar", "qwen2", tokenizer=tokenizer)
    save_checkpoint(tmp_path / "dlm", "bert")
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert pair.encode("w1").tolist() == [11, 5, 12]


def test_a_target_by_itself_bans_what_is_no_text(folders):
    target = load_causal(folders[1], device="cpu")
    assert tuple(target.model.banned_ids) == (0, 1, 3, 20, 21)
    assert target.format_prompt(target.tokenizer, "w1 w2") == [5, 6]


def test_device_map_spreads_a_pair_without_changing_a_score(folders):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    whole = load_pair(*folders, device="cpu")
    for place in ("auto", {"": "cpu"}):
        spread = load_pair(*folders, device_map=place)
        torch.testing.assert_close(marginals(spread, "w1 w2", 3).cpu(), marginals(whole, "w1 w2", 3), **CLOSE)


def test_a_layer_that_is_kept_on_disk_scores_as_in_memory(tmp_path, folders):
    """The one split over places that a machine without a second device can make: weights come when a layer runs."""
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    place = {
        "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
        "model.rotary_emb": "cpu", "lm_head": "cpu",
    }  # fmt: skip
    whole, spread = load_pair(*folders, device="cpu"), load_pair(*folders, device_map=place)
    torch.testing.assert_close(marginals(spread, "w1 w2", 3), marginals(whole, "w1 w2", 3), **CLOSE)
    runs = [
        smc(pair, particles=2, window=4, lookahead=8).run([[5, 6]], seed=1, max_new_tokens=6)[0]
        for pair in (whole, spread)
    ]
    assert runs[0].log_evidence == pytest.approx(runs[1].log_evidence, abs=1e-4)
