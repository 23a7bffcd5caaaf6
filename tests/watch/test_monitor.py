import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.records import json_values
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.monitor import MOST_ATTEMPTS, Monitor
from thalweg.watch.probe import NotMeasuredError, Probe


def taken(step, loss, norm, rate, skipped):
    return StepFigures(step, loss, rate, norm, skipped=skipped)


def walk(losses, norms=None, rate=0.1, start=math.nan):
    monitor = Monitor()
    monitor.expect(start)
    for step, loss in enumerate(losses, 1):
        found = monitor.observe(taken(step, loss, 1.0 if norms is None else norms[step - 1], rate, False))
        if found:
            return found[0]
    return None


def noisy(count, level, spread, seed):
    generator = random.Random(seed)
    return [level(step) * math.exp(generator.gauss(0, spread)) for step in range(count)]


HEALTHY = {
    "a fall": lambda step: 2.3 * math.exp(-step / 100) + 0.05,
    "a plateau": lambda step: 2.3,
    "a slow fall": lambda step: 2.3 - step / 2000,
    "a rise at first, in warm-up": lambda step: (
        2.3 * (1 + 0.5 * math.exp(-(((step - 20) / 10) ** 2))) if step < 60 else 1.0
    ),
    "a fall to nothing": lambda step: 2.3 * math.exp(-step / 15) + 1e-6,
}


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("shape", HEALTHY)
def test_a_healthy_loss_raises_no_alarm(shape, spread):
    for seed in range(20):
        assert walk(noisy(800, HEALTHY[shape], spread, seed)) is None


SINGLE = {
    "squares of noise": lambda g: g.gauss(0, 1) ** 2,
    "spread over decades": lambda g: math.exp(g.gauss(0, 1)),
    "mostly easy, some hard": lambda g: 0.02 if g.random() < 0.9 else 10 * g.random(),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_losses_of_single_examples_hardly_ever_raise_one(kind):
    # Five hundred steps each on a plateau, where nothing pulls the loss below its start.
    runs = [random.Random(seed) for seed in range(40)]
    assert sum(walk([SINGLE[kind](generator) for _ in range(500)]) is not None for generator in runs) <= 2


@pytest.mark.parametrize("growth", [1.5, 2.0, 4.0, 81.0])
def test_a_loss_that_explodes_from_the_first_step_on_is_found_before_it_overflows(growth):
    assert walk([2.3 * growth**step for step in range(20)]).step <= 14


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_a_loss_that_runs_away_is_found_soon(spread):
    for seed in range(20):
        losses = noisy(100, lambda step: 2.3 * math.exp(-step / 50), spread, seed)
        losses += noisy(60, lambda step: 0.3 * math.exp(step / 5), spread, seed + 100)
        found = walk(losses)
        assert found.symptom == "diverging"
        assert 100 < found.since <= found.step < 135
        assert found.evidence["smoothed_loss"]["value"] > found.evidence["smoothed_loss"]["threshold"]


def test_a_loss_a_hundredfold_is_not_waited_for():
    assert walk([2.0] * 20 + [900.0] * 10).step == 24


@pytest.mark.parametrize("far", [100.0, 1e4, 1e12])
def test_a_jump_at_the_first_step_is_found_where_the_start_was_measured(far):
    generator = random.Random(0)
    found = walk([14.0] + [far * generator.uniform(1, 2) for _ in range(50)], start=12.0)
    assert found.step <= 11


@pytest.mark.parametrize("kind", SINGLE)
def test_a_lucky_first_example_is_no_start_where_the_start_was_measured(kind):
    runs = [random.Random(seed) for seed in range(40)]
    assert [walk([1e-9] + [SINGLE[kind](g) for _ in range(200)], start=1.0) for g in runs] == [None] * 40


def test_one_bad_batch_is_no_divergence():
    assert walk([2.0, 1.5] * 20 + [60.0] + [1.5] * 40) is None


def test_a_loss_below_zero_may_go_on_falling_and_is_found_when_it_climbs():
    assert walk([-float(step) for step in range(100)]) is None
    assert walk([-float(step) for step in range(50)] + [float(step) * 5 for step in range(60)]).symptom == "diverging"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_found_at_once(loss):
    found = walk([2.0, 1.9, loss])
    assert (found.symptom, found.step, found.severity) == ("non-finite", 3, "critical")
    assert "the loss is not finite" in found.cause


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_found_at_once(norm):
    found = walk([2.0, 1.9], [1.0, norm])
    assert (found.symptom, found.step) == ("non-finite", 2)
    assert "the gradient is not finite" in found.cause


def test_a_step_that_the_optimiser_left_out_is_found():
    assert Monitor().observe(taken(1, 2.0, 1.0, 0.1, True))[0].symptom == "non-finite"


def test_a_diagnosis_comes_with_a_cure():
    found = walk([2.0] * 30 + [math.nan], [1.0 + step / 100 for step in range(31)], rate=0.4)
    assert found.cure.rollback
    assert found.cure.rate_factor == 0.5
    assert found.cure.clip_norm == pytest.approx(1.27)
    assert "lower the rate from 0.4 by a factor of 0.5" in found.cure.action


def test_attempts_at_one_place_grow_bolder_and_end():
    monitor = Monitor()
    factors = []
    while not monitor.exhausted:
        factors.append(monitor.observe(taken(40, math.nan, 1.0, 0.1, False))[0].cure.rate_factor)
    assert factors == [0.5**n for n in range(1, MOST_ATTEMPTS + 2)]


def test_a_step_that_stands_after_all_is_no_attempt_and_looks_for_no_other_rate_after_it():
    monitor = Monitor()
    for step in (40, 41):
        (found,) = monitor.observe(taken(step, math.nan, 1.0, 0.1, False))
        assert found.cure.rate_factor == 0.5
        assert monitor.recovering > 0
        monitor.stands(step)
        assert (monitor.attempts, monitor.recovering, monitor.failed_at, monitor.undone_at) == (0, 0, -1, -1)


def test_another_place_starts_anew():
    monitor = Monitor()
    for _ in range(3):
        monitor.observe(taken(40, math.nan, 1.0, 0.1, False))
    assert monitor.observe(taken(60, math.nan, 1.0, 0.1, False))[0].cure.rate_factor == 0.5


def test_only_a_good_state_is_worth_going_back_to():
    monitor = Monitor()
    for step in range(1, 30):
        monitor.observe(taken(step, 1.0, 1.0, 0.1, False))
    assert monitor.healthy
    monitor.observe(taken(30, 9.0, 1.0, 0.1, False))
    monitor.observe(taken(31, 9.0, 1.0, 0.1, False))
    monitor.observe(taken(32, 9.0, 1.0, 0.1, False))
    assert not monitor.healthy


losses = st.floats(1e-6, 1e6) | st.just(math.nan)


@given(st.lists(losses, max_size=60), st.lists(losses, max_size=30))
def test_going_on_from_saved_values_changes_nothing(before, after):
    one, other = Monitor(), Monitor()
    for step, loss in enumerate(before):
        one.observe(taken(step, loss, 1.0, 0.1, False))
    other.load_state_dict(json_values.decode(json_values.encode(one.state_dict())))
    for step, loss in enumerate(after, len(before)):
        assert str(one.observe(taken(step, loss, 1.0, 0.1, False))) == str(
            other.observe(taken(step, loss, 1.0, 0.1, False))
        )
    assert str(one.state_dict()) == str(other.state_dict())


def test_the_state_of_an_earlier_version_is_read() -> None:
    one, other = Monitor(), Monitor()
    for step in range(27):
        one.observe(taken(step, 2.0, 1.0, 0.1, False))
    state = one.state_dict()
    old = ("best", "sum", "weight", "losses", "norms", "expected", "start", "seen", "stood_out")
    state = {
        "window": {name: state["window"][name] for name in old},
        "attempts": 1,
        "failed_at": 5,
        "causes": {"diverging": {"above": [1] * 7}},
    }
    other.load_state_dict(json_values.decode(json_values.encode(state)))
    assert other.window.smoothed == one.window.smoothed
    assert (other.attempts, other.failed_at) == (1, 5)


def test_after_going_back_the_count_of_attempts_is_kept():
    monitor = Monitor()
    fresh = monitor.state_dict()
    monitor.observe(taken(5, math.nan, 1.0, 0.1, False))
    monitor.load_state_dict(fresh, keep_attempts=True)
    assert (monitor.attempts, monitor.failed_at) == (1, 5)
    monitor.load_state_dict(fresh)
    assert (monitor.attempts, monitor.failed_at) == (0, -1)


def noting(name, severity="warning", rank=50, cure=None, at=range(10**6)):
    def question(window):
        return Diagnosis(name, f"{name} it is.", severity, step=window.step) if window.step in at else None

    return Cause(name, "a test", rank=rank, during=each_step(question), cure=cure and (lambda window, attempt: cure))


def observed(monitor, steps):
    return [[found.name for found in monitor.observe(taken(step, 1.0, 1.0, 0.1, False))] for step in steps]


def test_what_lets_the_step_stand_is_found_once_an_episode():
    monitor = Monitor([noting("odd", at=(3, 4, 5, 14, 40))])
    assert [step for step, found in enumerate(observed(monitor, range(60))) if found] == [3, 40]


def test_a_known_episode_is_known_after_resuming_too():
    one, other = Monitor([noting("odd")]), Monitor([noting("odd")])
    assert observed(one, range(3)) == [["odd"], [], []]
    other.load_state_dict(json_values.decode(json_values.encode(one.state_dict())))
    assert observed(other, range(3, 6)) == [[], [], []]


def test_findings_are_ranked_by_severity_and_then_by_the_causes_rank():
    monitor = Monitor([noting("c"), noting("b", rank=1), noting("a", "note"), noting("d", "critical")])
    assert observed(monitor, [1]) == [["d", "b", "c", "a"]]


def test_of_cures_that_undo_the_step_only_the_first_is_applied():
    back, note = Cure("Go back.", rollback=True), Cure("Mind.")
    monitor = Monitor(
        [noting("late", rank=9, cure=back), noting("first", rank=1, cure=back), noting("aside", cure=note)]
    )
    found = monitor.observe(taken(1, 1.0, 1.0, 0.1, False))
    assert [diagnosis.name for diagnosis in found] == ["first", "aside"]
    assert monitor.attempts == 1


def test_leaving_a_batch_out_is_no_attempt_with_the_rate():
    monitor = Monitor([noting("spoilt", cure=Cure("Leave it out.", skip_batch=True), at=(5,))])
    observed(monitor, range(6))
    assert (monitor.attempts, monitor.failed_at) == (0, 5)


def failing(*_):
    raise ZeroDivisionError("by nought")


class Unwritable:
    pass


BROKEN = {
    "fails": Cause("broken", "a test", during=each_step(failing)),
    "gives a text": Cause("broken", "a test", during=each_step(lambda window: "odd")),
    "an unknown severity": Cause(
        "broken", "a test", during=each_step(lambda window: Diagnosis("odd", "it is.", "fatal"))
    ),
    "evidence that cannot be written": Cause(
        "broken", "a test", during=each_step(lambda window: Diagnosis("odd", "it is.", evidence={"x": Unwritable()}))
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_cause_that_fails_is_left_out_and_the_others_are_asked_on(case):
    monitor = Monitor([BROKEN[case], noting("sound")])
    with pytest.warns(RuntimeWarning, match="The cause 'broken' failed and is left out of the rest of this run"):
        assert observed(monitor, [1]) == [["sound"]]
    assert observed(monitor, range(2, 30))[-1] == []  # without another warning


def asked(name, answer, symptoms=("non-finite",), **more):
    """A cause that a symptom is explained by: gives `answer`, a text or None, or raises it."""

    def question(symptom, window, probe):
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else symptom.explained(answer)

    return Cause(name, "a test", symptoms=symptoms, question=question, **more)


def test_a_cure_that_fails_is_said_and_the_finding_stands():
    odd = replace(noting("odd"), cure=failing)
    with pytest.warns(RuntimeWarning, match="'odd' failed and proposes no cure"):
        (found,) = Monitor([odd]).observe(taken(1, 1.0, 1.0, 0.1, False))
    assert (found.name, found.cure) == ("odd", None)


def test_of_a_step_that_cannot_stand_the_first_cause_that_answers_is_given_and_what_was_asked_before():
    causes = [
        asked("last", " last", rank=9),
        asked("first", None, rank=1),
        asked("second", NotMeasuredError("a closure"), rank=2),
        asked("third", ", by the third", rank=3),
        asked("elsewhere", " elsewhere", symptoms=("spiky",), rank=0),
    ]
    (found,) = Monitor(causes).observe(taken(3, math.nan, 1.0, 0.1, False))
    assert (found.name, found.symptom, found.severity) == ("third", "non-finite", "critical")
    assert found.cause == "the loss is not finite (nan), by the third."
    assert found.ruled_out == ("first",)
    assert found.not_measured == ("second: a closure",)


def test_a_question_that_fails_is_not_asked_again():
    monitor = Monitor([asked("broken", ZeroDivisionError("by nought"), rank=1), asked("sound", " soundly", rank=2)])
    with pytest.warns(RuntimeWarning, match="The cause 'broken' failed and is left out of the rest of this run"):
        assert [found.name for found in monitor.observe(taken(1, math.nan, 1.0, 0.1, False))] == ["sound"]
    assert [found.name for found in monitor.observe(taken(30, math.nan, 1.0, 0.1, False))] == ["sound"]  # no warning


def test_what_a_finding_explains_is_named_as_its_consequence():
    causes = [asked("cause", "", explains=("effect",), rank=2), asked("effect", "", rank=1)]
    causes = [replace(cause, symptoms=("spiky",)) for cause in causes]
    monitor = Monitor(causes)
    found = []
    for step in range(1, 200):
        found += monitor.observe(taken(step, 90.0 if step in (80, 110, 140) else 1.0 + step % 2 / 10, 1.0, 0.1, False))
    assert [(each.name, each.severity, each.consequences) for each in found][-1] == ("cause", "warning", ("effect",))


@pytest.mark.parametrize("what", ["others_along", "constant_loss"])
def test_an_error_of_the_users_code_in_a_measurement_beside_the_steps_ends_nothing(what):
    asked = []

    class Failing(Probe):
        def others_along(self):
            asked.append("others_along")
            if what == "others_along":
                raise AttributeError("no `weight_mask`")
            return lambda multiple: 1.0 - multiple / 100

        def constant_loss(self):
            asked.append("constant_loss")
            raise AttributeError("no `weight_mask`")

    monitor = Monitor()
    for step in range(1, 61):
        monitor.observe(taken(step, 1 / step, 1.0, 0.1, False), Failing())
    assert what in asked
    assert [*monitor.window.fixed_answers] == []
