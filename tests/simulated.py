"""A device that is not there: its tensors say that they lie on it, and hold their numbers on the host.

Within `with simulated() as waits:` a program runs on `DEVICE` on any machine. What an accelerator would refuse is
refused (a tensor of the host among those of the device, numpy on it), and what its host waits for is counted in
`waits`, by kind. To import this module registers a backend with torch for the whole process: keep it to one of its own,

    python -m tests.simulated METHOD METHOD ..

which decodes two problems of the embedded pair with each method, one after the other in one seat, on the CPU and on the
device, and prints in JSON for each whether the draws are equal, its steps and its waits, and what is refused at all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("privateuseone", 0)
#: Operations whose further tensors may lie on the host: numbers that are uploaded, and indices, which are too.
UPLOADS = frozenset({"copy_", "to", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"})
#: Operations whose result has a shape, or a value, that the host has to know.
WAITS = frozenset({"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "bincount"})
MASKS = (torch.bool, torch.uint8)


class Simulated(Tensor):
    """A tensor on the device.

    Attributes:
        held: the same numbers, on the host.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Simulated:
        with torch.inference_mode(False):  # wrappers of inference tensors have no views
            made = torch.Tensor._make_wrapper_subclass(
                cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
                device=DEVICE,
            )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: outside of `with simulated()`")

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.held!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor of the device has no numpy form: use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()


backend_registration._setup_privateuseone_for_python_backend()


class _Device(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        leaves: list[Any] = []
        _mapped(leaves.append, (args, kwargs))
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        inside = [each for each in tensors if isinstance(each, Simulated)]
        asked = next((each.type for each in leaves if isinstance(each, torch.device)), None)
        if asked != DEVICE.type and not inside:
            return func(*args, **kwargs)
        if name not in UPLOADS and inside and any(not isinstance(each, Simulated) and each.dim() for each in tensors):
            raise RuntimeError(f"{func}: tensors of the device and of the host among its arguments")
        if name == "_fused_sdp_choice":
            return 0  # the form in single operations, which every device has
        down = asked == "cpu" or (name == "copy_" and not isinstance(args[0], Simulated))
        masks = name == "index" and any(each is not None and each.dtype in MASKS for each in args[1])
        if down or masks or name in WAITS:
            self.waits["copy to the host" if down else name] += 1
        of = {id(each.held): each for each in inside}
        given, options = _mapped(_held, (args, kwargs))
        out = func(*given, **options)
        if name in ("to", "_to_copy") and any(out is each.held for each in inside) and asked is not None and down:
            return out.clone()
        if down:
            return out
        return _mapped(lambda each: _lifted(each, of), out)


def _mapped(change: Callable[[Any], Any], each: Any) -> Any:
    """The same nest of arguments with every leaf changed: torch's own pytrees take longer than the operations."""
    if isinstance(each, tuple | list):
        return (list if isinstance(each, list) else tuple)([_mapped(change, x) for x in each])
    if isinstance(each, dict):
        return {name: _mapped(change, x) for name, x in each.items()}
    return change(each)


def _held(each: Any) -> Any:
    """An argument as the host has it."""
    if isinstance(each, Simulated):
        return each.held
    return torch.device("cpu") if isinstance(each, torch.device) else each


def _lifted(each: Any, of: dict[int, Simulated]) -> Any:
    """A result as the device has it; `of`: tensors of the device by the id of what they hold."""
    if not isinstance(each, Tensor):
        return each
    return of[id(each)] if id(each) in of else Simulated(each)


@contextmanager
def simulated() -> Iterator[Counter[str]]:
    """Let "cuda" be a device; what the host waits for is counted."""
    with ExitStack() as entered:
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(.., device=..)` then tells the mode of its upload
        entered.callback(torch._C._set_only_lift_cpu_tensors, before)
        mode = _Device()
        entered.enter_context(mode)
        yield mode.waits


def refused() -> int:
    """How many of three mixtures of host and device are refused, as an accelerator refuses them."""
    found = 0
    with simulated() as waits:
        x = torch.ones(3, device=DEVICE)
        for wrong in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(1)]), lambda: x.numpy()):
            with suppress(RuntimeError, TypeError):
                wrong()
                continue
            found += 1
        assert (x + 1).tolist() == [2, 2, 2]
        assert int(x.sum()) == 3
        assert bool(x[0])
        assert sum(waits.values()) == 3, waits
    return found


def main(names: list[str]) -> None:
    from benchmarks.problems import cached, decoder
    from smc_bridge import load_pair
    from smc_bridge.decode import decode
    from smc_bridge.tasks import TASKS

    task, found = TASKS["arithmetic"], {}
    here = load_pair(task.pair, device="cpu")
    with simulated():
        there = load_pair(task.pair, device=DEVICE)
    prompts = [here.encode(item.prompt).tolist() for item in task.problems(2)]

    def run(pair: Any, name: str, steps: list[int], count: int = 2) -> Any:
        made = decoder(name, cached(name, pair), task, temperature=0.5)
        return decode(made, prompts[:count], seed=1, max_new_tokens=8, batch=1, progress=steps.append)

    for name in names:
        expected = run(here, name, [])
        steps: list[int] = []
        with simulated() as waits:
            run(there, name, [], 1)  # what is waited for only once
            waits.clear()
            runs = run(there, name, steps)
        apart = [
            abs(w - v) for a, b in zip(runs, expected, strict=True)
            for w, v in zip(a.log_weights, b.log_weights, strict=True) if w != v
        ]  # attention has another form on another device
        equal = [a.sequences for a in runs] == [b.sequences for b in expected] and max(apart, default=0.0) < 1e-3
        found[name] = {"equal": equal, "steps": len(steps), "waits": sum(waits.values())}
    print(json.dumps({"methods": found, "refused": refused()}))


if __name__ == "__main__":
    main(sys.argv[1:])
