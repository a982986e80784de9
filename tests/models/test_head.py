"""Under `max_logit_bytes` no head computes more at once, whatever the model, and the scores are those without a cap."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from benchmarks.memory import LargestLogits, step_memory
from smc_bridge import load_pair
from smc_bridge.decode import decode
from smc_bridge.engine.presets import smc
from smc_bridge.methods.canvas import dlm as dlm_decoder
from smc_bridge.methods.poe_bridge import paper
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM, forwards
from smc_bridge.models.huggingface.dit import DiT, DiTConfig
from smc_bridge.models.huggingface.head import bypassed
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.protocols import ABSENT, MASKED

A, LARGE = 211, 152_064
#: Of a position's float32 logits.
POSITION, LARGE_POSITION = 4 * A, 4 * LARGE
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
#: What changes its head's outputs: a bound, a factor, a divisor.
CHANGED = {
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 4}, "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
}  # fmt: skip
CAUSAL = ("qwen2", "qwen3", "llama", "gpt2", "mistral", *CHANGED)
MASKED_MODELS = ("qwen2", "gpt2", "dit", "bert", "modernbert", "unpadded", "headless", "normalised")


class OwnCode(nn.Module):
    """A bidirectional model as foreign code has them: it reads no mask, and counts positions by itself.

    Args:
        tied: its head is a product with the table of embeddings, no module.
        normalised: it returns log-probabilities.
    """

    def __init__(self, size: int, *, tied: bool, normalised: bool) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(size, 8), nn.Linear(8, 8)
        self.head, self.normalised = None if tied else nn.Linear(8, size), normalised
        self.config = SimpleNamespace(
            vocab_size=size, get_text_config=lambda: self.config, _attn_implementation="eager", model_type="own"
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.table if self.head is None else self.head

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.table(input_ids)
        states = torch.tanh(self.mix(states + states.mean(1, keepdim=True)))
        logits = states @ self.table.weight.T if self.head is None else self.head(states)
        return logits.log_softmax(-1) if self.normalised else logits


def network(kind: str, size: int = A, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny random model, its weights wide."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 1024}
    options = {"vocab_size": size, **shape, "num_key_value_heads": 1, "intermediate_size": 8, "pad_token_id": 0}
    options |= CHANGED.get(kind, {}) | changes
    model: Any
    if kind in ("unpadded", "headless", "normalised"):
        model = Unpadded(OwnCode(size, tied=kind == "headless", normalised=kind == "normalised"))
    elif kind == "dit":
        model = DiT(DiTConfig(vocab_size=size, **shape, condition_size=4))
    elif kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=2))
    else:
        name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "modernbert": "ModernBert"}.get(kind, kind.capitalize())
        ids = {"cls_token_id": 1, "sep_token_id": 2} if kind == "modernbert" else {}
        of = "MaskedLM" if kind in ("bert", "modernbert") else "CausalLM"
        model = getattr(transformers, f"{name}For{of}")(getattr(transformers, f"{name}Config")(**options | ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def diffusion(kind: str, model: Any = None, cap: int | None = None, **options: Any) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(
        network(kind) if model is None else model, mask_id=5, shift=kind in ("qwen2", "gpt2"), eos_id=None,
        max_logit_bytes=cap, **options,
    )


def causal(kind: str, model: Any = None, cap: int | None = None, **options: Any) -> HuggingFaceCausalLM:
    return HuggingFaceCausalLM(
        network(kind) if model is None else model, eos_id=None, max_logit_bytes=cap, **options
    )


def probed(model: Any) -> Any:
    """The model after the forwards, of up to nine places, that tell how it can be run."""
    assert model.lean is None or model.plain_head is not None
    return model


PREFIXES, LENGTHS = torch.randint(7, A, (3, 9), generator=torch.Generator().manual_seed(1)), torch.tensor([9, 2, 6])
ROWS = torch.arange(3)


def canvases(model: HuggingFaceMaskedLM) -> list[Tensor]:
    """Scores of ragged canvases on ragged prefixes, before and after a commit."""
    session = model.session(PREFIXES, LENGTHS)
    canvas = torch.full((3, 8), MASKED)
    canvas[1, 2], canvas[0, 6:] = 9, ABSENT
    out = [session.score(ROWS, canvas)]
    session.commit(PREFIXES[:, :2], torch.tensor([2, 0, 1]))
    out.append(session.score(ROWS[1:], canvas[1:]))
    return [scores[canvas[-len(scores) :] != ABSENT] for scores in out]


def drafts(model: HuggingFaceCausalLM) -> list[Tensor]:
    """Scores along two lanes of ragged prefixes and after the nodes of trees, before and after a commit."""
    session = model.session(PREFIXES, LENGTHS)
    lanes = torch.randint(7, A, (6, 5), generator=torch.Generator().manual_seed(2))
    lanes[1, :3] = lanes[0, :3]
    out = [session.score(ROWS.repeat_interleave(2), lanes)]
    session.commit(lanes[::2, :2], torch.tensor([2, 0, 1]))
    parents = torch.tensor([[0, 1, 1, 3, 0], [0, 0, 0, 1, 4], [0, 1, 2, 3, 4]])
    return [*out, session.score_tree(ROWS, lanes[:3], parents)]


@pytest.mark.parametrize("positions", [1, 10])
@pytest.mark.parametrize("kind", MASKED_MODELS)
def test_a_capped_diffusion_model_gives_its_scores_and_keeps_to_the_cap(kind: str, positions: int) -> None:
    cap = positions * POSITION + 3
    whole, capped = canvases(diffusion(kind)), probed(diffusion(kind, cap=cap))
    with LargestLogits(A) as watched:
        found = canvases(capped)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    if kind in ("headless", "normalised"):  # all that can be cut are rows, of up to 17 tokens
        assert watched.positions <= max(17, positions)
    else:
        assert 0 < watched.bytes <= cap, f"{watched.positions} positions at once, {positions} allowed"


@pytest.mark.parametrize(
    ("options", "positions"), [({}, 1), ({}, 10), ({"lanes": "copied"}, 3), ({"cache": False}, 3)], ids=str
)
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_capped_causal_model_gives_its_scores_and_keeps_to_the_cap(
    kind: str, options: dict[str, Any], positions: int
) -> None:
    cap, model = positions * POSITION, network(kind)
    whole, capped = drafts(causal(kind, model, **options)), probed(causal(kind, model, cap, **options))
    with LargestLogits(A) as watched:
        found = drafts(capped)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    assert 0 < watched.bytes <= cap, f"{watched.positions} positions at once, {positions} allowed"


#: Programs by name, of a pair of models.
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "smc": lambda pair: smc(pair, 1, lanes=4, window=8, lookahead=16),
    "paper": lambda pair: paper(pair, window=8, lookahead=16),
    "tree": lambda pair: tree_walk(pair, nodes=16, window=8, lookahead=16),
    "dlm": lambda pair: dlm_decoder(pair, lookahead=16),
    "dlm by confidence": lambda pair: dlm_decoder(pair, tokens=4, order="confidence", lookahead=16),
    "dlm at once": lambda pair: dlm_decoder(pair, tokens=None, lookahead=None),
}
#: Diffusion models by name, and how they are told to be read.
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": ("qwen2", {"cache": "prefix"}), "blocks": ("qwen2", {"block_size": 4, "cache": "prefix"}),
    "dit": ("dit", {"cache": "none"}), "bert": ("bert", {}), "unpadded": ("unpadded", {}),
}
PROMPTS = [[7, 8, 9], [11] * 9, [12, 13]]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("read", READ)
def test_no_program_makes_a_head_compute_more_than_the_cap(read: str, program: str) -> None:
    kind, options = READ[read]
    positions = 7
    target = "gemma2" if read == "blocks" else "qwen2"
    dlm, ar = (
        probed(diffusion(kind, cap=positions * POSITION, **options)),
        probed(causal(target, cap=positions * POSITION)),
    )
    sampler = PROGRAMS[program](SimpleNamespace(dlm=dlm, ar=ar))
    with LargestLogits(A) as watched:
        decode(sampler, PROMPTS, seed=0, max_new_tokens=12)
    assert 0 < watched.positions <= positions


def test_a_step_of_the_papers_program_over_a_large_alphabet_needs_little_beyond_the_models_scores() -> None:
    dtype = torch.bfloat16
    cap, unit = 12 << 20, 4 * 32 * LARGE_POSITION  # one [K, V, A] of float32
    pair = SimpleNamespace(
        dlm=probed(diffusion("qwen2", network("qwen2", LARGE, dtype), cap)),
        ar=probed(causal("gpt2", network("gpt2", LARGE, dtype), cap)),
    )
    sampler = paper(pair)
    with LargestLogits(LARGE) as watched:
        memory = step_memory(sampler, lambda: sampler.start(PROMPTS[:1], seed=0, max_new_tokens=300))
    assert 0 < watched.bytes <= cap, f"{watched.bytes} bytes at once, {cap} allowed"
    assert memory.scores == 3 * unit, "M = 256 = 2 K V places of the one model, K V of the other"
    assert memory.extra <= 0.4 * unit, f"{memory.extra / unit:.2f} of a [K, V, A] tensor; wanted are 1.5"


@pytest.mark.parametrize("make", [diffusion, causal])
def test_a_cap_below_one_position_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=f"max_logit_bytes = {POSITION - 1}: one position of {A} output columns takes"):
        make("qwen2", cap=POSITION - 1)
    with pytest.raises(ValueError, match="max_logit_bytes = 0: give at least 1 byte, or None"):
        make("qwen2", cap=0)


def test_a_pair_is_loaded_with_a_cap_of_at_least_one_position() -> None:
    pair: Any = load_pair("arithmetic", max_logit_bytes=2560)
    assert pair.dlm.positions_at_once == pair.ar.positions_at_once == 1
    with pytest.raises(ValueError, match="max_logit_bytes = 2559: one position of 640 output columns takes 2560"):
        load_pair("arithmetic", max_logit_bytes=2559)


@pytest.mark.parametrize("by_row", [True, False] if forwards.KEEPS_BY_ROW else [False])
def test_a_transformers_that_keeps_the_same_places_of_all_rows_gives_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, by_row: bool
) -> None:
    whole = drafts(causal("gemma2"))
    monkeypatch.setattr(forwards, "KEEPS_BY_ROW", by_row)
    for cap in (None, 3 * POSITION):
        capped = probed(causal("gemma2", cap=cap))
        with LargestLogits(A) as watched:
            found = drafts(capped)
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
        assert cap is None or watched.bytes <= cap


def test_narrow_models_give_scores_of_float32_over_the_alphabet_alone() -> None:
    model = network("qwen2", dtype=torch.bfloat16)
    whole = drafts(causal("qwen2", model, vocab_size=A - 4))
    found = drafts(causal("qwen2", model, 5 * POSITION, vocab_size=A - 4))
    for a, b in zip(found, whole, strict=True):
        assert a.dtype == torch.float32
        assert a.shape[-1] == A - 4
        torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_a_head_that_is_replaced_or_changed_later_is_looked_at_again() -> None:
    model = network("mistral")
    capped = probed(causal("mistral", model, 3 * POSITION))
    assert capped.plain_head is model.lm_head
    model.lm_head = nn.Linear(8, A)
    assert capped.plain_head is model.lm_head
    own = model.forward

    def scaled(*arguments: Any, **options: Any) -> Any:
        out = own(*arguments, **options)
        out.logits = 2 * out.logits
        return out

    model.forward = scaled
    assert capped.plain_head is None
    for a, b in zip(drafts(capped), drafts(causal("mistral", model)), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_a_head_computes_again_whatever_happens_while_it_is_bypassed() -> None:
    head, states = nn.Linear(2, 3), torch.ones(1, 2)
    expected = head(states)

    def fail() -> None:
        with bypassed(head) as seen:
            assert head(states) is states
            assert seen == [torch.float32]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(head(states), expected)
    assert "forward" not in vars(head)
    head.forward = lambda x: -x
    with bypassed(head):
        assert head(states) is states
    assert torch.equal(head(states), -states)
