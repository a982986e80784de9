"""Axis labels of the columns of studies and comparisons: what is drawn, with its unit."""

from __future__ import annotations

LABELS = {
    # what names a sampler and its source
    "particles": "particles N", "lanes": "lanes K", "w": "exponent w on the diffusion model",
    "window": "window V (tokens)", "temperature": "temperature of the target", "alphabet": "alphabet A (tokens)",
    "length": "length S (tokens)", "model_seed": "seed of the tabular models",
    "noise": "noise of the diffusion model (nats)", "runs": "runs", "n": "problems",
    # distances from the target
    "tv": "total variation from the target", "run_tv": "total variation of one run's particles from the target",
    "bias": "bias of the likeliest sequence's probability", "log_evidence": "log evidence (nats)",
    "kl_bound": "KL bound (nats)", "kl_per_token": "KL bound (nats per token)", "nats": "KL bound (nats)",
    "nats_per_token": "KL bound (nats per token)", "ess": "effective sample size (particles)",
    "accuracy": "accuracy (share)",
    # tokens, model calls and time
    "tokens": "length of a sequence (tokens)", "tokens_per_block": "tokens per block",
    "acceptance": "accepted share of the drafts", "tokens_per_dlm_forward": "tokens per DLM forward",
    "tokens_per_second": "tokens per second",
    "dlm_forwards": "DLM forwards per run", "ar_forwards": "AR forwards per run",
    "ar_forwards_per_token": "AR forwards per token", "ar_positions_per_token": "AR positions per token",
    "dlm_rows": "DLM rows per run", "ar_rows": "AR rows per run", "ar_tokens": "tokens scored by the AR model per run",
    "seconds": "seconds per run", "cost": "cost of a run (c_D DLM + c_A AR work)",
}


def label(column: str) -> str:
    """The label of a column; of one that is not ours, its name in words."""
    return LABELS.get(column, column.replace("_", " "))
