"""The noise of a run's steps: as a temperature, which rate, batch and rule make, and as the noise scale of its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import rules
from thalweg.formatting import format_count, format_number
from thalweg.landscape.noise_scale import EVERY, FEWEST, Stretch
from thalweg.records.run import Run
from thalweg.records.step_figures import NOISE
from thalweg.see.charts import Series, chart
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.temperature import Temperature, batch_size, is_without_noise, temperature

ALIKE = 4.0  # times: a noise scale and a batch size closer than that are about equal
COOLED = 1.5  # times: a temperature that changes by less stays about the same


def temperature_chart(run: Run, **options: Any) -> str:
    """Draw the temperature over the steps."""
    found = temperature(run)
    if found is None:
        return ""
    name = "rate / batch" if found.gain is None else "temperature"
    lines = [Series(name, found.steps, found.values, "train")]
    return chart(
        "Temperature of the noise",
        lines,
        note=temperature_note(run, found),
        y_name=_formula(run, found),
        log_y=False,
        zero=True,
        **options,
    )


def _formula(run: Run, found: Temperature) -> str:
    if found.gain is None or abs(found.gain - 1) < 0.01:
        return "rate / batch"
    momentum = run.plan.constants.get("momentum", rules.get(run.plan.rule).constants.get("momentum"))
    if isinstance(momentum, int | float) and abs(found.gain * (1 - momentum) - 1) < 0.01:
        return "rate / (batch × (1 − momentum))"
    return f"{format_number(found.gain)} × rate / batch"


def temperature_note(run: Run, found: Temperature) -> str:
    """Say what the temperature is, and what it does not say of the rule."""
    rule, chance = run.plan.rule, "How strongly chance, in what a batch holds, shakes the weights"
    if found.gain is None:
        return (
            f"{chance}. Under {rule} steps have a length of their own, so this tells only how it changes along the run."
        )
    note = f"{chance}: more with a higher rate, less with larger batches."
    if found.gain > 1.01:
        note += f" Under {rule} past gradients add up: {format_number(found.gain)} times as hot."
    if found.scaled:
        note += (
            f" Under {rule} gradients are divided by their usual size: where that is mostly noise, the temperature goes with"
            f" rate / √batch."
        )
    return note


def stretches(run: Run) -> list[Stretch]:
    """Give the noise scale over the run, from what was measured beside its steps."""
    return FinishedHistory.of(run).noise_scales()


def measured(run: Run) -> int:
    """Give how often the noise of the gradient was measured."""
    return int(np.isfinite(FinishedHistory.of(run).column(NOISE[1])).sum())


def scale_chart(run: Run, **options: Any) -> str:
    """Draw the noise scale over the steps with its interval, beside the batch size."""
    found, size = stretches(run), batch_size(run)
    if not any(each.scale.low > 0 or each.scale.is_known for each in found):
        return ""
    middle = np.array([(each.first + each.last) / 2 for each in found])
    value, low, high = (np.array([each.scale[k] for each in found]) for k in range(3))
    interval = "interval of 90 %"
    lines = [Series("gradient noise scale", middle, value, "train")]
    for edge in (low, high):
        known = np.isfinite(edge) & (edge > 0)
        lines.append(Series(interval, middle[known], edge[known], "r1", dashed=True))
    if size:
        lines.append(Series("batch size", middle[[0, -1]], np.array([size, size], float), "limit", dashed=True))
    lines = [line for line in lines if len(line.x)]
    return chart(
        "Gradient noise scale",
        lines,
        note=scale_text(run),
        y_name="examples",
        log_y=True,
        nonfinite="too large to tell",
        **options,
    )


def scale_text(run: Run) -> str:
    """Say in plain words how large the noise of the gradients was at the end of the run, beside its batches."""
    found, size = stretches(run), batch_size(run)
    if not found or not size:
        return _why_not_measured(run)
    last, of_batch = found[-1].scale, format_count(size, "example")
    meaning = "The batch size at which noise and slope are equally strong in a gradient"
    if not last.is_known:
        if last.low <= 0:
            return f"{meaning} could not be told at the end from the {format_count(measured(run), 'measurement')} of this run."
        bound = f"{meaning} was larger than {format_number(last.low)} at the end"
        return f"{bound}; how much larger cannot be told of gradients so noisy as those of {of_batch}."
    scale = f"{meaning}: about {format_number(last.value)} at the end ({format_number(last.low)} to {format_number(last.high)})"
    ratio = last.value / size
    if ratio > ALIKE:
        return (
            f"{scale}. Batches of {of_batch} are far smaller: a step gets about {100 / (1 + ratio):.2g} % as far as one without"
            f" noise would, and twice the batch nearly twice as far."
        )
    if ratio < 1 / ALIKE:
        return f"{scale}. Batches of {of_batch} are far larger: most of their examples tell what the others do."
    return f"{scale}. Batches of {of_batch} are near it: neither noise nor examples are wasted."


def _why_not_measured(run: Run) -> str:
    """Say why there is no noise scale, where the run was long enough for one."""
    if measured(run) or not run.plan.watch or FinishedHistory.of(run).steps < FEWEST * EVERY[1]:
        return ""
    return (
        "The gradient noise scale was not measured: that takes a loss that is a mean over its examples, and batches of at least"
        " four that may be cut, as those of your own loader or collate_fn may not."
    )


def summary(run: Run) -> str:
    """Say in a sentence for newcomers how hot the run was, and how it cooled."""
    if is_without_noise(run):
        return "Each step saw all examples, so no chance is in it: the temperature is zero."
    found = temperature(run)
    if found is None:
        return ""
    hot, end = float(found.values.max()), float(found.values[-1])
    text = (
        "A step follows the slope of a few examples, not of all: that noise acts like a temperature, which shakes the weights out"
        " of shallow dips while it is high and lets them settle where it falls."
    )
    if not hot > 0:
        return text
    if end <= 0 or hot / end > COOLED:
        times = "to zero" if end <= 0 or hot / end > 1e3 else f"to {format_number(100 * end / hot)} % of its height"
        return f"{text} Here it fell {times} by the end."
    return f"{text} Here it stayed about the same to the end: the weights go on wandering about the lowest point that they reach."
