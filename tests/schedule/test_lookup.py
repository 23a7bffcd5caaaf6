import pickle

import pytest

import thalweg as tw
from thalweg.errors import ScheduleError
from thalweg.schedule import SHAPES, Option, Schedule, lookup, shape


class Point:
    def __init__(self, name, value):
        self.name, self._value = name, value

    def load(self):
        return self._value


@shape(lambda o: f"halved every {o['every']} steps", every=Option(10, kind="integer", low=1))
def halving(span, *, every):
    """Halve every so many steps."""
    return lambda t: 0.5 ** (t // every)


@pytest.fixture
def third_party(monkeypatch):
    points = [Point("halving", halving), Point("no_shape", 3.0), Point("another", halving)]
    monkeypatch.setattr(lookup, "entry_points", lambda group: points if group == "thalweg.shapes" else [])


def test_a_third_partys_shape_makes_schedules(third_party):
    schedule = Schedule("halving", 100, 4, options={"every": 3})
    assert [schedule.factor(step) for step in (4, 6, 7, 10)] == [1.0, 1.0, 0.5, 0.25]
    assert schedule.describe() == "halved every 3 steps over 100 steps, the first 4 in linear warm-up"


def test_a_third_partys_shape_comes_back_from_every_record(third_party, tmp_path):
    schedule = Schedule("halving", "3 epochs", 0.1)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    tw.Plan(schedule=schedule).save(tmp_path / "plan.toml")
    assert tw.Plan.load(tmp_path / "plan.toml").schedule == schedule
    assert tw.Plan(schedule="halving").schedule == Schedule("halving")


def test_options_of_a_third_partys_shape_are_checked(third_party):
    with pytest.raises(ScheduleError, match="`every` of halving is 0, but it must be a number of at least 1"):
        Schedule("halving", options={"every": 0})
    with pytest.raises(ScheduleError, match=r"no option 'evry'\. Did you mean 'every'"):
        Schedule("halving", options={"evry": 3})


def test_third_parties_names_are_offered(third_party):
    assert {"linear", "halving", "sequence"} <= {*lookup.names()}
    with pytest.raises(ScheduleError, match=r"'halvin' is no shape of a schedule\. Did you mean 'halving'"):
        Schedule("halvin")


def test_an_entry_point_that_is_no_shape_or_has_another_name_is_named(third_party):
    with pytest.raises(ScheduleError, match=r"entry point 'no_shape' of group thalweg\.shapes gives a float"):
        Schedule("no_shape")
    with pytest.raises(ScheduleError, match=r"entry point 'another'.* gives the shape 'halving'"):
        Schedule("another")


def test_entry_points_are_not_read_for_our_own_shapes(monkeypatch):
    monkeypatch.setattr(lookup, "entry_points", lambda group: pytest.fail("looked up"))
    for name in SHAPES:
        assert Schedule.from_dict({"shape": name}).shape == name
    assert tw.schedule.sequence(tw.schedule.linear(3)).factor(0) == 1.0


def test_each_argument_of_a_shapes_function_needs_its_option():
    with pytest.raises(
        ScheduleError, match=r"The shape odd takes the options \['depth'\], but @shape describes \['width'\]"
    ):

        @shape("odd", width=Option(1.0))
        def odd(span, *, depth):
            """Fall."""
