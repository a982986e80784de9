"""The loop that trains a learned part: AdamW, a linear warm-up, a cosine down, clipped gradients; seeded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from smc_bridge.models.protocols import ModelPair

#: Lines of a log without a terminal: one for so many steps.
LOG_EVERY = 100


class Trained(NamedTuple):
    """What a training gives.

    Attributes:
        module: the network.
        loss: mean of the last tenth of the steps, in the units of the loss.
        facts: of the training: seed, steps, losses, what it was trained on.
    """

    module: nn.Module
    loss: float
    facts: Mapping[str, Any]


M = TypeVar("M", bound=nn.Module)


def initialised(make: Callable[[], M], *, seed: int) -> M:
    """A network as a seed makes it; the global generator of random numbers stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def ban_of(pair: ModelPair) -> Tensor:
    """What is added to a pair's logits: 0, and -inf at tokens that are no text, `[A]`."""
    dlm: Any = pair.dlm
    return torch.zeros(dlm.vocab_size).index_fill(0, torch.tensor(dlm.banned_ids), -torch.inf)


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    name: str,
    warmup: int = 50,
    decay: float = 0.01,
    clip: float = 1.0,
    final: float = 0.02,
) -> float:
    """Train in place; the module is left in evaluation mode.

    Args:
        module: its parameters that need a gradient are trained.
        loss: of a step, a number with a gradient; a function of the step alone, for a training that is repeated to
            give the same weights.
        steps: of the optimiser.
        rate: greatest learning rate.
        name: shown with the progress.
        warmup: steps until the greatest rate.
        decay: of the weights.
        clip: greatest norm of the gradient.
        final: rate of the last step, as a share.
    Returns:
        mean loss of the last tenth of the steps.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=decay)
    losses, console, started = list[float](), Console(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    module.train()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=steps)
        for step in range(steps):
            share = (step + 1) / warmup if step < warmup else (step - warmup) / max(1, steps - warmup)
            cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
            for group in optimiser.param_groups:
                group["lr"] = rate * (share if step < warmup else cosine)
            optimiser.zero_grad(set_to_none=True)
            value = loss(step)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            losses.append(float(value.detach()))
            bar.update(task, advance=1, description=f"{name} loss {losses[-1]:.4f}")
            if not console.is_terminal and (step + 1) % LOG_EVERY == 0:
                recent = sum(losses[-LOG_EVERY:]) / LOG_EVERY
                spent = time.monotonic() - started
                print(f"{name} step {step + 1}/{steps} loss {recent:.4f} seconds {spent:.0f}", flush=True)
    module.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
