"""What is to be held out of the training examples for validation, where a task has no validation data."""

from __future__ import annotations

from typing import Literal, NamedTuple

HoldoutBy = Literal["auto", "class", "group", "time", "random"]
"""What the split goes by; "auto" is settled when the data are opened."""


class Holdout(NamedTuple):
    """What is to be held out: a `share`, or None for the usual one; `by` what; and the `seed` of the choice.

    `batch_size`: where it is decided, of which as many are to be left at least.
    """

    share: float | None = 0.0
    by: HoldoutBy = "auto"
    seed: int = 0
    batch_size: int | None = None


NOTHING = Holdout()
