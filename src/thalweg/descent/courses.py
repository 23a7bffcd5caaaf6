"""Courses: the first steps of a run, taken anew from its first weights with other learning rates, to see which gets furthest.

They are taken in a second model, so that the run itself stays as it is until one of them has proved better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from statistics import fmean, stdev

from thalweg.descent.constant_predictor import constant_predictor_loss
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.memory_history import MemoryHistory
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.recorder import Recorder
from thalweg.descent.selection import measure
from thalweg.descent.state import Descent
from thalweg.descent.stepping import take_step
from thalweg.descent.their_objects import as_found
from thalweg.watch.changes import Changes
from thalweg.watch.window import COURSE

SHARE = 0.2  # of the run, that a course takes at most
JUDGED = 1 / 3  # of its steps, the last ones, by whose losses courses are compared
SURE = 2.0  # standard errors, by which a course has to be better
BETWEEN = 4.0  # factor between rates that are tried; in the end half of the best one is too
FARTHEST = 4096.0  # times the rate, and its inverse
LEARNT = 0.9  # of the loss at the start, or of one fixed answer for all: a course that ends above has learnt nothing
RUN_AWAY = 100.0  # times the loss at the start: a course that comes there is over
NEARLY = 0.97  # of the way down that the furthest course came: the lowest rate that comes so far is taken
AHEAD = 1.25  # times the way that the present rate came: less is not worth another
LOWER = 0.1  # of the validation loss that the run will come to, by which that of a higher rate must be lower
MOST_POINTS = 1000  # of the schedule, by which its mean is taken
MOST_TRIED = 1.0  # of the run's steps, that all courses take together
GUESSED = 0.25, 3  # of them, and courses at least, on a mere suspicion that none has borne out yet


class _SpentError(Exception):
    """No more courses may be taken."""


class Courses:
    """The courses of one run, by the factor on its present learning rate. Each is taken once.

    Arguments:
        descent: the run, which stays as it is; the steps of the courses are added to its `tried`.
        recorder: tells when somebody asks to stop.
        is_guess: whether a mere suspicion is looked into: fewer courses are taken as long as none gets further than the run.
    """

    def __init__(self, descent: Descent, recorder: Recorder, *, is_guess: bool = False) -> None:
        self.descent, self.stop, self.is_guess = descent, recorder.stop_request, is_guess
        self.steps = max(2, min(COURSE, round(SHARE * descent.total_steps)))
        constant, start = constant_predictor_loss(descent.problem), descent.monitor.window.start or math.inf
        self.level, self.nearly = (start, 1.0) if constant is None else (min(start, constant[0]), NEARLY)
        self.losses: dict[float, list[float]] = {}
        self.validated: dict[float, float] = {}
        window, begun = descent.monitor.window, Changes(clip_norm=descent.plan.clip_norm)
        if descent.changes == begun and not descent.skipped_batches and window.step >= self.steps:
            taken = window.first_losses[: self.steps]
            if len(taken) == self.steps:
                self.losses[1.0] = taken  # by the run itself

    def best(self, guess: float, *, has_failed: bool = False) -> float | None:
        """Give the factor on the rate that is best, above 1 where `guess` is and below where that is; None where none gets
        clearly further than the present rate.

        `has_failed`: the run has, so that lower rates at which as little is learnt are passed on the way down.

        Of those that get about as far as the furthest, it is the lowest: what is best for the first steps is too much for later
        ones, if it differs.
        """
        search = rise(guess, self.gain)
        if guess < 1:
            search = fall(self.gain, self.learns_nothing if has_failed else self.runs_away, is_patient=has_failed)
        found = 1.0
        with suppress(_SpentError):
            if guess > 1:
                if guess <= min(self.catches_up, BETWEEN**2):
                    return None  # the run will come as far by its end; a higher guess may be of a rate lower still
                self._of(self.catches_up)  # as without it no rate is raised
            for factor in search:
                self._of(factor)
                found = factor
            if found > 1 and not self._beats_the_end(found):
                return None
            if found not in (1.0, 2.0):
                self._of(found / 2)
        if found == 1.0 or self.runs_away(found):
            return None
        ways = {factor: self.level - self.end(factor) for factor in self.losses}
        chosen = {factor: way for factor, way in ways.items() if (factor > 1) == (guess > 1) and factor != 1.0}
        lead = max(chosen.values())
        if ways.get(1.0, -math.inf) > 0 and lead < AHEAD * ways[1.0]:
            return None
        best = min(factor for factor, way in chosen.items() if way >= min(lead, self.nearly * lead))
        if 1.0 in self.losses and not self.gain(best, 1.0) > SURE:
            return None
        if best < 1:
            return best if self.end(best) < (1.0 if has_failed else LEARNT) * self.level else None
        return best if self._beats_the_end(best) else None

    @cached_property
    def catches_up(self) -> float:
        """The factor at which a course goes as far, in the sum of its rates, as the run will go to its end at its own rate."""
        total, descent = self.descent.total_steps, self.descent
        every = max(1, total // MOST_POINTS)
        mean = fmean(descent.rate(step) for step in range(0, total, every))
        return total * mean / (sum(descent.rate(step) for step in range(self.steps)) or 1.0)

    def _beats_the_end(self, best: float) -> bool:
        """Tell whether a higher rate comes clearly further than the run will at its end, on examples that were not learnt from:
        else it is only faster, and what is learnt faster may well be learnt by heart."""
        end = self.catches_up
        if best <= end or self.runs_away(end):
            return False
        one, other = (self.validated.get(factor, self.end(factor)) for factor in (best, end))
        return other - one > LOWER * abs(other)

    def gain(self, one: float, other: float) -> float:
        """Give by how many standard errors the losses of one factor's course are below another's, batch by batch."""
        return paired_gain(self._of(one), self._of(other), self.steps)

    def runs_away(self, factor: float) -> bool:
        """Tell whether a course did not come to its end."""
        return len(self._of(factor)) < self.steps

    def learns_nothing(self, factor: float) -> bool:
        """Tell whether a course ran away, or ended about where nothing is learnt."""
        return self.runs_away(factor) or not self.end(factor) < LEARNT * self.level

    def end(self, factor: float) -> float:
        """Give the mean of the last losses of a course that was taken; infinity where it ran away."""
        losses = self.losses[factor]
        return math.inf if len(losses) < self.steps else fmean(losses[-_judged(self.steps) :])

    def _of(self, factor: float) -> list[float]:
        if factor not in self.losses:
            self.losses[factor] = self._take(factor)
        return self.losses[factor]

    @property
    def _most_tried(self) -> float:
        total = self.descent.total_steps
        if not self.is_guess or any(self.end(factor) < self.end(1.0) for factor in self.losses if 1.0 in self.losses):
            return MOST_TRIED * total
        return min(MOST_TRIED * total, max(GUESSED[0] * total, GUESSED[1] * self.steps))

    def _take(self, factor: float) -> list[float]:
        descent = self.descent
        if descent.tried + self.steps > self._most_tried:
            raise _SpentError
        with preserve_process_state(), as_found(descent.opened.task):
            course = Descent(descent.opened, descent.plan.replace(watch=False, compile=False))
            course.accumulate = course.batches.accumulate = descent.accumulate
            course.skipped_batches, course.skipped_together = [*descent.skipped_batches], [*descent.skipped_together]
            course.batches.leave_out(descent.batches.left_out)
            course.change(replace(descent.changes, rate_factor=factor * descent.changes.rate_factor))
            silent, losses = Recorder(history=MemoryHistory()), list[float]()
            try:
                while len(losses) < self.steps and course.step < course.total_steps:
                    self.stop.check("Interrupted while other learning rates were tried.")
                    course.set_rate(course.rate())
                    loss, _ = compute_gradient(course, silent)
                    taken = take_step(course, loss)
                    if course.loss_scale.update(loss, taken.skipped):
                        continue
                    if not math.isfinite(loss) or taken.skipped or loss > RUN_AWAY * abs(self.level):
                        break
                    course.step = course.next_step
                    losses.append(loss)
                if len(losses) == self.steps and course.problem.validation is not None:
                    self.validated[factor] = measure(course)["loss"]
            finally:
                course.batches.close()
                descent.tried += len(losses)
        return losses


def rise(guess: float, gain: Callable[[float, float], float]) -> Iterator[float]:
    """Give ever better factors, from `guess` on; smaller ones where that is no better than 1."""
    factor = guess
    while gain(factor, 1.0) <= SURE:
        factor /= BETWEEN
        if factor < 2.0:
            return
    yield factor
    first = factor
    while BETWEEN * factor <= FARTHEST and gain(BETWEEN * factor, factor) > SURE:
        factor *= BETWEEN
        yield factor
    while factor <= first and factor >= 4.0 and gain(factor / 2, factor) > SURE:  # the guess went beyond it
        factor /= 2
        yield factor


def fall(
    gain: Callable[[float, float], float], has_failed: Callable[[float], bool], *, is_patient: bool = True
) -> Iterator[float]:
    """Give ever better factors, each a quarter of the one before; those that fail are passed.

    Of a rate far too high a quarter may be as bad: where `is_patient`, a first step down that does not help is followed by a
    second one.
    """
    best, factor = 1.0, 1 / BETWEEN
    while factor >= 1 / FARTHEST:
        if has_failed(best) or gain(factor, best) > SURE:
            best = factor
            yield factor
        elif best < 1.0 or factor < 1 / BETWEEN or not is_patient:
            return
        factor /= BETWEEN


def paired_gain(one: Sequence[float], other: Sequence[float], steps: int) -> float:
    """Give by how many standard errors the last losses of one course are below those of another; infinity where only the other
    one ran away.

    >>> paired_gain([4.0, 3.0, 1.0, 1.0, 1.5, 1.0], [4.0, 3.0, 2.0, 2.0, 2.5, 2.5], 6) > 2
    True
    """
    if len(one) < steps or len(other) < steps:
        return math.copysign(math.inf, len(one) - len(other)) if len(one) != len(other) else 0.0
    last = _judged(steps)
    differences = [b - a for a, b in zip(one[-last:], other[-last:], strict=True)]
    mean, error = fmean(differences), stdev(differences) / math.sqrt(last)
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def _judged(steps: int) -> int:
    """Give how many of a course's steps, the last ones, it is judged by."""
    return max(2, round(JUDGED * steps))
