"""transformers' own `generate` as a method: its law by enumeration of its draws, plain and assisted; what it costs, and
what it leaves behind."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import load_pair
from smc_bridge.decode import decode
from smc_bridge.distributions.target import ARTarget
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.generate import generate
from smc_bridge.models.huggingface import HuggingFaceCausalLM
from smc_bridge.registry import METHODS, spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing import EnumeratingSource, outcomes, tabular_pair

#: Ids 0 to 3, of which 2 ends a sequence and 3 is banned.
SIZE, EOS, BANNED, LIMIT, TEMPERATURE = 4, 2, 3, 3, 0.7
PROMPT = [0, 1, 0, 1, 1, 0]
ASSISTED: dict[str, dict[str, Any]] = {
    "plain": {}, "prompt-lookup": {"assist": "prompt-lookup", "lookup": 1}, "early-exit": {"assist": "early-exit"},
    "assistant": {},
}


def options_of(name: str, tiny_model: Callable[..., Any]) -> dict[str, Any]:
    assistant = {"assistant": tiny_model("qwen2", seed=5, vocab_size=SIZE).eval()} if name == "assistant" else {}
    return {**ASSISTED[name], **assistant}


def pair_of(model: Any) -> Any:
    ar = HuggingFaceCausalLM(model, eos_id=EOS, banned_ids=[BANNED])
    return SimpleNamespace(name="tiny", dlm=None, ar=ar)


@pytest.fixture
def tiny(tiny_model: Callable[..., Any]) -> Any:
    """A pair whose AR model is tiny; what its checkpoint says of sampling is no part of the target."""
    model = tiny_model("qwen2", vocab_size=SIZE)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.top_k = 1
    return pair_of(model)


@torch.inference_mode()
def law_of(pair: Any, limit: int) -> dict[tuple[int, ...], float]:
    """The AR law of whole sequences, by forwards without a cache."""
    target, law = ARTarget(pair.ar, temperature=TEMPERATURE), dict[tuple[int, ...], float]()
    for text in itertools.product(range(SIZE), repeat=limit):
        first = next((i + 1 for i, token in enumerate(text) if token == EOS), limit)
        ids = torch.tensor([[*PROMPT, *text]], device=pair.ar.device)
        logits = pair.ar.model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].float()
        log_p = target.log_probs(logits)[torch.arange(limit), torch.tensor(text)]
        law[text[:first]] = float(log_p[:first].sum().exp())
    return {text: mass for text, mass in law.items() if mass > 0}


@pytest.mark.parametrize("name", ASSISTED)
def test_its_law_is_the_target_on_every_outcome_of_its_draws(
    name: str, tiny: Any, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and acceptances of transformers itself are branches; a rejected or accepted draft is one of them."""
    decoder, met = generate(tiny, temperature=TEMPERATURE, **options_of(name, tiny_model)), [0, 0]
    limit = 2 if name == "assistant" else LIMIT  # a draft of one token, or of two

    def run(source: EnumeratingSource) -> tuple[int, ...]:
        def multinomial(probs: Tensor, num_samples: int, **_: Any) -> Tensor:
            return source.categorical(probs.log())[..., None].to(probs.device)

        def rand_like(ratio: Tensor) -> Tensor:
            accepted = source.bernoulli(ratio)
            met[0], met[1] = met[0] + int(accepted.sum()), met[1] + int((~accepted).sum())
            return torch.where(accepted, 0.0, 1e30).to(ratio)

        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", multinomial)
            patched.setattr(torch, "rand_like", rand_like)
            return tuple(decode(decoder, [PROMPT], max_new_tokens=limit)[0].sequences[0])

    found: dict[tuple[int, ...], float] = defaultdict(float)
    for probability, text in outcomes(run):
        found[text] += probability
    expected = law_of(tiny, limit)
    for text in {*found, *expected}:
        assert found.get(text, 0.0) == pytest.approx(expected.get(text, 0.0), abs=1e-5), text
    assert (min(met) > 0) == (name in ("early-exit", "assistant")), met


@pytest.mark.parametrize("name", ASSISTED)
def test_every_forward_and_every_position_is_counted(
    name: str, tiny: Any, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(name, tiny_model)
    shapes: list[Any] = []
    forward = type(tiny.ar.model).forward

    @functools.wraps(forward)
    def counting(self: Any, *given: Any, **named: Any) -> Any:
        out = forward(self, *given, **named)
        shapes.append(out.logits.shape)
        return out

    monkeypatch.setattr(type(tiny.ar.model), "forward", counting)
    [result] = decode(generate(tiny, **options), [PROMPT], seed=2, max_new_tokens=9)
    found = result.forwards
    assert (found.dlm_forwards, found.dlm_rows) == (0, 0)
    assert (found.ar_forwards, found.ar_rows) == (len(shapes), len(shapes))
    assert found.ar_tokens == sum(shape[1] for shape in shapes)
    if name == "plain":
        assert found.ar_forwards == found.ar_tokens == result.tokens


@pytest.mark.parametrize("name", ASSISTED)
def test_draws_depend_on_the_prompt_and_its_seed_alone(
    name: str, tiny: Any, tiny_model: Callable[..., Any]
) -> None:
    decoder = generate(tiny, **options_of(name, tiny_model))
    prompts = [PROMPT, [1], [0, 0, 1], PROMPT[:3]]
    runs = [decode(decoder, prompts, seed=[3, 4, 5, 6], max_new_tokens=8, batch=batch) for batch in (None, 2)]
    torch.manual_seed(99)
    for place, prompt in enumerate(prompts):
        [alone] = decode(decoder, [prompt], seed=3 + place, max_new_tokens=8)
        for run in runs:
            assert (run[place].sequences, run[place].forwards) == (alone.sequences, alone.forwards)
    others = {tuple(decode(decoder, [[1]], seed=s, max_new_tokens=8)[0].sequences[0]) for s in range(12)}
    assert len(others) > 2


@pytest.mark.parametrize("name", ["plain", "early-exit", "assistant"])
def test_models_and_global_draws_are_left_as_they_were(
    name: str, tiny: Any, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is interrupted while a model has fewer layers."""
    options = options_of(name, tiny_model)
    models = [tiny.ar.model, *([options["assistant"]] if "assistant" in options else [])]
    before = [(m.generation_config, copy.deepcopy(m.generation_config).to_dict()) for m in models]
    state = torch.get_rng_state()
    decoder = generate(tiny, **options)
    decode(decoder, [PROMPT], max_new_tokens=6)

    def interrupting(*given: Any) -> None:
        if tiny.ar.model.config.num_hidden_layers == (1 if name == "early-exit" else 2):
            raise KeyboardInterrupt

    handle = tiny.ar.model.register_forward_hook(interrupting)
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, [PROMPT], max_new_tokens=6)
    handle.remove()
    for model, (config, shown) in zip(models, before, strict=True):
        assert model.generation_config is config
        assert config.to_dict() == shown
        assert model.config.num_hidden_layers == 2
        assert not model._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_at_the_least_temperature_it_is_the_greedy_decoder(tiny: Any) -> None:
    cold, greedy = (decode(generate(tiny, temperature=t), [PROMPT], max_new_tokens=LIMIT) for t in (1e-30, 0.0))
    assert [r.sequences for r in cold] == [r.sequences for r in greedy]


def test_at_temperature_zero_it_is_the_greedy_decoder_on_the_embedded_pair() -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(1)]
    greedy = ar_sampling(ARTarget(pair.ar, temperature=0.0), prompts, max_new_tokens=16)
    for assist in (None, "prompt-lookup", "early-exit"):
        found = decode(generate(pair, assist=assist, temperature=0.0), prompts, max_new_tokens=16)
        assert [r.sequences for r in found] == [r.sequences for r in greedy], assist
        assert found[0].texts is not None


@pytest.mark.parametrize(("options", "words"), [
    ({"lookup": 3}, "lookup = 3 with assist = None: leave it out, or give prompt-lookup"),
    ({"assist": "early-exit", "layers": 3}, "layers = 3: give a number of layers from 1 to 2"),
    ({"assist": "early-exit", "layers": 0}, "layers = 0: give a whole number of at least 1"),
    ({"assist": "prompt-lookup", "layers": 1}, "layers = 1 with assist = 'prompt-lookup'"),
    ({"assist": "prompt-lookup", "lookup": 0}, "lookup = 0"),
    ({"assist": "eagle"}, "assist = 'eagle': give prompt-lookup, early-exit or none"),
    ({"assistant": 3}, "assistant = 'int' with assist = None: give a transformers model of 4 ids"),
    ({"temperature": -1}, "temperature = -1"),
    ({"temperature": 1e-38}, "temperature = 1e-38: give 0 for greedy decoding, or at least 1e-30"),
])
def test_bad_options_are_named_in_one_line(tiny: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        generate(tiny, **options)
    assert "\n" not in str(caught.value)


def test_a_pair_that_is_not_of_transformers_is_refused_in_one_line() -> None:
    words = r"its AR model is none of transformers, .*: give|give a pair of checkpoints, or method = ar"
    with pytest.raises(ValueError, match=words) as caught:
        generate(tabular_pair())
    assert "\n" not in str(caught.value)
    spelled("generate,assist=early-exit,layers=2").check()  # before any model is there
    with pytest.raises(ValueError, match="lookup = 0"):
        spelled("generate,assist=prompt-lookup,lookup=0").check()
    found = METHODS["generate"]
    assert (found.role, found.targets, found.proper) == ("exact", "AR", True)
