"""Ends foreseen: a canvas is cut where the model says that its text ends (EoTP of Learn2PD, arXiv 2509.25188).

    i*  = the masked place of greatest top probability among those whose likeliest token is an end of text
    cut   the canvas behind i*, before i* itself is filled

Of a canvas that is much longer than its text most places stand behind the end. A decoder that fills the surest places
fills them, too; cut, it need not, and its forwards are over fewer places. A rule that judges single places to be
settled (`settles`) is believed first: the canvas is cut behind the first settled place that is an end.

As a law this conditions every later forward on a canvas that ends at i*, and a sequence is complete when all of what is
left is filled, whether an end is drawn at i* or another token: it ends there without one. So the law of the decoder
changes, and it is a function of the model's laws alone where its rule decides before sampling: each drawn token keeps
its marginal, given the canvas as it was cut, as its density. Only a masked place is a reason to cut, and none before a
planted token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from smc_bridge.canvas.rules import ByAnother, Commit, CommitRule, Look, Ordered, check_rule, looks_back
from smc_bridge.models.ends import Ends, is_end
from smc_bridge.models.protocols import ABSENT, MASKED


@dataclass(frozen=True)
class CutAtEnd(ByAnother):
    """Cut the canvas at a foreseen end, and fill places of what is left by `rule` (module docstring).

    Attributes:
        rule: fills places; of one that has it, `settles(look)` says which places it judges to be settled.
        ends: tokens that end a text.
    """

    rule: CommitRule = field(default_factory=Ordered)
    ends: Ends = ()

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)

    @property
    def looks_back(self) -> bool:
        """Whether `rule` reads laws of places that are filled; a cut itself reads those of masked ones."""
        return looks_back(self.rule)

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        cut = self.cut(look)
        left = torch.arange(look.canvas.shape[1], device=cut.device) < cut[:, None]
        canvas = torch.where(left, look.canvas, ABSENT)
        commit = self.rule(replace(look, canvas=canvas, open=look.open & left, plain=lambda: look.log_q_plain))
        return commit._replace(cut=cut)

    def cut(self, look: Look) -> Tensor:
        """First place of each row that is cut off, `[R]`; the width of what is shown where nothing is."""
        value, token = look.log_q_plain.max(-1)
        ending = is_end(token, self.ends) & (look.canvas == MASKED)
        if look.held is not None:
            behind = (look.held.long().flip(1).cumsum(1) == 0).flip(1)  # the last planted token
            ending = ending & behind & (look.held.sum(1, keepdim=True) == look.anchors)
        judge = getattr(self.rule, "settles", None)
        surest = value.masked_fill(~ending, -torch.inf).argmax(1)
        if judge is not None:
            settled = ending & judge(look)
            surest = torch.where(settled.any(1), settled.to(torch.uint8).argmax(1), surest)
        return torch.where(ending.any(1), surest + 1, token.shape[1])


def uncut(rule: CommitRule) -> CommitRule:
    """The rule that fills places: itself, or what a cut goes by."""
    return rule.rule if isinstance(rule, CutAtEnd) else rule
