"""Second thoughts: places that were filled are masked again, or their token replaced, in the light of the later ones.

    remask   a token whose probability in the present law is below a bound is masked again        (dInfer: 0.4)
    edit     a token gives way to another whose probability in the present law is above a bound   (LLaDA2.1)

Both read the model's law at places that it sees filled, on which a model that learns masked places is not trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from smc_bridge.canvas.rules import ByAnother, Commit, CommitRule, Look, check_rule, foremost
from smc_bridge.canvas.thresholds import SHARE, Threshold
from smc_bridge.models.arguments import real_between, said


@dataclass(frozen=True)
class SecondThoughts(ByAnother):
    """Fill places by `rule`, and look again at those that are filled.

    Of a row at least one place more is filled than masked again, the least probable tokens first, so that its canvas
    fills; a place that is masked again is not edited.

    Attributes:
        rule: fills places.
        remask: tokens of a smaller probability are masked again; 0 for none.
        edit: the likeliest token replaces another one if its probability is greater; None for never.
    Raises:
        ValueError: one of them is something else, or both are off.
    """

    rule: CommitRule = field(default_factory=Threshold)
    remask: float = 0.4
    edit: float | None = None

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)
        for name in ("remask", "edit"):
            if (value := getattr(self, name)) is not None:
                found = float(real_between(name, value, 0.0, 1.0, remedy=SHARE))
                object.__setattr__(self, name, found)  # the class is frozen
        if not self.remask and self.edit is None:
            raise ValueError(f"remask = {said(self.remask)} with edit = None: give one of them, or the rule alone")

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        commit = self.rule(look)
        kept = look.log_q_plain.gather(-1, look.canvas.clamp_min(0)[..., None])[..., 0].exp()
        doubtful = look.filled & (kept < self.remask)
        again = foremost(-kept, doubtful, commit.places.sum(1) - 1)
        return commit._replace(remask=again, edit=self._edited(look, again))

    def _edited(self, look: Look, again: Tensor) -> Tensor | None:
        """Places whose token another one replaces, BoolTensor `[R, T]`."""
        if self.edit is None:
            return None
        value, token = look.log_q_plain.max(-1)
        return look.filled & ~again & (token != look.canvas) & (value.exp() > self.edit)
