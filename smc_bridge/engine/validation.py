"""What a `Sampler` and the arguments of its runs must be; each violation is one line that names argument, value and
remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smc_bridge.distributions.intermediate import check_intermediate, experts_read
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.conditional import check_whole
from smc_bridge.engine.pace import Pace
from smc_bridge.engine.program import Program
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import check_callable, check_text, is_list, said, true_or_false, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.names import named
from smc_bridge.proposals.protocol import Proposal, known_off_draft
from smc_bridge.requests import Request, check_limit, check_tokens, requests_of
from smc_bridge.streams import Role


def check_program(program: Program) -> None:
    """Raise ValueError unless the parts of the program fit together."""
    _check_parts(program)
    q, p = program.proposal, program.target
    if q.model.vocab_size != p.model.vocab_size or ends_of(q.model.eos_id) != ends_of(p.model.eos_id):
        raise ValueError(
            f"the models' alphabets differ: {q.model.vocab_size} tokens ending with {q.model.eos_id} against "
            f"{p.model.vocab_size} ending with {p.model.eos_id}; use a pair that shares its tokenizer"
        )
    if q.banned_ids != p.shaping.banned_ids:
        raise ValueError(
            f"banned_ids differ: {q.banned_ids} in the proposal, {p.shaping.banned_ids} in the target; ban the same"
        )
    for name in ("factorised", "covers", "identical_lanes"):
        if not isinstance(getattr(q, name), bool):
            raise ValueError(f"proposal {type(q).__name__}: {name} = {said(getattr(q, name))}: say True or False")
    _check_experts(program)
    q.check(program.lanes)
    if program.bonus and isinstance(program.kernel, AcceptAll) and not program.kernel.bonus:
        raise ValueError(
            f"bonus = True with kernel = {said(program.kernel)}, which commits the draft alone: give "
            "AcceptAll(bonus=True), or leave it out"
        )
    if program.bonus and program.kernel.reads_marginals:
        raise ValueError(
            f"bonus = True with kernel = {said(program.kernel)}, which draws past its leaves anyhow: leave it out"
        )
    if not q.factorised:
        asked = program.kernel.reads_marginals and not known_off_draft(q)
        _refuse_chain("kernel", program.kernel, q, asked, "Rejection()")
        _refuse_chain("weight", program.weight, q, not program.weight.lanewise, "OwnWeights()")
    reuse = getattr(getattr(q, "base", q), "reuse", 0.0)
    if reuse and isinstance(program.kernel, AcceptAll):
        raise ValueError(f"reuse = {said(reuse)} with kernel = accept-all, which refuses nothing: leave it out")
    program.kernel.check(program.intermediate)
    program.probed()


def _check_experts(program: Program) -> None:
    """Raise ValueError unless the further experts fit the target, and the intermediate reads as many."""
    p, count = program.target, experts_read(program.intermediate)
    if not is_list(program.experts):
        raise ValueError(f"experts = {said(program.experts)}: give a list of ARTarget, or leave it out")
    program.experts = tuple(program.experts) if not isinstance(program.experts, tuple) else program.experts
    for j, expert in enumerate(program.experts):
        name = f"experts[{j}]"
        if not isinstance(expert, ARTarget):
            raise ValueError(f"{name} = {said(expert)}: give an ARTarget, a causal model with its law")
        if expert.potential is not None:
            raise ValueError(f"{name} has a potential, which an expert's law cannot have: give it to the target")
        if expert.model.vocab_size != p.model.vocab_size:
            raise ValueError(
                f"{name} has {expert.model.vocab_size} tokens and the target {p.model.vocab_size}: give models that "
                "share a tokenizer"
            )
        if expert.shaping.banned_ids != p.shaping.banned_ids:
            raise ValueError(
                f"banned_ids differ: {expert.shaping.banned_ids} in {name}, {p.shaping.banned_ids} in the target; ban "
                "the same"
            )
    if len(program.experts) != count:
        raise ValueError(
            f"experts has {len(program.experts)} models and intermediate = {said(program.intermediate)} reads {count}: "
            "give as many, as experts=[model] with intermediate=Experts([exponent])"
        )
    if count and not program.weight.lanewise:
        raise ValueError(
            f"weight = {said(program.weight)} with experts: it asks for their laws along other lanes' blocks; use "
            "OwnWeights()"
        )


def _refuse_chain(name: str, part: object, proposal: Proposal, refused: bool, instead: str) -> None:
    """Raise ValueError if a part needs a factorised proposal."""
    if refused:
        raise ValueError(
            f"{name} = {said(part)} asks the proposal for laws off the draft, which {type(proposal).__name__} has not: "
            f"its laws depend on the draft; use {instead}, or a proposal that factorises, such as DLMProposal"
        )


def _check_parts(program: Program) -> None:
    if not isinstance(program.proposal, Proposal):
        raise ValueError(f"proposal = {said(program.proposal)}: give a DLMProposal, or another Proposal")
    if not isinstance(program.target, ARTarget):
        raise ValueError(f"target = {said(program.target)}: give an ARTarget")
    for name in ("particles", "lanes", "window"):
        setattr(program, name, whole_number(name, getattr(program, name)))
    if program.max_logit_bytes is not None:
        program.max_logit_bytes = whole_number(
            "max_logit_bytes", program.max_logit_bytes, remedy="give a positive whole number of bytes, or None"
        )
    if program.pace is not None and not isinstance(program.pace, Pace):
        raise ValueError(f"pace = {said(program.pace)}: give a Pace, or None to go as far as V and M allow")
    if program.pace is not None and program.pace.nodes and not isinstance(program.kernel, TreeWalk):
        raise ValueError(
            f"kernel = {said(program.kernel)} has no nodes that a pace could choose: give TreeWalk(), or a pace with "
            "nodes = False"
        )
    program.compile = true_or_false("compile", program.compile)
    program.bonus = true_or_false("bonus", program.bonus)
    check_text("name", program.name)
    check_callable("tokenize", program.tokenize, "a function of a text")
    check_callable("detokenize", program.detokenize, "a function of a list of ids")
    for name in ("kernel", "weight", "resampler", "intermediate", "trigger"):
        value = named(name, getattr(program, name))
        setattr(program, name, value)
        if isinstance(value, type):
            raise ValueError(f"{name} = {value.__name__} is a class: give an object, {value.__name__}()")
        if name not in ("intermediate", "trigger") and not isinstance(getattr(value, "proper", None), bool):
            raise ValueError(f"{name} = {said(value)} does not say if it is proper: give it a bool `proper`")
    check_intermediate("intermediate", program.intermediate)
    exponent = getattr(program.intermediate, "target_exponent", None)
    if isinstance(exponent, torch.Tensor) and exponent.numel() != program.lanes and exponent.dim():
        raise ValueError(
            f"target_exponent has {exponent.numel()} entries for lanes = {program.lanes}: give one per lane"
        )
    if not callable(program.trigger):
        raise ValueError(f"trigger = {said(program.trigger)}: give a function of log weights, such as EssBelow(0.5)")
    if not isinstance(program.kernel, Kernel):
        raise ValueError(f"kernel = {said(program.kernel)}: give a Kernel, such as Rejection()")
    if not isinstance(getattr(program.weight, "lanewise", None), bool):
        raise ValueError(
            f"weight = {said(program.weight)} does not say if lanes weigh by themselves: give it a bool `lanewise`"
        )


def make_requests(
    program: Program, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int], max_new_tokens: int,
    retained: Sequence[Sequence[int]] | None = None, keep_drafts: bool = False,
) -> list[Request]:
    """The prompts of a sampler's run, checked; arguments as `Sampler.run`, errors as `requests_of`.

    Raises:
        ValueError: also for retained sequences that do not fit the prompts or the program.
    """
    check_program(program)  # its attributes may have been set since it was made
    keep_drafts = true_or_false("keep_drafts", keep_drafts)
    if retained is None:
        requests = requests_of(prompts, program.models, seed=seed, max_new_tokens=max_new_tokens, stream=Role.SMC)
        return [request._replace(keep_drafts=keep_drafts) for request in requests]
    if not (program.proper and program.weight.lanewise):
        raise ValueError("retained needs a proper program whose lanes have their own weights: use OwnWeights()")
    requests = requests_of(prompts, program.models, seed=seed, max_new_tokens=max_new_tokens, stream=Role.CONDITIONAL)
    model = program.target.model
    kept = check_tokens(retained, model.vocab_size, "retained[{}]".format)
    if len(kept) != len(requests):
        raise ValueError(f"retained has {len(kept)} sequences for {len(requests)} prompts: give one per prompt")
    check_whole(kept, ends=ends_of(model.eos_id), max_new_tokens=check_limit(max_new_tokens))
    return [
        request._replace(retained=own, keep_drafts=keep_drafts) for request, own in zip(requests, kept, strict=True)
    ]
