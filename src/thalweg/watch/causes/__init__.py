"""What can be wrong: one cause a file, asked before training, during it and after it.

The table below is written by `tools/tables.py` from the folder's listing, so that types, linters and completion see every name.
A third party's cause comes by an entry point of the group `thalweg.causes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from thalweg.terminal import warn
from thalweg.watch.cause import Cause
from thalweg.watch.causes.bad_batch import bad_batch
from thalweg.watch.causes.bad_data import bad_data
from thalweg.watch.causes.bad_data_scale import bad_data_scale
from thalweg.watch.causes.batch_too_small import batch_too_small
from thalweg.watch.causes.dead_units import dead_units
from thalweg.watch.causes.drifting_statistics import drifting_statistics
from thalweg.watch.causes.exploding_gradient import exploding_gradient
from thalweg.watch.causes.growing_memory import growing_memory
from thalweg.watch.causes.learning_rate_too_high import learning_rate_too_high
from thalweg.watch.causes.learning_rate_too_low import learning_rate_too_low
from thalweg.watch.causes.loss_overflow import loss_overflow
from thalweg.watch.causes.low_precision import low_precision
from thalweg.watch.causes.missing_warm_up import missing_warm_up
from thalweg.watch.causes.no_gradient import no_gradient
from thalweg.watch.causes.nothing_learnt import nothing_learnt
from thalweg.watch.causes.nothing_to_learn import nothing_to_learn
from thalweg.watch.causes.overfitting import overfitting
from thalweg.watch.causes.saturated_units import saturated_units
from thalweg.watch.causes.schedule_ended_early import schedule_ended_early
from thalweg.watch.causes.stale_second_moment import stale_second_moment
from thalweg.watch.causes.summed_loss import summed_loss
from thalweg.watch.causes.train_validation_leak import train_validation_leak
from thalweg.watch.causes.unfittable_batch import unfittable_batch
from thalweg.watch.causes.unstable_norm import unstable_norm
from thalweg.watch.causes.unused_parameter import unused_parameter
from thalweg.watch.causes.vanishing_gradient import vanishing_gradient
from thalweg.watch.causes.weight_decay_too_high import weight_decay_too_high
from thalweg.watch.causes.wrong_output import wrong_output
from thalweg.watch.causes.wrong_target import wrong_target
from thalweg.watch.causes.wrong_weight import wrong_weight

CAUSES: dict[str, Cause] = {
    "bad-batch": bad_batch,
    "bad-data": bad_data,
    "bad-data-scale": bad_data_scale,
    "batch-too-small": batch_too_small,
    "dead-units": dead_units,
    "drifting-statistics": drifting_statistics,
    "exploding-gradient": exploding_gradient,
    "growing-memory": growing_memory,
    "learning-rate-too-high": learning_rate_too_high,
    "learning-rate-too-low": learning_rate_too_low,
    "loss-overflow": loss_overflow,
    "low-precision": low_precision,
    "missing-warm-up": missing_warm_up,
    "no-gradient": no_gradient,
    "nothing-learnt": nothing_learnt,
    "nothing-to-learn": nothing_to_learn,
    "overfitting": overfitting,
    "saturated-units": saturated_units,
    "schedule-ended-early": schedule_ended_early,
    "stale-second-moment": stale_second_moment,
    "summed-loss": summed_loss,
    "train-validation-leak": train_validation_leak,
    "unfittable-batch": unfittable_batch,
    "unstable-norm": unstable_norm,
    "unused-parameter": unused_parameter,
    "vanishing-gradient": vanishing_gradient,
    "weight-decay-too-high": weight_decay_too_high,
    "wrong-output": wrong_output,
    "wrong-target": wrong_target,
    "wrong-weight": wrong_weight,
}

__all__ = ["CAUSES", "all_causes", "summary_of"]


@cache
def all_causes() -> tuple[Cause, ...]:
    """List all causes, third parties' included; of those, one that cannot be loaded, or whose name is taken, is left out with a
    warning."""
    causes = dict(CAUSES)
    for point in entry_points(group="thalweg.causes"):
        for cause in _loaded(point, causes):
            causes[cause.name] = cause
    return tuple(causes.values())


def summary_of(name: str, evidence: Mapping[str, Any]) -> str:
    """Say a finding of a cause in one short sentence; nothing where the cause has no such sentence, or is not known here."""
    cause = next((cause for cause in all_causes() if cause.name == name), None)
    try:
        return cause.summary(evidence) if cause is not None and cause.summary is not None else ""
    except Exception:  # evidence of another version, or a third party's mistake
        return ""


def _loaded(point: EntryPoint, known: Mapping[str, Cause]) -> list[Cause]:
    try:
        found = point.load()
    except Exception as error:
        found = error
    if isinstance(found, Cause) and found.name not in known:
        return [found]
    if isinstance(found, Cause):  # a detector's state and the kind of its events go by the name
        given = f"gives a cause named '{found.name}', of which there is one already"
    else:
        given = f"fails: {found!r}" if isinstance(found, Exception) else f"gives a {type(found).__name__}, not a Cause"
    warn(f"The entry point '{point.name}' of group thalweg.causes {given}. It is left out.", stacklevel=2)
    return []
