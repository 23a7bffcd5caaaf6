"""Metrics are tried before training: what fails, gives no number or spreads is refused; what needs more examples is not."""

import importlib
import math
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import TaskError

N = 80
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=generator)
FLAT = X[:, 0] + 0.1
FLAGS = (torch.arange(N) > 50).float()  # of one class in any first batch


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.squeeze(1), targets)


def task(metric: Any, y: Any = FLAT, *, loss: Any = squared, width: int = 1, **more: Any) -> tw.Task:
    parts = {"data": (X, y), "validation": (X, y), "metrics": {"m": metric}, "mode": "min", **more}
    return tw.Task(**{"model": lambda: nn.Linear(4, width), "loss": loss, **parts})


class Streaming:
    """A mean over batches of what a function gives."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.parts: list[torch.Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        self.parts.append(torch.as_tensor(self.function(outputs, targets)))

    def compute(self) -> Any:
        return torch.stack(self.parts).mean()


SPREADING = {
    "absolute error": lambda o, t: (o - t).abs().mean(),
    "root mean square": lambda o, t: (o - t).square().mean().sqrt(),
    "R2": lambda o, t: 1 - (t - o).square().sum() / (t - t.mean()).square().sum(),
    "share of signs": lambda o, t: ((o > 0) == (t > 0)).float().mean(),
    "numpy": lambda o, t: np.abs(o.numpy() - t.numpy()).mean(),
    "largest": lambda o, t: (o - t).abs().max(),
    "streaming": Streaming(lambda o, t: (o - t).abs().mean()),
}


@pytest.mark.parametrize("case", SPREADING)
def test_a_metric_that_spreads_outputs_over_targets_is_refused(case):
    told = (
        r"^Metric 'm' spreads outputs \(32, 1\) over targets \(32,\).*outputs = outputs\.reshape\(targets\.shape\)\.$"
    )
    for call in (tw.check, lambda made: tw.train(made, tw.Plan(), steps=1), lambda made: tw.fit(made, steps=2)):
        with pytest.raises(TaskError, match=told):
            call(task(SPREADING[case]))


@pytest.mark.parametrize("case", [case for case in SPREADING if case != "streaming"])
def test_the_advice_works_when_followed(case):
    def mended(outputs, targets):
        return SPREADING[case](outputs.reshape(targets.shape), targets)

    run = tw.train(task(mended), tw.Plan(), steps=2)
    assert run.metrics["m"] == pytest.approx(float(mended(run.model(X).detach(), FLAT)), rel=1e-4)
    streaming = tw.train(task(Streaming(mended)), tw.Plan(), steps=2)
    assert streaming.metrics["m"] == pytest.approx(run.metrics["m"], rel=1e-4)


@pytest.mark.parametrize(
    "metric",
    [
        lambda o, t: o.mean() - t.mean(),
        lambda o, t: (o.flatten() - t).abs().mean(),
        lambda o, t: torch.corrcoef(torch.stack([o.flatten(), t]))[0, 1],
        lambda o, t: float(np.corrcoef(o.numpy().ravel(), t.numpy())[0, 1]),
        lambda o, t: len(t),
        lambda o, t: np.ones(1),
        lambda o, t: np.float64(0.5),
    ],
)
def test_metrics_of_both_as_wholes_or_of_like_shapes_pass(metric):
    open_task(task(metric), "cpu")


def test_targets_in_a_column_under_flat_outputs_are_found_too():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze(1)

    spread = tw.Task(
        model=lambda: Flat(4, 1),
        loss=lambda o, t: F.mse_loss(o, t[:, 0]),
        data=(X, FLAT[:, None]),
        validation=(X, FLAT[:, None]),
        metrics={"mae": F.l1_loss},
    )
    with pytest.raises(TaskError, match=r"^Metric 'mae' spreads outputs \(32,\) over targets \(32, 1\)"):
        open_task(spread, "cpu")


def changes_outputs(outputs, targets):
    return outputs.sigmoid_().mean()


def changes_targets_by_numpy(outputs, targets):
    array = targets.numpy()
    array -= array.mean()
    return float(array.std())


def needs_a_module(outputs, targets):
    return importlib.import_module("nothing_of_the_kind")


FAILING: dict[str, tuple[Any, str]] = {
    "a mistake": (
        lambda o, t: o.no_such_thing,
        r"failed on outputs \(32, 1\) .*AttributeError: .*\(test_metrics\.py, line \d+\)",
    ),
    "one argument": (
        lambda o: o.mean(),
        r"failed on .* takes 1 positional argument .*It is called with \(outputs, targets\)\.$",
    ),
    "another shape": (lambda o, t: (o @ t[:3]).mean(), r"failed on outputs \(80, 1\) .*mat1|size mismatch"),
    "a module that is not there": (
        needs_a_module,
        r"failed on .*ModuleNotFoundError: No module named 'nothing_of_the_kind'",
    ),
    "nothing": (lambda o, t: None, r"gave nothing, but it must give one number\."),
    "a number for each example": (
        lambda o, t: o.squeeze(1) - t,
        r"gave a Tensor of shape \(80,\), but it must",
    ),
    "several figures": (
        lambda o, t: {"a": o.mean(), "b": t.mean()},
        r"gave a dict, .* make several metrics of several",
    ),
    "outputs changed in place": (changes_outputs, r"changes the outputs in place.*outputs = outputs\.clone\(\)\.$"),
    "targets changed in place": (
        changes_targets_by_numpy,
        r"changes the targets in place.*targets = targets\.clone\(\)\.$",
    ),
    "a streaming mistake": (Streaming(lambda o, t: 1 / 0), r"failed on outputs .*ZeroDivisionError"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_metric_that_fails_is_told_before_anything_is_paid_for(case):
    metric, told = FAILING[case]
    with pytest.raises(TaskError, match=rf"^Metric 'm' {told}") as raised:
        open_task(task(metric), "cpu")
    assert "\n" not in str(raised.value)


def needs_both_classes(outputs, targets):
    if len(targets.unique()) < 2:
        raise ValueError("Only one class present in y_true.")
    return float(outputs[targets == 1].mean() - outputs[targets == 0].mean())


def needs_fifty(outputs, targets):
    return float(outputs.squeeze(1)[:60][targets[:60] > 0][5])


@pytest.mark.parametrize("metric", [needs_both_classes, needs_fifty, lambda o, t: 1 / (float(t.sum()) > 0)])
def test_a_metric_that_needs_more_than_a_first_batch_passes(metric):
    bce = {"loss": lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(1), t)}
    problem = open_task(task(metric, FLAGS, **bce), "cpu")
    assert problem.task.metrics["m"] is metric
    with pytest.raises(TaskError, match=r"^Metric 'm' failed on outputs \(80, 1\)"):
        open_task(task(metric, FLAGS * 0, **bce), "cpu")  # nor does it work on the whole set


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], FLAGS[0]


def test_of_a_set_without_end_a_first_part_is_tried_and_the_metric_is_given_the_benefit_of_the_doubt(monkeypatch):
    monkeypatch.setattr("thalweg.descent.metrics.MOST_EXAMPLES", 200)
    open_task(task(needs_both_classes, FLAGS, validation=Endless()), "cpu")


def test_a_streaming_metric_is_reset_afterwards():
    metric = Streaming(lambda o, t: (o.squeeze(1) - t).abs().mean())
    open_task(task(metric), "cpu")
    assert metric.parts == []


def test_areas_under_curves_pass_where_both_classes_come_late():
    bce = {"loss": lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(1), t)}
    run = tw.train(
        task(lambda o, t: roc_auc_score(t.numpy(), o.numpy()) if t.any() else 1 / 0, FLAGS, **bce), tw.Plan(), steps=1
    )
    assert 0 <= run.metrics["m"] <= 1


CLASSES = torch.arange(N) % 3
COLUMNS = {
    "accuracy": lambda o, t: (o.argmax(1, keepdim=True) == t).float().mean(),
    "error": lambda o, t: o.argmax(1, keepdim=True).ne(t).double().mean(),
    "distance": lambda o, t: (o[:, :1] - t).square().mean(),
    "streaming": Streaming(lambda o, t: (o.argmax(1, keepdim=True) == t).float().mean()),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_made_within_a_metric_that_is_spread_over_the_targets_is_refused(case):
    with pytest.raises(
        TaskError, match=r"^Metric 'm' compares a column of 32 rows with the \(32,\) targets.*without keepdim"
    ):
        open_task(task(COLUMNS[case], CLASSES, loss=F.cross_entropy, width=3), "cpu")


@pytest.mark.parametrize(
    "metric",
    [
        lambda o, t: (o.argmax(1) == t).float().mean(),
        lambda o, t: ((t[:, None] == t) * (o @ o.T)).mean(),  # of pairs on purpose
        lambda o, t: (o.argmax(1, keepdim=True) == t[:, None]).float().mean(),
        lambda o, t: o.softmax(1).max(1).values.mean(),
    ],
)
def test_metrics_of_pairs_and_of_classes_pass(metric):
    open_task(task(metric, CLASSES, loss=F.cross_entropy, width=3), "cpu")


def test_metrics_of_a_model_that_needs_gradients_while_evaluating_are_given_none():
    class Slope(nn.Linear):
        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(super().forward(x).square().sum(), x, create_graph=True)[0].sum(1)

    made = tw.Task(
        model=lambda: Slope(4, 1),
        loss=F.mse_loss,
        data=(X, FLAT),
        validation=(X, FLAT),
        metrics={"mae": lambda o, t: float(np.abs(o.numpy() - t.numpy()).mean())},
    )
    assert tw.train(made, tw.Plan(), steps=1).metrics["mae"] > 0


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """Fields and entries at once, as those of transformers are."""

    loss: Any = None
    scores: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


class Scores(UserDict[str, Any]):
    @property
    def scores(self) -> Tensor:
        return self["scores"]


@dataclass(frozen=True)
class Frozen:
    scores: Tensor
    scale: float = 2.0
    hidden: Any = None


OUTPUTS: dict[str, Any] = {
    "fields and entries": (lambda s: ModelOutput(scores=s, hidden=(s, [s])), lambda o: o["scores"] + 0 * o.scores),
    "a mapping of its own": (lambda s: Scores(scores=s, count=3), lambda o: o.scores + 0 * o["count"]),
    "a frozen dataclass": (Frozen, lambda o: o.scores * o.scale / 2),
}


class Giving(nn.Linear):
    def __init__(self, make: Any) -> None:
        super().__init__(4, 1)
        self.make = make

    def forward(self, input: Tensor) -> Any:
        return self.make(super().forward(input).squeeze(1))


def loaded(batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, FLAT), batch_size)


@pytest.mark.parametrize("case", OUTPUTS)
def test_metrics_and_predictions_are_given_what_the_model_gives(case):
    make, scores = OUTPUTS[case]

    def error(outputs, targets):
        return F.mse_loss(scores(outputs), targets)

    run = tw.train(
        tw.Task(lambda: Giving(make), error, loaded(16), validation=loaded(9), metrics={"mse": error}),
        tw.Plan(learning_rate=0.01),
        steps=4,
    )
    assert run.metrics["mse"] == pytest.approx(run.metrics["loss"], rel=1e-5)
    predicted = run.predict(X, batch_size=13)
    assert type(predicted) is type(make(FLAT))
    torch.testing.assert_close(scores(predicted), scores(run.model(X)))


def test_outputs_that_cannot_be_joined_are_told_before_training_where_there_are_several_batches():
    def make(scores):
        return torch.distributions.Normal(scores, 1.0)

    parts = {"model": lambda: Giving(make), "loss": lambda o, t: -o.log_prob(t).mean(), "data": loaded(16)}
    parts |= {"metrics": {"error": lambda o, t: (o.mean - t).abs().mean()}}
    several, one = (tw.Task(validation=loaded(size), **parts) for size in (16, N))
    with pytest.raises(
        TaskError,
        match=r"cannot be joined .*a Normal is one object for a whole batch\)\. Give metrics with reset, update and compute",
    ):
        tw.check(several)
    assert tw.train(one, tw.Plan(), steps=2).metrics["error"] > 0
    followed = {"error": Streaming(lambda o, t: (o.mean - t).abs().mean())}
    assert (
        tw.train(tw.Task(validation=loaded(16), **{**parts, "metrics": followed}), tw.Plan(), steps=2).metrics["error"]
        > 0
    )


def test_batches_of_unlike_lengths_are_told_before_training():
    def padded(examples):
        return tuple(nn.utils.rnn.pad_sequence(part, batch_first=True) for part in zip(*examples, strict=True))

    rows = [(torch.ones(2 + i % 7, 1), torch.ones(2 + i % 7, 1)) for i in range(40)]
    loader = DataLoader(rows, 6, collate_fn=padded)
    parts = {"model": lambda: nn.Linear(1, 1), "loss": F.mse_loss, "data": loader}
    with pytest.raises(
        TaskError, match=r"cannot be joined .*differ in shape.*Give metrics with reset, update and compute"
    ):
        tw.check(tw.Task(**parts, validation=loader, metrics={"error": F.l1_loss}))
    followed = tw.Task(**parts, validation=loader, metrics={"error": Streaming(F.l1_loss)})
    assert tw.train(followed, tw.Plan(), steps=2).metrics["error"] > 0


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda outputs, targets: 1.0, "missing 1 required positional argument"),
        (lambda figures: figures["accuracy"], "on the figures loss, share .*KeyError"),
        (lambda figures: None, "gave nothing"),
    ],
)
def test_a_metric_of_averaged_figures_is_tried_before_training(metric, told):
    def step(model, batch):
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1]), len(batch[1]), {"share": 0.5}

    with pytest.raises(TaskError, match=rf"Metric 'm' .*{told}"):
        tw.check(task(metric, loss=None, step=step))


def sixfold(model, batch):
    return 300 * F.mse_loss(model(batch[0]).squeeze(1), batch[1]) + 800


def test_a_perplexity_that_overflows_is_infinite():
    parts = {"step": sixfold, "data": (X, FLAT), "validation": (X, FLAT)}
    run = tw.train(
        tw.Task(lambda: nn.Linear(4, 1), metrics={"m": lambda f: math.exp(f["loss"])}, **parts), tw.Plan(), steps=2
    )
    assert run.metrics["m"] == math.inf


@pytest.mark.parametrize("streaming", [False, True])
def test_metrics_that_refuse_what_is_no_number_do_not_stop_a_run_that_diverged(streaming):
    def error(outputs, targets):
        if not torch.isfinite(outputs).all():
            raise ValueError("Input contains NaN.")
        return (outputs.squeeze(1) - targets).abs().mean()

    class Breaking(nn.Linear):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            Breaking.calls += self.training
            broken = not self.training and 3 <= Breaking.calls - start <= 5
            return super().forward(input) * (math.nan if broken else 1.0)

    metric = Streaming(error) if streaming else error
    start = 0
    broken_task = task(metric, model=lambda: Breaking(4, 1))
    tw.check(broken_task)
    start = Breaking.calls + 3
    run = tw.train(broken_task, tw.Plan(validate_every=1, watch=False), steps=9)
    assert any(map(math.isnan, run.history["validation/m"][1:]))
    assert math.isfinite(run.metrics["m"])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_criterion_that_is_never_a_number_is_told(mode):
    run = tw.train(task(lambda o, t: math.nan, select="m", mode=mode), tw.Plan(), steps=2)
    (event,) = [event for event in run.events if "was not a number in any validation" in event.message]
    assert event.step == 2
    last = tw.train(task(lambda o, t: math.nan, select="m", mode=mode), tw.Plan(keep="last"), steps=2)
    assert not [event for event in last.events if "not a number" in event.message]
