"""A finished history: what causes are asked about after training, of thalweg's own runs or of other programs'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.formatting import format_metric, printable
from thalweg.landscape.noise_scale import Stretch, noise_scales
from thalweg.records.history import Event
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.records.step_figures import NOISE, TERM

Values = npt.NDArray[np.float64]
LATE_SHARE = 0.8  # of the run: steps after this share of it are late
RELEVANT = 0.02  # smallest change that matters, as a share of the improvement or of the value at the start
RELEVANT_OF_BEST = 0.2  # a rise by this share of the best value matters too, even where it is less than RELEVANT
NEGLIGIBLE = 0.005  # share of the improvement: a smaller rise never matters

SMALL_FALL = 0.1  # share of the loss at the start: where it falls by less, hardly anything was learnt
FEWEST_LOSSES = 5  # that a training loss is the mean of: one batch's alone is mostly noise
CLEAR = 2.0  # standard errors: means of training losses that differ by more do so beyond their noise
GAP = 0.3  # of the validation loss, by which the training loss must be lower for overfitting
MEMORISED = (
    0.8  # of the validation loss, by which the training loss is lower where the model knows its examples by heart
)

STEADY = 0.75  # share of the validations that are lower than the one before, in a steady fall
STILL_FALLING = 0.3  # share of the fall in the second half of the summed learning rates; a straight line has 0.5


class Worsened(NamedTuple):
    """The criterion was best at `step`, early in the run, and is clearly worse at its end.

    - `best`, `last_fifth`: the criterion there, and its median over the last fifth of the run.
    - `training`, `last_training`: the training loss around that step and at the end; NaN where it is not known.
    - `reason`: "overfitting" where the training loss went on falling and lies far below the validation loss, "steps too long"
      where it rose, "" where the figures do not decide: the difference is within the noise, or the two losses are alike.
    """

    step: int
    best: float
    last_fifth: float
    training: float
    last_training: float
    reason: Literal["overfitting", "steps too long", ""]


@dataclass(frozen=True)
class FinishedHistory:
    """Figures of a run, and what is known of how it was trained.

    Arguments:
        columns: name -> one value per row, "step" among them; NaN where a row has no such figure.
        select, mode: the criterion, and whether less ("min") or more ("max") of it is better.
        validated: whether there were validation data.
        status: "finished", "interrupted", "diverged", "failed", "running" or "stopped early".
        initial, final: figures before the first step and after the last one.
        plan, events, summary: as in a `Run`; what a foreign history does not know is None or empty.
        fault_before_training: whether a warning or worse was found before training.
    """

    columns: Mapping[str, Values]
    select: str = "loss"
    mode: str = "min"
    validated: bool = False
    status: str = "finished"
    steps: int = 0
    initial: Mapping[str, float] = field(default_factory=dict[str, float])
    final: Mapping[str, float] = field(default_factory=dict[str, float])
    plan: Plan | None = None
    events: tuple[Event, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fault_before_training: bool = False

    @staticmethod
    def of(run: Run) -> FinishedHistory:
        """Read a run's record."""
        summary = run.summary
        status = str(summary.get("status", "finished"))
        stopped_early = status == "finished" and summary.get("stopped_early")
        steps = summary.get("steps")
        last = np.asarray(run.history.get("step", np.zeros(0))).astype(int).tolist()[-1:]
        return FinishedHistory(
            columns=run.history,
            select=str(summary.get("select", "loss")),
            mode=str(summary.get("mode", "min")),
            validated=bool(summary.get("validated")),
            status="stopped early" if stopped_early else status,
            steps=int(steps) if steps is not None else max([0, *last]),
            initial=summary.get("start") or {},
            final=run.metrics,
            plan=run.plan,
            events=run.events,
            summary=summary,
            fault_before_training=any(found.step is None and found.severity != "note" for found in run.diagnoses),
        )

    def column(self, name: str) -> Values:
        """Give a column as float64, empty where there is none."""
        values = self.columns.get(name)
        return np.zeros(0) if values is None else np.asarray(values, np.float64)

    def noise_scales(self) -> list[Stretch]:
        """Give the gradient noise scale over the run, from what was measured beside its steps."""
        columns = [self.column(name) for name in ("step", *NOISE)]
        return noise_scales(*(column.tolist() for column in columns)) if all(map(len, columns)) else []

    def recorded(self, name: str) -> tuple[Values, Values]:
        """Give the steps and values of a figure where it was recorded, values that are not finite included."""
        x, y = self.column("step"), self.column(name)
        if not len(y):
            return y, y
        present = ~np.isnan(y)
        taken = np.isfinite(self.column("learning_rate")) if "learning_rate" in self.columns else present
        if "/" not in name:  # recorded at every step: where a step has a rate, a NaN is a value and not a gap
            present |= taken
        elif name.startswith(TERM):  # a term may come and go: its NaN is a value where the loss is not finite either
            present |= taken & ~np.isfinite(self.column("loss"))
        return x[present], y[present]

    def criterion(self) -> tuple[Values, Values]:
        """Give the validations of the criterion, the better of raw and averaged weights at each step."""
        x, y = self.recorded(f"validation/{self.select}")
        averaged = self.column(f"ema/{self.select}")
        if len(averaged):
            validated = np.isin(self.column("step"), x)
            costs = np.stack([self.cost(y), self.cost(averaged[validated])])
            y = self.cost(np.where(np.isnan(costs).all(0), np.nan, np.nan_to_num(costs, nan=np.inf).min(0)))
        finite = np.isfinite(y)
        return x[finite], y[finite]

    def cost(self, values: Any) -> Any:
        """Turn values of the criterion into costs, of which less is better, and back."""
        return -values if self.mode == "max" else values

    def better(self, first: float, second: float) -> bool:
        """Tell whether the first value of the criterion is better than the second."""
        return first > second if self.mode == "max" else first < second

    def training_losses(self, step: int | None = None) -> Values:
        """Give the last finite training losses up to a step, or to the end: those of a fiftieth of the run, at least five."""
        x, y = self.recorded("loss")
        if step is not None:
            x, y = x[x <= step], y[x <= step]
        return y[np.isfinite(y)][-max(FEWEST_LOSSES, self.steps // 50) :]

    def training_loss(self, step: int | None = None) -> float:
        """Give the training loss around a step, or at the end: the mean of `training_losses`."""
        losses = self.training_losses(step)
        return float(losses.mean()) if len(losses) else math.nan

    def memorised(self, step: int | None = None) -> bool:
        """Tell whether around a step, or at the end, the training loss is so far below the validation loss that the model must
        know its training examples by heart."""
        x, y = self.recorded("validation/loss")
        y = y[np.isfinite(y) & (x <= (math.inf if step is None else step))]
        return bool(self.validated and len(y) and _is_below(self.training_loss(step), float(y[-1]), MEMORISED))

    def worsened(self) -> Worsened | None:
        """Find where the criterion was best, if that was before the last fifth of the run and it is clearly worse there."""
        x, y = self.criterion()
        if not self.validated or len(y) < 4 or self.status == "running":
            return None
        best = int(np.argmin(self.cost(y)))
        improvement = abs(y[best] - y[0])
        last_fifth = float(np.median(y[x >= LATE_SHARE * x[-1]]))
        worse = self.cost(last_fifth) - self.cost(y[best])
        limit = max(NEGLIGIBLE * improvement, min(RELEVANT * improvement, RELEVANT_OF_BEST * abs(y[best])))
        if best == 0 or x[best] >= LATE_SHARE * x[-1] or worse < limit:
            return None
        step = int(x[best])
        losses = self.training_loss(step), self.training_loss()
        return Worsened(step, float(y[best]), last_fifth, *losses, self._why_worsened(step))

    def last_if_best_at_start(self) -> float | None:
        """Give the criterion at the end where it is clearly worse there, and no validation was better than that at the start."""
        x, y = self.criterion()
        if not self.validated or len(y) < 2 or x[0] != 0 or int(np.argmin(self.cost(y))) != 0:
            return None
        return float(y[-1]) if self.cost(y[-1]) - self.cost(y[0]) > RELEVANT * abs(y[0]) else None

    def _why_worsened(self, step: int) -> Literal["overfitting", "steps too long", ""]:
        before, last = self.training_losses(step), self.training_losses()
        x, y = self.recorded("validation/loss")
        late = y[np.isfinite(y) & (x >= LATE_SHARE * self.last_step)]
        if not len(late) or min(len(before), len(last)) < 2:
            return ""
        validation, change = float(np.median(late)), float(last.mean() - before.mean())
        noise = CLEAR * math.hypot(_standard_error(before), _standard_error(last))
        fell = change < -noise and _is_below(float(last.mean()), validation, GAP)
        if fell or _is_below(float(last.mean()), validation, MEMORISED):
            return "overfitting"
        return "steps too long" if change > noise else ""

    def fell_steadily_but_little(self) -> bool:
        """Tell whether the loss fell steadily but hardly at all: steps go in the right direction and are far too short.

        Progress is measured against the sum of the rates, so that a rate that falls to zero does not look like a loss that has
        levelled off.
        """
        x, y = self.recorded("validation/loss")
        steps, rates = self.recorded("learning_rate")
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        if (
            any(_is_trouble(event) for event in self.events)
            or self.status != "finished"
            or len(y) < 5
            or not len(rates)
        ):
            return False
        fall = y[0] - y[-1]
        summed_rates = np.interp(x, steps, np.cumsum(np.nan_to_num(rates)), left=0.0)
        late_fall = np.interp(summed_rates[-1] / 2, summed_rates, y) - y[-1]
        falling = float((np.diff(y) < 0).mean()) >= STEADY
        return bool(0 < fall <= SMALL_FALL * abs(y[0]) and falling and late_fall >= STILL_FALLING * fall)

    @property
    def last_step(self) -> int:
        """The step of the last validation."""
        x, _ = self.criterion()
        return int(x[-1]) if len(x) else self.steps

    def epochs(self, step: float) -> str:
        """Say a step in epochs, where an epoch's length is known."""
        length = None if self.plan is None else self.plan.steps_per_epoch
        return f"{step / length:.3g} {'epoch' if step == length else 'epochs'}" if length else ""

    def metric_name(self, metric: str) -> str:
        """Name a metric for people."""
        name = printable(metric.replace("_", " "))
        return f"{'validation' if self.validated else 'evaluated training'} loss" if metric == "loss" else name

    def change_text(self) -> str:
        """Say where the criterion ended and where it began."""
        before, after = self.initial.get(self.select, math.nan), float(self.final.get(self.select, math.nan))
        return f"{self.value_text(after)} at the end, {self.value_text(before)} at the start"

    def worsened_text(self, worsened: Worsened) -> str:
        """Say when the criterion was best and what became of it."""
        return (
            f"The {self.metric_name(self.select)} was best at step {worsened.step:,} of {self.last_step:,}"
            f" ({self.value_text(worsened.best)}) and about {self.value_text(worsened.last_fifth)} over the last fifth of the run"
        )

    def value_text(self, value: float) -> str:
        """Say a value of the criterion."""
        return format_metric(self.select, value)


def _standard_error(values: Values) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _is_below(training: float, validation: float, share: float) -> bool:
    """Tell whether a training loss is lower than a validation loss by more than a share of it."""
    return training < validation - share * abs(validation)


def _is_trouble(event: Event) -> bool:
    """Tell whether something went wrong at an event: a rollback, a batch that was left out, or a critical finding."""
    return event.kind == "rollback" or "batch" in event.data or event.data.get("severity") == "critical"
