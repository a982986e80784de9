"""`Result`: what a run returns for one prompt, a weighted set of continuations with evidence and diagnostics."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smc_bridge.certificate import Certificate, certify
from smc_bridge.display import headed
from smc_bridge.files import check_path, write_text
from smc_bridge.models.arguments import whole_number
from smc_bridge.streams import Role, numpy_generator
from smc_bridge.trace import StepRecord

#: Version of the JSON layout.
FORMAT = 1
#: Distinct continuations that a repr shows.
SHOWN = 4
#: Fields that older files of this format do not have.
ADDED = {"complete", "settings"}


@dataclass(frozen=True)
class Forwards:
    """How often each model ran for a prompt.

    Attributes:
        dlm_forwards, ar_forwards: calls that served the prompt, of the model that drafts (whatever it is) and of the AR
            model and further experts that are asked where it is.
        dlm_rows, ar_rows: rows of the prompt in them.
        ar_tokens: tokens or tree nodes scored by the AR model and further experts.
    """

    dlm_forwards: int = 0
    dlm_rows: int = 0
    ar_forwards: int = 0
    ar_rows: int = 0
    ar_tokens: int = 0

    @classmethod
    def total(cls, parts: Sequence[Forwards]) -> Forwards:
        """The sum of several counts, field by field."""
        each = [(p.dlm_forwards, p.dlm_rows, p.ar_forwards, p.ar_rows, p.ar_tokens) for p in parts]
        return cls(*map(sum, zip(*each, strict=True)))


@dataclass(frozen=True, repr=False)
class Result:
    """N weighted continuations of one prompt.

    Attributes:
        prompt: token ids.
        sequences: token ids of each continuation, with the end of sequence where there is one.
        log_weights: unnormalised, nats, `[N]`; their log-mean is the evidence estimate.
        texts: the continuations as text, if the sampler knows a tokenizer.
        method: name of the sampler.
        proper: whether the weights are proper (docs/theory, section 2).
        reasons: why they are not, one line each.
        has_potential: whether the target carries a potential, so that its true Z is not 1.
        forwards: model calls.
        seconds: wall time from when this prompt entered the batch until it was finished; prompts beside it took their
            share of that time.
        trace: one record per step.
        complete: whether the run was finished. If not (it was interrupted), sequences may be cut anywhere, and the
            weights are those of the cut sequences.
        settings: how it was made: the sampler's parameters, seed and length limit, as plain data.
    """

    prompt: list[int]
    sequences: list[list[int]]
    log_weights: list[float]
    texts: list[str] | None = None
    method: str = "smc"
    proper: bool = True
    reasons: list[str] = field(default_factory=list)
    has_potential: bool = False
    forwards: Forwards = field(default_factory=Forwards)
    seconds: float = 0.0
    trace: Sequence[StepRecord] = field(default_factory=list)
    complete: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sequences or len(self.sequences) != len(self.log_weights):
            raise ValueError(
                f"{len(self.sequences)} sequences with {len(self.log_weights)} log_weights: give one weight for each"
            )
        if any(math.isnan(w) or w == math.inf for w in self.log_weights):
            raise ValueError(f"log_weights = {self.log_weights}: NaN and +inf are not weights")

    @property
    def log_evidence(self) -> float:
        """Evidence estimate `log Z_hat`, nats; without a potential `E[Z_hat] = 1`."""
        return float(np.logaddexp.reduce(self.log_weights) - math.log(len(self.log_weights)))

    @property
    def alive(self) -> bool:
        """Whether any weight is positive. If none is, the run has an ESS of 0 and no law: nothing can be drawn."""
        return max(self.log_weights) > -math.inf

    @property
    def weights(self) -> np.ndarray:
        """Normalised weights, `[N]`; they sum to 1.

        Raises:
            ValueError: every weight is zero.
        """
        if not self.alive:
            raise ValueError("log_weights are all -inf: no particle has positive weight; use more particles or lanes")
        raw = np.exp(np.asarray(self.log_weights) - max(self.log_weights))
        return np.asarray(raw / raw.sum())

    @property
    def ess(self) -> float:
        """Effective sample size of the final weights, particles; 0 if every weight is zero."""
        return float(1.0 / np.square(self.weights).sum()) if self.alive else 0.0

    @property
    def values(self) -> list[Any]:
        """What the particles are: texts if there are any, else tuples of token ids."""
        return list(self.texts) if self.texts is not None else [tuple(s) for s in self.sequences]

    @property
    def exact(self) -> bool:
        """Whether every weight is one by construction (`Sampler.exact`): any draw is one from the target."""
        return bool(self.settings.get("exact"))

    @property
    def tokens(self) -> float:
        """Mean length of the continuations, tokens: what was decoded, whatever it weighs."""
        return sum(map(len, self.sequences)) / len(self.sequences)

    @property
    def drawn_tokens(self) -> float:
        """Expected length `sum_k W_k length_k` of a sequence drawn from the weights, tokens; `tokens` if all are zero.

        Bounds in nats per token divide by it: they are about the law of what is drawn.
        """
        return float(self.weights @ np.array([*map(len, self.sequences)])) if self.alive else self.tokens

    @property
    def tokens_per_dlm_forward(self) -> float:
        """Committed tokens of a particle per forward of the DLM; NaN if it never ran."""
        return self.tokens / self.forwards.dlm_forwards if self.forwards.dlm_forwards else math.nan

    def sample(self, count: int | None = None, *, seed: int | None = None) -> Any:
        """Draw from the weights: one value, or a list of `count`. Never the argmax.

        Args:
            count: how many draws, or None for a single value.
            seed: repeats the draw for this very run. Runs of another seed or prompt draw independently under one seed
                here, also if their particles are the same, so that a loop over runs follows their weights. (A result
                that does not know its run's seed is told apart by its particles, so that equal ones draw the same.)
                None draws afresh.
        Raises:
            ValueError: every weight is zero, or a seed that is no whole number.
        Example:
            >>> result = Result(prompt=[1], sequences=[[5, 6], [7]], log_weights=[0.0, -math.inf])
            >>> result.sample(), result.sample(2)
            ((5, 6), [(5, 6), (5, 6)])
        """
        return self._drawn(self.values, count, seed)

    def sample_tokens(self, count: int | None = None, *, seed: int | None = None) -> Any:
        """The same draws as `sample`, as token ids: one list, or `count` of them; arguments and errors as there.

        Example:
            >>> Result(prompt=[1], sequences=[[5, 6], [7]], log_weights=[0.0, -math.inf]).sample_tokens()
            [5, 6]
        """
        return self._drawn([list(sequence) for sequence in self.sequences], count, seed)

    def _drawn(self, values: Sequence[Any], count: int | None, seed: int | None) -> Any:
        rng = np.random.default_rng() if seed is None else self._generator(seed)
        count = None if count is None else whole_number("count", count, least=0)
        index = rng.choice(len(self.sequences), size=count, p=self.weights)
        return values[int(index)] if count is None else [values[int(i)] for i in index]

    def _generator(self, seed: int) -> np.random.Generator:
        """A generator that depends on this run as well: on what its own draws come from, or else on its particles."""
        own = self.settings.get("seed")
        if own is None:
            text = json.dumps([self.prompt, self.sequences, [float(w).hex() for w in self.log_weights]])
            return numpy_generator(Role.SAMPLE, seed, text)
        return numpy_generator(Role.SAMPLE, seed, str(own), str(self.settings.get("stream")), *self.prompt)

    def posterior(self) -> dict[Any, float]:
        """Distinct values with their probabilities, likeliest first.

        Example:
            >>> Result(prompt=[1], sequences=[[5], [6], [6]], log_weights=[0.0, 0.0, math.log(2)]).posterior()
            {(6,): 0.75, (5,): 0.25}
        """
        mass: dict[Any, float] = {}
        for value, weight in zip(self.values, self.weights, strict=True):
            mass[value] = mass.get(value, 0.0) + float(weight)
        return dict(sorted(mass.items(), key=lambda item: -item[1]))

    def expectation(self, f: Callable[[Any], float]) -> float:
        """Self-normalised estimate `sum_k W_k f(x_k)`, f of a text (or of token ids, without a tokenizer)."""
        return float(sum(w * f(v) for w, v in zip(self.weights, self.values, strict=True) if w > 0))

    def certificate(self, *, log_z: float | None = None) -> Certificate:
        """Bound on `KL(r || p)` from this one run (docs/theory, section 7); average several with `smc_bridge.certify`.

        Args:
            log_z: true `log Z`; needed only with a potential.
        Raises:
            ValueError: the sampler is not proper, the run was interrupted, or a potential's Z is not given.
        """
        if not self.proper:
            raise ValueError(f"method {self.method!r} has no certificate: {'; '.join(self.reasons)}")
        if not self.complete:
            raise ValueError(
                "complete = False: the run was interrupted and its sequences are cut, which the bound does not cover; "
                "run it to the end"
            )
        if self.has_potential and log_z is None:
            raise ValueError("log_z is missing: with a potential the bound is log Z - E[log Z_hat]")
        return certify([self.log_evidence], log_z=log_z, exact=self.exact)

    def to_empirical(self) -> Any:
        """The weighted continuations as a `pyro.distributions.Empirical` over padded token ids (-1 is padding).

        Raises:
            ValueError: every weight is zero.
        """
        from pyro.distributions import Empirical

        weights = self.weights  # that there is a law at all is found out here, not in Pyro
        width = max(map(len, self.sequences))
        padded = torch.tensor([s + [-1] * (width - len(s)) for s in self.sequences], dtype=torch.long)
        return Empirical(padded, torch.as_tensor(weights, dtype=torch.float64).log())

    def __repr__(self) -> str:
        marks = ("" if self.proper else ", not properly weighted") + ("" if self.complete else ", interrupted")
        head = (
            f"Result of {self.method}: N = {len(self.sequences)}, {self.tokens:.1f} tokens, "
            f"log Z = {self.log_evidence:.4f} nats, ESS = {self.ess:.2f}{marks}"
        )
        if not self.alive:
            return headed(head, ["every weight is zero"])
        mass = list(self.posterior().items())
        more = [f"and {len(mass) - SHOWN} more"] if len(mass) > SHOWN else []
        return headed(head, [*(f"{weight:.3f}  {value!r}" for value, weight in mass[:SHOWN]), *more])

    def _repr_html_(self) -> str:
        weights = self.weights if self.alive else np.zeros(len(self.sequences))
        order = np.argsort(-weights, kind="stable")
        rows = "".join(
            f"<tr><td>{i}</td><td>{weights[i]:.3f}</td><td>{self.log_weights[i]:.3f}</td>"
            f"<td>{len(self.sequences[i])}</td><td style='text-align:left'><code>"
            f"{html.escape(str(self.values[i]))}</code></td></tr>"
            for i in order
        )
        return (
            f"<p><b>{html.escape(self.method)}</b>: log Z = {self.log_evidence:.4f} nats, ESS = {self.ess:.2f} of "
            f"{len(self.sequences)}, {self.forwards.dlm_forwards} DLM and {self.forwards.ar_forwards} AR forwards"
            f"{'' if self.proper else ' (not properly weighted)'}{'' if self.complete else ' (interrupted)'}</p>"
            "<table><tr><th>particle</th><th>weight</th><th>log weight (nats)</th><th>tokens</th><th>value</th></tr>"
            f"{rows}</table>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: numbers that JSON lacks are written as strings."""
        data: dict[str, Any] = {"format": FORMAT}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "trace":
                value = [record.to_dict() for record in value]
            elif item.name == "forwards":
                value = {f.name: getattr(value, f.name) for f in fields(value)}
            data[item.name] = _encode(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`; also of data that was saved when there were no `ADDED` fields.

        Raises:
            ValueError: not a saved result.
        """
        names = {item.name for item in fields(cls)} | {"format"}
        given = set(data) if isinstance(data, Mapping) else set[str]()
        if not given or data.get("format") != FORMAT or not names - ADDED <= given <= names:
            raise ValueError(f"data is not a saved Result of format {FORMAT}: give what Result.to_dict returned")
        plain = {name: _decode(data[name]) for name in given - {"format"}}
        try:
            plain["forwards"] = Forwards(**plain["forwards"])
            plain["trace"] = [StepRecord.from_dict(record) for record in plain["trace"]]
            return cls(**plain)
        except TypeError as error:
            raise ValueError(f"data is not a saved Result: {error}; give what Result.to_dict returned") from error

    def save(self, path: str | Path) -> None:
        """Write JSON; a file appears whole or not at all (`smc_bridge.files`), and `-` is standard output.

        Raises:
            ValueError: the file cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote.

        Raises:
            ValueError: the file cannot be read or is not a saved result.
        """
        check_path(path)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"path = {str(path)!r} cannot be read as a saved Result: {error}") from error
        return cls.from_dict(data)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float:{value}"
    if isinstance(value, str) and value.startswith(("float:", "text:")):
        return f"text:{value}"
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, str) and value in ("float:inf", "float:-inf", "float:nan"):
        return float(value.removeprefix("float:"))
    if isinstance(value, str):
        return value.removeprefix("text:")
    if isinstance(value, Mapping):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
