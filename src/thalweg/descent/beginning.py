"""Going back to where a run began: its first weights are made again, as a resumed run makes them."""

from __future__ import annotations

from thalweg.descent.state import Descent
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
        and not descent.objects.read()
        and not descent.adopted
    )


def begin_again(descent: Descent) -> None:
    """Go back to before the first step; what cures have changed, and what was measured there, is kept."""
    initial, loss = dict(descent.initial_validation), descent.monitor.window.initial_loss
    descent.repeated += descent.step
    state = Descent(descent.problem, descent.plan).state_dict()
    state["loop"] |= {"start": initial, "last": initial}
    descent.load_state_dict(state, rollback=True)
    descent.monitor.began_again(loss)
    descent.take_snapshot()
