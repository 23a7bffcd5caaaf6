"""Can a few examples be fitted?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import RATES, InitialFigures, is_finite
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding


def cannot_fit(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Diagnose a few examples whose loss did not fall in many steps, at several learning rates."""
    fit = figures.fit
    if fit is None or fit.done or not is_finite(fit.started) or not is_finite(fit.reached):
        return
    constant = f", where one fixed answer for all gives {fit.constant:.4g}" if fit.constant else ""
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    yield finding(
        symptom="one batch cannot be fitted",
        cause=(
            f"{fit.steps} steps on {fit.examples} examples took the loss from {fit.started:.4g} to {fit.reached:.4g}, at the best"
            f" of the learning rates {rates}{constant}."
        ),
        cure=(
            "Check that labels belong to their examples, that the last layer fits the loss, that nothing is frozen, and that no"
            " layer's units are all off."
        ),
        severity="warning",
        figure=f"loss after {fit.steps} steps",
        value=fit.reached,
        threshold=fit.goal,
    )


unfittable_batch = Cause(
    name="unfittable-batch",
    meaning="not even a few examples can be fitted",
    rank=60,
    before=cannot_fit,
    refutable=("one batch cannot be fitted",),
)
