"""Whether a masked diffusion model sees what it is told to see, asked in two tiny forwards before anything is decoded.

Foreign code fails in ways that no error tells of: it takes an additive mask for one of booleans (and sees padding
alone), counts positions by itself where they are given, or stays causal under a mask that allows everything. What is
drawn then is a law all the same, only not the model's. A session of ragged rows is scored as decoding scores it, gaps
and padding among its columns:

- a short row beside a longer one is what it is alone;
- a token that is changed late in a row changes an output before it. Of a block-causal model (`block_size`) one in its
  own block, and none of an earlier block.

Only where these fail further forwards find out why, so that the message can say it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.huggingface.adapter import additive_mask
from smc_bridge.models.huggingface.causality import greatest, neighbours, not_run, ordinary_ids, round_off, unit
from smc_bridge.models.huggingface.initialised import unsound
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.verdicts import Verdict, settle, subject_of

#: Tokens of the short prefix, what a long one has more, and place of the canvas that is changed.
SHORT, MORE, CHANGED = 3, 8, 2
#: Blocks up to this are looked beyond; of a longer one the probe stays inside.
LONGEST_BLOCK = 64
#: Different ids that rows are made of, as far as there are so many.
VARIETY = 6
#: A change of an output is none below this share of the change at the place itself: sums in another order.
NO_CHANGE = 1e-6
#: Difference of logits, over the largest one, that forwards of other shapes may make; faults make far more.
SHAPES = 1e-3
#: How far above what neighbours alone, or the last place of a number, change a difference is told from it.
ABOVE_NOISE = 4

#: Names of verdicts.
WEIGHTS, PADDING = "parameters and buffers are numbers", "padding and gaps change no output"

_BACKBONE_REMEDY = "load it natively, without trust_remote_code, or with attn_implementation = 'eager'"
_UNPADDED_REMEDY = "wrap it in smc_bridge.models.huggingface.unpadded.Unpadded, which pads no row"


def check_masked(adapter: Any) -> None:
    """Refuse a diffusion model that does not see what it is told to see (`probe_masked`), in one line.

    Args:
        adapter: a `HuggingFaceMaskedLM`, ready to score.
    Raises:
        ValueError: a fault. MemoryError: a few rows of a few tokens do not fit.
    """
    if adapter.device.type == "meta":  # a network without numbers, whose arguments are looked at
        return
    model = adapter.model
    named = model.model if isinstance(model, Unpadded) else model  # as its user knows it
    settle(subject_of("dlm_model", named), probe_masked(adapter))


def probe_masked(adapter: Any) -> Iterator[Verdict]:
    """What is found of a diffusion model, in two tiny forwards unless there is a fault.

    A model with positions for four tokens or fewer, or a single id, is not run.

    Raises:
        MemoryError: a few rows of a few tokens do not fit.
    """
    weights = Verdict(WEIGHTS, unsound(adapter.model))
    yield weights
    if weights.fault is not None:  # what else fails would only follow from it
        return
    plan = _plan(adapter)
    ids = [i for i in ordinary_ids(adapter, VARIETY) if i != adapter.mask_id]
    if plan is None or len(ids) < 2:
        return
    rows = _Rows(adapter, plan, ids)
    try:
        _, short, changed = rows.score((plan.long, 0), (plan.short, 0), (plan.short, 1))
        [alone] = rows.score((plan.short, 0))
    except Exception as error:  # anything: the model's own code runs in here
        fault = not_run(error, adapter, "a masked diffusion model of text that this version of transformers runs")
        mask = _mask_fault(rows)
        yield Verdict("runs", fault) if mask is None else Verdict(PADDING, mask)
        return
    yield Verdict("runs")
    scale = _scale(alone)
    room, apart = max(round_off(adapter), SHAPES) * scale, greatest(short - alone)
    if apart > room:
        noise = rows.noise(alone)
        yield neighbours(noise, room)
        yield Verdict(PADDING, _row_fault(rows, apart) if apart > max(room, ABOVE_NOISE * noise) else None)
    else:
        yield Verdict(PADDING)
    yield from _sight(rows, (short - changed).nan_to_num(nan=0.0).abs().amax(-1))


class _Plan(NamedTuple):
    """Sizes of the probe."""

    short: int
    """Tokens of the short prefix."""
    long: int
    """Tokens of the long one."""
    changed: int
    """Place of the canvas whose token is changed; one more follows it."""
    block: int | None
    """Tokens of a block, if places of another block are looked at."""

    @property
    def begin(self) -> int:
        """Place of the sequence where the block of the changed token begins; 0 if all see each other."""
        place = self.short + self.changed
        return 0 if self.block is None else place - place % self.block


def _plan(adapter: Any) -> _Plan | None:
    """Sizes that the model has positions for, or None."""
    limit, block = adapter.max_length, getattr(adapter, "block_size", None)
    short, changed = SHORT, CHANGED
    if block is not None and block > LONGEST_BLOCK:
        block = None  # the probe is within the first one
    if block is not None:  # the second place of the first block after the one that the canvas begins in
        changed = (short // block + 1) * block + min(1, block - 1) - short
    if limit is not None and short + changed + 2 > limit:
        if block is not None or limit < 4:
            return None
        short, changed = 1, min(changed, limit - 3)
    long = short + MORE if limit is None else min(short + MORE, limit - changed - 2)
    return _Plan(short, long, changed, block)


class _Rows:
    """Rows of the probe: prefixes of some ids, and a canvas with one token in it."""

    def __init__(self, adapter: Any, plan: _Plan, ids: Sequence[int]) -> None:
        self.adapter, self.plan, self.ids = adapter, plan, ids

    def score(self, *rows: tuple[int, int], first: int = 0) -> Tensor:
        """Logits `[B, M, A]` of rows that are each given by the length of the prefix and which of two tokens the canvas
        holds.

        Args:
            first: where in the ids the prefix of every row but the first begins.
        """
        adapter, plan, ids = self.adapter, self.plan, self.ids
        longest = max(length for length, _ in rows)
        start = [0, *[first] * (len(rows) - 1)]
        tokens = torch.tensor([[ids[(s + i) % len(ids)] for i in range(longest)] for s in start])
        canvas = torch.full((len(rows), plan.changed + 2), MASKED)
        canvas[:, plan.changed] = torch.tensor([ids[which] for _, which in rows])
        length = torch.tensor([length for length, _ in rows])
        tokens, canvas, length = (x.to(adapter.device) for x in (tokens, canvas, length))
        found: Tensor = adapter.session(tokens, length).score(torch.arange(len(rows), device=adapter.device), canvas)
        return found

    def noise(self, alone: Tensor) -> float:
        """By how much the outputs of the short row change with rows of its own length beside it."""
        short = self.plan.short
        return greatest(self.score((short, 0), (short, 1), (short, 0), first=1)[0] - alone)


def _row_fault(rows: _Rows, apart: float) -> str:
    """Why a short row beside a longer one is not what it is alone."""
    adapter = rows.adapter
    found = _mask_fault(rows)
    if found is not None:
        return found
    if adapter.explicit:
        return (
            f"does not place tokens by position_ids but by where they stand in the row: beside a longer row its logits "
            f"change by {apart:.2g}; {_BACKBONE_REMEDY}"
        )
    return f"its logits change by {apart:.2g} where a row is padded; {_UNPADDED_REMEDY}"


def _mask_fault(rows: _Rows) -> str | None:
    """What is wrong with how the model takes a mask that hides the last columns, or None.

    Three rows: the first, one with other hidden tokens, one with another visible token.
    """
    adapter, (shown, width) = rows.adapter, (2, 4)
    ids = torch.full((3, width), rows.ids[0], device=adapter.device)
    ids[1, shown:] = ids[2, 0] = rows.ids[1]
    real = (torch.arange(width, device=adapter.device) < shown).expand(3, -1)
    mask, position = real.long(), None
    if adapter.causal_backbone:
        mask = additive_mask(real[:, None], adapter.model.dtype).expand(-1, -1, width, -1)
    if adapter.explicit:
        position = torch.arange(width, device=adapter.device).expand(3, -1)
    wanted = torch.full((3, 1), shown - 1, device=adapter.device)
    try:
        out = adapter.logits(ids, wanted, attention_mask=mask, position_ids=position)[:, 0]
    except Exception:  # what it raises is told of elsewhere
        return None
    hidden, visible = greatest(out[0] - out[1]), greatest(out[0] - out[2])
    if hidden <= round_off(adapter) * _scale(out):
        return None
    if not adapter.causal_backbone:
        return (
            f"does not obey the mask of its padding: tokens behind a row's end change its logits by {hidden:.2g}; "
            f"{_UNPADDED_REMEDY}"
        )
    if visible <= NO_CHANGE * hidden:
        return (
            "takes the mask that is added to attention scores for one of booleans: it sees what is hidden (padding) "
            f"and nothing else; {_BACKBONE_REMEDY}"
        )
    return (
        f"does not obey its attention mask: tokens that are hidden from it change its logits by {hidden:.2g}; "
        f"{_BACKBONE_REMEDY}"
    )


def _sight(rows: _Rows, change: Tensor) -> Iterator[Verdict]:
    """What a changed token changes.

    Args:
        change: greatest change of the logits at each place of the canvas, `[M]`.
    """
    adapter, plan = rows.adapter, rows.plan
    shift = int(adapter.shift)
    own = plan.changed + shift  # the first output that is made where the token stands, or after it
    first = max(plan.begin - plan.short + shift, 0) if plan.block is not None else 0
    most, within, before = (greatest(part) for part in (change[own:], change[first:own], change[:first]))
    if most == 0.0:  # it has no say at its own place either: nothing can be told
        return
    if plan.block is not None:
        yield Verdict("no token changes an output of an earlier block", None if before <= NO_CHANGE * most else (
            f"is run with block_size = {plan.block}, but a token changes outputs of an earlier block by {before:.2g}, "
            f"so its mask of blocks is not obeyed; {_BACKBONE_REMEDY}"
        ))
    if first >= own:  # a block of one token
        return
    name = "a later token changes earlier outputs" + ("" if plan.block is None else " of its block")
    if within > NO_CHANGE * most:
        yield Verdict(name)
    elif _earlier_seen(rows):
        yield Verdict(name, (
            "is causal: a later token changes no earlier output, so that a masked place does not see what stands "
            f"behind it; {_causal_remedy(adapter)}"
        ))
    else:
        yield Verdict(name, (
            "no token changes the output at another place: drafts will not depend on the prompt. Expected of a model "
            "that is untrained or has no attention; else its attention mask is not taken as meant"
        ), fatal=False)


def _earlier_seen(rows: _Rows) -> bool:
    """Whether the last output depends on the prefix by more than the type of the weights rounds away.

    Where it does not, a later token may well have been rounded away before it, too: then nothing is told.
    """
    short = rows.plan.short
    one, other = rows.score((short, 0), (short, 0), first=1)[:, -1]
    return greatest(one - other) > ABOVE_NOISE * unit(rows.adapter) * _scale(one)


def _causal_remedy(adapter: Any) -> str:
    if not adapter.causal_backbone:
        return (
            "give a bidirectional model, or causal_backbone = True if it is one of a causal architecture that was "
            "trained without the causal mask"
        )
    return f"if it was trained to see both sides, {_BACKBONE_REMEDY}; else it drafts for nobody: give it as ar"


def _scale(logits: Tensor) -> float:
    """The greatest of the finite logits."""
    return float(logits.masked_fill(~logits.isfinite(), 0.0).abs().max())
