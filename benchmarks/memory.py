"""Peak memory of a piece of work, from the allocator's own record.

On a CPU the profiler writes down every allocation and every release of a tensor, also those of buffers inside of an
operation. Counted is what is held beyond what was in use at the start of the work. On a CUDA device it is the
allocator's own peak likewise.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_MARK = "work begins"


def peak_bytes(work: Callable[[T], Any], *, prepare: Callable[[], T]) -> int:
    """Greatest number of bytes, over those in use at the start of `work`, that tensors held at one time during it.

    Args:
        work: gets what `prepare` returned, which stays alive until the end.
        prepare: makes what is not to be counted.
    """
    gc.collect()
    if torch.cuda.is_available():
        begun = prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(begun)
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    return _cpu_peak(work, prepare)


def _cpu_peak(work: Callable[[T], Any], prepare: Callable[[], T]) -> int:
    # Its tracing library tells of every start and stop on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.autograd.profiler import profile, record_function

    with profile(use_cpu=True, profile_memory=True) as recorded:
        begun = prepare()
        with record_function(_MARK):
            pass
        kept = work(begun)  # what it returns counts too
    del kept, begun
    found = recorded.kineto_results
    assert found is not None
    start = next(e.start_ns() for e in found.events() if e.name() == _MARK)
    changes = sorted((e.start_ns(), e.nbytes()) for e in found.events() if e.name() == "[memory]")
    held = peak = 0
    for moment, change in changes:
        if moment >= start:
            held += change
            peak = max(peak, held)
    return int(peak)
