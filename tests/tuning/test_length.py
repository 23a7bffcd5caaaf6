"""A run that goes on until it no longer pays."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from tuning_tasks import X, Y, killing_loss, marking_loss, task, task_of_open_length

import thalweg as tw
from thalweg import cli
from thalweg.descent import settle
from thalweg.errors import DivergedError, PlanError, RunError, ScheduleError
from thalweg.records.run_folder import RunFolder
from thalweg.see.advice import next_steps

FIRST = 40
KNOBS = {"batch_size": 16, "rule": "momentum"}
AUTO = {"steps": "auto", "most": 320, "pays": 0.01, "effort": 4.0, "fixed": KNOBS, "seed": 3}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The shortest run has some tens of steps."""
    monkeypatch.setattr(settle, "FIRST_LENGTH", (FIRST, 2000))


def same(one, other, *, but_for=("learning_rate",)):
    """Whether two runs are the same bit for bit, but for what evidence says of how long something took."""
    plans = [run.plan.to_dict() for run in (one, other)]
    for plan in plans:
        for knob in but_for:
            plan["evidence"][knob].get("figures", {}).pop("seconds", None)
    evidence = [plan.pop("evidence") for plan in plans]
    for knob in {**evidence[0], **evidence[1]}:
        assert evidence[0].get(knob) == evidence[1].get(knob), knob
    assert plans[0] == plans[1]
    same_bits(one, other)


def same_bits(one, other):
    assert one.metrics == other.metrics
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one.history.keys() == other.history.keys()
    for name in one.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(one.history[name], other.history[name], err_msg=name)


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "FIRST_LENGTH", (FIRST, 2000))
        return tw.fit(task_of_open_length(), **AUTO)


def test_the_plan_has_its_true_length_and_says_why(whole):
    why = whole.plan.why("steps")
    lengths, costs = why.figures["lengths"], why.figures["costs"]
    assert why.source == "searched"
    assert lengths[:2] == [FIRST, 2 * FIRST]
    assert len(lengths) > 2  # it went on at least once because that pays
    assert whole.plan.steps == lengths[costs.index(min(costs))] == len(whole.history["loss"]) - 1
    assert f"{whole.metrics['loss']:.5g}" == f"{min(costs):.5g}"
    assert why.figures["pays"] == 0.01
    assert "projected" in why.reason or "the most" in why.reason
    assert whole.plan.schedule.shape == "wsd"


def test_the_plan_trained_from_its_start_is_the_run_bit_for_bit(whole):
    same_bits(tw.train(task_of_open_length(), whole.plan), whole)


def test_every_step_that_was_taken_is_counted(tmp_path):
    marks = tmp_path / "marks"

    def say(text):
        if "steps at most" in text:
            marks.touch()

    plan = tw.Plan(learning_rate=0.02, batch_size=16, threads=1, watch=False)  # which calls the loss beside the steps
    run = tw.train(task(loss=marking_loss(marks)), plan, steps="auto", most=160, pays=0.0, say=say)
    assert os.path.getsize(marks) == run.plan.why("steps").figures["steps_taken"]


def stopping_at(number, text="trained"):
    said = []

    def say(line):
        said.append(line)
        if sum(text in one for one in said) == number:
            said.append("")
            raise KeyboardInterrupt

    return say


@pytest.mark.parametrize("numbers", [[1], [4], [3, 5, 6]])
def test_one_that_is_stopped_goes_on_to_the_same_run(numbers, whole, tmp_path):
    with pytest.raises(tw.Interrupted, match="what was found is kept"):
        tw.fit(task_of_open_length(), **AUTO, out=tmp_path / "run", say=stopping_at(numbers[0]))
    for number in numbers[1:]:
        with pytest.raises(tw.Interrupted):
            tw.resume(tmp_path / "run", task_of_open_length(), say=stopping_at(number))
    same(tw.resume(tmp_path / "run", task_of_open_length()), whole)
    assert not (tmp_path / "run" / "candidates").exists()


KILLED = """
import os, sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
from tuning_tasks import STEPS, killing_loss, task_of_open_length
import thalweg as tw
from thalweg import cli
from thalweg.descent import settle
from thalweg.tuning import candidate
settle.FIRST_LENGTH = ({first}, 2000)
candidate.SAVE_SECONDS = 0.0  # a candidate is saved at every step
out = sys.argv[1]
steps = os.environ[STEPS] = out + ".steps"

def say(text):
    if not os.path.exists(steps) and ("going on to" in text or "(kept)" in text):
        with open(steps, "w") as file:
            file.write("." * int(sys.argv[2]))

made = task_of_open_length(loss=killing_loss)
if os.path.exists(out + "/request.json"):
    tw.resume(out, made, say=say)
else:
    tw.fit(made, **{auto!r}, out=out, say=say)
"""


# After the search the trunk goes from step 32 to 64, where a branch leaves it that goes to 80; then to 128, and so on.
@pytest.mark.parametrize("places", [[20], [40], pytest.param([1, 30, 40, 70, 20], marks=pytest.mark.heavy)])
def test_one_that_is_killed_on_its_trunk_or_on_a_branch_goes_on_to_the_same_run(places, tmp_path):
    program = KILLED.format(folder=os.path.dirname(__file__), first=FIRST, auto=AUTO)
    for place in places:
        words = [sys.executable, "-c", program, str(tmp_path / "run"), str(place)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        os.remove(f"{tmp_path / 'run'}.steps")
    said, made = [], task_of_open_length(loss=killing_loss)
    resumed = tw.resume(tmp_path / "run", made, say=said.append)
    assert any(text.endswith("(kept)") for text in said)
    assert not any("begins anew" in text for text in said)
    same(resumed, tw.fit(made, **AUTO))


def test_a_given_plan_is_kept_but_for_its_length_and_where_its_rate_falls():
    plan = tw.Plan(rule="momentum", learning_rate=0.1, batch_size=20, weight_decay=1e-3, seed=5)
    said = []
    run = tw.train(task(), plan, epochs="auto", most=40, say=said.append)
    changed = {
        knob
        for knob in run.plan.to_dict().keys() - {"evidence", "format"}
        if getattr(plan, knob) != getattr(run.plan, knob) and run.plan.why(knob).source not in ("measured", "derived")
    }
    assert changed == {"steps"}
    assert run.plan.why("learning_rate").source == "given"
    assert any("until it no longer pays" in text for text in said)
    same_bits(tw.train(task(), run.plan), run)


def test_a_given_plan_is_trained_on_where_it_was_stopped_and_opened_where_it_is_finished(tmp_path):
    plan, options = tw.Plan(learning_rate=0.02, batch_size=16), {"steps": "auto", "most": 160}
    whole = tw.train(task(), plan, **options)
    with pytest.raises(tw.Interrupted):
        tw.train(task(), plan, **options, out=tmp_path / "run", say=stopping_at(2))
    assert RunFolder.at(tmp_path / "run").holds_request
    run = tw.train(task(), plan, **options, out=tmp_path / "run")
    same(run, whole)
    opened = tw.train(task(), plan, **options, out=tmp_path / "run")
    assert opened.trained is None
    assert opened.metrics == run.metrics
    with pytest.raises(RunError, match="another plan: learning_rate"):
        tw.train(task(), plan.replace(learning_rate=0.01), **options, out=tmp_path / "run")
    tw.train(task(), plan, steps=20, out=tmp_path / "given")
    with pytest.raises(RunError, match="20 steps, which were given"):
        tw.train(task(), plan, **options, out=tmp_path / "given")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


@pytest.mark.parametrize(
    ("parts", "knobs"),
    [
        ({"data": Stream()}, {}),
        ({"data": DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True)}, {"batch_size": None}),
        ({"validation": None}, {}),
        ({"validation": None}, {"holdout": 0.0}),
        ({"metrics": {"accuracy": accuracy}, "select": "accuracy", "mode": "max"}, {}),
        ({}, {"rule": "schedule_free_adamw"}),
        ({}, {"rule": "prodigy"}),
        ({}, {"ema": 0.9}),
        ({}, {"keep": "last"}),
        ({}, {"schedule": tw.schedule.wsd(warmup=5, decay=10, decay_shape="linear")}),
        ({}, {"schedule": tw.schedule.constant(warmup=0.1)}),
        ({}, {"rule": "muon", "weight_decay_schedule": "inverse_time"}),
        ({}, {"rule": "adamw", "weight_decay_schedule": tw.schedule.inverse_time(warmup=0.1, timescale=9)}),
        ({}, {"rule": "adamw", "weight_decay_schedule": tw.schedule.linear(total="3 epochs", final=0.1)}),
    ],
)
def test_it_serves_every_kind_of_task_and_rule(parts, knobs):
    fixed = {"batch_size": 16, "learning_rate": 0.02, **knobs}
    fixed = {knob: value for knob, value in fixed.items() if value is not None}
    run = tw.fit(task(**parts), steps="auto", most=160, fixed=fixed, effort=1)
    assert run.plan.steps in run.plan.why("steps").figures["lengths"]
    assert all(np.isfinite(value) for value in run.metrics.values())
    same_bits(tw.train(task(**parts), run.plan), run)
    for knob in knobs.keys() & {"schedule", "rule", "ema"}:
        assert run.plan.why(knob).source == "given"


def test_callbacks_see_every_step_of_the_run_once():
    seen = []
    run = tw.fit(
        task(),
        steps="auto",
        most=80,
        effort=1,
        fixed={"batch_size": 16},
        on_step=lambda _, figures: seen.append(figures.step),
    )
    assert seen == list(range(1, run.plan.steps + 1))


def test_warm_up_and_decay_of_the_weights_do_not_depend_on_the_length(whole):
    shortest = tw.fit(task_of_open_length(), **{**AUTO, "most": FIRST})
    assert shortest.plan.steps == FIRST
    assert shortest.plan.schedule == whole.plan.schedule
    assert shortest.plan.weight_decay == whole.plan.weight_decay
    assert shortest.plan.constants == whole.plan.constants
    assert shortest.plan.validate_every == whole.plan.validate_every


def test_a_schedule_of_the_decay_is_that_of_the_shortest_run_whatever_the_length():
    given = {"weight_decay_schedule": "inverse_time", "weight_decay": 0.3}
    plan = tw.Plan(rule="muon", learning_rate=0.02, batch_size=16, **given)
    run = tw.train(task_of_open_length(), plan, steps="auto", most=160, pays=0.0)
    assert run.plan.steps > FIRST
    assert run.plan.weight_decay_schedule == tw.schedule.inverse_time(timescale=FIRST // 10)
    same_bits(tw.train(task_of_open_length(), run.plan), run)


@pytest.mark.parametrize(
    "schedule",
    ["linear", tw.schedule.cosine(total=0.5), tw.schedule.sequence(tw.schedule.constant(3), tw.schedule.linear())],
)
def test_a_schedule_of_the_decay_that_depends_on_the_end_is_refused(schedule):
    fixed = {"batch_size": 16, "rule": "adamw", "weight_decay_schedule": schedule}
    with pytest.raises(PlanError, match=r"`weight_decay_schedule` cannot go on.*depends on where the run ends"):
        tw.fit(task(), steps="auto", most=160, effort=1, fixed=fixed)


def test_one_that_overfits_ends_shorter_than_the_shortest_length():
    y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(1))
    made = tw.Task(
        model=lambda: nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)),
        loss=F.cross_entropy,
        data=(X[:24], y),
        validation=(X[100:], Y[100:]),
    )
    run = tw.fit(made, steps="auto", effort=1, fixed={"batch_size": 8, "learning_rate": 0.05})
    figures = run.plan.why("steps").figures
    assert max(figures["lengths"]) == FIRST
    assert len(figures["lengths"]) > 1
    assert run.plan.steps < FIRST
    same_bits(tw.train(made, run.plan), run)


def test_the_cost_is_said_beforehand_with_the_most_that_it_may_be():
    said = []
    tw.fit(task(), **{**AUTO, "most": 100, "effort": 1}, say=said.append)
    (cost,) = (text for text in said if "no longer pays, to" in text)
    assert f"{FIRST} steps of 16 examples first, with no search" in cost
    assert "to 100 steps at most" in cost
    assert tw.verbs.estimate(task(), epochs="auto", most=8, fixed={"batch_size": 20}).startswith(f"{FIRST} steps of 20")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_run_of_a_step_or_two_is_one_too(most):
    run = tw.fit(task(), steps="auto", most=most, effort=1, fixed={"batch_size": 16})
    assert run.plan.steps == most
    same_bits(tw.train(task(), run.plan), run)


def test_seconds_beside_auto_limit_it_all():
    said = []
    tw.fit(task(), steps="auto", seconds=0.2, pays=0.0, effort=1, fixed={"batch_size": 16}, say=said.append)
    assert any("steps at most" in text and "in all" in text for text in said)


def test_by_default_it_goes_on_for_a_hundred_epochs_at_most():
    lines = []
    tw.fit(task(), epochs="auto", effort=1, fixed={"batch_size": 16}, pays=0.9, say=lines.append)
    assert any("to 20,000 steps at most" in text for text in lines)


def test_a_rate_that_does_not_train_is_said():
    schedule = tw.schedule.wsd(warmup=1)
    plan = tw.Plan(rule="gradient_descent", learning_rate=1e8, batch_size=16, watch=False, schedule=schedule)
    made = task(loss=F.mse_loss, model=lambda: nn.Linear(5, 1), data=(X, X[:, :1]), validation=None)
    with pytest.raises(DivergedError, match=r"learning rate of 1e\+08"):
        tw.train(made, plan, steps="auto")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"epochs": "auto", "steps": 100},
            r"Give one budget, not several: epochs=auto, steps=100\. With 'auto', `most`",
        ),
        ({"epochs": "auto", "steps": "auto"}, "Give one budget, not several"),
        ({"epochs": "auto", "pays": -0.1}, r"`pays` is -0\.1, but it is a share of the criterion"),
        ({"epochs": "auto", "pays": 1}, r"`pays` is 1, but it is a share"),
        ({"epochs": "auto", "pays": "much"}, r"`pays` is 'much', but it is a share"),
        ({"epochs": "auto", "pays": float("nan")}, r"`pays` is nan"),
        ({"epochs": "auto", "pays": True}, r"`pays` is True"),
        ({"epochs": "auto", "most": 0}, r"`most` is 0, but it is a number of epochs above zero"),
        ({"epochs": "auto", "most": "10"}, r"`most` is '10', but it is a number of epochs"),
        ({"steps": "auto", "most": 10.5}, r"`most` is 10\.5, but it is a whole number of steps"),
        ({"epochs": 3, "pays": 0.1}, r"`pays` is 0\.1, which goes with epochs='auto'"),
        ({"steps": 30, "most": 60}, r"`most` is 60, which goes with epochs='auto'"),
        ({"seconds": "auto"}, r"`seconds` is 'auto'\. A run that goes on"),
        ({"epochs": "Auto"}, r"`epochs` is 'Auto', but a budget must be a number above zero and finite, or 'auto'"),
        ({"epochs": "auto", "seconds": -1}, r"`seconds` is -1, but a budget"),
    ],
)
def test_what_cannot_be_is_refused_before_the_task_is_opened(options, told):
    def never():
        raise AssertionError

    for call in (tw.fit, tw.tune):
        with pytest.raises(PlanError, match=told):
            call(task(model=never), **options)
    with pytest.raises(PlanError, match=told):
        tw.train(task(model=never), tw.Plan(), **options)


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        ({"schedule": "cosine"}, "'cosine' depends on where the run ends"),
        ({"schedule": tw.schedule.linear(warmup=3)}, "'linear' depends on where the run ends"),
        ({"schedule": tw.schedule.wsd(total=300)}, "has a total of its own"),
        ({"patience": 3}, "`patience` ends a run early"),
    ],
)
def test_knobs_that_end_a_run_otherwise_are_refused(fixed, told):
    with pytest.raises(PlanError, match=told):
        tw.fit(task(), epochs="auto", effort=1, fixed={"batch_size": 16, **fixed})
    with pytest.raises(PlanError, match=told):
        tw.train(task(), tw.Plan(batch_size=16, **fixed), epochs="auto")


def test_a_warm_up_that_does_not_fit_is_said():
    with pytest.raises(ScheduleError, match="longer than"):
        tw.train(task(), tw.Plan(batch_size=16, schedule=tw.schedule.wsd(warmup=50)), steps="auto")


def test_epochs_of_a_stream_say_nothing():
    with pytest.raises(PlanError, match=r"epochs say nothing: give steps='auto'"):
        tw.fit(task(data=Stream()), epochs="auto", most=3, effort=1, fixed={"batch_size": 16})
    with pytest.raises(PlanError, match="less than one step"):
        tw.fit(task(), epochs="auto", most=0.01, effort=1, fixed={"batch_size": 16})


def test_a_search_that_others_share_finds_the_same_length(whole, tmp_path):
    storage, said = tmp_path / "shared.sqlite", []
    plan = tw.tune(task_of_open_length(), **AUTO, storage=storage, study="mine")
    joined = tw.tune(task_of_open_length(), join=f"{storage}/mine", say=said.append)
    for one in (plan, joined):
        assert (one.steps, one.learning_rate, one.schedule) == (
            whole.plan.steps,
            whole.plan.learning_rate,
            whole.plan.schedule,
        )
        assert one.why("steps").figures["costs"] == whole.plan.why("steps").figures["costs"]
    assert sum(text.endswith("(kept)") for text in said) > 4  # nothing is trained again


def test_the_command_takes_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nimport thalweg as tw\nx = torch.randn(100, 3)\n"
        "task = tw.Task(model=lambda: nn.Linear(3, 1), loss=nn.functional.mse_loss, data=(x, x[:, :1]))\n"
    )
    budget = [
        "--epochs",
        "auto",
        "--most",
        "30",
        "--pays",
        "0.1",
        "--seconds",
        "60",
        "--effort",
        "1",
        "--fix",
        "batch_size=8",
    ]
    assert cli.main(["fit", "mine.py", *budget, "--dry-run"]) == 0
    assert "then on until it no longer pays, to 300 steps at most" in capsys.readouterr().out
    assert (
        cli.main(["train", "mine.py", "--steps", "auto", "--most", "90", "--set", "batch_size=8", "--out", "run"]) == 0
    )
    assert tw.Run.open("run", None).plan.why("steps").figures["most"] == 90
    for words, told in ((["--pays", "x"], "'x' is no number"), (["--epochs", "car"], "'car' is no number")):
        with pytest.raises(SystemExit):
            cli.main(["fit", "mine.py", *words])
        assert told in capsys.readouterr().err


def test_the_report_advises_more_only_where_the_most_ended_it(whole):
    def advice(**figures):
        why = whole.plan.why("steps")
        plan = whole.plan.replace(
            evidence={**whole.plan.evidence, "steps": replace(why, figures={**why.figures, **figures})}
        )
        return " ".join(next_steps(replace(whole, plan=plan)))

    steps = whole.plan.steps
    assert "would probably gain another 20%" in advice(most=steps, projected_gain=0.2)
    for others in (
        {"most": steps, "projected_gain": 0.001},
        {"most": 4 * steps, "projected_gain": 0.2},
        {"most": "many"},
    ):
        assert "probably" not in advice(**others)


def test_the_display_shows_the_steps_that_the_length_is_found_with():
    class Shown:
        def __init__(self):
            self.begun, self.steps, self.said = [], 0, []

        def begin(self, plan, step, validation):
            self.begun.append((step, plan.steps))

        def step(self, figures):
            self.steps += 1

        def validated(self, step, figures):
            pass

        def event(self, step, kind, message):
            self.said.append(message)

        def end(self):
            pass

    shown = Shown()
    plan = tw.Plan(learning_rate=0.02, batch_size=16, threads=1)
    run = tw.train(task_of_open_length(), plan, steps="auto", most=80, pays=0.0, progress=shown)
    assert shown.begun[:4] == [(0, 32), (32, 40), (32, 64), (64, 80)]
    assert shown.steps == run.plan.why("steps").figures["steps_taken"] == 64 + 8 + 16
    assert any("going on to 80 steps" in text for text in shown.said)


def test_a_plan_that_is_tuned_has_the_length_that_was_found(whole, tmp_path):
    plan = tw.tune(task_of_open_length(), **AUTO, out=tmp_path / "plan.toml")
    loaded = tw.Plan.load(tmp_path / "plan.toml")
    assert loaded == plan
    assert (plan.steps, plan.schedule) == (whole.plan.steps, whole.plan.schedule)
