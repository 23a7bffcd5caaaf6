"""In a notebook the progress is one line that updates, seldom enough for the browser."""

from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures
from thalweg.see.notebook import REFRESH_SECONDS, NotebookProgress


class Hands:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Line:
    """Stands in for IPython's display and the handle that it gives."""

    def __init__(self):
        self.shown = []

    def __call__(self, content, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(content["text/plain"])
        return self

    def update(self, content, raw):
        self.shown.append(content["text/plain"])


def walk(steps, seconds, events=()):
    clock, line = Hands(), Line()
    progress = NotebookProgress(line, clock)
    progress.begin(Plan(steps=steps), 0, True)
    progress.validated(0, {"loss": 2.5, "accuracy": 0.5})
    for step in range(1, steps + 1):
        clock.now += seconds
        progress.step(StepFigures(step, 0.25, 0.01, 1.0, examples=8))
        for event in events:
            progress.event(step, *event)
    progress.end()
    return line.shown


def test_the_line_says_step_loss_validation_and_time_left():
    clock, line = Hands(), Line()
    progress = NotebookProgress(line, clock)
    progress.begin(Plan(steps=40), 0, True)
    progress.validated(0, {"loss": 2.5, "accuracy": 0.5})
    for step in range(1, 41):
        clock.now += REFRESH_SECONDS
        if step == 20:
            progress.validated(20, {"loss": 1.5, "accuracy": 0.75})
        progress.step(StepFigures(step, 0.25, 0.01, 1.0, examples=8))
    progress.end()
    assert line.shown[0] == "step 0 of 40"
    assert line.shown[10] == "step 10 of 40: loss 0.25, 15 s left"  # that from before the first step is no more
    assert line.shown[20] == "step 20 of 40: loss 0.25, validation loss 1.5, accuracy 75 %, 10 s left"
    assert line.shown[-1] == "step 40 of 40: loss 0.25, validation loss 1.5, accuracy 75 % (step 20)"


def test_updates_are_few_whatever_the_speed():
    assert len(walk(10_000, REFRESH_SECONDS / 1000)) == 12


def test_events_are_printed_and_routine_is_not(capsys):
    walk(2, 0.0, [("rollback", "Went back to step 10000."), ("checkpoint", "written"), ("interrupt", "stopped")])
    assert capsys.readouterr().out == "Went back to step 10,000.\n" * 2
