"""Programs on a device that is not the host: nothing is mixed up, draws are the CPU's, and a step waits a few times."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from torch.utils import backend_registration

from benchmarks.harness import HERE

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch lets no backend be written in Python", allow_module_level=True)

#: Waits of the host per step, starts and results of a run included, at most.
PROGRAMS = {
    "smc-4": 4, "paper+prefix": 4, "smc-4x4": 4, "tree-32+prefix": 6, "released": 8, "speculative": 4,
    "smc-4,intermediate=clamp": 4, "smc-4,reuse=0.3": 4,
}
OTHERS = ("ar", "dlm-4")


@pytest.fixture(scope="module")
def found() -> Any:
    command = [sys.executable, "-m", "tests.simulated", *PROGRAMS, *OTHERS]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*PROGRAMS, *OTHERS])
def test_draws_on_a_device_are_those_of_the_cpu(name: str, found: Any) -> None:
    own = found["methods"][name]
    assert own["equal"], own


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_host_waits_a_few_times_in_a_step(name: str, found: Any) -> None:
    own = found["methods"][name]
    assert 0 < own["waits"] <= PROGRAMS[name] * own["steps"], own


def test_tensors_of_host_and_device_do_not_mix(found: Any) -> None:
    """What an accelerator refuses is refused, else the tests above would show nothing."""
    assert found["refused"] == 3, "three mixtures of host and device"
