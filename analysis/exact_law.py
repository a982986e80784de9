"""The exact answer on models that can be enumerated, as the same `Result` that a sampler returns.

Every sequence of the AR target (temperature, truncation, end of sequence, length limit, potential) is listed once with
its exact weight `p(x) phi(x)`. The weights are scaled so that their mean is Z, as those of a run are in expectation:
`log_evidence` is the exact `log Z`, `weights` the exact law, `expectation(f)` the exact answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from smc_bridge.distributions.target import ARTarget, as_target
from smc_bridge.models.arguments import check_callable
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import LanguageModel, ModelPair
from smc_bridge.models.tabular import ENUMERABLE
from smc_bridge.plugins import texts_of
from smc_bridge.prefix import Prefix
from smc_bridge.requests import check_limit, check_prompts
from smc_bridge.result import Result


@torch.inference_mode()
def oracle(
    target: ARTarget | ModelPair, prompt: Sequence[int] = (), *, max_new_tokens: int,
    detokenize: Callable[[list[int]], str] | None = None,
) -> Result:
    """Exact law of the target after `prompt`.

    Args:
        target: any AR law; meant for tabular models, but small alphabets and limits of any model will do. Or a pair of
            models, whose AR model at temperature 1 is it (and whose `decode` makes texts).
        prompt: token ids.
        max_new_tokens: length limit; the AR law is cut there.
        detokenize: turns a continuation's ids into text, as in `Sampler`.
    Returns:
        Sequences of positive AR probability, with `log_weights = log p + log phi + log count`.
    Raises:
        ValueError: an argument out of range, or more than 65536 sequences of positive probability.
    """
    check_callable("detokenize", detokenize, "a function of a list of ids")
    detokenize = getattr(target, "decode", None) if detokenize is None else detokenize
    target = as_target(target)
    model, max_new_tokens = target.model, check_limit(max_new_tokens)
    models: dict[str, LanguageModel] = {"autoregressive": model}
    [prompt] = check_prompts([prompt], models, max_new_tokens=max_new_tokens, called=lambda _: "prompt")
    ends = ends_of(model.eos_id)
    growing: list[tuple[list[int], float]] = [([], 0.0)]
    ended: list[tuple[list[int], float]] = []
    for depth in range(max_new_tokens):
        prefix = Prefix.of([[*prompt, *sequence] for sequence, _ in growing], device=model.device)
        session = model.session(prefix.tokens.clamp_min(0), prefix.length)
        rows = torch.arange(len(growing), device=model.device)
        # The score of a one-token draft is that of its place, whatever the token.
        conditional = target.log_probs(session.score(rows, torch.zeros_like(rows)[:, None])[:, 0]).double()
        if len(ended) + int((conditional > -math.inf).sum()) > ENUMERABLE:
            raise ValueError(
                f"max_new_tokens = {max_new_tokens} over {model.vocab_size} tokens gives more than {ENUMERABLE} "
                "sequences: shorten the limit or use a smaller model"
            )
        longer: list[tuple[list[int], float]] = []
        for (sequence, log_p), row in zip(growing, conditional.tolist(), strict=True):
            for token, step in enumerate(row):
                if step > -math.inf:
                    last = token in ends or depth + 1 == max_new_tokens
                    (ended if last else longer).append(([*sequence, token], log_p + step))
        growing = longer
        if not growing:
            break
    sequences = [sequence for sequence, _ in ended]
    log_weights = torch.tensor([log_p for _, log_p in ended], dtype=torch.float64)
    if target.potential is not None:
        whole = Prefix.of([[*prompt, *sequence] for sequence in sequences], device=model.device)
        finished = whole._replace(done=torch.ones_like(whole.done))
        start = torch.full_like(finished.length, len(prompt))
        log_weights = log_weights + target.log_potential(finished, start=start).cpu()
    return Result(
        prompt=prompt, sequences=sequences, log_weights=(log_weights + math.log(len(sequences))).tolist(),
        texts=texts_of(detokenize, sequences, prompt), method="oracle", has_potential=target.potential is not None,
    )
