"""Progress tells what matters, costs next to nothing, and keeps control characters to terminals."""

import errno
import io
import time

import pytest
from rich.console import Console

from thalweg import schedule
from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures
from thalweg.see.live import (
    LINE_SECONDS,
    REFRESH_SECONDS,
    VALIDATION_SECONDS,
    LineProgress,
    Pace,
    RichProgress,
    make_progress,
)


class Hands:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def taken(step, loss, rate, examples):
    return StepFigures(step, loss, rate, gradient_norm=1.0, examples=examples)


def terminal(width=120, **options):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, **options)


def walk(progress, clock, steps, seconds=0.01, total=1000):
    progress.begin(Plan(steps=total), 0)
    for step in range(1, steps + 1):
        clock.now += seconds
        progress.step(taken(step, 1.0 / step, 0.01, 32))


def test_the_bar_says_loss_validation_rate_speed_and_time_left():
    clock, console = Hands(), terminal()
    progress = RichProgress(console, clock)
    progress.begin(Plan(steps=100), 0)
    for step in range(1, 51):
        clock.now += 1.0
        progress.step(taken(step, 0.25, 0.0012, 64))
        if step == 40:
            progress.validated(40, {"loss": 2.5, "accuracy": 0.5})
    last = console.file.getvalue().split("\r")[-1]
    for words in (
        "50%",
        "loss 0.25",
        "validation loss 2.5, accuracy 50 % (step 40)",
        "rate 0.0012",
        "64 examples/s",
        "50 s left",
    ):
        assert words in last, (words, last)
    progress.end()


def test_a_resumed_bar_begins_where_the_run_stopped_and_times_this_part_alone():
    clock, console = Hands(), terminal()
    progress = RichProgress(console, clock)
    progress.begin(Plan(steps=100), 80)
    clock.now += 10
    progress.step(taken(90, 0.5, 0.1, 32))
    assert "90%" in console.file.getvalue()
    assert "10 s left" in console.file.getvalue()
    progress.end()


def test_the_picture_changes_ten_times_a_second_at_most(monkeypatch):
    clock = Hands()
    progress = RichProgress(terminal(), clock)
    drawn = []
    monkeypatch.setattr(progress, "_draw", lambda: drawn.append(clock.now))
    walk(progress, clock, 1000, seconds=0.001)
    assert len(drawn) == pytest.approx(1000 * 0.001 / REFRESH_SECONDS, abs=1)
    progress.end()


@pytest.mark.parametrize("make", [lambda: RichProgress(terminal()), lambda: LineProgress(io.StringIO())])
def test_a_step_costs_under_two_microseconds(make):
    progress = make()
    progress.begin(Plan(steps=10**6), 0)
    best = min(timed(progress, 5000) for _ in range(10))
    progress.end()
    assert best < 2e-6


def timed(progress, count):
    steps = [taken(step, 1.0, 0.1, 32) for step in range(count)]
    start = time.process_time()
    for figures in steps:
        progress.step(figures)
    return (time.process_time() - start) / count


@pytest.mark.parametrize("width", [20, 40, 70, 200])
def test_the_bar_stays_on_one_line_however_narrow_the_terminal(width):
    clock, console = Hands(), terminal(width)
    progress = RichProgress(console, clock)
    progress.begin(Plan(steps=10), 0)
    progress.validated(0, {f"metric {k}": 0.5 for k in range(20)})
    clock.now += 5
    progress.step(taken(1, 1.0, 0.1, 32))
    assert "\n" not in console.file.getvalue()
    progress.end()


def test_events_stand_above_the_bar_as_they_are_and_the_small_ones_are_left_out():
    console = terminal()
    progress = RichProgress(console, Hands())
    progress.begin(Plan(steps=10), 0)
    progress.event(3, "rollback", "went [bold]back[/bold] \x1b[31m")
    progress.event(3, "checkpoint", "written")
    progress.event(3, "interrupt", "stopped")  # which the exception says
    progress.end()
    assert "stopped" not in console.file.getvalue()
    assert "went [bold]back[/bold] [31m" in console.file.getvalue()
    assert "written" not in console.file.getvalue()


def test_nothing_stays_redirected_or_running_after_the_end(capsys):
    import sys
    import threading

    before = sys.stdout, sys.stderr, threading.active_count()
    progress = RichProgress(terminal(), Hands())
    progress.begin(Plan(steps=10), 0)
    assert threading.active_count() == before[2]
    progress.end()
    progress.end()
    assert (sys.stdout, sys.stderr, threading.active_count()) == before


def test_plain_lines_come_every_few_seconds_without_control_characters():
    clock, stream = Hands(), io.StringIO()
    progress = LineProgress(stream, clock)
    walk(progress, clock, 1000, seconds=1 / 32)
    progress.event(1000, "note", "a\x1b[2Kb\rc\nd")
    progress.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) == int(1000 / 32 / LINE_SECONDS) + 1
    assert all(c.isprintable() for line in lines for c in line)
    assert lines[0].startswith("step 160 of 1,000: loss ")
    assert lines[0].endswith("rate 0.01, 1,024 examples/s, 26 s left")
    assert lines[-1] == "a[2Kb c d"


def test_validations_give_lines_of_their_own_but_not_a_flood_and_the_last_is_always_said():
    clock, stream = Hands(), io.StringIO()
    progress = LineProgress(stream, clock)
    progress.begin(Plan(steps=100), 0)
    for step in range(1, 101):
        clock.now += 0.025
        progress.step(taken(step, 0.5, 0.01, 32))
        progress.validated(step, {"loss": 1 / step})
    progress.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) == int(100 * 0.025 / VALIDATION_SECONDS) + 1
    assert "evaluated loss 0.01," in lines[-1]


@pytest.mark.parametrize(
    ("validation", "figures", "words"),
    [
        (True, {"loss": 0.5}, "loss 0.25, validation loss 0.5, rate"),
        (False, {"loss": 0.5}, "loss 0.25, evaluated training loss 0.5, rate"),
        (None, {"loss": 0.5}, "loss 0.25, evaluated loss 0.5, rate"),
        (None, {"loss": 0.5, "accuracy": 0.9}, "loss 0.25, validation loss 0.5, accuracy 90 %, rate"),
    ],
)
def test_a_loss_is_called_a_validation_loss_only_where_there_are_validation_data(validation, figures, words):
    clock, stream = Hands(), io.StringIO()
    progress = LineProgress(stream, clock)
    progress.begin(Plan(steps=2), 0, validation)
    clock.now += 1
    progress.step(taken(1, 0.25, 0.01, 32))
    progress.validated(1, figures)
    progress.end()
    assert words in stream.getvalue()
    bar = RichProgress(terminal(), clock)
    bar.begin(Plan(steps=2), 0, validation)
    bar.step(taken(1, 0.25, 0.01, 32))
    bar.validated(1, figures)
    clock.now += 1
    bar.step(taken(2, 0.25, 0.01, 32))
    assert words.split(", ")[1] in bar.console.file.getvalue()
    bar.end()


DISPLAYS = [lambda clock: RichProgress(terminal(200), clock), lambda clock: LineProgress(io.StringIO(), clock)]


def shown(progress):
    """All that was shown, and the last of it."""
    stream = progress.console.file if isinstance(progress, RichProgress) else progress.stream
    return stream.getvalue(), stream.getvalue().strip().split("\r")[-1].splitlines()[-1]


def begun(make, steps=1000):
    clock = Hands()
    progress = make(clock)
    progress.begin(Plan(steps=steps), 0, True)

    def step(number, loss=1.0):
        clock.now += LINE_SECONDS
        progress.step(taken(number, loss, 0.01, 32))

    return progress, step


@pytest.mark.parametrize("make", DISPLAYS)
def test_the_validation_before_the_first_step_is_not_shown_beside_the_loss_of_a_later_one(make):
    progress, step = begun(make)
    progress.validated(0, {"loss": 2.5, "accuracy": 0.1})
    for number in range(1, 4):
        step(number)
    assert "loss 1" in shown(progress)[1]
    assert "validation" not in shown(progress)[0]
    progress.end()


@pytest.mark.parametrize("make", DISPLAYS)
def test_a_validation_of_an_earlier_step_says_of_which(make):
    progress, step = begun(make)
    step(1200)
    progress.validated(1200, {"loss": 0.5})
    step(1201)
    assert "validation loss 0.5 (step 1,200)" in shown(progress)[1]
    progress.end()


@pytest.mark.parametrize("make", DISPLAYS)
def test_a_validation_of_steps_that_were_rolled_back_is_not_shown(make):
    progress, step = begun(make)
    step(40)
    progress.validated(40, {"loss": 77.0})
    step(21)
    assert "77" not in shown(progress)[1]
    step(50)
    progress.validated(50, {"loss": 0.5})
    step(51)
    assert "validation loss 0.5 (step 50)" in shown(progress)[1]
    progress.end()


@pytest.mark.parametrize("make", DISPLAYS)
@pytest.mark.parametrize("first", [[float("inf")], [float("-inf"), float("nan")], [float("nan"), float("inf")]])
def test_a_first_loss_that_is_not_finite_gives_way_to_the_first_that_is(make, first):
    progress, step = begun(make)
    for number, loss in enumerate([*first, 2.0], 1):
        step(number, loss)
    assert "loss 2" in shown(progress)[1]
    progress.end()


@pytest.mark.parametrize("make", DISPLAYS)
def test_losses_that_ran_away_and_were_rolled_back_leave_the_smoothed_loss(make):
    progress, step = begun(make)
    for number, loss in [(1, 2.0), (2, 1e12), (3, 1e15), (2, 2.0), (3, 2.0)]:
        step(number, loss)
    assert "loss 2 " in shown(progress)[1].replace(",", " ")
    progress.end()


def test_an_event_has_its_counts_of_steps_with_commas():
    stream = io.StringIO()
    LineProgress(stream).event(1, "resume", "Went on from step 2797.")
    assert stream.getvalue() == "Went on from step 2,797.\n"


def test_a_loss_that_is_not_finite_does_not_blind_the_smoothed_one():
    clock, stream = Hands(), io.StringIO()
    progress = LineProgress(stream, clock)
    progress.begin(Plan(steps=100), 0)
    for step, loss in enumerate([float("nan"), 1.0, float("inf"), 1.0, float("nan")], 1):
        clock.now += LINE_SECONDS
        progress.step(taken(step, loss, 0.01, 32))
    told = [line.split("loss ")[1].split(",")[0] for line in stream.getvalue().splitlines()]
    assert told == ["nan", "1", "1", "1", "1"]


def test_a_stream_that_cannot_show_a_character_gets_a_question_mark():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    LineProgress(stream).event(1, "note", "é done")
    assert raw.getvalue().decode() == "? done\n"


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "gone")]
)
def test_lines_that_cannot_be_written_do_not_end_the_run(error):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    clock = Hands()
    progress = LineProgress(Gone(), clock)
    walk(progress, clock, 40, seconds=1.0)
    progress.event(40, "rollback", "went back")
    progress.end()


def test_a_descent_without_a_step_ends_in_silence():
    stream = io.StringIO()
    progress = LineProgress(stream, Hands())
    progress.begin(Plan(steps=5), 5)
    progress.end()
    assert stream.getvalue() == ""


def test_a_terminal_gets_the_bar_and_everything_else_the_lines():
    assert isinstance(make_progress(terminal()), RichProgress)
    assert isinstance(make_progress(Console(file=io.StringIO(), force_terminal=False)), LineProgress)
    assert isinstance(make_progress(terminal(_environ={"TERM": "dumb"})), LineProgress)
    assert isinstance(make_progress(), LineProgress)  # under pytest the output is no terminal


@pytest.mark.parametrize("kind", ["bar", "lines"])
@pytest.mark.parametrize(("seconds", "final", "said"), [(1.0, 0.0, True), (0.1, 0.0, False), (1.0, 1.0, False)])
def test_long_runs_that_cool_down_say_where_their_loss_will_end(kind, seconds, final, said):
    clock, stream = Hands(), io.StringIO()
    progress = RichProgress(console := terminal(160), clock) if kind == "bar" else LineProgress(stream, clock)
    progress.begin(Plan(steps=100, schedule=schedule.linear(final=final)), 0, True)
    early = ""
    for step in range(1, 61):
        clock.now += seconds
        if step % 5 == 0:
            progress.validated(step, {"loss": 10 / step})
        progress.step(taken(step, 0.25, 0.0012, 64))
        if step == 20:
            early = (console.file if kind == "bar" else stream).getvalue()
    shown = (console.file if kind == "bar" else stream).getvalue()
    assert "at the end" not in early
    assert ("at the end about 0.1" in shown) is said, shown[-400:]


def test_no_end_is_forecast_of_training_losses_and_what_a_rollback_took_back_does_not_count():
    plan = Plan(steps=100, schedule=schedule.linear())
    pace = Pace(Hands(), total=100, validation=None, plan=plan)
    for step in (10, 20, 30, 40):
        pace.validate(step, {"loss": 1 / step})
    assert not pace.validated_losses
    pace = Pace(Hands(), total=100, validation=True, plan=plan)
    for step in (10, 20, 30, 20):
        pace.validate(step, {"loss": 1 / step})
    assert pace.validated_losses == {10: 0.1, 20: 0.05}
