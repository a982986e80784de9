"""Tensor parallelism: two processes of `torchrun` that hold half of every layer each run the program of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smc_bridge.models.pairs import load_pair
from tests.models.checkpoints import MASK_ID, save_checkpoint

ROOT = Path(__file__).parents[2]
#: Loads the pair, scores with both models, runs the program, and writes what this process saw.
PROGRAM = """
import json, os, sys
import torch
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge import smc

def see(pair):
    tokens, length = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]]), torch.tensor([4, 2])
    rows = torch.tensor([0, 1])
    target = pair.ar.session(tokens, length).score(rows, torch.tensor([[5, 9, 4], [4, 4, 7]]))
    drafts = pair.dlm.session(tokens, length).score(rows, torch.full((2, 3), MASKED))
    [result] = smc(pair, particles=2, window=4, lookahead=8).run([[5, 6, 7]], seed=3, max_new_tokens=8)
    return {"target": target.tolist(), "drafts": drafts.tolist(), "evidence": result.log_evidence,
            "drawn": result.sequences}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dlm, ar, out = sys.argv[1:4]
    pair = load_pair(dlm, ar, tp_plan="auto")
    weight = next(w for name, w in pair.ar.model.named_parameters() if name.endswith("layers.0.mlp.up_proj.weight"))
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    found = see(pair) | {"rows": local.shape[0], "all_rows": pair.ar.model.config.intermediate_size}
    with open(f"{out}.{os.environ['RANK']}", "w") as file:
        json.dump(found, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_with_half_of_every_layer_run_the_program_of_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry={"shift": True, "mask_token_id": MASK_ID})
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    program, out = tmp_path / "program.py", tmp_path / "seen.json"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(tmp_path / "dlm"), str(tmp_path / "ar"), str(out)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(2))
    assert first["rows"] * 2 == first["all_rows"], "the layers were not split"
    assert first == second, "the two processes drew different tokens"

    namespace: dict[str, object] = {"__name__": "program"}
    exec(PROGRAM, namespace)
    alone = namespace["see"](load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu"))  # type: ignore[operator]
    for model in ("target", "drafts"):
        torch.testing.assert_close(torch.tensor(first[model]), torch.tensor(alone[model]), rtol=1e-4, atol=1e-4)
    assert first["drawn"] == alone["drawn"]
    assert first["evidence"] == pytest.approx(alone["evidence"], abs=1e-4)
