"""Which checkpoint of a client's private model is kept: the last, or the best on its own rows."""

from __future__ import annotations

import math

from fedms.core.algorithm import ClientState, Score
from fedms.core.tensors import Tensors, all_finite, part, under

DIVERGED = Score(loss=math.nan)
"""Score of a client whose training gave values that are not finite; screening rejects it."""


def remember(
    state: ClientState,
    tensors: Tensors,
    score: Score,
    *,
    depth: int,
    queue: tuple[float, ...] = (),
    keep_best: bool,
) -> ClientState | None:
    """The client's state after a round that left `tensors`, with `score` on its validation rows.

    With `keep_best`, the best checkpoint so far is kept under `kept/` once the current one is
    worse. Accuracy decides; of equal accuracies the lower loss, of equal losses the later. Without
    validation rows the last checkpoint is all there is. A client that diverged goes on from where
    it was before the round; if that was nowhere it has no state (None).
    """
    if not (all_finite(tensors) and math.isfinite(score.loss)):
        return state if state.tensors else None
    rounds = state.rounds + 1
    if not (keep_best and score.rows):
        return ClientState(tensors, depth, queue, rounds)
    quality = (score.correct / score.rows, -score.loss / score.rows)
    if state.kept is None or quality >= state.kept:
        return ClientState(tensors, depth, queue, rounds, quality)
    kept = under("kept", chosen(state))
    return ClientState({**tensors, **kept}, depth, queue, rounds, state.kept)


def chosen(state: ClientState) -> Tensors:
    """The tensors of the checkpoint that is the client's model."""
    return part("kept", state.tensors) or state.tensors
