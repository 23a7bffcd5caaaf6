"""A weight decay with a schedule of its own: what a step shrinks weights by, whatever the rate does meanwhile."""

import math
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, same_bits, started, walk, weights
from torch import nn

import thalweg as tw
from thalweg.descent.cooling import cooled_plan
from thalweg.descent.loop import descend
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import Interrupted, PlanError, ScheduleError
from thalweg.schedule import Schedule
from thalweg.tuning import priors
from thalweg.watch.changes import Changes

IN_LOG_TIME = {"weight_decay_schedule": "inverse_time", "weight_decay": 0.5}


def still(model, batch):
    """A loss without a slope: the weights move by their decay alone."""
    return 0.0 * sum(p.sum() for p in model.parameters()) + 1.0


def resting(**changes):
    """A task of a network with a norm, in which nothing but the decay moves weights."""
    return tw.Task(
        model=lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        step=still,
        data=blobs(),
        **changes,
    )


def shrunk(made, task=None):
    """Give by what factor each step shrank each weight that is decayed, and whether others stayed as they were."""
    descent, recorder = started(task or resting(), made)
    names = [name for name, _ in descent.model.named_parameters()]
    before = [p.detach().double() for p in descent.model.parameters()]
    first, factors = list(before), []
    for step in range(1, made.steps + 1):
        walk(descent, recorder, step)
        after = [p.detach().double().clone() for p in descent.model.parameters()]
        factors.append([float((a * b).sum() / (b * b).sum()) for a, b in zip(after, before, strict=True)])
        before = after
    others = [name for name, a, b in zip(names, before, first, strict=True) if torch.equal(a, b)]
    return {name: [one[i] for one in factors] for i, name in enumerate(names)}, others


RATES = {
    "linear": tw.schedule.linear(warmup=5),
    "constant": tw.schedule.constant(),
    "cosine": tw.schedule.cosine(warmup=0.2),
    "in epochs": tw.schedule.linear(total="5 epochs", warmup="1 epochs"),
}


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("rule", ["muon", "adamw", "normuon", "lion"])
@pytest.mark.parametrize("rate", RATES)
def test_a_step_shrinks_matrices_by_peak_rate_times_decay_times_the_schedule_and_nothing_else_by_anything(
    rate, rule, engine
):
    made = plan(rule=rule, engine=engine, schedule=RATES[rate], steps=46, learning_rate=0.02, **IN_LOG_TIME)
    found, still_there = shrunk(made)
    assert still_there == ["0.bias", "1.weight", "1.bias", "2.bias"]
    for name in ("0.weight", "2.weight"):
        for step, factor in enumerate(found[name]):
            is_over = RATES[rate].resolve(46, 6).factor(step) == 0  # of epochs that are over before the run is
            wanted = 0.0 if is_over else 0.02 * 0.5 * 5 / (5 + step)
            assert 1 - factor == pytest.approx(wanted, rel=1e-3, abs=1e-6), (name, step)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", lambda t: 1.0),
        (tw.schedule.linear(final=0.1), lambda t: 0.1 + 0.9 * (1 - t / 30)),
        (tw.schedule.inverse_time(timescale=7), lambda t: 7 / (7 + t)),
        (tw.schedule.inverse_time(warmup=3, timescale=7), lambda t: (t + 1) / 4 if t < 3 else 7 / (7 + t - 3)),
        (
            tw.schedule.sequence(tw.schedule.constant(total=10), tw.schedule.linear()),
            lambda t: min(1, 1 - (t - 10) / 20),
        ),
    ],
)
def test_any_shape_is_followed(schedule, factors):
    made = plan(schedule="linear", learning_rate=0.1, weight_decay=1.0, weight_decay_schedule=schedule)
    found, _ = shrunk(made)
    for step, factor in enumerate(found["0.weight"]):
        assert 1 - factor == pytest.approx(0.1 * factors(step), rel=1e-4)


def test_without_a_schedule_of_its_own_it_falls_with_the_rate():
    made = plan(schedule="linear", learning_rate=0.1, weight_decay=1.0)
    found, _ = shrunk(made)
    for step, factor in enumerate(found["0.weight"]):
        assert 1 - factor == pytest.approx(0.1 * (1 - step / 30), rel=1e-4)


def test_groups_multiply_rate_and_decay_by_their_factors():
    groups = {
        "0.*": tw.Group(learning_rate_factor=0.5, weight_decay_factor=3.0),
        "2.*": tw.Group(weight_decay_factor=0),
    }
    found, still_there = shrunk(plan(groups=groups, schedule="linear", learning_rate=0.1, **IN_LOG_TIME))
    assert "2.weight" in still_there
    for step, factor in enumerate(found["0.weight"]):
        assert 1 - factor == pytest.approx(0.5 * 3.0 * 0.1 * 0.5 * 3 / (3 + step), rel=1e-4)


def test_where_decay_vectors_is_set_biases_and_norms_follow_it_too():
    found, still_there = shrunk(plan(decay_vectors=True, learning_rate=0.1, **IN_LOG_TIME))
    assert still_there == ["1.bias"]  # which is zero
    assert 1 - found["1.weight"][3] == pytest.approx(0.1 * 0.5 / 2, rel=1e-4)


def test_a_rate_that_a_cure_lowered_lowers_it_with_it():
    made = plan(schedule="linear", learning_rate=0.1, **IN_LOG_TIME)
    descent, recorder = started(resting(), made)
    descent.change(Changes(rate_factor=0.25))
    before = descent.model[0].weight.detach().clone()
    walk(descent, recorder, 1)
    assert 1 - float(descent.model[0].weight.detach().mean() / before.mean()) == pytest.approx(
        0.25 * 0.1 * 0.5, rel=1e-4
    )


def test_where_the_rate_is_zero_nothing_moves():
    late = tw.schedule.sequence(tw.schedule.linear(total=10), tw.schedule.constant().scaled(1e-300))
    found, _ = shrunk(plan(schedule=late, learning_rate=0.1, **IN_LOG_TIME))
    assert found["0.weight"][12:] == pytest.approx([1.0] * 18, abs=1e-12)


@pytest.mark.parametrize("knobs", [{"rule": "muon"}, {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2}])
def test_both_engines_take_the_same_steps(knobs):
    ends = []
    for engine in ("cpu", "tensors"):
        made = plan(engine=engine, schedule=tw.schedule.linear(warmup=4), **IN_LOG_TIME, **knobs)
        ends.append(tw.train(classes(), made, progress=False))
    torch.testing.assert_close(weights(ends[0].model), weights(ends[1].model), rtol=1e-4, atol=1e-5)
    constant = made.replace(weight_decay_schedule=None)
    assert not torch.allclose(weights(tw.train(classes(), constant).model), weights(ends[1].model), atol=1e-3)


@pytest.mark.parametrize("rule", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [1, 4, 17, 29])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(stop, rule, tmp_path):
    made = plan(rule=rule, schedule=tw.schedule.linear(warmup=4), **IN_LOG_TIME)
    whole = tw.train(classes(), made, progress=False)

    def stopping(model, figures):
        if figures.step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        tw.train(classes(), made, out=tmp_path / "run", on_step=stopping, progress=False)
    resumed = tw.resume(tmp_path / "run", classes(), progress=False)
    assert same_bits(resumed.model, whole.model)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])


def test_a_resumed_run_takes_another_schedule_of_the_decay_from_there_on(tmp_path):
    made = plan(schedule="linear", learning_rate=0.1, **IN_LOG_TIME)
    kept = []

    def stopping(model, figures):
        kept.append(model[0].weight.detach().double().clone())
        if figures.step == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        tw.train(resting(), made, out=tmp_path / "run", on_step=stopping, progress=False)
    changes = {"weight_decay_schedule": "constant"}
    run = tw.resume(
        tmp_path / "run", resting(), changes=changes, progress=False,
        on_step=lambda model, figures: kept.append(model[0].weight.detach().double().clone()),
    )  # fmt: skip
    shrinks = [1 - float(b.sum() / a.sum()) for a, b in pairwise(kept[-21:])]
    assert shrinks == pytest.approx([0.1 * 0.5] * 20, rel=1e-3)
    assert run.plan.weight_decay_schedule == tw.schedule.constant()
    assert "weight_decay_schedule" in next(event.message for event in run.events if event.kind == "change")


def test_a_run_that_goes_back_decays_by_the_steps_that_it_takes_again():
    wild = plan(
        schedule=tw.schedule.linear(warmup=25), learning_rate=300.0, weight_decay=1e-3, clip_norm=None, steps=60,
        weight_decay_schedule="inverse_time", rule="lion",
    )  # fmt: skip
    descent, recorder = started(classes(), wild)
    walk(descent, recorder)
    lowered = descent.changes.rate_factor
    assert lowered < 1
    for step in (0, 7, 59):
        descent.step = step
        descent.set_rate(descent.rate())
        (decayed,) = (group for group in descent.optimizer.param_groups if group["weight_decay"])
        wanted = 300.0 * lowered * 1e-3 * 6 / (6 + step)
        assert decayed["lr"] * decayed["weight_decay"] == pytest.approx(wanted)


@pytest.mark.parametrize("at", [3, 10, 20])
def test_a_branch_that_cools_down_decays_as_its_run_does_at_the_same_steps(at):
    made = plan(schedule=tw.schedule.linear(warmup=4), learning_rate=0.1, steps=40, **IN_LOG_TIME)
    descent, recorder = started(resting(), made)
    walk(descent, recorder, at)
    factor = descent.schedule.factor(at)
    branch = Descent(descent.problem, cooled_plan(descent.plan, factor, at, 8))
    branch.load_state_dict(descent.state_dict())
    before = branch.model[0].weight.detach().double().clone()
    descend(branch, Recorder())
    shrunk = float(branch.model[0].weight.detach().double().sum() / before.sum())
    wanted = math.prod(1 - 0.1 * 0.5 * 4 / (4 + step) for step in range(at, at + 8))
    assert shrunk == pytest.approx(wanted, rel=1e-5)


def test_a_layer_that_is_unfrozen_on_the_way_follows_it_too():
    def frozen():
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
        model[0].requires_grad_(False)
        return model

    kept = []

    def unfreeze(model, figures):
        kept.append(model[0].weight.detach().double().clone())
        if figures.step == 12:
            model[0].requires_grad_(True)

    task = tw.Task(model=frozen, step=still, data=blobs())
    tw.train(task, plan(schedule="linear", learning_rate=0.1, **IN_LOG_TIME), on_step=unfreeze, progress=False)
    shrinks = [1 - float(b.sum() / a.sum()) for a, b in pairwise(kept)]
    assert shrinks[:11] == [0.0] * 11
    assert shrinks[11:] == pytest.approx([0.1 * 0.5 * 3 / (3 + step) for step in range(12, 30)], rel=1e-3)


@pytest.mark.parametrize(
    ("knobs", "error", "told"),
    [
        ({"rule": "adam"}, PlanError, "decay of adam is a part of the gradient.*such as adamw"),
        ({"rule": "radam", "constants": {"decoupled_weight_decay": False}}, PlanError, "decay of radam is a part"),
        ({"groups": {"0.*": tw.Group(rule="momentum")}}, PlanError, "decay of momentum is a part"),
        ({"weight_decay_schedule": "plateau"}, PlanError, "reduce-on-plateau, but the decay is a function of the step"),
        ({"weight_decay_schedule": "inverse"}, ScheduleError, "Did you mean 'inverse_"),
        ({"weight_decay_schedule": 0.1}, PlanError, r"`weight_decay_schedule` is 0\.1\. Give a shape's name"),
        ({"weight_decay_schedule": {"shape": "inverse_time", "timescale": 0}}, ScheduleError, "timescale"),
        ({"weight_decay_schedule": {"timescale": 3}}, ScheduleError, "table with a `shape`"),
    ],
)
def test_what_cannot_be_followed_is_refused(knobs, error, told):
    with pytest.raises(error, match=told):
        tw.Plan(**{**IN_LOG_TIME, **knobs})


def test_a_schedule_that_does_not_fit_into_the_run_is_refused_before_the_first_step():
    with pytest.raises(ScheduleError, match="warm-up"):
        tw.train(classes(), plan(weight_decay_schedule=tw.schedule.constant(warmup=40)))


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [("linear", 30), ("linear", 46), (tw.schedule.cosine(warmup=10), 200), (tw.schedule.linear(warmup=0.1), 5000)],
)
def test_the_decay_of_a_search_shrinks_weights_over_the_run_as_the_one_that_falls_with_the_rate(schedule, steps):
    made = tw.Plan(schedule=schedule, weight_decay_schedule="inverse_time")
    start = priors.decay_start(made, steps)
    own, rate = (Schedule.resolve(one, steps) for one in (made.weight_decay_schedule, made.schedule))
    sums = [sum(one.factor(step) for step in range(steps)) for one in (own, rate)]
    assert start * sums[0] == pytest.approx(sums[1], rel=2e-3)
    assert 1.5 < start < 2.5


def test_loss_goes_down_under_it_as_under_any_plan():
    run = tw.train(
        classes(model=network, loss=F.cross_entropy), plan(rule="muon", steps=90, **IN_LOG_TIME), progress=False
    )
    assert run.metrics["loss"] < 0.8 * run.summary["start"]["loss"]
    assert [found for found in run.diagnoses if found.severity != "note"] == []
