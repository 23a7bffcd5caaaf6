"""The figures of one step: made once per step, for the history, the progress display and the monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


TERM, TERM_GRADIENT = "term/", "term_gradient/"  # how columns of a loss's terms begin


NOISE = ("noise/squared_gradient", "noise/trace")  # columns of `noise`


class StepFigures(NamedTuple):
    """The figures of one step.

    - `step`: its number, from 1; `loss`: of its batch, before the weights moved; `learning_rate`: the one it was taken with.
    - `gradient_norm`: Euclidean norm of all gradients before clipping; `clip_scale`: what the gradients were multiplied by.
    - `skipped`: no weight moved; `nonfinite`: elements of the gradient that were NaN or infinite.
    - `examples`: how many the step averaged over; `seconds`: how long it took.
    - `gradient_norms`: of each parameter's gradient, in the order of the optimiser's groups; `weight_norms`, `update_norms` and
      `gradient_ratios` (RMS(g / sqrt(v))): likewise, None where they were not measured.
    - `memory`: bytes in use after the step, by whose they are; empty where that was not read.
    - `terms`: of the loss, by name, where it is given as such; `term_gradients`: the norm of each one's gradient, likewise; empty
      where they were not measured.
    - `noise`: the squared norm of the mean gradient of all examples and the trace of the covariance matrix of single examples'
      gradients, estimated from this batch alone, without bias (so the first may be negative); None where they were not measured.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    clip_scale: float = 1.0
    skipped: bool = False
    nonfinite: int = 0
    examples: int = 0
    seconds: float = 0.0
    gradient_norms: Sequence[float] = ()
    weight_norms: Tensor | None = None
    update_norms: Tensor | None = None
    gradient_ratios: Tensor | None = None
    memory: Mapping[str, int] = {}
    terms: Mapping[str, float] = {}
    term_gradients: Mapping[str, float] = {}
    noise: tuple[float, float] | None = None

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.6g}" for name, value in self.scalars().items())
        return f"<StepFigures of step {self.step}: {figures}>"

    def scalars(self) -> Mapping[str, float]:
        """Give the figures that the history keeps of every step, by column."""
        figures = {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "clip_scale": self.clip_scale,
            "examples": self.examples,
            "seconds": self.seconds,
        }
        for column, named in ((TERM, self.terms), (TERM_GRADIENT, self.term_gradients)):
            for name, value in named.items():
                figures[f"{column}{name}"] = value
        if self.noise is not None:
            figures |= zip(NOISE, self.noise, strict=True)
        return figures
