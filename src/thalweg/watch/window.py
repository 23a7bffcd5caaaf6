"""The window: the figures of the steps so far, as far as symptoms and causes ask for them, in bounded memory."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.records.step_figures import StepFigures
from thalweg.watch.lost_terms import LostTerms, lost_terms

LENGTH = 128  # losses and gradient norms
SMOOTHING = 0.9  # decay of the smoothed loss
START_LOSSES = 5  # losses whose mean is `start`: one alone may be a lucky batch
MIN_LOSSES = 10  # fewer say nothing about the best smoothed loss or about outliers
RECENT = 10  # steps
OUTLIER = 2.0  # a loss so many times as far above the median as the largest before it is an outlier
ARMED = 64  # steps from which on a single loss or gradient can be a spike
LOSS_SPIKE = 3.0  # likewise, of a spike: 0 to 0.4 in a thousand healthy steps
NORM_SPIKE = 2.0  # the same of a gradient's norm
SOON_ARMED = 16  # steps from which on one FAR_OUT times as far above them is a spike already
FAR_OUT = 4.0
# A loss so many times the median, and above the last few, may be of a batch with bad examples, which is looked at: at most once
# in so many steps, and in a sixteenth of those so far. Examples that come again are among the largest losses of a window.
ODD, ODD_LAST, ODD_EVERY = 3.0, 4, 16
LATEST = 16  # spikes, and other rare figures, that are kept
BY_PARAMETER = 8  # steps whose gradients are kept parameter by parameter
BLOCKS = 64  # means of the losses since the beginning; of as many every two become one, so that they reach back to it
UPSET = 1.5  # times the loss at the start: more at a step is abnormal
EASY = 0.5  # of the highest learning rate so far: with less the rate is no longer at its height
ALIVE = 0.3  # of it: with more the rate is alive
RESTING = 0.01  # of it: with less the descent stands still
FEW_EXAMPLES = 8  # of a batch: with fewer, its loss, its mean output and its idle units say little of the others
FIRST = 16  # steps in which a rate too high shows itself
COURSE = 48  # steps by which one rate is compared with another
STEADY = 4  # steps for which it must not have risen, to be judged
FRESH = 0.85  # of the loss of one fixed answer for all: what starts below that has learnt before
FEWEST_TRIES = 6  # of quartered steps
FIXED = 4  # losses of one fixed answer, each of one batch, that are averaged

Norms = npt.NDArray[np.float64]


class Place(NamedTuple):
    """A parameter as causes see it: its name, its shape, how many come before it in the model, its weight decay, and whether that
    is part of the gradient (coupled) or a step of its own; of its format the relative distance to the next number, and the
    largest."""

    name: str
    shape: tuple[int, ...]
    depth: int = 0
    weight_decay: float = 0.0
    couples: bool = False
    resolution: float = 0.0
    largest: float = math.inf

    @staticmethod
    def of(name: str, tensor: Tensor, depth: int, weight_decay: float, couples: bool) -> Place:
        """Describe a parameter."""
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return Place(name, tuple(tensor.shape), depth, weight_decay, couples)
        format_ = torch.finfo(tensor.dtype)
        return Place(name, tuple(tensor.shape), depth, weight_decay, couples, format_.eps, format_.max)


class Block(NamedTuple):
    """Some steps in a row: the last of them, and the means of their losses and of their rates."""

    step: int
    loss: float
    rate: float


class Validated(NamedTuple):
    """A validation: after which step, its loss, and the smoothed training loss then."""

    step: int
    loss: float
    training: float


class Trend:
    """The losses since the beginning as means of blocks of steps, all of one length: 32 to 63 of them, however long the run."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.length = 1  # steps of a block
        self._open = [0.0, 0.0, 0.0]  # of the one that is not full: count, sums of losses and of rates

    def add(self, step: int, loss: float, rate: float) -> None:
        """Add a step."""
        open_ = self._open
        open_[0] += 1
        open_[1] += loss
        open_[2] += rate
        if open_[0] >= self.length:
            self.blocks.append(Block(step, open_[1] / open_[0], open_[2] / open_[0]))
            self._open = [0.0, 0.0, 0.0]
            if len(self.blocks) == BLOCKS:
                self.length *= 2
                self.blocks = [_joined(one, two) for one, two in zip(self.blocks[::2], self.blocks[1::2], strict=True)]

    def since(self, step: float) -> list[Block]:
        """Give the blocks that end after a step."""
        return [block for block in self.blocks if block.step > step]

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {"blocks": [list(block) for block in self.blocks], "length": self.length, "open": list(self._open)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s values."""
        self.blocks = [Block(int(step), *rest) for step, *rest in state["blocks"]]
        self.length, self._open = state["length"], list(state["open"])


def _joined(one: Block, two: Block) -> Block:
    return Block(two.step, (one.loss + two.loss) / 2, (one.rate + two.rate) / 2)


def mean_of(blocks: Sequence[Block]) -> tuple[float, float]:
    """Give the mean of the losses of some blocks, and its standard error by how they differ."""
    mean, deviation = _mean_and_deviation([block.loss for block in blocks])
    return mean, deviation / math.sqrt(max(1, len(blocks) - 1))


class Fall(NamedTuple):
    """How far the loss fell from the first half of some blocks to the second, the standard error of that, and the mean after."""

    size: float
    error: float
    after: float


def fall_of(blocks: Sequence[Block]) -> Fall:
    """Compare the halves of some blocks, at least two."""
    half = len(blocks) // 2
    (before, error_before), (after, error_after) = mean_of(blocks[:half]), mean_of(blocks[half:])
    return Fall(before - after, math.hypot(error_before, error_after), after)


class Shortened(NamedTuple):
    """What steps and quarters of them do to the next batch's loss, as shares of it: the mean change by a whole step and by a
    quarter, and the standard error of the latter."""

    whole: float
    quarter: float
    error: float


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Give both, in floats: `statistics.pstdev` calculates in fractions, a hundred times as long."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) * (value - mean) for value in values) / len(values))


class Window:
    """The figures of the steps so far: the last ones each, those before as means.

    Values that are not finite are left out, since one NaN would make the means NaN, and so is a single outlier among the
    losses: one bad batch is no trend. The second of two outliers in a row is included.

    - `step`, `loss`, `gradient_norm`, `rate`, `skipped`, `memory`, `examples`: of the last step, see `StepFigures`; `is_finite`:
      loss and gradient were, and it was taken; `was_outlier`: its loss stood out; `loss_excess`, `norm_excess`: how many times as
      far above the median as the largest of those before, 0 where it is not above that.
    - `initial_loss`: before training, if it was measured, on many examples; `start`: the larger of it and the first loss, or else
      the mean of the first losses; `constant_loss`: that of one fixed answer for all examples, where it is known.
    - `losses`, `gradient_norms`: of the last steps, outliers left out alike; `smoothed`: the running mean of the loss; `best`:
      its least, which is `start` until there are MIN_LOSSES; `recent`: loss and running mean of the last ten steps; `count`: of
      all losses.
    - `trend`: of the losses since the beginning; `top_rate`: the highest learning rate so far; `total`: how many steps there
      will be, where that is known.
    - `knows_gradient`: whether gradient norms are given at all; `places`: the parameters, in the order of all norms;
      `not_stepped`: names of those that want a gradient and that no optimiser steps; `frozen`: the share of the model's weights
      that want none; `finds_rate`: whether the rule finds its own learning rate;
      `began_trained`: whether the weights looked trained at the start; `by_parameter`: the norms of the last steps'
      gradients, `first_by_parameter` the first's; `weight_norms`, `update_norms`, `gradient_ratios`: the last that were measured,
      and `first_weight_norms` the first.
    - `spikes`: the steps of the last spikes; `is_odd`: the last loss is far above the usual one, and it is time to look at single
      examples; `upset`: the first step at which something was abnormal, and what.
    - `first`: the first loss; `first_losses`: the first 16; `alive_at`: the last step at which the rate was above 0.3 of its
      highest; `rests_since`: the step from which on it is below a hundredth of that.
    - `lengths`: the steps whose length was tried on the next batch, and which multiple of it lowers that batch's loss most;
      `parts`: likewise, how much such a step, and a quarter of it, change the loss, as shares;
      `fixed_answers`: losses of one fixed answer for all examples of such a batch.
    - `validations`: the last ones.
    - `terms`: of the last step's loss, by name, where it has some; `lost_terms`: which of them are not finite, and since when.
    """

    def __init__(self) -> None:
        self.step = 0
        self.loss = math.nan
        self.gradient_norm = math.nan
        self.rate = math.nan
        self.skipped = False
        self.examples = 0  # of the batch; 0 where that is not known
        self.memory: Mapping[str, int] = {}  # bytes in use, by whose they are; empty where this step did not read them
        self.is_finite = True
        self.was_outlier = False
        self.loss_excess = 0.0
        self.norm_excess = 0.0
        self.initial_loss: float | None = None
        self.start: float | None = None
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.gradient_norms: deque[float] = deque(maxlen=LENGTH)
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self.smoothed = math.nan
        self.best = math.inf
        self.count = 0
        self.trend = Trend()
        self.top_rate = 0.0
        self.total: int | None = None
        self.knows_gradient = True  # false of histories that hold no gradient norms
        self.places: tuple[Place, ...] = ()
        self.not_stepped: tuple[str, ...] = ()
        self.frozen = 0.0
        self.finds_rate = False
        self.lowered_at = -1  # the latest step that was undone for a rate too high
        self.tries_rates = False  # whether other rates can be tried from the beginning of the run
        self.began_trained = False
        self.by_parameter: deque[Sequence[float]] = deque(maxlen=BY_PARAMETER)
        self.first_by_parameter: Sequence[float] | None = None
        self.weight_norms: Norms | None = None
        self.first_weight_norms: Norms | None = None
        self.update_norms: Norms | None = None
        self.gradient_ratios: deque[tuple[int, Norms]] = deque(maxlen=LATEST)
        self.spikes: deque[int] = deque(maxlen=LATEST)
        self.is_odd = False
        self.odd_at = 0  # the last step at which it was so
        self.upset: tuple[int, str] | None = None
        self.lengths: deque[tuple[int, float]] = deque(maxlen=LATEST)
        self.parts: deque[tuple[int, float, float]] = deque(maxlen=LATEST)
        self.fixed_answers: deque[float] = deque(maxlen=FIXED)
        self.rose_at = 0  # the last step at which the rate was higher than before
        self.rests_since: int | None = None  # the step from which on it is next to nothing
        self.first: float | None = None  # the first loss
        self.first_losses = list[float]()  # of the first steps, as far as a course goes
        self.alive_at = 0  # the last step at which the rate was well above that
        self.validations: deque[Validated] = deque(maxlen=BLOCKS)
        self.terms: Mapping[str, float] = {}
        self.lost_terms: LostTerms | None = None
        self._norm_stood_out = False
        self._sum = 0.0
        self._weight = 0.0

    def push(self, figures: StepFigures, *, is_usual: bool = False) -> None:
        """Add one step; `is_usual`: it is known that it is taken and finite, and neither loss nor norm stands out;
        the norm may not have been measured then, and is NaN."""
        loss, gradient_norm, skipped = figures.loss, figures.gradient_norm, figures.skipped
        if figures.learning_rate > self.rate:
            self.rose_at = figures.step
        self.step, self.rate = figures.step, figures.learning_rate
        self.loss, self.skipped = loss, skipped
        self.memory, self.examples = figures.memory, figures.examples
        self.terms = figures.terms
        if figures.terms:
            self.lost_terms = lost_terms(figures.step, figures.terms, self.lost_terms)
        if self.rate > self.top_rate:
            self.top_rate = self.rate
        if self.rate >= ALIVE * self.top_rate:
            self.alive_at = self.step
        if not self.rate < RESTING * self.top_rate:
            self.rests_since = None
        elif self.rests_since is None:
            self.rests_since = self.step
        if is_usual:
            self.loss_excess = self.norm_excess = 0.0
            self.is_finite, self.is_odd, self.was_outlier, self._norm_stood_out = True, False, False, False
            self._add(loss)
            if gradient_norm >= 0.0:
                self.gradient_norm = gradient_norm
                self._add_norm(figures)
            return
        self.gradient_norm = gradient_norm
        finite_loss, finite_norm = math.isfinite(loss), math.isfinite(gradient_norm)
        self.first = loss if self.first is None else self.first
        if figures.step <= COURSE and finite_loss:
            self.first_losses.append(loss)
        self.is_finite = finite_loss and (finite_norm or not self.knows_gradient) and not skipped
        self.loss_excess = self.norm_excess = 0.0
        self.is_odd = finite_loss and self._is_odd(loss)
        if self.is_odd:
            self.odd_at = self.step
        if finite_loss:
            after_outlier = self.was_outlier
            self.loss_excess = _excess(loss, self.losses)
            self.was_outlier = self.loss_excess > OUTLIER
            if after_outlier or not self.was_outlier:
                self._add(loss)
        if finite_norm and not skipped:
            after_outlier = self._norm_stood_out
            self.norm_excess = _excess(gradient_norm, self.gradient_norms)
            self._norm_stood_out = self.norm_excess > OUTLIER
            self._add_norm(figures, counts=after_outlier or not self._norm_stood_out)
        if figures.weight_norms is not None:
            self._measured(figures)
        self._note_upsets(figures)

    def _is_odd(self, loss: float) -> bool:
        losses = self.losses
        if len(losses) < ODD_LAST or (self.odd_at and self.step < self.odd_at + max(ODD_EVERY, self.step // ODD_EVERY)):
            return False
        if loss <= max(losses[k] for k in range(-ODD_LAST, 0)):
            return False
        return loss > ODD * statistics.median(losses) > 0

    def _measured(self, figures: StepFigures) -> None:
        assert figures.weight_norms is not None
        self.weight_norms = figures.weight_norms.numpy().astype(np.float64)
        if self.first_weight_norms is None:
            self.first_weight_norms = self.weight_norms
        if figures.update_norms is not None:
            self.update_norms = figures.update_norms.numpy().astype(np.float64)
        if figures.gradient_ratios is not None:
            self.gradient_ratios.append((figures.step, figures.gradient_ratios.numpy().astype(np.float64)))

    def _note_upsets(self, figures: StepFigures) -> None:
        excess = max(self.loss_excess / LOSS_SPIKE, self.norm_excess / NORM_SPIKE)
        if (self.count > ARMED and excess > 1) or (self.count > SOON_ARMED and excess > FAR_OUT):
            self.spikes.append(figures.step)
        if self.upset is None and self.count > 1:
            if not self.is_finite:
                self.upset = figures.step, "loss or gradient were not finite"
            elif self.start is not None and figures.loss > UPSET * self.start > 0:
                self.upset = figures.step, f"the loss was {figures.loss / self.start:.3g} times that at the start"

    def mean_and_deviation(self) -> tuple[float, float] | None:
        """Give mean and standard deviation of the losses before the last ten, None where there are too few."""
        before = list(self.losses)[:-RECENT]
        return _mean_and_deviation(before) if len(before) >= RECENT else None

    @property
    def faded(self) -> list[int]:
        """Numbers of the parameters that had a gradient at the first step, and none in any of the last ones."""
        first, last = self.first_by_parameter or (), self.by_parameter
        if not last or len(last[-1]) != len(first):
            return []
        return [k for k, norm in enumerate(first) if norm > 0 and not any(norms[k] > 0 for norms in last)]

    @property
    def is_at_height(self) -> bool:
        """Whether the learning rate is near the highest so far: neither warming up nor decayed."""
        return self.rate >= EASY * self.top_rate > 0

    @property
    def has_few_examples(self) -> bool:
        """Whether the batch is known to be too small to speak for others."""
        return 0 < self.examples < FEW_EXAMPLES

    @property
    def is_steady(self) -> bool:
        """Whether it is, and has not risen in the last steps."""
        return self.is_at_height and self.step > self.rose_at + STEADY

    @property
    def constant_loss(self) -> float | None:
        """The mean of the last `fixed_answers`: of the first ones the answer itself may not be learnt yet."""
        known = [loss for loss in self.fixed_answers if math.isfinite(loss)]
        return sum(known) / len(known) if known else None

    @property
    def starts_trained(self) -> bool:
        """Whether the network had learnt before: its weights looked trained, some are frozen, or it begins below what one fixed
        answer for all gives."""
        if self.began_trained or self.frozen > 0:
            return True
        return self.start is not None and self.constant_loss is not None and self.start < FRESH * self.constant_loss

    def shortened(self, last: int = LATEST, since: float = 0) -> Shortened | None:
        """Give what the last tries of whole and quartered steps say, from a step on; None of fewer than six."""
        known = [(whole, quarter) for step, whole, quarter in self.parts if step >= since]
        tried = [pair for pair in known if math.isfinite(pair[0]) and math.isfinite(pair[1])][-last:]
        if len(tried) < FEWEST_TRIES:
            return None
        quarter, deviation = _mean_and_deviation([quarter for _, quarter in tried])
        whole = sum(whole for whole, _ in tried) / len(tried)
        return Shortened(whole, quarter, deviation / math.sqrt(len(tried) - 1))

    def _add(self, loss: float) -> None:
        self.count += 1
        self.losses.append(loss)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self.smoothed = self._sum / self._weight
        self.recent.append((loss, self.smoothed))
        self.trend.add(self.step, loss, self.rate)
        if self.initial_loss is not None and self.count == 1:
            self.start = self.best = max(self.initial_loss, loss)
        elif self.initial_loss is None and self.count <= START_LOSSES:
            self.start = self.best = statistics.fmean(self.losses)
        elif self.count >= MIN_LOSSES:
            self.best = min(self.best, self.smoothed)

    def _add_norm(self, figures: StepFigures, *, counts: bool = True) -> None:
        if counts:
            self.gradient_norms.append(figures.gradient_norm)
        if len(figures.gradient_norms):
            self.by_parameter.append(figures.gradient_norms)
            self.first_by_parameter = self.first_by_parameter or figures.gradient_norms

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {
            "step": self.step,
            "expected": self.initial_loss,
            "start": self.start,
            "losses": list(self.losses),
            "norms": list(self.gradient_norms),
            "recent": [list(pair) for pair in self.recent],
            "best": self.best,
            "seen": self.count,
            "stood_out": self.was_outlier,
            "norm_stood_out": self._norm_stood_out,
            "sum": self._sum,
            "weight": self._weight,
            "trend": self.trend.state_dict(),
            "top_rate": self.top_rate,
            "by_parameter": [list(norms) for norms in self.by_parameter],
            "first_by_parameter": None if self.first_by_parameter is None else list(self.first_by_parameter),
            "weights": [_listed(norms) for norms in (self.first_weight_norms, self.weight_norms, self.update_norms)],
            "ratios": [[step, norms.tolist()] for step, norms in self.gradient_ratios],
            "spikes": list(self.spikes),
            "odd_at": self.odd_at,
            "upset": None if self.upset is None else list(self.upset),
            "lengths": [list(tried) for tried in self.lengths],
            "parts": [list(tried) for tried in self.parts],
            "fixed_answers": list(self.fixed_answers),
            "rate": self.rate,
            "rests_since": self.rests_since,
            "alive_at": self.alive_at,
            "began_trained": self.began_trained,
            "first": self.first,
            "first_losses": list(self.first_losses),
            "rose_at": self.rose_at,
            "validations": [list(validated) for validated in self.validations],
            **({"lost_terms": self.lost_terms.state()} if self.lost_terms is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s values; those that a checkpoint of an earlier version does not hold begin anew."""
        self.start, self.best, self._sum, self._weight = state["start"], state["best"], state["sum"], state["weight"]
        self.initial_loss, self.count, self.was_outlier = state["expected"], state["seen"], state["stood_out"]
        self.step = state.get("step", self.step)
        self._norm_stood_out = state.get("norm_stood_out", False)
        self.losses = deque(state["losses"], maxlen=LENGTH)
        self.gradient_norms = deque(state["norms"], maxlen=LENGTH)
        self.recent = deque([(loss, smoothed) for loss, smoothed in state.get("recent", [])], maxlen=RECENT)
        self.smoothed = self._sum / self._weight if self._weight else math.nan
        self.trend = Trend()
        if "trend" in state:
            self.trend.load_state_dict(state["trend"])
        self.top_rate = state.get("top_rate", 0.0)
        self.by_parameter = deque(state.get("by_parameter", []), maxlen=BY_PARAMETER)
        self.first_by_parameter = state.get("first_by_parameter")
        norms = [_unlisted(values) for values in state.get("weights", [None] * 3)]
        self.first_weight_norms, self.weight_norms, self.update_norms = norms
        ratios = [(int(step), np.array(values)) for step, values in state.get("ratios", [])]
        self.gradient_ratios = deque(ratios, maxlen=LATEST)
        self.spikes = deque(state.get("spikes", []), maxlen=LATEST)
        self.odd_at = int(state.get("odd_at", 0))
        upset = state.get("upset")
        self.upset = None if upset is None else (int(upset[0]), str(upset[1]))
        self.lengths = deque([(int(step), multiple) for step, multiple in state.get("lengths", [])], maxlen=LATEST)
        self.parts = deque([(int(step), *changes) for step, *changes in state.get("parts", [])], maxlen=LATEST)
        self.fixed_answers = deque(state.get("fixed_answers", []), maxlen=FIXED)
        self.rests_since, self.first, self.alive_at = (
            state.get("rests_since"),
            state.get("first"),
            state.get("alive_at", 0),
        )
        self.first_losses = list(state.get("first_losses", []))
        self.began_trained = state.get("began_trained", False)
        self.rate, self.rose_at = state.get("rate", math.nan), int(state.get("rose_at", 0))
        validations = [Validated(int(step), *losses) for step, *losses in state.get("validations", [])]
        self.validations = deque(validations, maxlen=BLOCKS)
        lost = state.get("lost_terms")
        self.lost_terms = None if lost is None else LostTerms.from_state(lost)


def _excess(value: float, before: deque[float]) -> float:
    """Say how many times as far above the median a value is as the largest of those before it; 0 where it is below that."""
    # Only the largest so far can be an outlier, and that is a cheap test.
    if len(before) < MIN_LOSSES or value <= (highest := max(before)):
        return 0.0
    middle = statistics.median(before)
    return (value - middle) / (highest - middle) if highest > middle else math.inf


def _listed(norms: Norms | None) -> list[float] | None:
    return None if norms is None else norms.tolist()


def _unlisted(values: Sequence[float] | None) -> Norms | None:
    return None if values is None else np.array(values)
