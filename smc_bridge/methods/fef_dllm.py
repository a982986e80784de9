"""FeF-DLLM (arXiv 2605.14305): the diffusion model's joint law without its factorisation error, by self-speculation."""

from __future__ import annotations

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.chain_sampling import ChainSampling
from smc_bridge.canvas.rules import Ordered
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.self_speculation import WINDOW
from smc_bridge.registry import method


@method(
    "fef-dllm", role="exact", targets="DLM", proper=True, reference="arXiv 2605.14305",
    published=(
        "LLaDA-8B fine-tuned, 2 steps: GSM8K/MATH/HumanEval/MBPP 79.4/36.4/48.8/42.6 at 3.86x; untrained mean 50.2 at "
        "3.92x; window 4/8/16 0.78/1.42/2.33x"
    ),
)
def fef_dllm(
    pair: ModelPair, *, window: int = WINDOW, bonus: bool = True, lookahead: int | None = 256, temperature: float = 1.0,
    top_p: float = 1.0,
) -> ChainSampling:
    """Exact draws of the diffusion model's own chain-rule joint, several tokens per forward by self-speculation.

    Independent marginals of several places are no draw of their joint: a factorisation error. Without it, token i is
    drawn from `p(x_i | c, x_<i filled in)`, the marginal of its place in the canvas with all tokens before it. One
    forward gives marginals q of the next v places, which are drafted from; one forward of a row for each number of
    drafted tokens filled in gives p along the draft. Left to right `y_i` is accepted with probability
    `min(1, p(y_i) / q(y_i))`; at the first refusal a draw from `(p - q)_+` is committed. The first place's p is its q,
    and is not asked for again; the row with the whole draft filled in is the next draft's forward (the bonus token).

    Role: an exact sampler of the diffusion model's own law, the one that `dlm` with one token per forward draws from;
    it does not target the AR law, and its results carry no bound for it. As a proposal of the program the same chain
    has a tractable density: `proposal=speculated-chain`.

    Changed: one denoising step, in which all places are kept; the published decoder masks some again and goes on with
    its last canvas, which has no law of its own. The model is taken as it is, without their fine-tuning, and without an
    approximate cache, under which it has no one law.

    Args:
        pair: the models, of which the diffusion model decodes.
        window: v, places drafted at once; each is a row of the verification.
        bonus: whether a row has the whole draft filled in, which spares the next draft its forward.
        lookahead: masked places behind what is filled, none for the whole continuation.
        temperature: of the law; 0 is greedy.
        top_p: of the law.
    Raises:
        ValueError: an argument out of range.
    """
    plain = canvas_of(
        pair, Ordered(), name="fef-dllm", span=None, lookahead=lookahead, temperature=temperature, top_p=top_p,
        recompute=True,
    )
    return ChainSampling(plain, window, bonus, "fef-dllm", plain.detokenize)
