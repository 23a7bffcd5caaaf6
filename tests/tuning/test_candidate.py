import gc
import itertools
import signal
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent import loop
from thalweg.descent.cooling import cooled_schedule
from thalweg.descent.loop import descend
from thalweg.descent.problem import open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.records.history import History
from thalweg.records.request import Request
from thalweg.tuning.candidate import Candidate

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Counting(nn.Module):
    """A model with dropout, batch statistics, and a number of its own that changes what it does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.layers(x) * (1 + 0.01 * self.calls)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


DATA = {
    "arrays": lambda: (X, Y),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "stream": Stream,
}


def problem_of(data="arrays"):
    return open_task(tw.Task(model=Counting, loss=F.cross_entropy, data=DATA[data](), validation=(X, Y)))


def plan_of(problem, **knobs):
    knobs = {"learning_rate": 0.02, "schedule": "linear", "snapshot_every": 7, **knobs}
    size = {} if isinstance(problem.task.data, DataLoader) else {"batch_size": 16}
    return settle(problem, tw.Plan(**size, **knobs), Request(steps=40))


def straight(problem, plan):
    descent, recorder = Descent(problem, plan), Recorder()
    descend(descent, recorder)
    return descent, recorder.history.columns()


@pytest.mark.parametrize(
    ("data", "knobs"),
    [
        ("arrays", {}),
        ("arrays", {"rule": "momentum", "ema": 0.9, "patience": 50}),
        ("arrays", {"rule": "schedule_free_adamw", "schedule": "constant"}),
        ("arrays", {"keep": "last", "accumulate": 2}),
        ("loader", {}),
        ("stream", {}),
    ],
)
def test_a_candidate_that_was_judged_on_the_way_is_the_run_it_would_have_been(data, knobs):
    problem = problem_of(data)
    plan = plan_of(problem, **knobs)
    whole, columns = straight(problem, plan)
    candidate = Candidate(problem, plan)
    for step in (3, 8, 21, 40):
        candidate.advance(step)
        candidate.cooled(4)
    end = candidate.suspended.resumed(problem)
    assert end.digest() == whole.digest()
    assert (end.best_validation, end.last_validation) == (whole.best_validation, whole.last_validation)
    recorded = candidate.suspended.history.columns()
    assert recorded.keys() == columns.keys()
    for name in columns.keys() - {"seconds"}:
        np.testing.assert_array_equal(recorded[name], columns[name])
    assert candidate.steps_paid == 40 + 3 * 4


def test_candidates_that_take_turns_do_not_touch_each_other():
    problem = problem_of()
    plans = [plan_of(problem, learning_rate=rate) for rate in (0.01, 0.05)]
    candidates = [Candidate(problem, plan) for plan in plans]
    for step, candidate in itertools.product((5, 23, 40), candidates):
        candidate.advance(step)
    for plan, candidate in zip(plans, candidates, strict=True):
        assert candidate.suspended.resumed(problem).digest() == straight(problem, plan)[0].digest()


def test_a_cool_down_at_once_is_a_short_run_of_that_schedule():
    problem = problem_of()
    plan = plan_of(problem)
    candidate = Candidate(problem, plan)
    candidate.advance(10)
    figures = candidate.cooled(6)
    short = plan.replace(
        steps=16, schedule=cooled_schedule(plan.schedule.resolve(40, None).factor(10), 10, 6), validate_every=16
    )
    by_hand = Descent(problem, plan.replace(validate_every=16))
    descend(by_hand, Recorder(), until=10)
    copied = Descent(problem, short)
    copied.load_state_dict(by_hand.state_dict())
    descend(copied, Recorder())
    assert figures == copied.last_validation


def test_the_cool_down_begins_where_the_schedule_is_and_ends_at_zero():
    schedule = tw.schedule.linear(warmup=4)
    cooled, whole = (
        cooled_schedule(schedule.resolve(40, None).factor(10), 10, 5).resolve(15, None),
        schedule.resolve(40, None),
    )
    assert cooled.factor(10) == pytest.approx(whole.factor(10))
    assert np.diff([cooled.factor(step) for step in range(10, 15)]) == pytest.approx(-whole.factor(10) / 5)
    assert cooled.factor(15) == 0


def test_a_candidate_that_diverges_gives_no_figures():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    problem = open_task(tw.Task(model=lambda: nn.Linear(3, 1), loss=F.mse_loss, data=(x, x[:, :1])))
    plan = plan_of(problem, rule="gradient_descent", learning_rate=1e4, snapshot_every=0)
    candidate = Candidate(problem, plan)
    assert candidate.advance(20) == candidate.cooled(4) == candidate.advance(40) == {}
    assert candidate.failed


@pytest.mark.parametrize("effort", [2.0, 4.0])
@pytest.mark.parametrize("in_folder", [True, False])
def test_what_the_search_has_trained_of_the_winner_is_gone_on_with_and_the_bits_are_those_of_its_plan(
    effort, in_folder, tmp_path
):
    made = problem_of().task
    options = {"steps": 40, "effort": effort, "fixed": {"batch_size": 16}}
    run = tw.fit(made, out=tmp_path / "run" if in_folder else None, **options)
    again = tw.train(made, run.plan)
    assert run.metrics == again.metrics
    for name in again.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(run.history[name], again.history[name])
    assert any("The search has trained" in event.message for event in run.events)
    if in_folder:
        assert tw.Run.open(run.folder, made).metrics == again.metrics


@pytest.mark.parametrize("fixed", [{"rule": "muon"}, {"rule": "adamw"}, {}])
def test_the_searchs_run_has_the_bits_of_its_plan_where_the_decay_has_a_schedule_of_its_own(fixed, tmp_path):
    made = tw.Task(
        model=lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)),
        loss=F.mse_loss,
        data=(x := torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), x.sin().sum(1, keepdim=True)),
        validation=(x[:20], x[:20].sin().sum(1, keepdim=True)),
    )
    fixed = {"batch_size": 16, "weight_decay_schedule": "inverse_time", **fixed}
    run = tw.fit(made, out=tmp_path / "run", steps=46, effort=2.0, fixed=fixed)
    assert run.plan.weight_decay_schedule == tw.schedule.inverse_time()
    assert any("The search has trained" in event.message for event in run.events)
    again = tw.train(made, tw.Plan.load(tmp_path / "run" / "plan.toml"))
    assert run.metrics == again.metrics
    for name in again.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(run.history[name], again.history[name])


def test_a_callback_sees_every_step_so_for_it_the_winner_is_trained_anew():
    seen = []
    made = problem_of().task
    run = tw.fit(made, steps=40, effort=2.0, on_step=lambda model, figures: seen.append(figures.step))
    assert seen == list(range(1, 41))
    assert run.metrics == tw.train(made, run.plan).metrics
    assert run.plan.why("learning_rate").figures["price"] <= 2
    assert any("so that the callbacks see every step" in event.message for event in run.events)


@pytest.mark.parametrize(
    "schedule",
    [tw.schedule.linear(warmup="1 epochs"), tw.schedule.step(every="2 epochs"), tw.schedule.linear(total=5)],
)
def test_a_schedule_in_epochs_or_at_its_end_before_the_run_is_searched_too(schedule):
    options = {"steps": 40, "effort": 2.0, "fixed": {"batch_size": 16, "schedule": schedule}}
    run = tw.fit(problem_of().task, **options)
    assert run.plan.why("learning_rate").source == "searched"


def test_the_cool_down_begins_where_a_schedule_with_a_state_stands():
    problem = problem_of()
    plan = plan_of(problem, schedule=tw.schedule.plateau(patience=0, factor=0.5), validate_every=1, learning_rate=1e-9)
    candidate = Candidate(problem, plan)
    candidate.advance(20)
    resumed = Candidate(problem, plan)
    resumed.advance(20)
    descent = resumed.suspended.resumed(problem)
    assert candidate.suspended.schedule_factor == descent.rate() / plan.learning_rate < 1


class Iterating(nn.Module):
    """A model with a state that nothing can copy."""

    def __init__(self):
        super().__init__()
        self.layer, self.numbers = nn.Linear(5, 3), (1 + 0.01 * n for n in itertools.count())

    def forward(self, x):
        return self.layer(x) * (next(self.numbers) if self.training else 1)


def test_a_run_whose_state_cannot_be_copied_is_trained_anew():
    made = tw.Task(model=Iterating, loss=F.cross_entropy, data=(X, Y), validation=(X + 0.01, Y))
    run = tw.fit(made, steps=40, effort=2.0)
    assert run.metrics == tw.train(made, run.plan).metrics
    assert any("hold what cannot be copied" in event.message for event in run.events)


def test_a_search_under_inference_mode_gives_the_same_bits():
    made, options = problem_of().task, {"steps": 40, "effort": 2.0, "fixed": {"batch_size": 16, "snapshot_every": 3}}
    with torch.inference_mode():
        run = tw.fit(made, **options)
    assert run.metrics == tw.train(made, run.plan).metrics


@pytest.mark.parametrize("part", ["advance", "cooled"])
def test_ctrl_c_in_the_last_validation_of_a_candidate_stops_the_search(part, monkeypatch):
    problem = problem_of()
    candidate = Candidate(problem, plan_of(problem))
    candidate.advance(10)

    def interrupted(descent, recorder):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("thalweg.descent.loop.validate_and_select", interrupted)
    with pytest.raises(tw.errors.Interrupted):
        candidate.cooled(4) if part == "cooled" else candidate.advance(40)


def test_what_the_search_has_trained_is_in_a_checkpoint_before_anything_else_is_done(tmp_path, monkeypatch):
    made, options = problem_of().task, {"steps": 40, "effort": 2.0, "fixed": {"batch_size": 16}}

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr("thalweg.descent.train.descend", killed)
    monkeypatch.setattr("thalweg.descent.train._failed_run", killed)
    with pytest.raises(Killed):
        tw.fit(made, out=tmp_path / "run", **options)
    monkeypatch.undo()
    seen = []
    run = tw.resume(tmp_path / "run", made, on_step=lambda model, figures: seen.append(figures.step))
    assert seen[0] == 15  # the course of that price judges last after 0.35 of the run
    assert run.metrics == tw.train(made, run.plan).metrics


def test_ctrl_c_while_the_winner_is_written_leaves_a_run_that_resume_ends(tmp_path, monkeypatch):
    made, options = problem_of().task, {"steps": 40, "effort": 2.0, "fixed": {"batch_size": 16}}
    append = History.append

    def interrupted(self, step, values):
        if step == 5:
            raise KeyboardInterrupt
        append(self, step, values)

    monkeypatch.setattr(History, "append", interrupted)
    with pytest.raises(tw.errors.Interrupted):
        tw.fit(made, out=tmp_path / "run", **options)
    monkeypatch.undo()
    run = tw.resume(tmp_path / "run", made)
    assert run.metrics == tw.train(made, run.plan).metrics


def test_what_goes_on_holds_no_second_copy_of_the_state():
    problem = problem_of()
    candidate = Candidate(problem, plan_of(problem))
    candidate.advance(20)
    weights = weakref.ref(candidate.suspended._state["model"]["layers.0.weight"])
    descent = candidate.suspended.resumed(problem)
    gc.collect()
    assert weights() is None
    assert descent.step == 20


class Shrinking(IterableDataset):
    """A stream that counts its passes, each of which is another one, drawn from a generator of its own."""

    def __init__(self):
        self.passes, self.draws = 0, np.random.default_rng(3)

    def __iter__(self):
        self.passes += 1
        for i in self.draws.permutation(90 - 7 * (self.passes % 3)):
            yield X[i] * (1 + 0.01 * self.passes), Y[i]


class CountingSampler:
    """A batch sampler that shuffles by the number of the pass."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from torch.randperm(90, generator=torch.Generator().manual_seed(self.passes)).split(15)

    def __len__(self):
        return 6


class WithPlace:
    """A loader with a place. A pass begins where the last one ended or, `anew`, at the beginning unless a place was loaded."""

    def __init__(self, *, anew):
        self.passes, self.at, self.anew, self.loaded = 0, 0, anew, False

    def __len__(self):
        return 6

    def __iter__(self):
        if self.at == 6 and not (self.anew and self.loaded):
            self.passes, self.at = self.passes + 1, 0
        elif self.anew and not self.loaded:
            self.at = 0
        self.loaded = False
        while self.at < 6:
            order = torch.randperm(90, generator=torch.Generator().manual_seed(self.passes))
            rows = order[15 * self.at : 15 * self.at + 15]
            self.at += 1
            yield X[rows], Y[rows]

    def state_dict(self):
        return {"passes": self.passes, "at": self.at}

    def load_state_dict(self, state):
        self.passes, self.at, self.loaded = state["passes"], state["at"], True


STREAMS = {
    "counts its passes": Shrinking,
    "has a sampler that counts": lambda: DataLoader(TensorDataset(X, Y), batch_sampler=CountingSampler()),
    "has a place": lambda: WithPlace(anew=False),
    "has a place and begins anew": lambda: WithPlace(anew=True),
}


KNOBS = {"batch_size": 15, "threads": 1}  # so that nothing is measured


def with_dropout(**parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    return tw.Task(**{"model": layers, "loss": F.cross_entropy, "validation": (X, Y), **parts})


@pytest.mark.parametrize("kind", STREAMS)
def test_the_searchs_run_is_that_of_its_plan_whatever_a_stream_carries(kind):
    for effort in (
        2.0,
        4.0,
    ):  # the race stops within a pass, and at the end of one; then the winner is trained to its end
        data = STREAMS[kind]()
        run = tw.fit(with_dropout(data=data), steps=30, effort=effort, fixed={"snapshot_every": 5, **KNOBS})
        again = tw.train(with_dropout(data=STREAMS[kind]()), run.plan)
        assert run.metrics == again.metrics
        for name in again.history.keys() - {"seconds"}:
            np.testing.assert_array_equal(run.history[name], again.history[name])
        assert (
            len(tw.train(with_dropout(data=data), run.plan).history["loss"]) == 31
        )  # where a loader is left it can be read


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_was_searched_with_is_no_other_to_a_process_that_resumes(kind, tmp_path, monkeypatch):
    def interrupted(descent, loss):
        if descent.step == 24:  # at the end of a pass
            raise KeyboardInterrupt
        return take_step(descent, loss)

    take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(tw.errors.Interrupted):
        tw.fit(with_dropout(data=STREAMS[kind]()), steps=30, effort=2.0, fixed=KNOBS, out=tmp_path / "run")
    monkeypatch.undo()
    run = tw.resume(tmp_path / "run", with_dropout(data=STREAMS[kind]()))
    assert run.metrics == tw.train(with_dropout(data=STREAMS[kind]()), run.plan).metrics


@pytest.mark.parametrize("kind", STREAMS)
def test_what_is_only_searched_leaves_a_stream_as_it_was(kind):
    data = STREAMS[kind]()
    holder = data.batch_sampler if isinstance(data, DataLoader) else data
    before = {name: str(getattr(value, "bit_generator", value)) for name, value in vars(holder).items()}
    draws = getattr(data, "draws", np.random.default_rng()).bit_generator.state
    tw.tune(with_dropout(data=data), steps=30, effort=2.0, fixed=KNOBS)
    assert {name: str(getattr(value, "bit_generator", value)) for name, value in vars(holder).items()} == before
    assert not hasattr(data, "draws") or data.draws.bit_generator.state == draws


class ReadingOn(IterableDataset):
    """A stream that reads on in an iterator, whose place nobody can tell."""

    def __init__(self):
        self.numbers = itertools.count()

    def __iter__(self):
        for number in itertools.islice(self.numbers, 70):
            yield X[number % 90] + 0.001 * number, Y[number % 90]


def test_a_stream_that_reads_on_in_an_iterator_is_named_before_the_run_and_its_winner_is_trained_anew():
    said = []
    run = tw.fit(with_dropout(data=ReadingOn()), steps=30, effort=2.0, fixed=KNOBS, say=said.append)
    assert any("`data.numbers` is a count, whose place cannot be read" in text for text in said)
    assert any("hold what cannot be copied" in event.message for event in run.events)


@pytest.mark.parametrize("kind", ["has a sampler that counts", "has a place", "has a place and begins anew"])
def test_a_stream_that_gives_batches_has_their_size_in_the_plan_and_none_is_measured(kind):
    said = []
    plan = tw.tune(with_dropout(data=STREAMS[kind]()), steps=6, effort=1, fixed={"threads": 1}, say=said.append)
    assert plan.batch_size == 15
    assert plan.why("batch_size").source == "given"
    assert not any("measuring" in text for text in said)
    assert "6 steps of 15 examples" in " ".join(said)
