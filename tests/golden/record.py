"""`python -m tests.golden.record`: write the results of all cases anew.

Only a change of draws that is meant, and documented, may do this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smc_bridge import Result
from tests.golden.cases import cases

FILE = Path(__file__).with_name("results.json")


def plain(result: Result) -> dict[str, Any]:
    """What is compared of a result: tokens, log weights (nats), log evidence, forwards, whether it is proper."""
    done = result.forwards
    return {
        "tokens": result.sequences,
        "log_weights": [str(weight) for weight in result.log_weights],
        "log_evidence": str(result.log_evidence),
        "forwards": [done.dlm_forwards, done.dlm_rows, done.ar_forwards, done.ar_rows, done.ar_tokens],
        "proper": result.proper,
    }


if __name__ == "__main__":
    found = {name: [plain(result) for result in run()] for name, run in cases().items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    FILE.write_text("{\n" + lines + "\n}\n")
    print(f"{len(found)} cases written")
