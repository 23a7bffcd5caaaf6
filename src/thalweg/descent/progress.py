"""Showing a descent while it goes: what a progress display is told, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures


class Progress(Protocol):
    """A display of a descent under way. `step` is called every step and must be cheap."""

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """A descent starts, or goes on, after `step` steps; `validation`: there are validation data."""

    def step(self, figures: StepFigures) -> None:
        """A step was taken."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """The validation gave these figures."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Something happened."""

    def end(self) -> None:
        """The descent is over, for whatever reason."""


class Silent:
    """Shows nothing."""

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """Show nothing."""

    def step(self, figures: StepFigures) -> None:
        """Show nothing."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Show nothing."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""
