import copy
import dataclasses
import math
import pickle
import tomllib

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

import thalweg.schedule as schedules
from thalweg.errors import PlanError, ScheduleError
from thalweg.schedule import SHAPES, Schedule

SHARES = st.floats(0.01, 0.4)
SIMPLE = sorted(set(SHAPES) - {"sequence"})


def lengths(least, most):
    return st.integers(least, most) | SHARES | st.integers(1, 4).map(lambda n: f"{n} epochs")


OPTIONS = {
    "final": st.floats(0, 1),
    "power": st.floats(0.1, 5),
    "timescale": lengths(1, 50),
    "every": lengths(1, 50),
    "decay": st.integers(1, 20) | SHARES,
    "decay_shape": st.sampled_from(["sqrt", "linear", "cosine"]),
    "rise": st.integers(1, 20) | SHARES,
    "start": st.floats(0, 1),
    "period": lengths(1, 60),
    "growth": st.just(1.0) | st.floats(1, 4),
    "factor": st.floats(0.01, 0.99),
    "patience": st.integers(0, 3),
    "mode": st.sampled_from(["min", "max"]),
    "threshold_mode": st.sampled_from(["rel", "abs"]),
    "cooldown": st.integers(0, 3),
    "minimum": st.floats(0, 1),
}


TOTALS = st.none() | st.integers(100, 400) | st.floats(0.2, 0.99) | st.just("90 epochs")


@st.composite
def simple(draw, total=TOTALS):
    shape = draw(st.sampled_from(SIMPLE))
    known = [name for name in SHAPES[shape].options if name in OPTIONS and (shape, name) != ("exponential", "final")]
    options = {name: draw(OPTIONS[name]) for name in known if draw(st.booleans())}
    if shape == "exponential":
        options = draw(st.fixed_dictionaries({draw(st.sampled_from(["final", "gamma"])): st.floats(0.01, 0.99)}))
    if shape == "step" and "every" not in options and draw(st.booleans()):
        options["milestones"] = sorted(draw(st.lists(st.integers(41, 300), max_size=4)))
    schedule = Schedule(
        shape,
        draw(total),
        draw(st.integers(0, 30) | st.floats(0.01, 0.3)),
        draw(st.sampled_from(["linear", "cosine", "exponential"])),
        options,
    )
    return schedule.scaled(draw(st.sampled_from([1.0, 0.25, 3.0])))


@st.composite
def composed(draw):
    parts = draw(st.lists(simple(total=st.integers(100, 150)), max_size=2))
    last = draw(simple(total=st.none() | st.integers(100, 150)))
    return schedules.sequence(*parts, last, warmup=draw(st.integers(0, 20)))


def fits(schedule):
    """Whether a schedule fits into 500 steps: milestones inside the warm-up, say, do not."""
    try:
        schedule.resolve(500, 5)
    except ScheduleError:
        return False
    return True


ANY = (simple() | composed()).filter(fits)


def height(schedule):
    return schedule.peak * max((height(part) for part in schedule.parts), default=1.0)


@given(ANY, st.lists(st.integers(0, 700), min_size=1, max_size=20))
def test_every_factor_is_finite_and_between_zero_and_the_peak(schedule, steps):
    plain = schedule.resolve(500, 5)
    for step in steps:
        factor = plain.factor(step, plain.initial_state())
        assert math.isfinite(factor)
        assert 0 <= factor <= height(schedule) * (1 + 1e-12)


@given(ANY)
def test_a_schedule_comes_back_exactly_from_its_dict_toml_pickle_and_copy(schedule):
    again = Schedule.from_dict(schedule.to_dict())
    assert again == schedule
    assert again.to_dict() == schedule.to_dict()
    assert Schedule.from_dict(tomllib.loads(tomlkit.dumps(schedule.to_dict()))) == schedule
    assert Schedule.from_dict(tomlkit.parse(tomlkit.dumps(schedule.to_dict()))) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule
    assert hash(again) == hash(schedule)


@given(ANY)
def test_what_came_through_toml_is_plain_python(schedule):
    def kinds(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)}.union(*(kinds(item) for item in inner))

    through = Schedule.from_dict(tomlkit.parse(tomlkit.dumps(schedule.to_dict())))
    assert kinds(through.to_dict()) <= {dict, list, str, int, float}


@given(ANY)
def test_its_repr_makes_it_again(schedule):
    assert eval(repr(schedule), {"schedule": schedules}) == schedule


@given(ANY)
def test_resolving_leaves_only_steps_and_twice_is_once(schedule):
    once = schedule.resolve(500, 5)
    assert once.resolve(500, 5) == once
    assert once.resolve(7, 3) == once
    assert once.resolve() == once
    assert isinstance(once.total, int)
    assert isinstance(once.warmup, int)


@given(ANY, st.lists(st.floats(allow_nan=True), min_size=1, max_size=12), st.integers(0, 12))
def test_resumed_from_any_step_it_goes_on_as_if_uninterrupted(schedule, metrics, cut):
    def factors_after(schedule, state, start):
        seen = []
        for i, metric in list(enumerate(metrics))[start:]:
            state = schedule.observe(state, metric, i * 40)
            seen.append(schedule.factor(i * 40, state))
        return seen

    plain = schedule.resolve(500, 5)
    state = plain.initial_state()
    for i, metric in enumerate(metrics[:cut]):
        state = plain.observe(state, metric, i * 40)
    restored = Schedule.from_dict(tomllib.loads(tomlkit.dumps(plain.to_dict())))
    saved = dict(tomllib.loads(tomlkit.dumps(state)))
    assert factors_after(restored, saved, cut) == factors_after(plain, plain.initial_state(), 0)[cut:]


@given(ANY)
def test_it_describes_itself_in_one_line(schedule):
    text = schedule.describe()
    assert "\n" not in text
    assert not text.endswith((",", " "))
    assert "None" not in text


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (schedules.linear(2000, 100), "linear to zero over 2,000 steps, the first 100 in linear warm-up"),
        (schedules.cosine("2 epochs", 50, final=0.1), "cosine to 0.1 of the peak over 2 epochs, the first 50 in linear warm-up"),
        (schedules.constant("3 epochs"), "constant over 3 epochs"),
        (schedules.wsd(1000), "constant, then 1-sqrt to zero in the last 20 %, over 1,000 steps"),
        (schedules.step(every="2 epochs"), "constant but times 0.1 every 2 epochs, over the whole run"),
        (schedules.cosine(0.5).scaled(0.1), "0.1 times: cosine to zero over 50 % of the run"),
        (
            schedules.sequence(schedules.constant(10), schedules.cosine()),
            "first constant over 10 steps, then cosine to zero over the rest",
        ),
    ],
)  # fmt: skip
def test_a_person_can_read_what_it_does(schedule, words):
    assert schedule.describe() == words


def test_lengths_resolve_against_the_run_and_the_own_total():
    plain = schedules.wsd(total=0.5, warmup=0.1, decay="2 epochs").resolve(1000, 25)
    assert (plain.total, plain.warmup, plain.options["decay"]) == (500, 50, 50)
    assert schedules.linear().resolve(77).total == 77
    assert schedules.linear(total=2000).resolve(77).total == 2000


def test_a_share_of_its_own_total_needs_no_run():
    assert schedules.linear(total=100, warmup=0.5).factor(49) == 50 / 51


class TestSequences:
    def test_each_part_counts_its_own_steps_and_the_last_takes_the_rest(self):
        ours = schedules.sequence(schedules.constant(0.5), schedules.linear(), warmup=0.1).resolve(20)
        assert [part.total for part in ours.parts] == [10, 8]
        assert ours.factor(1) == 2 / 3
        assert [ours.factor(step) for step in range(2, 14)] == [1.0] * 11 + [1 - 1 / 8]
        assert ours.factor(20) == 0

    def test_without_an_open_part_it_lasts_as_long_as_its_parts(self):
        assert schedules.sequence(schedules.constant(3), schedules.linear(4), warmup=2).resolve(100).total == 9

    def test_a_sequence_of_sequences_is_the_flat_one(self):
        a, b, c = schedules.cosine(7), schedules.linear(5, final=0.5), schedules.exponential(9, 2)
        nested, flat = schedules.sequence(schedules.sequence(a, b), c), schedules.sequence(a, b, c)
        assert [nested.factor(s) for s in range(25)] == [flat.factor(s) for s in range(25)]

    def test_the_same_part_may_come_twice(self):
        wave = schedules.cosine(5)
        ours = schedules.sequence(wave, wave)
        assert [ours.factor(s) for s in range(5)] == [ours.factor(s) for s in range(5, 10)]

    def test_a_plateau_counts_only_while_its_part_runs(self):
        ours = schedules.sequence(schedules.constant(100), schedules.plateau(patience=0, factor=0.5))
        state = ours.initial_state()
        for step in (10, 20, 30):
            state = ours.observe(state, 1.0, step)
        assert state == ours.initial_state()
        for step in (110, 120):
            state = ours.observe(state, 1.0, step)
        assert ours.factor(50, state) == 1.0
        assert ours.factor(121, state) == 0.5

    @pytest.mark.parametrize(
        ("parts", "total", "words"),
        [
            ((), None, "a sequence has one or more"),
            ((schedules.linear(), schedules.linear(5)), None, "not the last"),
            ((schedules.linear(5), "linear"), None, "must be a schedule"),
            ((schedules.linear(5), schedules.linear(6)), 10, "take 11 steps, but its total is 10"),
            ((schedules.linear(10), schedules.linear()), 10, "nothing is left"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, parts, total, words):
        with pytest.raises(ScheduleError, match=words):
            schedules.sequence(*parts, total=total).resolve()

    def test_only_a_sequence_has_parts(self):
        with pytest.raises(ScheduleError, match="nothing else has any"):
            Schedule("linear", parts=(schedules.linear(5),))


class TestBadInput:
    @pytest.mark.parametrize("total", [0, -1, math.nan, math.inf, 1.5, "soon", True])
    def test_a_total_that_cannot_be(self, total):
        with pytest.raises(ScheduleError, match="`total` of cosine is"):
            schedules.cosine(total)

    @pytest.mark.parametrize("warmup", [-1, math.nan, "soon", None])
    def test_a_warm_up_that_cannot_be(self, warmup):
        with pytest.raises(ScheduleError, match="`warmup` of cosine is"):
            schedules.cosine(100, warmup)

    def test_a_warm_up_longer_than_the_whole(self):
        with pytest.raises(ScheduleError, match="warm-up of 11 steps is longer than the whole cosine schedule of 10"):
            schedules.cosine(10, 11)
        with pytest.raises(ScheduleError, match="shorten"):
            schedules.cosine(warmup="3 epochs").resolve(10, 4)

    @pytest.mark.parametrize("steps", [0, -5, math.nan, 10.5, "many"])
    def test_a_run_of_an_impossible_length(self, steps):
        with pytest.raises(ScheduleError, match="`total_steps` is"):
            schedules.cosine().resolve(steps)

    @pytest.mark.parametrize(
        "entries",
        [
            {"shape": "step", "gamma": 0},
            {"shape": "step", "gamma": 1.0},
            {"shape": "exponential", "gamma": -0.1},
            {"shape": "exponential", "final": 0},
            {"shape": "linear", "final": 1.1},
            {"shape": "linear", "final": "low"},
            {"shape": "polynomial", "power": 0},
            {"shape": "cosine_restarts", "growth": 0.5},
            {"shape": "cosine_restarts", "period": 0},
            {"shape": "plateau", "factor": 1},
            {"shape": "plateau", "patience": 1.5},
            {"shape": "plateau", "patience": -1},
            {"shape": "plateau", "mode": "minn"},
            {"shape": "linear", "peak": 0},
            {"shape": "linear", "warmup_shape": "lineal"},
        ],
    )
    def test_an_option_outside_its_range_is_named(self, entries):
        name = list(entries)[-1]
        with pytest.raises(ScheduleError, match=f"`{name}` of {entries['shape']} is|warm-up|`mode` of plateau"):
            Schedule.from_dict(entries)

    def test_names_that_do_not_exist_get_the_nearest_that_does(self):
        with pytest.raises(ScheduleError, match=r"'lineer' is no shape of a schedule\. Did you mean 'linear'"):
            Schedule.from_dict({"shape": "lineer"})
        with pytest.raises(ScheduleError, match=r"no option 'finall'\. Did you mean 'final'"):
            Schedule.from_dict({"shape": "linear", "finall": 0.1})
        with pytest.raises(ScheduleError, match=r"no option 'warm_up'\. It is called 'warmup' here"):
            Schedule.from_dict({"shape": "linear", "warm_up": 10})

    @pytest.mark.parametrize("entries", [{}, {"total": 3}, 3, None, [1], "linear"])
    def test_a_schedule_is_a_table_with_a_shape(self, entries):
        with pytest.raises(ScheduleError, match="a table with a `shape`"):
            Schedule.from_dict(entries)

    @pytest.mark.parametrize("parts", [3, "linear", {"shape": "linear"}])
    def test_parts_are_a_list(self, parts):
        with pytest.raises(ScheduleError, match="list of schedules"):
            Schedule.from_dict({"shape": "sequence", "parts": parts})

    def test_two_ways_of_saying_it_at_once(self):
        with pytest.raises(ScheduleError, match="not both"):
            schedules.exponential(final=0.1, gamma=0.9)
        with pytest.raises(ScheduleError, match="not both"):
            schedules.step(milestones=[1], every=2)

    @pytest.mark.parametrize("shape", SIMPLE)
    @pytest.mark.parametrize("warmup", [0, 10])
    def test_there_is_no_step_before_the_first(self, shape, warmup):
        with pytest.raises(ScheduleError, match="step -1"):
            Schedule(shape, 100, warmup).factor(-1)

    def test_a_schedule_error_is_a_plan_error(self):
        with pytest.raises(PlanError):
            schedules.linear(-1)


def test_the_record_is_frozen_down_to_its_options():
    ours = schedules.linear(10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.total = 20
    with pytest.raises(TypeError):
        ours.options["final"] = 0.5


def test_a_shape_by_its_bare_name_is_the_functions_default():
    for shape in SIMPLE:
        assert Schedule.from_dict({"shape": shape}) == getattr(schedules, shape)()


def test_every_shape_has_a_function_of_its_name():
    assert set(SHAPES) <= set(schedules.__all__)
