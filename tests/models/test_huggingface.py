"""The Hugging Face adapters score what transformers scores, for each ragged row as if it stood alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.protocols import MASKED, CausalLM, MaskedDiffusionLM

A = 23
MASK_ID = 3
CAUSAL = ["qwen2", "llama", "mistral", "gpt2"]
#: Architecture and output convention of the diffusion models.
DIFFUSION = [("qwen2", True), ("llama", True), ("gpt2", True), ("qwen2", False), ("bert", False), ("modernbert", False)]
#: Float32 round-off of logits that spread over several nats.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def random_ids(*shape: int, device: torch.device, seed: int = 2) -> Tensor:
    return torch.randint(4, A, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def causal(model: Any, **options: Any) -> HuggingFaceCausalLM:
    return HuggingFaceCausalLM(model, eos_id=2, **options)


def masked(model: Any, shift: bool, **options: Any) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(model, mask_id=MASK_ID, shift=shift, eos_id=2, **options)


def everything(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[0], device=tokens.device)


def committed(session: Any) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(session.tokens, session.length.tolist(), strict=True)]


# Causal models


@pytest.mark.parametrize("kind", CAUSAL)
def test_scores_along_a_draft_are_the_models_own_logits(tiny_model, prefixes, device, kind):
    model = tiny_model(kind)
    tokens, length = prefixes
    drafts = random_ids(4, 5, device=device)
    scores = causal(model).session(tokens, length).score(everything(tokens), drafts)
    for r, n in enumerate(length.tolist()):
        alone = torch.cat([tokens[r, :n], drafts[r]])[None]
        with torch.no_grad():
            own = model(input_ids=alone).logits[0, n - 1 : n + 4]
        torch.testing.assert_close(scores[r], own, **CLOSE)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_row_scores_alone_as_it_does_in_a_ragged_batch(tiny_model, prefixes, device, kind):
    model = causal(tiny_model(kind))
    tokens, length = prefixes
    drafts = random_ids(4, 5, device=device)
    together = model.session(tokens, length).score(everything(tokens), drafts)
    for r, n in enumerate(length.tolist()):
        session = model.session(tokens[r : r + 1, :n], length[r : r + 1])
        alone = session.score(torch.tensor([0], device=device), drafts[r : r + 1])
        torch.testing.assert_close(together[r : r + 1], alone, **CLOSE)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_lanes_of_one_prefix_score_as_copies_of_it(tiny_model, prefixes, device, kind):
    model = causal(tiny_model(kind))
    tokens, length = prefixes
    rows = torch.tensor([2, 2, 0, 2], device=device)
    drafts = random_ids(4, 3, device=device)
    lanes = model.session(tokens, length).score(rows, drafts)
    copies = model.session(tokens[rows], length[rows]).score(everything(tokens), drafts)
    torch.testing.assert_close(lanes, copies, **CLOSE)


def test_the_last_token_of_a_draft_is_never_read(tiny_model, prefixes, device):
    model = causal(tiny_model("qwen2"))
    drafts = random_ids(4, 3, device=device)
    other = drafts.clone()
    other[:, -1] = 0
    scores, others = (model.session(*prefixes).score(everything(d), d) for d in (drafts, other))
    assert torch.equal(scores, others)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_commit_gather_and_crop_leave_the_prefixes_that_a_list_would_hold(tiny_model, prefixes, device, kind):
    model = causal(tiny_model(kind))
    tokens, length = prefixes
    session = model.session(tokens, length)
    expected = [tokens[r, :n].tolist() for r, n in enumerate(length.tolist())]
    block = random_ids(4, 4, device=device)

    counts = [0, 4, 2, 1]
    session.commit(block, torch.tensor(counts, device=device))
    expected = [row + block[r, :n].tolist() for r, (row, n) in enumerate(zip(expected, counts, strict=True))]
    assert committed(session) == expected
    ancestors = [1, 1, 3, 2, 0]
    session.gather(torch.tensor(ancestors, device=device))
    expected = [expected[a] for a in ancestors]
    assert committed(session) == expected
    kept = [3, 5, 1, 8, 7]
    session.crop(torch.tensor(kept, device=device))
    expected = [row[:n] for row, n in zip(expected, kept, strict=True)]
    assert committed(session) == expected
    session.commit(block[[0, 1, 2, 3, 0]], torch.full((5,), 2, device=device))
    expected = [row + block[r % 4, :2].tolist() for r, row in enumerate(expected)]
    assert committed(session) == expected

    drafts = random_ids(5, 3, device=device, seed=5)
    scores = session.score(torch.arange(5, device=device), drafts)
    for r, row in enumerate(expected):
        fresh = model.session(torch.tensor([row], device=device), torch.tensor([len(row)], device=device))
        alone = fresh.score(torch.tensor([0], device=device), drafts[r : r + 1])
        torch.testing.assert_close(scores[r : r + 1], alone, **CLOSE)


# Masked diffusion models


def own_marginals(model: Any, kind: str, shift: bool, row: Tensor, prefix: int) -> Tensor:
    """transformers' logits of the places after `prefix`, one row without padding and every token visible."""
    options: dict[str, Any] = {}
    if kind not in ("bert", "modernbert"):
        options["attention_mask"] = torch.zeros(1, 1, len(row), len(row), device=row.device)
    with torch.no_grad():
        logits = model(input_ids=row[None], **options).logits[0]
    return logits[prefix - 1 : -1] if shift else logits[prefix:]


@pytest.mark.parametrize(("kind", "shift"), DIFFUSION)
def test_marginals_are_the_models_own_outputs_in_its_convention(tiny_model, prefixes, device, kind, shift):
    model = tiny_model(kind)
    tokens, length = prefixes
    canvas = torch.full((4, 5), MASKED, device=device)
    canvas[:, 2] = random_ids(4, device=device)
    scores = masked(model, shift).session(tokens, length).score(everything(tokens), canvas)
    assert scores.shape == (4, 5, A)
    for r, n in enumerate(length.tolist()):
        row = torch.cat([tokens[r, :n], canvas[r].masked_fill(canvas[r] == MASKED, MASK_ID)])
        torch.testing.assert_close(scores[r], own_marginals(model, kind, shift, row, n), **CLOSE)


@pytest.mark.parametrize(("kind", "shift"), DIFFUSION)
def test_a_diffusion_row_scores_alone_as_it_does_in_a_ragged_batch(tiny_model, prefixes, device, kind, shift):
    model = masked(tiny_model(kind), shift)
    tokens, length = prefixes
    canvas = torch.full((4, 6), MASKED, device=device)
    together = model.session(tokens, length).score(everything(tokens), canvas)
    for r, n in enumerate(length.tolist()):
        session = model.session(tokens[r : r + 1, :n], length[r : r + 1])
        alone = session.score(torch.tensor([0], device=device), canvas[:1])
        torch.testing.assert_close(together[r : r + 1], alone, **CLOSE)


@pytest.mark.parametrize(("kind", "shift"), DIFFUSION)
def test_a_later_revealed_token_changes_an_earlier_marginal(tiny_model, prefixes, device, kind, shift):
    session = masked(tiny_model(kind), shift).session(*prefixes)
    rows = torch.arange(4, device=device)
    canvas = torch.full((4, 4), MASKED, device=device)
    blank = session.score(rows, canvas)
    canvas[:, 3] = 7
    revealed = session.score(rows, canvas)
    change = (blank[:, 0] - revealed[:, 0]).abs().amax(-1)
    assert bool((change > 1e-2).all()), f"largest changes of the first marginal: {change.tolist()}"


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_two_conventions_differ_by_one_place(tiny_model, prefixes, device, kind):
    model = tiny_model(kind)
    rows = torch.arange(4, device=device)
    canvas = torch.full((4, 4), MASKED, device=device)
    shifted = masked(model, True).session(*prefixes).score(rows, canvas)
    unshifted = masked(model, False).session(*prefixes).score(rows, canvas)
    torch.testing.assert_close(shifted[:, 1:], unshifted[:, :-1], **CLOSE)


def test_a_diffusion_session_scores_what_it_has_committed(tiny_model, prefixes, device):
    model = masked(tiny_model("qwen2"), True)
    tokens, length = prefixes
    session = model.session(tokens, length)
    block = random_ids(4, 2, device=device)
    session.commit(block, torch.tensor([2, 0, 1, 2], device=device))
    session.gather(torch.tensor([3, 0], device=device))
    canvas = torch.full((2, 4), MASKED, device=device)
    scores = session.score(torch.tensor([0, 1], device=device), canvas)
    for r, (source, n) in enumerate([(3, 4), (0, 9)]):
        whole = torch.cat([tokens[source, :n], block[source]])[None]
        alone = model.session(whole, torch.tensor([n + 2], device=device))
        expected = alone.score(torch.tensor([0], device=device), canvas[:1])
        torch.testing.assert_close(scores[r : r + 1], expected, **CLOSE)


def test_an_unshifted_model_may_start_from_nothing(tiny_model, device):
    model = masked(tiny_model("bert"), False)
    tokens = torch.zeros(1, 0, dtype=torch.long, device=device)
    session = model.session(tokens, torch.tensor([0], device=device))
    assert session.score(torch.tensor([0], device=device), torch.full((1, 3), MASKED, device=device)).shape == (1, 3, A)


# The alphabet, dtypes and errors


def test_the_adapters_implement_the_protocols(tiny_model):
    assert isinstance(causal(tiny_model("qwen2")), CausalLM)
    assert isinstance(masked(tiny_model("qwen2"), True), MaskedDiffusionLM)


def test_the_alphabet_is_all_output_columns_unless_it_is_cut(tiny_model, prefixes, device):
    model = tiny_model("qwen2")
    tokens, length = prefixes
    drafts = random_ids(4, 2, device=device)
    whole = causal(model)
    cut = causal(model, vocab_size=20, banned_ids=[3, 0, 3])
    assert (whole.vocab_size, cut.vocab_size) == (A, 20)
    assert (cut.eos_id, cut.banned_ids, cut.device.type) == (2, (0, 3), device.type)
    full = whole.session(tokens, length).score(everything(tokens), drafts)
    assert torch.equal(cut.session(tokens, length).score(everything(tokens), drafts), full[..., :20])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_float32_or_better(tiny_model, prefixes, device, dtype):
    model = tiny_model("qwen2").to(dtype)
    tokens, length = prefixes
    rows = everything(tokens)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    canvas = torch.full((4, 3), MASKED, device=device)
    drafts = random_ids(4, 7, device=device)
    session = causal(model).session(tokens, length)
    assert session.score(rows, drafts).dtype == expected
    assert session.score_tree(rows, drafts, torch.zeros_like(drafts)).dtype == expected
    assert masked(model, True).session(tokens, length).score(rows, canvas).dtype == expected
    assert session.score(rows[:0], drafts[:0]).dtype == expected


def test_scores_may_be_changed_in_place(tiny_model, prefixes, device):
    session = causal(tiny_model("qwen2")).session(*prefixes)
    scores = session.score(torch.arange(4, device=device), random_ids(4, 2, device=device))
    scores[..., 0] = -torch.inf
    assert not scores.requires_grad


def test_no_rows_and_no_positions_give_empty_scores(tiny_model, prefixes, device):
    model = tiny_model("qwen2")
    none = torch.zeros(0, dtype=torch.long, device=device)
    two = torch.arange(2, device=device)
    session = causal(model).session(*prefixes)
    assert session.score(none, torch.zeros(0, 3, dtype=torch.long, device=device)).shape == (0, 3, A)
    assert session.score(two, torch.zeros(2, 0, dtype=torch.long, device=device)).shape == (2, 0, A)
    canvas = torch.full((2, 0), MASKED, device=device)
    assert masked(model, True).session(*prefixes).score(two, canvas).shape == (2, 0, A)


def poisoned(model: Any, value: float, *, column: int | slice) -> Any:
    """Let the model return `value` at the last real token of its second row."""
    forward = model.forward

    def spoil(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        logits = forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits.clone()
        logits[1, int(attention_mask[1].sum()) - 1, column] = value
        return SimpleNamespace(logits=logits)

    model.forward = spoil
    return model


@pytest.mark.parametrize(
    ("value", "column", "what"),
    [(torch.nan, 5, "NaN"), (torch.inf, 5, r"\+inf"), (-torch.inf, slice(None), "only -inf")],
)
def test_logits_that_are_no_law_are_refused_with_row_and_position(tiny_model, prefixes, device, value, column, what):
    model = causal(poisoned(tiny_model("qwen2"), value, column=column))
    session = model.session(*prefixes)
    rows = torch.tensor([0, 2], device=device)  # row 2 holds 6 tokens; the last score of its draft is about position 8
    with pytest.raises(ValueError, match=rf"hold {what} at row 2, position 8: .*dtype"):
        session.score(rows, random_ids(2, 3, device=device))


def test_a_single_minus_infinity_is_legal(tiny_model, prefixes, device):
    session = causal(poisoned(tiny_model("qwen2"), -torch.inf, column=5)).session(*prefixes)
    scores = session.score(torch.tensor([0, 2], device=device), random_ids(2, 3, device=device))
    assert float(scores[1, 2, 5]) == -torch.inf


def test_an_empty_prefix_is_refused_where_nothing_predicts_the_first_token(tiny_model, device):
    model = tiny_model("qwen2")
    tokens, length = random_ids(2, 3, device=device), torch.tensor([3, 0], device=device)
    rows = torch.arange(2, device=device)
    with pytest.raises(ValueError, match=r"length\[1\] = 0: .* start the prefix from bos"):
        causal(model).session(tokens, length).score(rows, tokens)
    with pytest.raises(ValueError, match=r"length\[1\] = 0: .* start the prefix from bos"):
        causal(model).session(tokens, length).score_tree(rows, tokens, torch.zeros_like(tokens))
    with pytest.raises(ValueError, match=r"length\[1\] = 0: .* start the prefix from bos"):
        masked(model, True).session(tokens, length).score(rows, torch.full((2, 2), MASKED, device=device))


def test_ids_and_lengths_that_the_model_does_not_know_are_refused(tiny_model, prefixes, device):
    session = causal(tiny_model("gpt2")).session(*prefixes)
    rows = torch.arange(4, device=device)
    with pytest.raises(ValueError, match="contains the id -1: give ids from 0 to 22"):
        session.score(rows, torch.full((4, 2), -1, device=device))
    with pytest.raises(ValueError, match=r"rows reach 68 tokens, more than max_position_embeddings = 64 .* shorten"):
        session.score(rows, random_ids(4, 60, device=device))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 24}, "vocab_size = 24: give a number from 1 to the model's 23"),
        ({"eos_id": 23}, "eos_id = 23: give an id from 0 to 22"),
        ({"banned_ids": [40]}, "banned_ids contains 40"),
        ({"banned_ids": [2]}, "banned_ids contains eos_id = 2"),
        ({"eos_id": None, "banned_ids": range(23)}, "banned_ids holds all 23 ids"),
    ],
)
def test_an_impossible_alphabet_is_refused(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceCausalLM(tiny_model("qwen2"), **{"eos_id": 2} | options)


def test_a_mask_id_without_an_embedding_is_refused(tiny_model):
    with pytest.raises(ValueError, match="mask_id = 23: give an id from 0 to 22"):
        HuggingFaceMaskedLM(tiny_model("qwen2"), mask_id=23, shift=True, eos_id=2)


def test_attention_that_takes_no_4d_mask_is_refused(tiny_model):
    model = tiny_model("qwen2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation = 'flash_attention_2'"):
        masked(model, True)


def test_a_target_with_an_attention_of_another_name_recomputes(tiny_model):
    AttentionInterface.register("another", sdpa_attention_forward)
    AttentionMaskInterface.register("another", sdpa_mask)
    model = tiny_model("qwen2")
    model.config._attn_implementation = "another"
    with pytest.warns(UserWarning, match="with attention 'another', so every score reads the prefix again"):
        assert causal(model).attention is None


def test_an_unknown_arrangement_of_lanes_is_refused(tiny_model):
    with pytest.raises(ValueError, match="lanes = 'stacked': give 'packed' or 'copied'"):
        causal(tiny_model("qwen2"), lanes="stacked")
