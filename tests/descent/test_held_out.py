import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small import accuracy, blobs, network
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import DataError, PlanError, RunError, TaskError
from thalweg.records.holdout import Holdout
from thalweg.records.request import Request
from thalweg.tuning.tune import stated_plan

X, Y = blobs(120)
CHOSEN = {"steps": 24, "effort": 2.0, "progress": False}


def task(data=(X, Y), **parts):
    return tw.Task(**{"model": network, "loss": F.cross_entropy, "data": data, **parts})


def held(made, share=0.2, by="auto", seed=0):
    """Give the numbers of the examples that are trained on, and of those that are held out."""
    problem = open_task(made, "cpu", Holdout(share, by, seed))
    parts = [problem.train, problem.validation]
    return [[] if part is None else part.rows.tolist() for part in parts], problem


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


class Items(Dataset):
    """Says nothing of its targets; each example knows its number."""

    def __init__(self, count=120):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return X[index % len(X)], int(Y[index % len(Y)])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


def test_fit_holds_examples_out_and_says_so_and_train_makes_the_same_split_and_run(tmp_path):
    said = []
    made = task(metrics={"accuracy": accuracy}, select="accuracy")
    run = tw.fit(made, **CHOSEN, say=said.append, out=tmp_path / "run")
    sentence = "24 of 120 examples (the same share of each class) are held out for validation, and 96 are trained on"
    assert any(sentence in text for text in said)
    why = run.plan.why("holdout")
    assert (run.plan.holdout, run.plan.holdout_by, why.source) == (0.2, "class", "derived")
    assert (dict(why.figures), sentence in why.reason) == ({"training": 96, "validation": 24}, True)
    assert run.summary["examples"] == 96
    assert {"loss", "accuracy"} <= run.metrics.keys()
    assert sentence in " ".join(run.summary["notes"])
    assert sentence in (tmp_path / "run" / "report.html").read_text()
    again = tw.train(made, tw.Plan.load(tmp_path / "run" / "plan.toml"), progress=False)
    assert again.plan == run.plan
    assert (same_weights(run, again), again.metrics) == (True, run.metrics)
    opened = tw.Run.open(tmp_path / "run", made)
    assert tw.evaluate(opened) == run.metrics
    assert opened.predict(X[:3]).shape == (3, 3)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    made, plan = task(metrics={"accuracy": accuracy}), tw.Plan(holdout=0.25, steps=30, batch_size=8, digest_every=1)
    whole = tw.train(made, plan, progress=False)

    def stop(model, figures):
        if figures.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.train(made, plan, progress=False, out=tmp_path / "run", on_step=stop)
    resumed = tw.resume(tmp_path / "run", made, progress=False)
    assert same_weights(whole, resumed)
    assert whole.metrics == resumed.metrics
    with pytest.raises(PlanError, match="`holdout` cannot be changed within a run"):
        tw.resume(tmp_path / "run", made, changes={"holdout": 0.5})


def test_other_data_another_split_or_validation_data_are_refused_when_a_run_is_resumed(tmp_path):
    groups = torch.arange(120) // 6
    plan = tw.Plan(holdout=0.2, steps=4, holdout_by="group")
    tw.train(task(groups=groups), plan, progress=False, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"training data have other values.*validation data have other values"):
        tw.resume(tmp_path / "run", task(groups=groups.roll(3)), changes={"steps": 8})
    with pytest.raises(PlanError, match=r"`holdout` is 0\.2, but the task has validation data already"):
        tw.resume(tmp_path / "run", task(groups=groups, validation=(X, Y)), changes={"steps": 8})


def test_with_nothing_held_out_the_training_loss_decides_and_the_run_is_as_without_the_knob():
    run = tw.fit(task(), **CHOSEN, fixed={"holdout": 0})
    assert (run.plan.holdout, run.plan.why("holdout").source, run.summary["examples"]) == (0.0, "given", 120)
    assert not run.summary["validated"]
    assert "as there are no validation data" in run.plan.why("learning_rate").reason
    assert tw.train(task(), tw.Plan(steps=4), progress=False).summary["examples"] == 120


def test_a_task_with_validation_data_holds_nothing_out():
    made = task(validation=(X[:20], Y[:20]))
    plan = tw.tune(made, **CHOSEN)
    assert (plan.holdout, plan.why("holdout").source) == (0.0, "default")
    with pytest.raises(PlanError, match=r"the task has validation data already\. Set holdout=0"):
        tw.tune(made, **CHOSEN, fixed={"holdout": 0.2})


def test_another_seed_is_another_split_and_the_two_parts_are_all_examples():
    (train, validation), _ = held(task())
    assert sorted(train + validation) == list(range(120))
    assert validation != held(task(), seed=1)[0][1]
    assert torch.bincount(Y[validation]).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    "data",
    [
        (X.numpy(), Y.numpy()),
        (pd.DataFrame(X.numpy()), pd.Series(Y.numpy(), index=range(7, 127))),
        {"input": X, "label": Y},
        TensorDataset(X, Y),
        Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(120, 240)),
        Items(),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        DataLoader(Items(), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(X, Y), batch_size=16),
    ],
    ids=["arrays", "frames", "mapping", "TensorDataset", "Subset", "items", "list", "loader", "loader in order"],
)
def test_the_classes_of_every_kind_of_data_are_held_out_alike(data):
    (train, validation), problem = held(task(data))
    assert (problem.held_out.by, len(train), len(validation)) == ("class", 96, 24)
    assert torch.bincount(Y[validation]).tolist() == [8, 8, 8]


def test_the_loaders_own_batches_and_collate_fn_hold_in_both_parts():
    seen = []

    def collate(examples):
        seen.append(len(examples))
        return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])

    loader = DataLoader(Items(), batch_size=16, shuffle=True, drop_last=True, collate_fn=collate)
    made = task(loader)
    run = tw.train(made, tw.Plan(holdout=0.2), epochs=2, progress=False)
    assert set(seen) == {16}
    figures = run.plan.why("holdout").figures
    assert (dict(figures), run.plan.steps) == ({"training": 88, "validation": 32}, 10)
    again = tw.train(made, run.plan, progress=False)
    assert same_weights(run, again)


def test_a_loaders_batch_larger_than_what_is_left_is_cut_as_a_loader_does_itself():
    made = task(DataLoader(Items(), batch_size=110, shuffle=True))
    assert tw.tune(made, **CHOSEN).batch_size == 96
    dropping = task(DataLoader(Items(), batch_size=110, shuffle=True, drop_last=True))
    plan = tw.tune(dropping, **CHOSEN)
    assert (plan.holdout, plan.batch_size) == (0.0, 110)
    assert "the loader drops what is smaller than 110, and there are 120 examples" in plan.why("holdout").reason


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (Stream(), "the data are a stream, which cannot be split"),
        (DataLoader(Stream(), batch_size=8), "the data are a stream, which cannot be split"),
        (
            DataLoader(Items(), batch_size=8, sampler=WeightedRandomSampler([1.0] * 120, 120)),
            "the loader draws by a sampler of its own, which cannot be split",
        ),
    ],
)
def test_what_cannot_be_split_is_judged_by_the_training_loss_and_says_why(data, why):
    run = tw.fit(task(data, metrics={"accuracy": accuracy}), **CHOSEN)
    assert run.plan.holdout == 0.0
    assert why in run.plan.why("holdout").reason
    notes = " ".join(run.summary["notes"])
    assert f"{why}: nothing is held out, and the training loss is the criterion" in notes
    assert "There are no validation data to measure accuracy on" in notes
    with pytest.raises(PlanError, match=f"`holdout` is 0.2, but {why}. Give `validation`, or set holdout=0."):
        tw.tune(task(data), **CHOSEN, fixed={"holdout": 0.2})
    with pytest.raises(DataError, match=f"`select` is 'accuracy', which is measured on validation data.*{why}"):
        tw.fit(task(data, metrics={"accuracy": accuracy}, select="accuracy"), **CHOSEN)


def test_a_plan_without_a_holdout_refuses_a_metric_as_criterion():
    made = task(metrics={"accuracy": accuracy}, select="accuracy")
    with pytest.raises(
        DataError, match=r"there are none\. Give `validation`, or keep a share .* holdout=0\.2 in the plan"
    ):
        tw.train(made, tw.Plan(steps=3), progress=False)
    assert tw.check(made) == []
    assert "accuracy" in tw.train(made, tw.Plan(steps=3, holdout=0.2), progress=False).metrics


def test_of_few_examples_none_are_held_out_unless_the_criterion_needs_them():
    few = (X[:30], Y[:30])
    plan = tw.tune(task(few), **CHOSEN)
    assert plan.holdout == 0.0
    assert "a fifth of 30 examples is too few to judge by" in plan.why("holdout").reason
    assert tw.tune(task(few, metrics={"accuracy": accuracy}, select="accuracy"), **CHOSEN).holdout == 0.2
    assert dict(tw.tune(task(few), **CHOSEN, fixed={"holdout": 0.1}).why("holdout").figures)["validation"] == 3


def test_groups_stay_whole_whatever_the_data_are():
    groups = [f"patient {number // 5}" for number in range(120)]
    for data in ((X, Y), Items()):
        (train, validation), problem = held(task(data, groups=groups))
        assert problem.held_out.by == "group"
        assert "whole groups" in problem.held_out.reason
        assert len(validation) in range(20, 29)
        assert not {groups[i] for i in train} & {groups[i] for i in validation}
    assert held(task(groups=groups), by="random")[1].held_out.by == "random"
    plan = tw.tune(task(groups=["one"] * 120), **CHOSEN)
    assert (plan.holdout, "all examples are of one group" in plan.why("holdout").reason) == (0.0, True)
    for made in (task(groups=[1, 2, 3]), task(groups=[1, 2, 3], validation=(X, Y))):
        with pytest.raises(DataError, match="`groups` has 3 values, but the data have 120 examples"):
            tw.fit(made, **CHOSEN)


def test_of_a_series_the_last_stretch_is_held_out():
    (train, validation), problem = held(task(series=True))
    assert (train, validation, problem.held_out.by) == (list(range(96)), list(range(96, 120)), "time")
    days = np.datetime64("2024-01-01") + np.arange(120)[::-1] // 2
    (train, validation), _ = held(task(series=days))
    assert validation == list(range(24))
    assert days[validation].min() > days[train].max()


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("group", "`holdout_by` is 'group', but the task has no `groups`"),
        ("time", "`holdout_by` is 'time', but the task is no `series`"),
        ("class", "`holdout_by` is 'class', but the targets are no classes"),
    ],
)
def test_a_split_by_what_the_task_has_not_is_refused(by, message):
    with pytest.raises(PlanError, match=message):
        tw.train(task((X, X[:, :3]), loss=F.mse_loss), tw.Plan(holdout=0.2, holdout_by=by, steps=2), progress=False)


def test_a_diagnosis_names_the_persons_own_rows():
    class Spoilt(Items):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * math.nan if index == self.bad else x), y

    data = Spoilt()
    data.bad = -1
    (train, _), _ = held(task(data))
    data.bad = train[50]
    assert data.bad != 50
    run = tw.train(task(data), tw.Plan(holdout=0.2, batch_size=8, learning_rate=1e-3), epochs=2, progress=False)
    named = {example for diagnosis in run.diagnoses for example in diagnosis.examples}
    assert named == {data.bad}


def test_a_held_out_row_that_holds_nan_is_left_out_as_steps_leave_it_out():
    class Spoilt(Items):
        bad = -1

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * math.nan if index == self.bad else x), y

    data = Spoilt()
    (_, validation), _ = held(task(data))
    data.bad = validation[-1]
    run = tw.train(task(data), tw.Plan(holdout=0.2, batch_size=8), steps=6, progress=False)
    assert math.isfinite(run.metrics["loss"])


def test_wrong_targets_are_named_by_the_persons_own_rows_wherever_they_lie():
    for row in (3, 77, 119):
        labels = Y.clone()
        labels[row] = 9
        with pytest.raises(DataError, match=f"row {row}"):
            tw.fit(task((X, labels)), **CHOSEN)


def test_examples_of_no_weight_are_neither_drawn_nor_held_out():
    weights = torch.ones(120)
    weights[:60] = 0
    (train, validation), problem = held(task(weights=weights))
    assert min(validation) >= 60
    assert len(validation) == 12
    assert torch.equal(problem.weights, weights.double()[train])
    run = tw.train(task(weights=weights), tw.Plan(holdout=0.2, replacement=True), steps=4, progress=False)
    assert run.summary["examples"] == 108


def test_a_batch_that_needs_all_examples_is_respected():
    plan = tw.tune(task(), **CHOSEN, fixed={"batch_size": 110})
    assert (plan.batch_size, plan.holdout) == (110, 0.0)
    assert "the batch of 110 examples needs them all" in plan.why("holdout").reason
    with pytest.raises(PlanError, match="the data have 96 examples that are not held out"):
        tw.train(task(), tw.Plan(holdout=0.2, batch_size=110, steps=2), progress=False)
    whole = tw.train(task(), tw.Plan(holdout=0.2, batch_size=None, steps=2), progress=False)
    assert whole.summary["examples"] == 96


def test_batch_normalisation_with_one_example_left_over_is_seen_after_the_split():
    def normalised():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    plan = tw.tune(task((X[:101], Y[:101]), model=normalised), **CHOSEN, fixed={"batch_size": 16})
    assert dict(plan.why("holdout").figures)["training"] == 81
    assert plan.drop_last


def test_the_persons_data_share_their_memory_and_stay_as_they_are():
    before = (X.clone(), Y.clone())
    problem = held(task())[1]
    assert problem.train.nest[0].data_ptr() == X.data_ptr() == problem.validation.nest[0].data_ptr()
    items = Items()
    state = copy.deepcopy(vars(items))
    torch.manual_seed(5)
    held(task(items))
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(5)))
    assert vars(items) == state
    assert torch.equal(before[0], X)
    assert torch.equal(before[1], Y)


def test_more_than_some_thousand_examples_are_not_read_for_their_classes():
    reads = []

    class Counting(Items):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    assert held(task(Counting(2_001)))[1].held_out.by == "random"
    assert len(reads) < 200


def test_what_a_request_decides_is_what_is_held_out():
    assert Request().to_hold_out == Holdout(None, "auto", 0)
    request = Request(seed=3, fixed={"holdout": 0.3, "holdout_by": "random", "batch_size": 8})
    assert request.to_hold_out == Holdout(0.3, "random", 3, 8)
    plan = stated_plan(open_task(task(), "cpu", request.to_hold_out), request)
    assert (plan.holdout, plan.why("holdout").source) == (0.3, "given")


def test_nothing_to_evaluate_on_is_said_where_nothing_was_held_out():
    run = tw.train(task(), tw.Plan(steps=2), progress=False)
    with pytest.raises(TaskError, match="There are no data to evaluate on"):
        tw.evaluate(run)
    assert tw.evaluate(run, (X, Y))["loss"] > 0


def test_a_column_that_is_its_own_target_and_a_step_of_ones_own_are_split_too():
    auto = tw.Task(lambda: nn.Linear(4, 4), F.mse_loss, X)
    assert tw.tune(auto, **CHOSEN).holdout_by == "random"
    own = tw.Task(network, data=(X, Y), step=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    run = tw.fit(own, **CHOSEN)
    assert (run.plan.holdout_by, run.summary["validated"]) == ("class", True)


def test_a_search_that_was_stopped_goes_on_with_the_same_split(tmp_path):
    made = task(Items(), metrics={"accuracy": accuracy}, select="accuracy")
    options = {**CHOSEN, "fixed": {"batch_size": 8, "threads": 1}}
    whole = tw.fit(made, **options)
    scores = []

    def stop_at_the_third(text):
        scores.append(text.startswith("learning rate"))
        if sum(scores) == 3:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.fit(made, **options, say=stop_at_the_third, out=tmp_path / "run")
    resumed = tw.resume(tmp_path / "run", made, progress=False)
    assert (resumed.plan.holdout, resumed.plan.holdout_by) == (0.2, "class")
    assert same_weights(whole, resumed)
