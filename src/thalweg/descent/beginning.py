"""Going back to where a run began: its first weights are made again, as a resumed run makes them."""

from __future__ import annotations

import math
from typing import Any

from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.objects.state import LOST
from thalweg.records.weights import model_state
from thalweg.sampling.sources import StreamSource

NEAR = 0.4  # of a run's steps, after which it does not go back to its beginning any more
MOST_REPEATED = 0.5  # of them, that are taken once more for having gone back


def can_begin_again(descent: Descent) -> bool:
    """Tell whether a run may go back to its beginning: where that costs little of it, where everything there can be made again,
    and where the plan lets it go back at all. What the user's own code carries, and how a stream began, cannot be."""
    return (
        descent.snapshot is not None
        and descent.step <= NEAR * descent.total_steps
        and descent.repeated + descent.step <= MOST_REPEATED * descent.total_steps
        and not isinstance(descent.problem.train, StreamSource)
        and not descent.objects.read().keys() - {LOST}
        and not descent.adopted
    )


def first_state(descent: Descent) -> dict[str, Any]:
    """Make the state before the first step once more, in a second model; the descent stays as it is.

    Raises whatever making a model can: there may be no memory for a second one.
    """
    return Descent(descent.opened, descent.plan).state_dict()


def begin_again(descent: Descent, first: dict[str, Any]) -> None:
    """Go back to before the first step; what cures have changed, and what was measured there, is kept.

    `first`: from `first_state`. The best weights are those at the start, as they are where a run begins.
    """
    initial, loss = dict(descent.initial_validation), descent.monitor.window.initial_loss
    if descent.step:  # else another cure of the same step has gone back already
        descent.repeated += descent.step + len(descent.last_positions)
    loop = {**first["loop"], "start": initial, "last": initial}
    descent.load_state_dict({**first, "loop": loop}, rollback=True)
    _forget_best(descent, initial)
    descent.monitor.began_again(loss)
    descent.take_snapshot()


def _forget_best(descent: Descent, initial: dict[str, float]) -> None:
    """Let the first weights be the best so far, with the figures that they were validated with."""
    value = initial.get(descent.problem.task.select, math.nan)
    descent.best_validation, descent.best_weights, descent.validations_since_best = None, None, 1
    if not math.isfinite(value):
        return
    descent.best_validation, descent.validations_since_best = {"value": value, "step": 0}, 0
    if descent.keeps_best:
        weights = clone_into(None, model_state(descent.model))
        descent.best_weights = BestWeights(value, 0, initial, averaged=False, model=weights)
