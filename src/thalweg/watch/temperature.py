"""The temperature of a run's steps, from rate, batch and rule: how strongly chance, in what a batch holds, shakes the weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from thalweg.errors import RuleError
from thalweg.records.run import Run
from thalweg.theory import linearise, temperature_gain
from thalweg.watch.finished import FinishedHistory, Values


class Temperature(NamedTuple):
    """How hot a run's steps are: `gain` times rate over examples, see `temperature_gain`; a gain of None is not known.

    `scaled`: the rule divides gradients by their usual size.
    """

    steps: Values
    values: Values
    gain: float | None
    scaled: bool


def batch_size(run: Run) -> int | None:
    """Give the examples of a step; None where there was none."""
    if run.plan.batch_size is not None:
        return run.plan.batch_size
    examples = FinishedHistory.of(run).column("examples")
    examples = examples[np.isfinite(examples)]
    return int(np.median(examples)) if len(examples) else None


def is_without_noise(run: Run) -> bool:
    """Tell whether each step saw all examples, so that no step differs from another by chance."""
    size, count = batch_size(run), run.summary.get("examples")
    return size is not None and count is not None and size >= int(count) and not run.plan.replacement


def temperature(run: Run) -> Temperature | None:
    """Derive the temperature of each step from its rate; None where no step was taken, or all examples were in each."""
    size = batch_size(run)
    steps, rates = FinishedHistory.of(run).recorded("learning_rate")
    steps, rates = steps[np.isfinite(rates)], rates[np.isfinite(rates)]
    if not size or not len(steps) or is_without_noise(run):
        return None
    gain, scaled = None, False
    try:
        gain = temperature_gain(run.plan.rule, run.plan.constants)
        scaled = bool(linearise(run.plan.rule, run.plan.constants, lr=1e-3).scales)
    except RuleError:
        pass  # its steps follow from more than this gradient: see `temperature_note`
    return Temperature(steps, (1.0 if gain is None else gain) * rates / size, gain, scaled)
