"""Threads: one for each core that this process may use and that nobody else keeps busy.

torch begins one thread a core of the machine. Where a container may use fewer, or other programs run, threads wait for
each other and everything is slower than with fewer. `OMP_NUM_THREADS` overrides; figures do not depend on threads but
for the last bits of sums.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
#: Seconds over which cores are watched.
WATCHED = 0.25
#: Counters of each core on Linux, and the share of cores that a container may use.
COUNTERS, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


def use_free_cores() -> int:
    """Give torch a thread for each free core, unless `OMP_NUM_THREADS` is set; returns the number of threads."""
    import torch

    if not os.environ.get(VARIABLE):
        torch.set_num_threads(free_cores())
    return torch.get_num_threads()


def free_cores() -> int:
    """Cores that this process may use and that are idle just now, at least 1."""
    before = _counters()
    if before:
        time.sleep(WATCHED)
    after = _counters()
    idle = 0.0
    for core in _allowed():
        ticks, rest = (b - a for a, b in zip(before.get(core, (0, 0)), after.get(core, (0, 0)), strict=True))
        idle += rest / ticks if ticks else 1.0
    return max(1, round(min(idle, _quota())))


def _allowed() -> set[int]:
    """Cores that this process may use; all of them where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _counters() -> dict[int, tuple[int, int]]:
    """Ticks of each core, all and idle ones; empty where the system does not say."""
    try:
        lines = [line.split() for line in COUNTERS.read_text().splitlines()]
    except OSError:
        return {}
    # user nice system idle iowait irq softirq steal; time of guests is in user already
    return {
        int(line[0][3:]): (sum(map(int, line[1:9])), int(line[4]) + int(line[5]))
        for line in lines if line and line[0].startswith("cpu") and line[0] != "cpu"
    }


def _quota() -> float:
    """Cores that the container's quota is worth; infinite without one."""
    try:
        given, period = QUOTA.read_text().split()
        return float("inf") if given == "max" else int(given) / int(period)
    except (OSError, ValueError):
        return float("inf")
