"""Scores along drafts near the end of the AR model's positions.

Drafts of a batch have one width, the longest horizon W of its particles. A particle that is close to its length limit
commits less than that, and the places behind may be past the model's last position. There, and only there, particles
are scored in groups, each no wider than all of its particles have positions left.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from smc_bridge.models.host import Index, known, places, sent
from smc_bridge.models.protocols import CausalSession


def groups_in_reach(window: Index, room: Index, width: int) -> list[Index]:
    """Particles that can be scored together.

    Args:
        window: greatest length of each particle's block, `[B]`.
        room: positions that the model has left for each, `[B]`.
        width: W; one group if everybody has room for it.
    Returns:
        indices of the particles of each group, whose greatest window is at most its least room. A particle whose own
        window passes its room gets a group to itself.
    """
    if room.min() >= width:
        return [np.arange(window.size)]
    order = room.argsort(kind="stable")
    groups: list[list[int]] = []
    least = -1
    for place, wanted, left in zip(order.tolist(), window[order].tolist(), room[order].tolist(), strict=True):
        if groups and wanted <= least:
            groups[-1].append(place)
        else:
            groups.append([place])
            least = left
    return [np.array(group) for group in groups]


def calls_of(window: Index, room: Index | None) -> Index:
    """Which of the calls of `score_in_reach` scores each particle, `[B]`; arguments as `groups_in_reach`, with the
    widest of the windows for a width, and no room where the model has no last position."""
    found = np.zeros(window.size, dtype=np.int64)
    if room is not None:
        for call, group in enumerate(groups_in_reach(window, room, int(window.max()))):
            found[group] = call
    return found


def widest(window: Index, call: Index, prompt: Index) -> Index:
    """The widest window of the particles of the same prompt in the same call, `[B]` each: the places that a particle is
    asked about, and charged with. What other prompts of the batch are asked about is not its own."""
    _, group = np.unique(np.stack([call, prompt]), axis=1, return_inverse=True)
    most = np.zeros(window.size, dtype=np.int64)
    np.maximum.at(most, group.reshape(-1), window)
    found: Index = most[group.reshape(-1)]
    return found


def score_in_reach(
    session: CausalSession, rows: Tensor, drafts: Tensor, *, window: Index, room: Index, lanes: int
) -> Tensor:
    """`session.score` along the drafts of B particles with K lanes each, without positions that the model has not.

    Args:
        rows: the particles, `[B]`.
        drafts: `[B * K, W]`.
        window, room: see `groups_in_reach`.
    Returns:
        `[B * K, W, A]`; entries past a particle's window are arbitrary finite logits.
    """
    width = drafts.shape[1]
    groups = groups_in_reach(window, room, width)
    owner, device = known(rows).repeat(lanes), rows.device
    if len(groups) == 1 and window.max() == width:
        return session.score(sent(owner, device), drafts)
    parts = []
    for group in groups:
        lane = (group[:, None] * lanes + np.arange(lanes)).ravel()
        at, asked = sent(lane, device), int(window[group].max())
        scores = session.score(sent(owner[lane], device), drafts[at, :asked])
        parts.append((at, scores[:, places(width, device).clamp_max(asked - 1)]))
    out = parts[0][1].new_empty(drafts.shape[0], width, parts[0][1].shape[2])
    for at, scores in parts:
        out[at] = scores
    return out
