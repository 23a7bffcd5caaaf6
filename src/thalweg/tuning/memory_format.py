"""Memory format: channels last where convolutions are faster by it and the same weights give the same loss."""

from __future__ import annotations

from contextlib import closing

from thalweg.descent.memory_format import convolution_weights
from thalweg.descent.problem import start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.timing import TimedDescent
from thalweg.errors import error_text
from thalweg.tuning.comparison import PAYS, Finding, Trial, compare, evaluated

VALUES = ("contiguous", "channels_last")
SAME = 1e-3  # relative difference of losses that another order of additions may make


def choose(trial: Trial) -> Finding | None:
    """Try channels last; None for a model without 2-D convolutions."""
    if not has_convolutions(trial):
        return None
    trial.say("memory format: timing convolutions with channels last")
    changed = trial.plan.replace(memory_format="channels_last")
    try:
        compared = compare(trial, changed)
        figures = compared.figures("memory_format", VALUES)
        if compared.ratio > PAYS:
            return Finding("contiguous", "channels last are not at least 5 % faster", figures)
        difference = loss_difference(trial)
    except (
        Exception
    ) as error:  # `view` of what is not contiguous, say; what fails without it too, fails again where it is told
        return Finding("contiguous", f"the model does not compute with channels last: {error_text(error):.200}")
    if not difference <= SAME:
        return Finding(
            "contiguous", f"with channels last the same weights give another loss, by {difference:.2%}", figures
        )
    return Finding("channels_last", f"a step takes {compared.ratio:.2f} of its time with channels last", figures)


def has_convolutions(trial: Trial) -> bool:
    """Whether the model has 2-D convolutions whose weights can be laid out with channels last."""
    with preserve_process_state(), rng_lock:
        return bool(convolution_weights(start_model(trial.problem, trial.plan.seed)))


def loss_difference(trial: Trial) -> float:
    """Give the relative difference of a batch's loss, in evaluation mode, with channels last and without."""
    with closing(TimedDescent(trial.problem, trial.plan.replace(memory_format="channels_last"))) as timed:
        timed.take(1)
        losses = [evaluated(timed.descent)]
        timed.descent.hand_over_model()  # which is contiguous again
        losses.append(evaluated(timed.descent))
    return abs(losses[0] - losses[1]) / max(abs(losses[1]), 1e-12)
