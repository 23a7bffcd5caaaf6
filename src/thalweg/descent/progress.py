"""What a descent tells whoever looks on; the loop calls these at named places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from thalweg.records.plan import Plan


class Progress(Protocol):
    """Somebody who looks on. `step` is called every step and must be cheap."""

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """A descent starts, or goes on, after `step` steps; `validation`: there are validation data."""

    def step(self, step: int, loss: float, rate: float, examples: int) -> None:
        """A step was taken on so many examples."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """The validation gave these figures."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Something happened."""

    def end(self) -> None:
        """The descent is over, for whatever reason."""


class Silent:
    """Nobody looks on."""

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """Say nothing."""

    def step(self, step: int, loss: float, rate: float, examples: int) -> None:
        """Say nothing."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Say nothing."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""
