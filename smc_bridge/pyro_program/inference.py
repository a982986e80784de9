"""Inference on a `BridgeProgram`: SMC, scoring, enumeration, plain importance sampling (package docstring)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.infer import Importance, config_enumerate
from pyro.infer.enum import iter_discrete_traces

from smc_bridge.distributions.intermediate import Proposal
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.watch import first_uncovered, may_leave_out, tell, uncovered_reason
from smc_bridge.engine.weights import log_mean
from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.models.arguments import whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.plugins import texts_of
from smc_bridge.prefix import Prefix
from smc_bridge.pyro_program.block import target_block
from smc_bridge.pyro_program.filter import EvidenceSMCFilter, innermost
from smc_bridge.pyro_program.program import BridgeProgram
from smc_bridge.pyro_program.stopped import stopped_length
from smc_bridge.randomness import Randomness
from smc_bridge.requests import check_prompts, check_tokens
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role, derived_seed, prompt_generator
from smc_bridge.trace import StepRecord


def filter_of(program: BridgeProgram, *, generator: Randomness | None = None) -> EvidenceSMCFilter:
    """The filter that runs a program, with the sampler's particles, resampler and trigger.

    As in the engine, particles are not resampled once all are done. Arguments of its `step`: the number of the step.
    """
    sampler = program.sampler
    return EvidenceSMCFilter(
        program.model, program.guide, sampler.particles, max_plate_nesting=0, resampler=sampler.resampler,
        trigger=sampler.trigger, may_resample=lambda state: not bool(state["done"].all()), generator=generator,
    )


@torch.inference_mode()
def run_program(
    sampler: Sampler, prompt: Sequence[int], *, seed: int | None = None, max_new_tokens: int = 256,
    generator: Randomness | None = None,
) -> Result:
    """Decode one prompt by SMC on the Pyro program; the same law as `Sampler.run`, other draws.

    Args:
        sampler: with one lane.
        prompt: token ids.
        seed: with the prompt, sets torch's global generator, which all sample sites draw from; None leaves it.
        max_new_tokens: length limit of a continuation.
        generator: of the resampling; the global one by default.
    Returns:
        N weighted continuations; `forwards` counts this program's own calls (package docstring).
    Raises:
        ValueError: more than one lane, a kernel without stopping law, or an argument out of range.
    """
    started = time.perf_counter()
    program = BridgeProgram(sampler, prompt, max_new_tokens=max_new_tokens)
    if seed is not None:
        _seed_everything(seed, prompt)
    smc = filter_of(program, generator=generator)
    smc.init()
    prompt = program.prompt_prefix.lists()[0]
    records: list[StepRecord] = []
    uncovered: int | None = None
    while bool((~smc.state["done"].cpu() & (smc.log_weights > -torch.inf)).any()):
        before, begun = program.meter, smc.state["length"].clone()
        smc.step(len(records))
        if uncovered is None and (uncovered := _uncovered(smc, program, len(records), begun - len(prompt))) is not None:
            tell(sampler, uncovered)
        records.append(_record(smc, program, len(records), before))
    start = len(prompt)
    tokens, length = smc.state["tokens"].tolist(), smc.state["length"].tolist()
    return _result(
        sampler, prompt, [row[start:n] for row, n in zip(tokens, length, strict=True)], smc.log_weights.tolist(),
        forwards=program.meter, seconds=time.perf_counter() - started, trace=records, seed=seed,
        reasons=[] if uncovered is None else [uncovered_reason(sampler, uncovered)],
    )


def _uncovered(smc: EvidenceSMCFilter, program: BridgeProgram, step: int, begun: torch.Tensor) -> int | None:
    """First token of the continuations, of length `begun: [N]` before this step, where the intermediate leaves out one
    of the target; None if nowhere."""
    if not may_leave_out(program.sampler):
        return None
    site = smc.model_trace.nodes[f"block_{step}"]
    law, block = innermost(site["fn"]), site["value"]
    length = stopped_length(block)
    known = block.masked_fill(torch.arange(block.shape[-1], device=block.device) >= length[:, None], 0)
    meter = program.meter  # a look at laws that were computed is no forward of the program
    first = first_uncovered(Dense(law.intermediate.along(known)), Dense(law.base.along(known)), known, length)
    program.meter = meter
    if first is None:
        return None
    return int((begun + first)[first < block.shape[-1]].min())


def _record(smc: EvidenceSMCFilter, program: BridgeProgram, step: int, before: Forwards) -> StepRecord:
    done, after = smc.history[-1], program.meter
    length = stopped_length(smc.model_trace.nodes[f"block_{step}"]["value"]).cpu()
    own = smc.model_trace.nodes[f"accepted_{step}"]["value"].cpu()
    accepted = (length - 1 + own).clamp_min(0)
    return StepRecord(
        ancestors=done.ancestors.tolist(), lanes=[0] * length.numel(), length=length[:, None].tolist(),
        accepted=accepted[:, None].tolist(), log_increments=done.log_increments[:, None].tolist(),
        log_weights=done.log_weights.tolist(), ess=done.ess, resampled=done.resampled,
        log_evidence=float(log_mean(done.log_weights)), dlm_rows=after.dlm_rows - before.dlm_rows,
        ar_rows=after.ar_rows - before.ar_rows, fresh=program.fresh.tolist(),
    )


def _seed_everything(seed: int, prompt: Sequence[int]) -> None:
    """Let torch's global generators depend on seed and prompt only, on every device."""
    torch.manual_seed(derived_seed(Role.PYRO, seed, *prompt) % 2**64)
    torch.set_rng_state(prompt_generator(seed, prompt, role=Role.PYRO).get_state())


def _result(
    sampler: Sampler, prompt: list[int], sequences: list[list[int]], log_weights: list[float], *, forwards: Forwards,
    seconds: float, trace: list[StepRecord], seed: int | None, reasons: Sequence[str] = (),
) -> Result:
    reasons = [*sampler.why_improper(), *reasons]
    return Result(
        prompt=prompt, sequences=sequences, log_weights=log_weights,
        texts=texts_of(sampler.detokenize, sequences, prompt),
        method=sampler.name, proper=not reasons, reasons=reasons,
        has_potential=sampler.target.potential is not None, forwards=forwards, seconds=seconds,
        trace=trace, settings={} if seed is None else {"seed": seed, "stream": Role.PYRO.value},
    )


@torch.inference_mode()
def score(sampler: Sampler, prompt: Sequence[int], continuation: Sequence[int]) -> float:
    """Log-probability of a given text under the target, nats, by conditioning the model on it.

    Block boundaries do not matter: summed over all of them the stopped model gives each text the probability that the
    unstopped one gives it (`sum_L kappa(L | x) = 1`), so the model here has the whole text as one block of the target.
    With a potential, `log p(x) + log phi(x)`, not normalised by Z.

    Args:
        sampler: only its target counts; any number of lanes.
        prompt: token ids.
        continuation: token ids, with the end of sequence if it is to be scored; without it, the text is taken to be cut
            by the length limit.
    Raises:
        ValueError: an empty continuation, a token outside the alphabet, or one after the end of sequence.
    """
    target, model = sampler.target, sampler.target.model
    [text] = check_tokens([continuation], model.vocab_size, lambda _: "continuation")
    if not text:
        raise ValueError("continuation is empty: give at least 1 token")
    [prompt] = check_prompts(
        [prompt], {"autoregressive": model}, max_new_tokens=len(text), called=lambda _: "prompt"
    )
    ends = ends_of(model.eos_id)
    if any(token in ends for token in text[:-1]):
        raise ValueError("continuation goes on after the end of sequence: cut it there")
    prefix = Prefix.of([prompt], device=model.device)
    value = torch.tensor([text], device=model.device)
    count = prefix.length.new_tensor([len(text)])

    def whole_text() -> None:
        session = model.session(prefix.tokens, prefix.length)
        with pyro.plate("sequences", 1):
            rows = torch.zeros_like(prefix.length)
            block = pyro.sample("text", target_block(session, rows, target, window=len(text)))
            if target.potential is not None:
                ended = prefix.extend(block, count, ends=ends, limit=prefix.length + count)
                pyro.factor("potential", target.log_potential(ended, start=prefix.length))

    conditioned = poutine.condition(whole_text, data={"text": value})
    return float(poutine.trace(conditioned).get_trace().log_prob_sum())


@torch.inference_mode()
def enumerate_program(
    sampler: Sampler, prompt: Sequence[int], *, max_new_tokens: int
) -> dict[tuple[int, ...], float]:
    """`E[w 1_s]` of every sequence s, w the importance weight of one particle, by listing all executions of the guide.

    It equals the target's probability `p(s)` (`p(s) phi(s)` with a potential) if and only if the weight is proper; this
    holds for each particle before they interact, and unbiased resampling keeps it. For tiny models.

    It is about *this* program, which asks the intermediate for one position after the other, with nothing drafted
    behind it: one that reads `log_p` beyond its position is right here and wrong in `Sampler.run`, which gives it the
    laws along whole drafts. `smc_bridge.check` runs that engine.

    Args:
        sampler: with one lane; its particles, resampler and trigger do not matter.
        prompt: token ids.
        max_new_tokens: length limit of a continuation.
    Raises:
        ValueError: a window has more than 65536 blocks, or see `BridgeProgram`.
    """
    program = BridgeProgram(sampler, prompt, max_new_tokens=max_new_tokens)
    model, guide = program.unrolled(is_target=True), program.unrolled(is_target=False)
    mass: dict[tuple[int, ...], float] = {}
    for guide_trace in iter_discrete_traces("flat", config_enumerate(guide, default="sequential")):
        log_q = guide_trace.log_prob_sum()
        if log_q == -torch.inf:
            continue
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()
        log_weight = model_trace.log_prob_sum() - log_q
        text = tuple(model_trace.nodes["_RETURN"]["value"].tolist())
        mass[text] = mass.get(text, 0.0) + float((log_q + log_weight).exp())
    return mass


@torch.inference_mode()
def importance_baseline(
    sampler: Sampler, prompt: Sequence[int], num_samples: int, *, seed: int | None = None, max_new_tokens: int = 256
) -> Result:
    """Plain importance sampling by `pyro.infer.Importance`: whole sequences drafted by the DLM, weighed by the target.

    The sampler's proposal and target are kept; everything is accepted and particles never interact. The law of
    `presets.plain_is` with the trigger `never`.

    Args:
        sampler: with one lane.
        prompt: token ids.
        num_samples: N, whole sequences, drawn one after the other.
        seed: with the prompt, sets torch's global generator; None leaves it.
        max_new_tokens: length limit of a continuation.
    Raises:
        ValueError: no samples, more than one lane, or an argument out of range.
    """
    num_samples = whole_number("num_samples", num_samples, remedy="draw at least 1, a whole number")
    started = time.perf_counter()
    plain = replace(
        sampler, intermediate=Proposal(), kernel=AcceptAll(), weight=OwnWeights(), name="importance"
    )
    program = BridgeProgram(plain, prompt, max_new_tokens=max_new_tokens)
    if seed is not None:
        _seed_everything(seed, prompt)
    posterior = Importance(
        program.unrolled(is_target=True), program.unrolled(is_target=False), num_samples=num_samples
    )
    try:
        posterior.run()
    except ValueError:
        # Pyro cannot normalise weights that are all zero; they are there all the same.
        if len(posterior.log_weights) < num_samples or any(w > -torch.inf for w in posterior.log_weights):
            raise
    sequences = [trace.nodes["_RETURN"]["value"].tolist() for trace in posterior.exec_traces]
    return _result(
        plain, program.prompt_prefix.lists()[0], sequences, [float(w) for w in posterior.log_weights],
        forwards=program.meter, seconds=time.perf_counter() - started, trace=[], seed=seed,
    )
