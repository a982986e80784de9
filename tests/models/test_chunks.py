"""A forward in row chunks gives the scores of the whole batch, within the cap and within the memory there is."""

import pytest
import torch
from torch import Tensor

from smc_bridge.models.huggingface.cache import KeyValues
from smc_bridge.models.huggingface.chunks import RowChunks, is_out_of_memory

#: What the CPU allocator raises, shortened.
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(CPU_MESSAGE),
    RuntimeError("not enough memory: you tried to allocate 8 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 MB)"),
    MemoryError(),
]


class Forward:
    """Squares its rows; more than `room` rows at once raise `error`."""

    def __init__(self, data: Tensor, room: int, error: BaseException | None = None) -> None:
        self.data, self.room, self.error = data, room, error or RuntimeError(CPU_MESSAGE)
        self.tried: list[int] = []

    def __call__(self, rows: slice) -> Tensor:
        part = self.data[rows]
        self.tried.append(len(part))
        if len(part) > self.room:
            raise self.error
        return part**2


@pytest.fixture
def data(device: torch.device) -> Tensor:
    """13 rows, 3 positions, 5 letters."""
    return torch.randn(13, 3, 5, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("cap", [None, 1, 59, 60, 61, 300, 10**9])
def test_chunks_join_to_the_scores_of_the_whole_batch_and_keep_to_the_cap(data, cap):
    forward = Forward(data, room=13)
    assert torch.equal(RowChunks(cap)(forward, 13, tokens=8, logits=15), data**2)
    row = 4 * 15
    assert all(rows == 1 or rows * row <= (cap or rows * row) for rows in forward.tried), forward.tried
    assert len(forward.tried) == (1 if cap is None else -(-13 // min(13, max(1, cap // row))))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: f"{type(e).__name__}-{str(e)[:12]}")
@pytest.mark.parametrize("room", [1, 3, 6])
def test_a_chunk_that_does_not_fit_is_halved_until_it_does(data, error, room):
    assert is_out_of_memory(error)
    forward = Forward(data, room, error)
    assert torch.equal(RowChunks()(forward, 13, tokens=8, logits=15), data**2)
    tried = {6: [13, 6, 6, 1], 3: [13, 6, 3, 3, 3, 3, 1], 1: [13, 6, 3] + [1] * 13}
    assert forward.tried == tried[room]


def test_the_smaller_chunk_is_remembered_in_tokens(data):
    chunks = RowChunks()
    chunks(Forward(data, room=6), 13, tokens=8, logits=15)
    again, longer, shorter = (Forward(data, room=13) for _ in range(3))
    chunks(again, 13, tokens=8, logits=15)
    chunks(longer, 13, tokens=17, logits=15)
    chunks(shorter, 13, tokens=3, logits=15)
    assert (again.tried, longer.tried, shorter.tried) == ([6, 6, 1], [2] * 6 + [1], [13])


def test_one_row_that_does_not_fit_is_a_clear_error(data):
    with pytest.raises(MemoryError, match=r"one row: 700 tokens, 6000 bytes of logits; shorten the prompt"):
        RowChunks()(Forward(data, room=0), 13, tokens=700, logits=1500)


def test_any_other_error_of_a_forward_is_passed_on(data):
    forward = Forward(data, room=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        RowChunks()(forward, 13, tokens=8, logits=15)
    assert forward.tried == [13]


def test_scores_that_do_not_fit_together_are_a_clear_error(data):
    class Full(Tensor):
        """The part of a forward; there is no room for more."""

        def new_empty(self, *shape: int) -> Tensor:
            raise RuntimeError(CPU_MESSAGE)

    with pytest.raises(MemoryError, match=r"scores of 13 rows, 780 bytes: use fewer prompts"):
        RowChunks(60)(lambda rows: data[rows].as_subclass(Full), 13, tokens=8, logits=15)


def test_a_cap_without_bytes_is_refused():
    with pytest.raises(ValueError, match="max_logit_bytes = 0: give at least 1 byte, or None"):
        RowChunks(0)


def test_a_cache_that_does_not_fit_is_a_clear_error_and_stays_as_it_was(monkeypatch):
    def full(*_: object) -> Tensor:
        raise RuntimeError(CPU_MESSAGE)

    cache = KeyValues(3)
    cache.reserve(4)
    cache.update(torch.ones(3, 1, 4, 2), torch.ones(3, 1, 4, 2), 0)
    cache.settle()
    held = cache.bytes
    monkeypatch.setattr(cache, "_grown", full)
    with pytest.raises(MemoryError, match=r"memory for keys and values of 3 rows of 9 tokens: use fewer"):
        cache.reserve(9)
    assert cache.bytes == held
    monkeypatch.undo()
    cache.reserve(5)
    assert cache.bytes == 2 * held
