"""The program of docs/theory, section 5, as Pyro model and guide.

    guide, step t:   block_t ~ StoppedPrefix(pi)      that is, run the kernel
    model, step t:   block_t ~ StoppedPrefix(p)       the target, stopped by the same kappa
                     factor(log phi_t - log phi_s)    if the target has a potential

Both sides then draw `accepted_t`, whether the last token of a block that had to end was the draft's own: it decides
whether the marginals that are left serve the next block (elastic window), has one law given the block, and cancels.
Finished particles are absorbed: their only block is empty, of log-probability 0 on both sides.

From this one pair:

- `run_program`: SMC, by the repaired `SMCFilter` (`smc_bridge.pyro_program.filter`); equal in law to `Sampler.run`;
- `score`: the target's log-probability of a given text, by `poutine.condition`;
- `enumerate_program`: every execution, by `iter_discrete_traces`: a certificate that this program's weight is right (of
  the engine's: `smc_bridge.check`);
- `importance_baseline`: plain importance sampling of the model from the DLM's drafts, by `pyro.infer.Importance`.

Everything of a `Sampler` is pluggable but the lanes: a particle has one (K = 1), as in textbook SMC, because the block
that a particle picks from K of its own has no closed-form density. Models are called afresh at every step, without
caches, and twice where the engine calls once (the draft, then the committed block; a tree walk position by position):
this is the program to read and to reason about, `Sampler.run` the one to decode with.
"""

from smc_bridge.pyro_program.inference import enumerate_program, importance_baseline, run_program, score
from smc_bridge.pyro_program.program import BridgeProgram

__all__ = ["BridgeProgram", "enumerate_program", "importance_baseline", "run_program", "score"]
