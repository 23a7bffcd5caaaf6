"""Predictions take inputs as people have them, evaluation measures as validation does, and both leave everything as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small import accuracy, blobs, classes, network, plan
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import thalweg as tw

X, Y = blobs(40, seed=7)


@pytest.fixture(scope="module")
def run() -> tw.Run:
    return tw.train(classes(model=lambda: network(nn.BatchNorm1d(12), nn.Dropout(0.5))), plan())


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class Alone(Pairs):
    def __getitem__(self, index: int) -> Any:
        return X[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


FORMS: dict[str, Any] = {
    "a tensor": X,
    "an array": X.numpy(),
    "float64": X.double().numpy(),
    "a frame": pd.DataFrame(X.numpy(), columns=list("abcd")),
    "nested lists": X.tolist(),
    "a tuple of one": (X,),
    "a tensor data set with targets": TensorDataset(X, Y),
    "a tensor data set without": TensorDataset(X),
    "a data set with targets": Pairs(),
    "a data set without": Alone(),
    "examples in a list": list(zip(X, Y, strict=True)),
    "inputs in a list": list(X),
    "a loader": DataLoader(TensorDataset(X, Y), batch_size=7),
    "a loader that shuffles": DataLoader(Pairs(), batch_size=7, shuffle=True),
    "a loader without targets": DataLoader(Alone(), batch_size=7),
    "a loader over a stream": DataLoader(Stream(), batch_size=7),
    "a stream": Stream(),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form_give_the_models_outputs(form: str, run: tw.Run) -> None:
    expected = run.model(X)
    assert torch.allclose(run.predict(FORMS[form]), expected, atol=1e-6)
    assert torch.allclose(run.predict(FORMS[form], batch_size=3), expected, atol=1e-6)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return {"sum": self.a(a) + self.b(b), "parts": (self.a(a), self.b(b))}


@pytest.mark.parametrize("form", ["a tuple", "a mapping", "a nested tuple", "mappings with targets", "a loader"])
def test_several_inputs_reach_the_model_by_place_or_by_name(form: str) -> None:
    task = tw.Task(model=Two, loss=lambda o, t: F.cross_entropy(o["sum"], t), data=((X, X[:, :2]), Y))
    run = tw.train(task, plan(steps=3))
    inputs: Any = {
        "a tuple": (X, X[:, :2]),
        "a mapping": {"a": X, "b": X[:, :2]},
        "a nested tuple": ((X, X[:, :2]),),
        "mappings with targets": [{"a": x, "b": x[:2], "label": y} for x, y in zip(X, Y, strict=True)],
        "a loader": DataLoader(TensorDataset(X, X[:, :2], Y), batch_size=7),
    }[form]
    with torch.no_grad():
        expected = run.model(X, X[:, :2])
    given = run.predict(inputs, batch_size=9)
    assert torch.allclose(given["sum"], expected["sum"], atol=1e-6)
    assert torch.allclose(given["parts"][1], expected["parts"][1], atol=1e-6)


def test_inputs_are_cast_as_for_training(tmp_path: Path) -> None:
    pictures = (X * 20).clamp(0, 255).byte()
    byte = tw.train(classes(data=(pictures, Y), validation=None, metrics={}), plan(steps=4), out=tmp_path / "r")
    assert torch.allclose(byte.predict(pictures), byte.model(pictures.float()), atol=1e-6)
    opened = tw.Run.open(tmp_path / "r", byte.task)
    assert torch.allclose(opened.predict(pictures), byte.predict(pictures))
    floats = tw.train(classes(), plan(steps=4))
    assert torch.allclose(floats.predict(pictures), floats.model(pictures.float()), atol=1e-6)  # other than in training
    double = tw.train(classes(model=lambda: network().double()), plan(steps=4))
    assert double.predict(X.numpy()).dtype == torch.float64


def test_half_precision_gives_float32() -> None:
    run = tw.train(classes(), plan(steps=4, precision="bfloat16"))
    assert run.predict(X).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(run.predict(X), run.model(X).float())


def test_a_prediction_leaves_everything_as_it_was(run: tw.Run) -> None:
    run.model[2].train()
    modes, before = [m.training for m in run.model.modules()], torch.get_rng_state()
    kept = {name: value.clone() for name, value in run.model.state_dict().items()}
    one, two = run.predict(DataLoader(Stream(), batch_size=7)), run.predict(X)
    assert torch.allclose(one, two)  # no dropout though its mode is training
    assert not one.requires_grad
    assert [m.training for m in run.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(kept[name], value) for name, value in run.model.state_dict().items())
    run.model.eval()


def test_memory_that_runs_out_makes_smaller_batches(run: tw.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def scarce(module: nn.Module, inputs: Any) -> None:
        sizes.append(len(inputs[0]))
        if sizes[-1] > 16:
            raise MemoryError

    hook = run.model.register_forward_pre_hook(scarce)
    assert run.predict(X).shape == (40, 3)
    hook.remove()
    assert max(sizes[-3:]) == 16


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (X[:, :2], r"The model failed on these inputs \(\(40, 2\) float32\): RuntimeError"),
        ((X, Y), r"The model failed on these inputs .*a tuple of several inputs has no target"),
        ("x.csv", r"`inputs` is the text 'x\.csv'"),
        (iter([X]), r"`inputs` is an iterator"),
        (X[:0], r"`inputs` is empty"),
        (None, r"`inputs` is a NoneType"),
    ],
)
def test_inputs_that_do_not_fit_are_told(inputs: Any, told: str, run: tw.Run) -> None:
    with pytest.raises(tw.DataError, match=told):
        run.predict(inputs)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8"])
def test_a_batch_size_that_is_none_is_refused(size: Any, run: tw.Run) -> None:
    with pytest.raises(tw.ArgumentError, match="`batch_size` is"):
        run.predict(X, batch_size=size)


def test_outputs_that_cannot_be_joined_are_told() -> None:
    class Widths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)[:, : 3 if self.training else len(x) % 3 + 1]

    run = tw.train(
        classes(model=Widths, validation=None, metrics={}, evaluate=lambda m, b: m(b[0]).sum()), plan(steps=2)
    )
    with pytest.raises(tw.DataError, match="cannot be joined"):
        run.predict(X, batch_size=22)


def test_evaluation_gives_what_validation_gave(tmp_path: Path) -> None:
    task = classes()
    run = tw.train(task, plan(ema=0.9), out=tmp_path / "r")
    for what in (run, tmp_path / "r", tw.Run.open(tmp_path / "r")):
        again = tw.evaluate(what, task=None if what is run else task)
        assert again.keys() == {"loss", "accuracy"}
        assert again == pytest.approx(run.metrics)
    figures = tw.evaluate(run, (X, Y))
    assert figures["loss"] == pytest.approx(F.cross_entropy(run.model(X), Y).item(), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(accuracy(run.model(X), Y).item())
    assert tw.evaluate(run, DataLoader(TensorDataset(X, Y), batch_size=10)) == pytest.approx(figures)
    assert tw.evaluate(run, Pairs()) == pytest.approx(figures)


def test_a_task_is_evaluated_as_it_starts() -> None:
    module = network()
    task = classes(model=module, validation=None, metrics={})
    figures = tw.evaluate(task, (X, Y))
    assert figures == {"loss": pytest.approx(F.cross_entropy(module(X), Y).item(), rel=1e-5)}
    assert module.training
    with pytest.raises(tw.TaskError, match="There are no data to evaluate on"):
        tw.evaluate(task)
    with pytest.raises(tw.DataError):
        tw.evaluate(task, (X * float("nan"), Y))
    with pytest.raises(tw.RunError, match="cannot be a run's folder"):
        tw.evaluate(network(), (X, Y))  # type: ignore[arg-type]


def test_metrics_are_of_the_training_data_too() -> None:
    run = tw.train(classes(), plan(keep="last"))
    training = run.summary["training"]
    x, y = blobs()
    assert training["accuracy"] == pytest.approx(accuracy(run.model(x), y).item())
    assert training == pytest.approx(tw.evaluate(run, (x, y)))
    assert "training" not in tw.train(classes(metrics={}), plan()).summary
    assert "training" not in tw.train(classes(data=DataLoader(Stream(), batch_size=8)), plan(batch_size=8)).summary


@pytest.mark.parametrize("form", ["tensors", "a data set", "a loader"])
def test_training_metrics_look_at_so_many_examples_at_most(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.descent.prediction.SAMPLE", 10)
    seen: list[int] = []

    def counted(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        seen.append(len(targets))
        return accuracy(outputs, targets).item()

    data: Any = {"tensors": (X, Y), "a data set": Pairs(), "a loader": DataLoader(Pairs(), batch_size=8)}[form]
    tw.train(classes(data=data, metrics={"accuracy": counted}), tw.Plan(batch_size=8, learning_rate=0.01), steps=4)
    assert seen[-1] == 10
    assert set(seen[:-1]) == {60}  # what the trial before training noted is taken back


def test_a_metric_that_fails_on_training_data_is_noted() -> None:
    def picky(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if len(targets) != 60:
            raise ValueError("sixty only")
        return 1.0

    run = tw.train(classes(metrics={"precision": picky}), plan())
    assert run.metrics["precision"] == 1.0
    assert "training" not in run.summary
    assert any(
        "could not be measured on training data" in note and "sixty only" in note for note in run.summary["notes"]
    )


def test_ragged_inputs_are_collated_as_for_training() -> None:
    rows = [torch.arange(n % 4 + 1) for n in range(30)]

    def pad(examples: list[Any]) -> Any:
        return nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True), torch.tensor(
            [y for _, y in examples]
        )

    data = (rows, [n % 3 for n in range(30)])
    run = tw.train(
        classes(model=lambda: nn.EmbeddingBag(5, 3), data=data, validation=None, metrics={}, collate_fn=pad),
        plan(steps=3),
    )
    outputs = run.predict([(row, 0) for row in rows], batch_size=4)
    assert torch.allclose(outputs[:4], run.model(pad([(row, 0) for row in rows[:4]])[0]))
    with pytest.raises(tw.DataError, match="`collate_fn` failed on 4 examples"):
        run.predict((rows,), batch_size=4)


@pytest.mark.parametrize("size", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_batch_size_may_be_a_whole_number_of_any_kind(size: Any, run: tw.Run) -> None:
    assert torch.equal(run.predict(X, batch_size=size), run.predict(X, batch_size=3))


@pytest.mark.parametrize("casts", [{"floats": "no_dtype"}, {"floats": "nn"}, {"floats": ""}, {"weights": "float32"}])
def test_casts_that_are_none_are_told(casts: dict[str, str]) -> None:
    run = tw.train(classes(), plan(steps=1))
    with pytest.raises(tw.RunError, match=r"casts of inputs that are none.* Restore run\.json"):
        replace(run, summary={**run.summary, "casts": casts}).predict(blobs()[0])
