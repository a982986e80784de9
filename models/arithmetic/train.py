"""Train the embedded pair from nothing: `python -m smc_bridge.models.arithmetic.train`, under an hour on two cores.

Generates the problems, learns the tokenizer, trains the autoregressive network on one dialect, then the diffusion
network from its weights on the other, and writes tokenizer, weights (float16) and metrics into `--out`. Hidden matrices
are optimised by Muon (Jordan et al. 2024), the rest by AdamW. An interrupted run continues from its last checkpoint.
"""

import os

# Two training threads that spin while waiting slow each other down; the policy is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from smc_bridge.models.arithmetic.architecture import bidirectional_mask, build
from smc_bridge.models.arithmetic.batches import Batch, Schedule, encode
from smc_bridge.models.arithmetic.evaluate import measure
from smc_bridge.models.arithmetic.muon import Muon
from smc_bridge.models.arithmetic.problems import splits
from smc_bridge.models.arithmetic.recipe import Recipe, Stage, fingerprint, fingerprint_ar
from smc_bridge.models.arithmetic.tokenizer import load_tokenizer, train_tokenizer
from smc_bridge.models.arithmetic.wording import DRAFTED

THREADS = 2
CHECKPOINT_EVERY = 200
LOG_EVERY = 50


def main(arguments: list[str] | None = None) -> None:
    """Train the pair and write it into `--out`."""
    options = _parse(arguments)
    torch.set_num_threads(THREADS)
    console = Console()
    recipe = Recipe(seed=options.seed)
    recipe = dataclasses.replace(
        recipe,
        ar=dataclasses.replace(recipe.ar, steps=options.steps_ar),
        dlm=dataclasses.replace(recipe.dlm, steps=options.steps_dlm),
    )
    out, work = Path(options.out), Path(options.out) / ".checkpoints"
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    console.print("generating problems ...")
    train = splits(recipe.train_count).train
    texts = (text for p in train[: recipe.tokenizer_count] for text in (p.prompt + "\n", p.response))
    _write(out / "tokenizer.json", train_tokenizer(texts).to_str(pretty=True) + "\n")
    tokenizer = load_tokenizer(out / "tokenizer.json")

    torch.manual_seed(recipe.seed)
    ar = prepare(build("ar"))
    plain = Schedule(encode(tokenizer, train), tokenizer, recipe)
    tag = fingerprint_ar(recipe, out / "tokenizer.json")
    seconds_ar = _train("ar", ar, recipe.ar, plain.ar_batch, plain, work, tag, console)
    dlm = prepare(build("dlm"))
    dlm.load_state_dict(ar.state_dict())
    train = splits(recipe.train_count, DRAFTED).train
    drafted = Schedule(encode(tokenizer, train), tokenizer, recipe, DRAFTED)
    tag = fingerprint(recipe, out / "tokenizer.json")
    seconds_dlm = _train("dlm", dlm, recipe.dlm, drafted.dlm_batch, drafted, work, tag, console)

    for kind, model in (("ar", ar), ("dlm", dlm)):
        _save(model, out / "weights" / kind)
    console.print("measuring on the held-out problems ...")
    metrics = {
        "recipe": tag,
        "training": {"ar_seconds": round(seconds_ar), "dlm_seconds": round(seconds_dlm), "threads": THREADS},
        **measure(out / "weights", tokenizer),
    }
    _write(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    console.print(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {out}")


def optimisers(model: Qwen2ForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for embeddings, head, norms and biases."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    return [
        Muon(matrices, lr=stage.matrix_rate, weight_decay=stage.matrix_decay),
        torch.optim.AdamW(others, lr=stage.other_rate, betas=(0.9, 0.95), weight_decay=stage.other_decay),
    ]


def rate(step: int, stage: Stage) -> float:
    """Return the learning rate of a step as a share of its peak: linear warm-up, cosine to `final_rate`."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def prepare(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """Swap in kernels that are faster to train with on a CPU; same function, same parameter names.

    Plain attention beats the tiled one at a hundred tokens, and the fused norm the one written out in small operations.
    """
    model.set_attn_implementation("eager")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2RMSNorm):
                fused = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                fused.weight = child.weight
                setattr(module, name, fused)
    return model.train()


def loss_of(kind: str, model: Qwen2ForCausalLM, batch: Batch) -> Tensor:
    """Return the weighted mean cross-entropy of a batch of `[R, S]` tokens, in nats per token."""
    targets, weights = batch.targets, batch.weights
    if kind == "ar":
        # Padding is on the right, where a causal network cannot see it: no mask is needed.
        hidden = model.model(input_ids=batch.inputs).last_hidden_state
    else:
        mask = bidirectional_mask(batch.lengths, batch.inputs.shape[1])
        hidden = model.model(input_ids=batch.inputs, attention_mask=mask).last_hidden_state[:, :-1]
        targets, weights = targets[:, 1:], weights[:, 1:]
    use = weights > 0
    logits = model.lm_head(hidden[use]).float()
    nats = functional.cross_entropy(logits, targets[use], reduction="none")
    return (nats * weights[use]).sum() / weights[use].sum()


def _train(
    kind: str,
    model: Qwen2ForCausalLM,
    stage: Stage,
    make_batch: Callable[[int, list[int], float], Batch],
    schedule: Schedule,
    work: Path,
    tag: str,
    console: Console,
) -> float:
    """Train `model` in place and return the seconds spent; resumes if `work` holds a checkpoint of this very recipe."""
    optims = optimisers(model, stage)
    checkpoint, first, spent = work / f"{kind}.pt", 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] == tag:
            model.load_state_dict(state["model"])
            for optim, saved in zip(optims, state["optimisers"], strict=True):
                optim.load_state_dict(saved)
            first, spent = state["step"], state["seconds"]
            console.print(f"{kind}: continuing from step {first}")
    order = schedule.order(kind, stage.steps, stage.batch)
    started = time.monotonic() - spent
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(kind, total=stage.steps, completed=first)
        for step in range(first, stage.steps):
            for optim, peak in zip(optims, (stage.matrix_rate, stage.other_rate), strict=True):
                for group in optim.param_groups:
                    group["lr"] = peak * rate(step, stage)
                optim.zero_grad(set_to_none=True)
            batch = make_batch(step, order[step], step / stage.steps)
            loss = loss_of(kind, model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip)
            for optim in optims:
                optim.step()
            done, seconds = step + 1, time.monotonic() - started
            bar.update(task, completed=done, description=f"{kind} loss {loss.item():.3f}")
            if done % LOG_EVERY == 0 and not console.is_terminal:
                print(f"{kind} step {done}/{stage.steps} loss {loss.item():.4f} seconds {seconds:.0f}", flush=True)
            if done % CHECKPOINT_EVERY == 0 or done == stage.steps:
                _checkpoint(checkpoint, model, optims, done, seconds, tag)
    model.eval()
    return time.monotonic() - started


def _checkpoint(
    path: Path, model: Qwen2ForCausalLM, optims: list[torch.optim.Optimizer], step: int, seconds: float, tag: str
) -> None:
    state = {"recipe": tag, "model": model.state_dict(), "optimisers": [o.state_dict() for o in optims]}
    torch.save({**state, "step": step, "seconds": seconds}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def _save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write a float16 checkpoint folder; each file appears whole or not at all."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.half().save_pretrained(fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (fresh / name).chmod(0o644)  # the writer of safetensors makes files only their owner can read
        os.replace(fresh / name, folder / name)
    shutil.rmtree(fresh)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    recipe = Recipe()
    program = "python -m smc_bridge.models.arithmetic.train"
    parser = argparse.ArgumentParser(program, description="Train the embedded pair.")
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder to write to (default: the package)")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of initialisation and batches")
    parser.add_argument("--steps-ar", type=int, default=recipe.ar.steps, help="autoregressive steps")
    parser.add_argument("--steps-dlm", type=int, default=recipe.dlm.steps, help="diffusion steps")
    options = parser.parse_args(arguments)
    for name in ("steps_ar", "steps_dlm"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(options, name)}: must be at least 1")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
