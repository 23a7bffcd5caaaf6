"""The contract of a decay shape: claims that hold for every one in `thalweg.schedule` and can be tested for a third party's.

Each claim is a function of a shape that raises AssertionError; `check_shape` runs all of them.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from itertools import product

from thalweg.errors import ScheduleError
from thalweg.schedule import Length, Option, Schedule, Shape, lookup

Claim = Callable[[Shape], None]

TOTALS, WARMUPS = (1, 2, 7, 60, 1000), (0, 0.3, "1 epochs")
EPOCH = 5  # steps


def check_shape(shape: Shape) -> None:
    """Run a shape through the contract, at its options' defaults.

    A third party's must be found by its name: give it an entry point of the group `thalweg.shapes`.

    Raises AssertionError that lists every broken claim.

    >>> from thalweg.schedule import SHAPES
    >>> check_shape(SHAPES["cosine"])
    """
    broken: list[str] = []
    for claim in CLAIMS:
        try:
            claim(shape)
        except Exception as error:  # A claim may break in any way: each is reported.
            broken.append(f"{claim.__name__}: {type(error).__name__}: {error}")
    if broken:
        raise AssertionError(f"{shape.name} breaks {len(broken)} claims of the contract:\n" + "\n".join(broken))


def it_is_found_by_its_name(shape: Shape) -> None:
    """`lookup.get` gives the shape for its name, which is all that a plan records."""
    assert lookup.get(shape.name) is shape, f"{shape.name!r} is the name of another shape"


def it_says_what_it_does(shape: Shape) -> None:
    """A docstring that begins with a sentence, and a line that describes a schedule."""
    first = shape.help.partition("\n")[0]
    assert first.endswith("."), "the docstring does not begin with a sentence in one line"
    text = Schedule(shape.name, 60, 5).describe()
    assert "\n" not in text, "the description has several lines"
    assert "None" not in text, f"the description contains None: {text}"


def it_gives_finite_factors_between_zero_and_the_peak(shape: Shape) -> None:
    """From the first step to far beyond the last, however long the schedule and its warm-up."""
    for schedule in _schedules(shape):
        for step in _steps(schedule):
            factor = schedule.factor(step)
            assert math.isfinite(factor), f"the factor at step {step} of {schedule!r} is {factor}"
            assert 0 <= factor <= 1 + 1e-12, f"the factor at step {step} of {schedule!r} is {factor}"


def it_is_a_pure_function_of_the_step(shape: Shape) -> None:
    """The same factors in whatever order they are asked for, so that a resumed run has the rates of an uninterrupted one."""
    for schedule in _schedules(shape):
        steps = _steps(schedule)
        forward = [schedule.factor(step) for step in steps]
        backward = [copy.deepcopy(schedule).factor(step) for step in reversed(steps)]
        assert forward == backward[::-1], f"{schedule!r} depends on the order in which it is asked"


def it_rises_in_the_warm_up_and_stays_at_its_end(shape: Shape) -> None:
    """The warm-up rises to where the shape begins; from the total on the factor is one and the same."""
    for schedule in _schedules(shape):
        warmup, total = _whole(schedule.warmup), _whole(schedule.total)
        if warmup < total:  # otherwise nothing of the shape is left
            rise = [schedule.factor(step) for step in range(warmup + 1)]
            assert rise == sorted(rise), f"the warm-up of {schedule!r} does not rise"
        ends = {schedule.factor(total + further) for further in (0, 1, 10**6)}
        assert len(ends) == 1, f"{schedule!r} still changes after its end"


def it_comes_back_from_its_record(shape: Shape) -> None:
    """Through a dict and JSON, a pickle, and a deep copy, with lengths of every kind."""
    for schedule in [Schedule(shape.name), Schedule(shape.name, "3 epochs", 0.1), *_schedules(shape)]:
        assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert copy.deepcopy(schedule) == schedule


def it_refuses_options_that_it_does_not_have_and_values_out_of_bounds(shape: Shape) -> None:
    """An unknown name, words for numbers, NaN, and numbers beyond either bound are ScheduleErrors."""
    _refused(shape, "no_such_option", 1.0)
    for name, option in shape.options.items():
        for value in _bad_values(option):
            _refused(shape, name, value)


CLAIMS: tuple[Claim, ...] = (
    it_is_found_by_its_name,
    it_says_what_it_does,
    it_gives_finite_factors_between_zero_and_the_peak,
    it_is_a_pure_function_of_the_step,
    it_rises_in_the_warm_up_and_stays_at_its_end,
    it_comes_back_from_its_record,
    it_refuses_options_that_it_does_not_have_and_values_out_of_bounds,
)


def _schedules(shape: Shape) -> list[Schedule]:
    """Make schedules of several lengths, in steps; lengths that do not fit into one another are left out."""
    schedules: list[Schedule] = []
    for total, warmup in product(TOTALS, WARMUPS):
        try:
            schedules.append(Schedule(shape.name, total, warmup).resolve(steps_per_epoch=EPOCH))
        except ScheduleError:
            continue
    assert schedules, f"no schedule of {TOTALS} steps can be made"
    return schedules


def _steps(schedule: Schedule) -> list[int]:
    total = _whole(schedule.total)
    return [*range(min(total, 100)), total - 1, total, total + 1, 10 * total]


def _whole(length: Length | None) -> int:
    assert isinstance(length, int)
    return length


def _bad_values(option: Option) -> list[object]:
    if option.kind == "choice":
        return ["no such choice", 3]
    if option.kind == "lengths":
        return [3, "soon", ["soon"]]
    if option.kind == "length":
        return ["soon", -1, math.nan]
    low = option.low if option.exclusive else option.low - 1
    high = option.high if option.exclusive else option.high + 1
    return ["many", math.nan, low, high]


def _refused(shape: Shape, name: str, value: object) -> None:
    try:
        Schedule(shape.name, options={name: value})
    except ScheduleError:
        return
    raise AssertionError(f"{name}={value!r} was accepted")
