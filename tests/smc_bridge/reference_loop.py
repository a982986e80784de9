"""The program once more, as a naive loop over lists: one prompt, one particle, one token at a time.

Plain Python and `math`; torch only draws `torch.rand` in the documented order of the engine, and looks up the tabular
models' logits. Slow, and written from the definitions: the engine must give the same tokens for the same seed.

Order of draws in a step: retained lane and its stop (conditional only); drafts, `N K x V`; the kernel's own (rejection
and block verification: trials `N K x V`, then corrections `N K`; Gumbel: `N K x V x A`; tree walk: `N K x V` and no
drafts; accept-all: none); then N choices among own lanes (K > 1), or the resampler's uniforms.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM

Tokens = list[int]
Laws = list[list[float]]  # log-probabilities by position and token
INFINITY = math.inf


@dataclass
class Settings:
    """What the program is made of, by name."""

    kernel: str
    resampler: str = "systematic"
    trigger: float = 0.5  # share of the ESS; 2 is always, -1 never
    particles: int = 1
    temperatures: tuple[float, ...] = (1.0,)
    target_temperature: float = 1.0
    w: float = 0.5
    window: int = 2
    lookahead: int = 3
    reuse: float = 0.0
    nodes: int = 2
    balance: bool = False
    potential: Callable[[Tokens], float] | None = None


@dataclass
class Particle:
    tokens: Tokens
    log_weight: float = 0.0
    done: bool = False
    log_phi: float = 0.0
    logits: Laws = field(default_factory=list)  # marginals that are left
    refused: bool = False  # whether a token was refused since they were computed


@dataclass
class Lane:
    owner: int
    block: Tokens
    accepted: int
    log_weight: float
    window: int
    log_phi: float = 0.0
    done: bool = False


@dataclass
class Step:
    ancestors: list[int]
    lanes: list[int]
    length: list[list[int]]
    accepted: list[list[int]]
    log_weights: list[float]
    resampled: bool


def log_sum(terms: list[float]) -> float:
    top = max(terms)
    return top if top in (INFINITY, -INFINITY) else top + math.log(sum(math.exp(t - top) for t in terms))


def normalise(scores: list[float]) -> list[float]:
    total = log_sum(scores)
    return [s - total for s in scores]


def invert(masses: list[float], uniform: float) -> int:
    """First index whose cumulative mass passes the uniform."""
    cdf = list(itertools.accumulate(masses))
    passed = [i for i, c in enumerate(cdf) if c > uniform * cdf[-1]]
    return passed[0] if passed else max(i for i, m in enumerate(masses) if m > 0)


@functools.cache
def scored_canvas(dlm: TabularDLM, tokens: tuple[int, ...], width: int) -> Laws:
    """Logits of the masked places after one prefix; a loop asks for the same ones again and again."""
    session = dlm.session(torch.tensor([tokens], dtype=torch.long), torch.tensor([len(tokens)]))
    return session.score(torch.tensor([0]), torch.full((1, width), MASKED))[0].tolist()


@functools.cache
def scored_next(ar: TabularAR, tokens: tuple[int, ...]) -> list[float]:
    """Logits of the next token after one prefix."""
    session = ar.session(torch.tensor([tokens], dtype=torch.long), torch.tensor([len(tokens)]))
    return session.score(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long))[0, 0].tolist()


class Reference:
    """Decodes one prompt."""

    def __init__(self, settings: Settings, ar: TabularAR, dlm: TabularDLM, generator: torch.Generator) -> None:
        self.s, self.ar, self.dlm, self.generator = settings, ar, dlm, generator
        self.eos = ar.eos_id
        self.steps: list[Step] = []

    def rand(self, *shape: int) -> list:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).tolist()

    def marginals(self, tokens: Tokens, width: int) -> Laws:
        return scored_canvas(self.dlm, tuple(tokens), width)

    def target(self, tokens: Tokens) -> list[float]:
        """`log p(. | tokens)`."""
        return normalise([x / self.s.target_temperature for x in scored_next(self.ar, tuple(tokens))])

    def pi(self, log_q: list[float], log_p: list[float]) -> list[float]:
        if self.s.kernel == "accept-all":
            return log_q
        return normalise([self.s.w * a + (1 - self.s.w) * b for a, b in zip(log_q, log_p, strict=True)])

    def end(self, block: Tokens, window: int) -> int:
        """Where a block must end at the latest."""
        stop = block.index(self.eos) + 1 if self.eos in block else window
        return min(window, stop)

    def tree(self, log_q: Laws, window: int) -> set[tuple[int, ...]]:
        """The likeliest continuations under the product of q, shorter than the window, without the end of sequence."""
        found = []
        for n in range(1, window):
            for path in itertools.product(range(len(log_q[0])), repeat=n):
                if self.eos not in path:
                    found.append((sum(log_q[i][a] for i, a in enumerate(path)), path))
        return {path for _, path in sorted(found, key=lambda x: -x[0])[: self.s.nodes]}

    def continues(self, prefix: Tokens, log_q: Laws, block: Tokens, window: int) -> list[float]:
        """`c_i`: probability that the kernel goes on after each token of the block."""
        nodes = self.tree(log_q, window) if self.s.kernel == "tree-walk" else set()
        out, before = [], 1.0
        for i, token in enumerate(block):
            pi = [math.exp(x) for x in self.pi(log_q[i], self.target(prefix + block[:i]))]
            q = [math.exp(x) for x in log_q[i]]
            match self.s.kernel:
                case "rejection":
                    out.append(min(1.0, q[token] / pi[token]))
                case "block-verification":
                    out.append(min(1.0, q[token] / (before * pi[token])))
                    before = min(1.0, before * pi[token] / q[token])
                case "gumbel":
                    out.append(
                        1.0 / sum(max(b, c * pi[token] / q[token]) for b, c in zip(pi, q, strict=True)))
                case "accept-all":
                    out.append(1.0)
                case "tree-walk":
                    out.append(float(tuple(block[: i + 1]) in nodes))
        return out

    def verify(self, prefix: Tokens, log_q: Laws, draft: Tokens, window: int, draws: dict[str, list]) -> (
        tuple[Tokens, int]
    ):
        """Committed block and how many of its tokens are the draft's."""
        s, size = self.s, len(log_q[0])
        if s.kernel == "tree-walk":
            nodes, block = self.tree(log_q, window), []
            while True:
                law = self.pi(log_q[len(block)], self.target(prefix + block))
                block.append(invert([math.exp(x) for x in law], draws["walk"][len(block)]))
                inside = tuple(block) in nodes
                if not inside or len(block) == window or block[-1] == self.eos:
                    return block, len(block) if inside or len(block) == window else len(block) - 1
        end = self.end(draft, window)
        law = [[math.exp(x) for x in self.pi(log_q[i], self.target(prefix + draft[:i]))] for i in range(end)]
        q = [[math.exp(x) for x in log_q[i]] for i in range(end)]
        if s.kernel == "accept-all":
            return draft[:end], end
        if s.kernel == "gumbel":
            block = []
            for i in range(end):
                noise = [-math.log1p(-u) for u in draws["noise"][i]]
                time = noise[draft[i]]
                arrival = [q[i][b] * time + (0.0 if b == draft[i] else noise[b]) for b in range(size)]
                block.append(min(range(size), key=lambda b: arrival[b] / law[i][b]))
                if block[-1] != draft[i]:
                    return block, i
            return block, end
        accepted, scale = 0, 1.0
        if s.kernel == "rejection":
            while accepted < end:
                y = draft[accepted]
                if draws["trial"][accepted] >= min(1.0, law[accepted][y] / q[accepted][y]):
                    break
                accepted += 1
        else:
            scales = [1.0]
            for i in range(end):
                scales.append(min(1.0, scales[-1] * law[i][draft[i]] / q[i][draft[i]]))
            for i in range(1, end + 1):
                passes = scales[i]
                if i < end:
                    surplus = sum(max(0.0, scales[i] * a - b) for a, b in zip(law[i], q[i], strict=True))
                    slack = surplus + 1.0 - scales[i]
                    passes = surplus / slack if slack > 0 else 1.0
                if draws["trial"][i - 1] < passes:
                    accepted = i
            scale = scales[accepted]
        if accepted == end:
            return draft[:end], end
        residual = [max(0.0, scale * a - b) for a, b in zip(law[accepted], q[accepted], strict=True)]
        return [*draft[:accepted], invert(residual, draws["correction"])], accepted

    def log_weight(self, prefix: Tokens, laws: list[Laws], k: int, block: Tokens, window: int) -> float:
        log_p = [self.target(prefix + block[:i]) for i in range(len(block))]
        own = sum(p[t] for p, t in zip(log_p, block, strict=True))
        if not self.s.balance:
            return own - sum(self.pi(laws[k][i], log_p[i])[t] for i, t in enumerate(block))
        stops, densities = 0.0, 0.0
        for log_q in laws:
            go = self.continues(prefix, log_q, block, window)
            stop = math.prod(go[:-1]) * (1.0 if len(block) == self.end(block, window) else 1.0 - go[-1])
            stops += stop
            densities += stop * math.exp(sum(self.pi(log_q[i], log_p[i])[t] for i, t in enumerate(block)))
        return own + math.log(stops) - math.log(densities)

    def resample(self, weights: list[float], count: int, name: str) -> list[int]:
        """Ancestors by the scheme's definition."""
        m = len(weights)
        if name == "systematic":
            (u,) = self.rand(1, 1)[0]
            return [invert(weights, (j + u) / count) for j in range(count)]
        if name == "ssp":
            draws = self.rand(1, max(m - 1, 1))[0]
            offspring = [math.floor(count * x + 1e-12) for x in weights]
            rest = [max(0.0, count * x - n) for x, n in zip(weights, offspring, strict=True)]
            holder, a = 0, rest[0]
            for j in range(1, m):
                b = rest[j]
                total = a + b
                odds = 1.0 if total == 0 else a / total if total <= 1 else (1 - b) / (2 - total)
                first = draws[j - 1] < odds
                if total <= 1:
                    holder, a = (holder if first else j), total
                else:
                    offspring[holder if first else j] += 1
                    holder, a = (j if first else holder), total - 1
            offspring[holder] += count - sum(offspring)
            return [i for i, n in enumerate(offspring) for _ in range(n)]
        draws = self.rand(1, count)[0]
        if name == "multinomial":
            return [invert(weights, u) for u in draws]
        if name == "stratified":
            return [invert(weights, (j + u) / count) for j, u in enumerate(draws)]
        sure = [math.floor(count * x + 1e-12) for x in weights]
        chosen = [i for i, n in enumerate(sure) for _ in range(n)]
        rest = [max(0.0, count * x - n) for x, n in zip(weights, sure, strict=True)]
        return chosen + [invert(rest, u) for u in draws[len(chosen) :]]

    def run(self, prompt: Tokens, max_new_tokens: int, retained: Tokens | None = None) -> list[Particle]:
        """The final particles; `steps` says how they came about."""
        limit = len(prompt) + max_new_tokens
        particles = [Particle(list(prompt)) for _ in range(self.s.particles)]
        while any(not p.done and p.log_weight > -INFINITY for p in particles):
            particles = self.step(particles, prompt, limit, retained)
        return particles

    def step(self, particles: list[Particle], prompt: Tokens, limit: int, retained: Tokens | None) -> list[Particle]:
        s, n, k = self.s, len(particles), len(self.s.temperatures)
        size = self.ar.vocab_size
        pinned: tuple[int, list[float]] | None = None
        if retained is not None and not particles[0].done:
            draw = self.rand(1, s.window + 1)[0]
            pinned = int(draw[0] * k), draw[1:]
        first = {} if s.kernel == "tree-walk" else {"draft": self.rand(n * k, s.window)}
        match s.kernel:
            case "rejection" | "block-verification":
                first |= {"trial": self.rand(n * k, s.window), "correction": self.rand(n * k)}
            case "gumbel":
                first |= {"noise": self.rand(n * k, s.window, size)}
            case "tree-walk":
                first |= {"walk": self.rand(n * k, s.window)}
        lanes: list[list[Lane]] = []
        for i, particle in enumerate(particles):
            share = particle.log_weight - math.log(k)
            if particle.done:
                lanes.append([Lane(i, [], 0, share, 0, particle.log_phi, True) for _ in range(k)])
                continue
            if not particle.logits:
                particle.logits = self.marginals(particle.tokens, min(limit - len(particle.tokens), s.lookahead))
                particle.refused = False
            window = min(s.window, len(particle.logits), limit - len(particle.tokens))
            shown = particle.logits[: s.window]
            laws = [[normalise([x / t for x in row]) for row in shown] for t in s.temperatures]
            mine = []
            for j in range(k):
                draws = {name: rows[i * k + j] for name, rows in first.items()}
                log_q = laws[j]
                if pinned is not None and (i, j) == (0, pinned[0]):
                    assert retained is not None
                    own = retained[len(particle.tokens) - len(prompt) :][:window]
                    end = self.end(own, window)
                    go = self.continues(particle.tokens, log_q, own[:end], window)
                    going = next((x for x in range(end) if not pinned[1][x] < go[x]), end)
                    block, accepted = own[: min(going + 1, end)], going
                    if s.kernel == "tree-walk" and len(block) == window:
                        accepted = window
                else:
                    draft = [invert([math.exp(x) for x in row], u)
                             for row, u in zip(log_q, draws.get("draft", []), strict=False)]
                    block, accepted = self.verify(particle.tokens, log_q, draft, window, draws)
                weight = share + self.log_weight(particle.tokens, laws, j, block, window)
                tokens = particle.tokens + block
                log_phi = 0.0 if s.potential is None else s.potential(tokens)
                dead = particle.log_phi == -INFINITY
                weight = -INFINITY if dead else weight + log_phi - particle.log_phi
                done = block[-1] == self.eos or len(tokens) == limit
                mine.append(Lane(i, block, accepted, weight, window, log_phi, done))
            lanes.append(mine)
        return self.reduce(particles, lanes, pinned, retained is not None)

    def reduce(
        self, particles: list[Particle], lanes: list[list[Lane]], pinned: tuple[int, list[float]] | None,
        conditional: bool,
    ) -> list[Particle]:
        s, n, k = self.s, len(particles), len(self.s.temperatures)
        own = [log_sum([lane.log_weight for lane in mine]) for mine in lanes]
        alive = max(own) > -INFINITY
        ess = 0.0
        if alive:
            share = [math.exp(x - log_sum(own)) for x in own]
            ess = 1.0 / sum(x * x for x in share)
        finished = all(lane.done for mine in lanes for lane in mine)
        resampled = alive and (not finished or k > 1) and ess < s.trigger * n * (1 - 1e-12)
        if resampled:
            flat = [lane.log_weight for mine in lanes for lane in mine]
            total = log_sum(flat)
            scheme = "multinomial" if conditional else s.resampler
            chosen = self.resample([math.exp(x - total) for x in flat], n, scheme)
            kept = [total - math.log(n)] * n
        else:
            chosen, kept = [i * k for i in range(n)], own
            if k > 1:
                draws = self.rand(n)
                for i, particle in enumerate(particles):
                    if not particle.done:
                        total = own[i]
                        masses = [math.exp(x.log_weight - total) if total > -INFINITY else 1.0 for x in lanes[i]]
                        chosen[i] = i * k + invert(masses, draws[i])
        if conditional:
            chosen[0] = pinned[0] if pinned is not None else 0
        self.steps.append(Step(
            [c // k for c in chosen], [c % k for c in chosen], [[len(x.block) for x in mine] for mine in lanes],
            [[x.accepted for x in mine] for mine in lanes], kept, resampled))
        out = []
        for c, weight in zip(chosen, kept, strict=True):
            lane, parent = lanes[c // k][c % k], particles[c // k]
            whole = lane.accepted == len(lane.block) == lane.window and not lane.done
            left = parent.logits[len(lane.block) :]
            good = whole or (not (lane.done or parent.refused) and self.reusable(left))
            out.append(Particle(
                parent.tokens + lane.block, weight, lane.done, lane.log_phi, left if good else [],
                parent.refused or not whole))
        return out

    def reusable(self, left: Laws) -> bool:
        """Whether the likeliest next four tokens are likely enough, on average over the lanes."""
        sure = [
            math.prod(math.exp(max(normalise([x / t for x in row]))) for row in left[:4]) for t in self.s.temperatures
        ]
        return 0 < self.s.reuse < math.fsum(sure) / len(sure)
