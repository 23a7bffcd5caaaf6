"""Courses: the rate that they find, that the run stays as it is meanwhile, and that a resumed run finds the same."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from small import classes, plan, same_bits

import thalweg as tw
from thalweg.descent import courses
from thalweg.descent.courses import fall, paired_gain, rise
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.history import Event
from thalweg.watch import cures, monitor
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.window import Window

RAISE = Cure("Raise it.", begin_again=True, by_courses=True, rate_factor=16.0)
LOWER = Cure("Lower it.", by_courses=True, rate_factor=0.25)


def made(rate: float, **knobs: object) -> tw.Plan:
    return plan(**{"rule": "sgd", "learning_rate": rate, "schedule": "constant", "steps": 240, **knobs})


@pytest.fixture
def cure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the first run course after course be asked about at step 60, whatever it is like."""

    def set_cure(of: Cure, severity: str = "warning", at: int = 60) -> None:
        seen = list[float]()

        def question(window: Window) -> Diagnosis | None:
            if window.step != at or (seen and window.rate not in seen):
                return None
            seen.append(window.rate)
            return Diagnosis("odd", "It is odd.", severity, window.step, name="odd", cure=of)  # pyright: ignore[reportArgumentType]

        found = Cause("odd", "a test", during=each_step(question))
        monkeypatch.setattr(monitor, "all_causes", lambda: (found,))

    return set_cure


def told(run: tw.Run) -> Event:
    (event,) = [event for event in run.events if event.message.startswith("Tried learning rates")]
    return event


def distance(best: float) -> tuple[Callable[[float, float], float], Callable[[float], bool]]:
    """Courses that get the further the nearer a factor is to the best one; beyond eight times that they run away."""

    def far(factor: float) -> float:
        return math.inf if factor > 8 * best else abs(math.log(factor / best))

    def gain(one: float, other: float) -> float:
        return 0.0 if far(one) == far(other) else 10 * (far(other) - far(one))

    return gain, lambda factor: math.isinf(far(factor))


@pytest.mark.parametrize("guess", [4.0, 30.0, 300.0])
@pytest.mark.parametrize("best", [5.0, 17.0, 90.0, 1500.0])
def test_a_rate_that_is_raised_comes_near_the_best_from_any_guess(best: float, guess: float) -> None:
    gain, _ = distance(best)
    *_, factor = rise(guess, gain)
    assert best / 4 <= factor <= 4 * best


@pytest.mark.parametrize("best", [0.4, 0.1, 1 / 30, 1 / 300])
def test_a_rate_that_is_lowered_comes_near_the_best_past_those_that_run_away(best: float) -> None:
    *_, factor = fall(*distance(best))
    assert best / 4 <= factor <= 4 * best


@pytest.mark.parametrize("guess", [2.0, 4.0, 30.0, 300.0])
def test_the_best_rate_is_neither_raised_nor_lowered(guess: float) -> None:
    gain, has_failed = distance(1.0)
    assert not list(rise(guess, gain))
    assert not list(fall(gain, has_failed))


def test_courses_are_compared_batch_by_batch() -> None:
    noise = [0.0, 5.0, -3.0, 2.0, -4.0, 1.0] * 8
    one, other = [10 + n for n in noise], [10.1 + n for n in noise[:-1]] + [10.2 + noise[-1]]
    assert paired_gain(one, other, 48) > 2
    assert paired_gain(other, one, 48) == -paired_gain(one, other, 48)
    assert paired_gain(one, other[:20], 48) == math.inf
    assert paired_gain(other[:20], one[:20], 48) == 0


@pytest.mark.parametrize("rule", ["sgd", "adamw", "muon"])
def test_a_rate_far_too_low_is_raised_to_what_gets_furthest_and_the_run_is_one_of_that_rate(
    cure: Callable[..., None], rule: str
) -> None:
    low = {"sgd": 1e-4, "adamw": 1e-5, "muon": 1e-5}[rule]
    cure(RAISE)
    run = tw.train(classes(), made(low, rule=rule))
    assert run.diagnoses[0].severity == "warning"
    changed = [event for event in run.events if event.kind == "rollback"]
    assert [event.step for event in changed] == [0]
    factor = changed[0].data["rate_factor"]
    assert factor > 4
    cure(RAISE, at=9999)
    other = tw.train(classes(), made(low, rule=rule, learning_rate=low * factor))
    assert run.history["loss"].tolist()[1:] == pytest.approx(other.history["loss"].tolist()[1:], rel=1e-6)
    rates, losses = told(run).data["rates"], told(run).data["losses"]
    of_course = losses[min(range(len(rates)), key=lambda k: abs(rates[k] - low * factor))]
    assert other.history["loss"][33:49].mean() == pytest.approx(of_course, rel=1e-5)  # the first row has no loss


@pytest.mark.parametrize("of", [RAISE, LOWER])
def test_a_run_at_a_good_rate_is_the_one_without_the_watch(cure: Callable[..., None], of: Cure) -> None:
    cure(of)
    run = tw.train(classes(), made(0.3))
    assert same_bits(run.model, tw.train(classes(), made(0.3, watch=False)).model)
    assert told(run).data["tried"] > 0
    (found,) = run.diagnoses
    assert found.severity == "note"
    assert found.cure is not None
    assert "goes on as it is" in found.cure.action


def test_a_suspicion_that_no_course_confirms_is_not_said(cure: Callable[..., None]) -> None:
    cure(LOWER, "note")
    run = tw.train(classes(), made(0.3))
    assert not run.diagnoses
    assert same_bits(run.model, tw.train(classes(), made(0.3, watch=False)).model)


def test_a_suspicion_that_was_of_the_wrong_side_names_the_right_one(cure: Callable[..., None]) -> None:
    cure(LOWER, "note")
    run = tw.train(classes(), made(3e-3))
    assert run.diagnoses[0].name == "learning-rate-too-low"
    assert run.diagnoses[0].severity == "warning"


def test_a_run_that_runs_away_begins_again_at_a_rate_that_learns() -> None:
    run = tw.train(classes(), made(300.0))
    assert run.diagnoses[0].name == "learning-rate-too-high"
    good = tw.train(classes(), made(0.3))
    assert run.metrics["loss"] < 1.1 * good.metrics["loss"]


def test_courses_take_no_more_steps_than_the_run(cure: Callable[..., None]) -> None:
    cure(RAISE)
    run = tw.train(classes(), made(1e-7))
    assert 0 < told(run).data["tried"] <= 240


def test_a_memory_that_holds_no_second_model_leaves_the_cure_as_it_was(
    cure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(courses, "Descent", full)
    cure(RAISE)
    run = tw.train(classes(), made(1e-4))
    assert any("could not be tried" in event.message for event in run.events)
    assert [event.data["rate_factor"] for event in run.events if event.kind == "rollback"] == [16.0]


def test_a_run_that_is_stopped_amid_courses_goes_on_bit_for_bit(
    cure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cure(RAISE)
    whole = tw.train(classes(), made(1e-4))
    cure(RAISE)
    compute = courses.compute_gradient

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return compute(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(courses, "compute_gradient", interrupted)
    with pytest.raises(tw.Interrupted, match="tried"):
        tw.train(classes(), made(1e-4), out=tmp_path / "run")
    monkeypatch.setattr(courses, "compute_gradient", compute)
    resumed = tw.resume(tmp_path / "run", classes())
    assert same_bits(whole.model, resumed.model)
    assert whole.history["step"].tolist() == resumed.history["step"].tolist()
    assert told(whole).data == told(resumed).data


@pytest.mark.parametrize("stop_at", [59, 61, 100])
def test_a_run_that_is_stopped_before_or_after_courses_goes_on_bit_for_bit(
    cure: Callable[..., None], tmp_path: Path, stop_at: int
) -> None:
    def stop(model: object, figures: object) -> None:
        steps.append(figures.step)  # pyright: ignore[reportAttributeAccessIssue]
        if len(steps) == stop_at:
            raise KeyboardInterrupt

    cure(RAISE)
    whole = tw.train(classes(), made(1e-4))
    steps = list[int]()
    cure(RAISE)
    with pytest.raises(tw.Interrupted):
        tw.train(classes(), made(1e-4), out=tmp_path / "run", on_step=stop)
    resumed = tw.resume(tmp_path / "run", classes())
    assert same_bits(whole.model, resumed.model)
    assert whole.metrics == resumed.metrics


def test_a_cure_that_lowers_the_rate_asks_for_courses() -> None:
    window = Window()
    window.rate = 0.1
    assert cures.lower_rate_and_clip(window, 1).by_courses
    assert cures.raise_rate(window, 8.0).by_courses


def test_the_plan_of_a_search_takes_no_courses(cure: Callable[..., None]) -> None:
    cure(RAISE)
    searched = made(1e-4).replace(evidence={"learning_rate": tw.Evidence("searched", "a test")})
    run = tw.train(classes(), searched)
    assert not any(event.message.startswith("Tried") for event in run.events)
    assert [event.data["rate_factor"] for event in run.events if event.kind == "rollback"] == [16.0]


def test_a_loss_that_swings_lowers_no_rate_whose_quarter_gets_less_far(cure: Callable[..., None]) -> None:
    cure(Cure("Go back.", rollback=True, by_courses=True, rate_factor=0.5))
    run = tw.train(classes(), made(0.3))
    assert not any(event.kind == "rollback" for event in run.events)
    assert same_bits(run.model, tw.train(classes(), made(0.3, watch=False)).model)
