"""A length that is not known beforehand: a run goes on until that no longer pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

from thalweg.errors import PlanError, shown

Auto = Literal["auto"]
PAYS = 0.05
"""By default twice the steps pay where they are projected to lower the criterion by this share."""
MOST_EPOCHS, MOST_STEPS = 100, 20_000  # of a run, at most, where nothing else is said: whichever is more


@dataclass(frozen=True)
class OpenLength:
    """When a run of open length ends.

    Arguments:
        pays: the share of the criterion that twice the steps must be projected to gain, from 0 to below 1.
        most: epochs or steps (`unit`) that the run has at most; None: 100 epochs, or 20,000 steps where these are more or epochs
            are not known, and without a limit of its own where there is a budget in seconds.
        unit: "epochs" or "steps".

    Raises PlanError that names what is not allowed.
    """

    pays: float = PAYS
    most: float | None = None
    unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        if not is_finite_number(self.pays) or not 0 <= self.pays < 1:
            raise PlanError(
                f"`pays` is {shown(self.pays, 80)}, but it is a share of the criterion, from 0 to below 1: {PAYS:g} goes on as"
                f" long as twice the steps are projected to lower it by {PAYS:.0%}."
            )
        if self.most is not None and (not is_finite_number(self.most) or self.most <= 0):
            raise PlanError(
                f"`most` is {shown(self.most, 80)}, but it is a number of {self.unit} above zero and finite."
            )
        if self.most is not None and self.unit == "steps" and self.most != int(self.most):
            raise PlanError(f"`most` is {self.most}, but it is a whole number of steps.")
        object.__setattr__(self, "pays", float(self.pays))
        object.__setattr__(self, "most", None if self.most is None else float(self.most))

    def most_steps(self, steps_per_epoch: int | None, seconds: float | None) -> int | None:
        """Give the most steps of the run; None where a budget in seconds alone limits it.

        Raises PlanError where epochs say nothing, or are less than a step.
        """
        if self.most is None:
            return None if seconds is not None else max(MOST_STEPS, MOST_EPOCHS * (steps_per_epoch or 0))
        if self.unit == "steps":
            return int(self.most)
        if steps_per_epoch is None:
            raise PlanError(
                "The data are a stream of unknown length, so epochs say nothing: give steps='auto' (--steps auto), with `most` in"
                " steps."
            )
        steps = round(self.most * steps_per_epoch)
        if steps < 1:
            raise PlanError(f"`most` is {self.most:g} epochs, which is less than one step: give at least one.")
        return steps

    def to_dict(self) -> dict[str, Any]:
        """Give it as built-in types."""
        return {**vars(self)}


def asked_length(
    epochs: float | Auto | None,
    steps: int | Auto | None,
    seconds: float | None,
    pays: float | None = None,
    most: float | None = None,
) -> dict[str, Any]:
    """Give the arguments of a `Request` for a length as a person asks for it: in numbers, or "auto" for epochs or steps.

    Raises PlanError where both are asked for, or what belongs to one kind is given with the other.

    >>> asked_length(epochs=3, steps=None, seconds=None), asked_length("auto", None, None)["open"].pays
    ({'epochs': 3, 'steps': None, 'seconds': None}, 0.05)
    """
    named = {name: value for name, value in {"epochs": epochs, "steps": steps}.items() if value is not None}
    words = [name for name, value in named.items() if isinstance(value, str) and value == "auto"]
    if seconds is not None and isinstance(seconds, str) and seconds == "auto":
        raise PlanError(
            "`seconds` is 'auto'. A run that goes on until it no longer pays is epochs='auto' or steps='auto'; seconds= beside"
            " it is the most that all of it may take."
        )
    if not words:
        for name, value in {"pays": pays, "most": most}.items():
            if value is not None:
                raise PlanError(f"`{name}` is {shown(value, 80)}, which goes with epochs='auto' or steps='auto' only.")
        return {"epochs": epochs, "steps": steps, "seconds": seconds}
    if len(named) > 1:
        raise PlanError(
            f"Give one budget, not several: {', '.join(f'{k}={v}' for k, v in named.items())}. With 'auto', `most` and seconds="
            f" say where it ends at the latest."
        )
    unit: Literal["epochs", "steps"] = "epochs" if words == ["epochs"] else "steps"
    return {"seconds": seconds, "open": OpenLength(PAYS if pays is None else pays, most, unit)}


def open_length_from(entries: Mapping[str, Any] | None) -> OpenLength | None:
    """Read what `OpenLength.to_dict` gave."""
    return None if entries is None else OpenLength(**entries)


def is_finite_number(value: Any) -> bool:
    """Tell whether a value is one number, and finite; a truth value is none."""
    try:
        return isinstance(value, SupportsFloat) and not isinstance(value, bool) and math.isfinite(value)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ):  # too large, several numbers, or a tensor without values
        return False
