"""What `smc-bridge doctor` has found of a pair: facts of its models, memory for some sizes, verdicts, a decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from smc_bridge.models.verdicts import Verdict

if TYPE_CHECKING:
    from smc_bridge.models.facts import Facts

#: What the models of a pair are called.
KINDS = {"dlm": "diffusion model", "ar": "AR model"}
#: Bytes of a score.
SCORE_BYTES = 4
#: How a part of memory comes about that is counted again with those of whole rows.
OF_A_TOKEN = "of a token"
#: Tokens of a row for which a cache is reckoned.
ROW = 1_000


@dataclass
class Report:
    """What was found of a pair.

    Attributes:
        name: of the pair.
        models: facts of each model, by "dlm" and "ar".
        sizes: particles, lanes, window and lookahead.
        prompts: how a text becomes a prompt.
        probes: model, and what a probe found of it, in the order in which they were asked.
        decoded: prompt, text, tokens, tokens per DLM forward and seconds of a decode; None if it was not tried.
    """

    name: str
    models: dict[str, Facts]
    sizes: dict[str, int]
    prompts: str
    probes: list[tuple[str, Verdict]] = field(default_factory=list)
    decoded: dict[str, Any] | None = None

    @property
    def good(self) -> bool:
        """Whether no probe found a fault for which the pair is refused."""
        return all(verdict.fault is None or not verdict.fatal for _, verdict in self.probes)

    @property
    def memory(self) -> list[tuple[str, str, int | None]]:
        """What takes memory, how it comes about, and bytes; None where the model does not tell."""
        n, k, v, m = (self.sizes[name] for name in ("particles", "lanes", "window", "lookahead"))
        m = min(m, self.models["dlm"].block_size or m)  # drafts end with the block
        parts: list[tuple[str, str, int | None]] = []
        for kind, facts in self.models.items():
            parts.append((f"weights of the {KINDS[kind]}", f"{facts.dtype}", facts.weight_bytes))
        rows = {"dlm": (f"[N, M, A] = [{n}, {m}", n * m), "ar": (f"[N * K, V, A] = [{n * k}, {v}", n * k * v)}
        for kind, facts in self.models.items():
            shape, places = rows[kind]
            size = SCORE_BYTES * places * facts.alphabet
            parts.append((f"scores of the {KINDS[kind]}", f"{shape}, {facts.alphabet}]", size))
        for kind, facts in self.models.items():
            each, cached = facts.token_bytes, facts.cache != "none"
            if cached and each is not None:
                parts.append((f"keys and values of the {KINDS[kind]}", OF_A_TOKEN, each))
                parts.append((f"keys and values of the {KINDS[kind]}", f"of N rows of {ROW:,} tokens", n * ROW * each))
            elif cached:
                parts.append((f"keys and values of the {KINDS[kind]}", "not told by its configuration", None))
        return parts

    @property
    def total(self) -> int | None:
        """Bytes of all that takes memory, caches for N rows, without activations; None if a part is not told."""
        sizes = [size for _, how, size in self.memory if how != OF_A_TOKEN]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def data(self) -> dict[str, Any]:
        """All of it as plain data for JSON."""
        return {
            "name": self.name, "good": self.good, "sizes": self.sizes,
            "models": {kind: asdict(facts) for kind, facts in self.models.items()},
            "memory": [{"what": what, "how": how, "bytes": size} for what, how, size in self.memory],
            "memory_total_bytes": self.total, "prompts": self.prompts,
            "probes": [{"model": kind, **asdict(verdict)} for kind, verdict in self.probes],
            "decoded": self.decoded,
        }
