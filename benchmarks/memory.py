"""Peak memory of a piece of work, from the allocator's own record; of a step of a program; and the largest logits made.

On a CPU the profiler writes down every allocation and every release of a tensor, also those of buffers inside of an
operation. Counted is what is held beyond what was in use at the start of the work. On a CUDA device it is the
allocator's own peak likewise.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class StepMemory(NamedTuple):
    """Memory of one step of a program.

    Attributes:
        peak: greatest number of bytes over those in use before the step, weights and caches among them.
        scores: bytes of what the models' sessions return in the step.
        extra: greatest number of bytes over those in use before the step and the scores: of the step as a whole, or of
            one call of a session.
    """

    peak: int
    scores: int
    extra: int


def step_memory(sampler: Any, start: Callable[[], Any]) -> StepMemory:
    """Memory of the first step of a program that proposes from marginals, which is made twice.

    Args:
        sampler: a `Sampler`.
        start: its state before the step, made anew at each call.
    """
    sizes: list[tuple[int, int]] = []  # of every call: its peak, and its scores

    def measured(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            kept: list[Tensor] = []
            peak = peak_bytes(lambda _: kept.append(score(*arguments)), prepare=lambda: None)
            sizes.append((peak, kept[0].numel() * kept[0].element_size()))
            return kept[0]

        return call

    with torch.inference_mode(), ExitStack() as patched:
        state = start()
        for session in (state.drafts.session, state.ar):
            for name in ("score", "score_tree"):
                if hasattr(session, name):
                    patched.enter_context(patch.object(session, name, measured(getattr(session, name))))
        sampler.step(state)
    with torch.inference_mode():
        peak = peak_bytes(sampler.step, prepare=start)
    scores = sum(size for _, size in sizes)
    return StepMemory(peak, scores, max(peak - scores, *(each - size for each, size in sizes)))


class LargestLogits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches, as a context, every product of matrices for outputs as wide as a head's.

    Args:
        columns: of the heads' outputs.
    Attributes:
        bytes: of the largest one.
        positions: rows of it.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns, self.bytes, self.positions = columns, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        product = any(name in func.name() for name in ("mm", "matmul", "linear"))
        if product and out.dim() and out.shape[-1] == self.columns:
            self.bytes = max(self.bytes, out.numel() * out.element_size())
            self.positions = max(self.positions, out.numel() // self.columns)
        return out
