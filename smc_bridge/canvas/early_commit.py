"""Early commit: once the answer is decided, all that is masked is filled at once (Prophet, arXiv 2508.19982).

Of each place of the answer's region the gap between the two greatest logits is taken, whether the place is filled or
not; if their mean reaches a bound, which falls as decoding goes on,

    mean_i (l_(1) - l_(2))_i >= 7.5, 5.0, 2.5    while the progress is below 1/3, below 2/3, later

every mask is filled by its likeliest token and the row is done. The test comes before the commit of its forward. A
filled token is a point mass, so no density is left: a baseline. (Gaps of logits are those of log-probabilities.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import ByAnother, Commit, CommitRule, Look, check_rule
from smc_bridge.models.arguments import is_list, real_between, said, whole_number
from smc_bridge.models.protocols import ABSENT

#: Progress from which the second and the third bound hold.
STAGES = (0.33, 0.67)


@dataclass(frozen=True)
class EarlyCommit(ByAnother):
    """Fill places by `rule` until the answer's region is sure, then all.

    Progress is the share of the canvas, anchors not counted, that is filled: steps of steps where a forward fills as
    many as every other one.

    Attributes:
        rule: fills places.
        start: first place of the region; None for a region of all places that are shown.
        places: of the region.
        gaps: bounds of the mean gap in the three stages, nats.
    Raises:
        ValueError: one of them is something else.
    """

    rule: CommitRule = field(default_factory=Ranked)
    start: int | None = None
    places: int = 5
    gaps: tuple[float, ...] = (7.5, 5.0, 2.5)

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)
        if self.start is not None:
            start = whole_number("answer_start", self.start, least=0, remedy="count places of the continuation from 0")
            object.__setattr__(self, "start", start)  # the class is frozen
        places = whole_number("places", self.places, remedy="a region has at least 1 place")
        object.__setattr__(self, "places", places)
        remedy = f"give {len(STAGES) + 1} gaps of at least 0, in nats"
        if not is_list(self.gaps) or len(self.gaps) != len(STAGES) + 1:
            raise ValueError(f"gaps = {said(self.gaps)}: {remedy}")
        gaps = tuple(float(real_between("gaps", gap, 0.0, torch.inf, remedy=remedy)) for gap in self.gaps)
        object.__setattr__(self, "gaps", gaps)

    def check_limit(self, limit: int) -> None:
        """Raise ValueError if the region begins past a canvas of `limit` places, where it is never sure."""
        if self.start is not None and self.start >= limit:
            raise ValueError(
                f"answer_start = {self.start} with max_new_tokens = {limit}: begin the answer's region, which follows "
                "the last anchor unless it is given, before that place"
            )

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        commit = self.rule(look)
        finish = self.gap(look) >= look.log_q.new_tensor(self.gaps)[self.stage(look)]
        off = [None if field is None else field & ~finish[:, None] for field in (commit.remask, commit.edit)]
        return commit._replace(remask=off[0], edit=off[1], finish=finish)

    def gap(self, look: Look) -> Tensor:
        """Mean gap over the region, nats, `[R]`; -inf where a row shows nothing of it."""
        two = look.log_q_plain.topk(min(2, look.log_q_plain.shape[-1])).values
        place = torch.arange(look.canvas.shape[1], device=two.device)
        region = look.canvas != ABSENT
        if self.start is not None:
            region = region & (place >= self.start) & (place < self.start + self.places)
        total = torch.where(region, two[..., 0] - two[..., -1], 0.0).sum(1)
        return torch.where(region.any(1), total / region.sum(1).clamp_min(1), -torch.inf)

    def stage(self, look: Look) -> Tensor:
        """Which of the bounds holds, `[R]`."""
        limit = look.canvas.shape[1] if look.limit is None else look.limit
        progress = look.filled.sum(1) / (limit - look.anchors)
        return torch.bucketize(progress, progress.new_tensor(STAGES), right=True)
