"""The gradient of a step: the mean over its examples, however they are cut."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import blobs, classes, network, plan, started, walk, weights
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import thalweg as tw
from thalweg.descent.gradient import backward, compute_gradient


def gradient(task: tw.Task, made: tw.Plan) -> Tensor:
    descent, recorder = started(task, made)
    compute_gradient(descent, recorder)
    return torch.cat([p.grad.reshape(-1) for p in descent.model.parameters() if p.grad is not None])


def in_float64(**changes: Any) -> tw.Task:
    x, y = blobs()
    return classes(model=lambda: network().double(), data=(x.double(), y), **changes)


@given(batch=st.integers(2, 96), parts=st.integers(1, 96))
def test_accumulated_gradient_is_that_of_the_whole_batch_however_it_is_cut(batch: int, parts: int) -> None:
    parts = min(parts, batch)
    whole = gradient(in_float64(), plan(batch_size=batch))
    cut = gradient(in_float64(), plan(batch_size=batch, accumulate=parts))
    assert torch.allclose(cut, whole, rtol=1e-12, atol=1e-14)


def test_short_last_micro_batch_counts_by_its_examples() -> None:
    descent, recorder = started(in_float64(), plan(batch_size=10, accumulate=3))
    loss, examples = compute_gradient(descent, recorder)
    assert descent.last_draw is not None
    assert (descent.last_draw.sizes, examples) == ([4, 4, 2], 10)
    x, y = (torch.cat([part[i] for part in descent.last_draw.parts]) for i in (0, 1))
    assert abs(loss - float(F.cross_entropy(descent.model(x), y).detach())) < 1e-12


def test_a_steps_own_weights_make_the_mean_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (12, 5), generator=generator)
    y[torch.rand(12, 5, generator=generator) < 0.4] = -100
    y[:, 0] = 1

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        loss = F.cross_entropy(model(inputs).reshape(-1, 3), targets.reshape(-1), ignore_index=-100)
        return loss, (targets != -100).sum()

    task = tw.Task(model=lambda: network().double(), step=step, data=(x, y))
    whole = gradient(task, plan(batch_size=None))
    cut = gradient(task, plan(batch_size=12, accumulate=5, shuffle=False))
    by_calls = gradient(
        tw.Task(model=task.model, step=lambda m, b: step(m, b)[0], data=(x, y)), plan(batch_size=12, accumulate=5)
    )
    assert torch.allclose(cut, whole, rtol=1e-12, atol=1e-14)
    assert torch.allclose(by_calls, whole, rtol=1e-12, atol=1e-14)  # the cross-entropy tells how many targets it counts


def test_weights_that_add_up_to_nothing_are_refused() -> None:
    task = classes(loss=None, metrics={}, step=lambda model, batch: (F.cross_entropy(model(batch[0]), batch[1]), 0))
    with pytest.raises(tw.TaskError, match="weight 0"):
        tw.train(task, plan(accumulate=2))


class Hungry(nn.Module):
    """Has memory for so many examples at once."""

    def __init__(self, room: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.inner, self.room, self.error = network(), room, error

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(x)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_out_of_memory_halves_the_micro_batch_and_gives_what_accumulation_gives(error: type[Exception]) -> None:
    fits = tw.train(classes(model=lambda: Hungry(99)), plan(batch_size=32, accumulate=4, steps=12))
    found = tw.train(classes(model=lambda: Hungry(10, error), data=blobs()), plan(batch_size=32, steps=12))
    assert torch.equal(weights(found.model), weights(fits.model))
    told = [event for event in found.events if event.kind == "out_of_memory"]
    assert [event.data for event in told] == [
        {"accumulate": 2, "micro_batch": 16},
        {"accumulate": 4, "micro_batch": 8},
    ]
    assert found.history["examples"].tolist()[1:] == fits.history["examples"].tolist()[1:]
    assert found.plan.batch_size == 32


def test_out_of_memory_with_one_example_is_an_error_that_says_so() -> None:
    task = classes(model=lambda: Hungry(2, RuntimeError), data=blobs(40), validation=None, metrics={})
    descent, recorder = started(task, plan(batch_size=2))
    descent.model.room = 0
    with pytest.raises(tw.TaskError, match="a single example"):
        walk(descent, recorder)


def test_another_error_of_the_model_is_told_with_its_step_and_line_and_is_the_cause() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            if self.calls > 3:
                raise RuntimeError("my own mistake")
            return self.inner(x)

    told = r"The model or the loss failed in step \d: RuntimeError: my own mistake \(test_gradient.py, line \d+\)"
    with pytest.raises(tw.TaskError, match=told) as caught:
        tw.train(classes(model=Broken), plan())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_dropout_is_a_function_of_seed_and_place() -> None:
    task = classes(model=lambda: network(nn.Dropout(0.5)))
    descent, recorder = started(task, plan())
    compute_gradient(descent, recorder)
    assert descent.last_draw is not None
    first = copy.deepcopy([p.grad for p in descent.model.parameters()])
    torch.rand(7)
    backward(descent, descent.last_draw)
    assert all(torch.equal(a, p.grad) for a, p in zip(first, descent.model.parameters(), strict=True))
    compute_gradient(descent, recorder)
    assert not torch.equal(first[0], next(descent.model.parameters()).grad)


@pytest.mark.parametrize("rule", ["adamw", "gradient_descent", "momentum"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_sparse_embeddings_descend_as_dense_ones(rule: str, accumulate: int) -> None:
    ends: list[list[Tensor]] = []
    for sparse in (False, True):
        torch.manual_seed(2)
        words = nn.Sequential(nn.Embedding(20, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))
        ids = torch.arange(240).reshape(60, 4) * 7 % 20
        task = tw.Task(model=words, loss=nn.CrossEntropyLoss(), data=(ids, (ids.sum(1) > 38).long()))
        made = tw.Plan(steps=6, batch_size=12, accumulate=accumulate, rule=rule, learning_rate=0.05)
        ends.append([*tw.train(task, made).model.parameters()])
    for one, other in zip(*ends, strict=True):  # sparse parts are added in another order
        torch.testing.assert_close(one, other)


class Examples(IterableDataset[Any]):
    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*self.columns, strict=True))


def summed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


SUMS: dict[str, dict[str, Any]] = {
    "a module": {"loss": nn.CrossEntropyLoss(reduction="sum")},
    "a partial": {"loss": functools.partial(F.cross_entropy, reduction="sum")},
    "a function": {"loss": lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum")},
    "without one class": {"loss": nn.CrossEntropyLoss(reduction="sum", ignore_index=0)},
    "a function without one class": {"loss": lambda o, t: F.cross_entropy(o, t, reduction="sum", ignore_index=1)},
    "a step": {"loss": None, "metrics": {}, "step": summed},
    "a step with a weight": {"loss": None, "metrics": {}, "step": lambda m, b: (summed(m, b), len(b[1]))},
}


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("loss", SUMS)
def test_the_parts_of_a_sum_add_up_to_it_with_a_short_last_part_too(loss: str, parts: int) -> None:
    task, made = in_float64(**SUMS[loss]), {"batch_size": 11, "shuffle": False}
    whole = gradient(task, plan(**made))
    assert torch.allclose(gradient(task, plan(accumulate=parts, **made)), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", SUMS)
def test_the_parts_of_a_sum_over_a_stream_add_up_to_it(loss: str) -> None:
    x, y = blobs()
    stream = {"data": Examples(x.double(), y), "model": lambda: network().double(), **SUMS[loss]} | {
        "validation": None,
        "metrics": {},
    }
    whole = gradient(classes(**stream), plan(batch_size=12))
    cut = gradient(classes(**stream), plan(batch_size=12, accumulate=3))
    assert torch.allclose(cut, whole, rtol=1e-12, atol=1e-14)


def test_a_sum_whose_memory_runs_out_takes_the_steps_of_one_whose_does_not() -> None:
    loss = nn.CrossEntropyLoss(reduction="sum")
    fits = tw.train(classes(model=lambda: Hungry(99), loss=loss), plan(batch_size=32, steps=6))
    found = tw.train(classes(model=lambda: Hungry(10), loss=loss), plan(batch_size=32, steps=6))
    assert [event.kind for event in found.events].count("out_of_memory") == 2
    assert torch.allclose(weights(found.model), weights(fits.model), rtol=1e-4, atol=1e-6)
    assert found.metrics["loss"] == pytest.approx(fits.metrics["loss"], rel=1e-4)


def rarely_high() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    targets = inputs.sum(1, keepdim=True).clamp(max=1.0)
    targets[6::40] = 2.0  # none of them among the few examples that are compared first
    return inputs, targets


def below_a_bound(output: Tensor, target: Tensor) -> Tensor:
    counts = target < 1.8
    return ((output - target).square() * counts).sum() / counts.sum()


@pytest.mark.parametrize("way", ["loss", "step"])
def test_a_mean_over_targets_that_a_rare_condition_chooses_is_taken_for_none_over_the_examples(way: str) -> None:
    given: dict[str, Any] = (
        {"loss": below_a_bound}
        if way == "loss"
        else {"step": lambda model, batch: below_a_bound(model(batch[0]), batch[1])}
    )
    task = tw.Task(model=lambda: nn.Linear(2, 1), data=rarely_high(), **given)
    descent, _ = started(task, plan(batch_size=160))
    assert descent.problem.objective.reduction.kind == "batch"


def without_sevens(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[target != 7], target[target != 7])


def zero_for_twos(output: Tensor, target: Tensor) -> Tensor:
    return (F.cross_entropy(output, target, reduction="none") * (target != 2)).mean()


@pytest.mark.parametrize("way", ["loss", "step"])
@pytest.mark.parametrize(
    ("loss", "rare", "kind"),
    [
        (without_sevens, 7, "calls"),
        (lambda output, target: F.cross_entropy(output, target, ignore_index=2), 2, "calls"),
        (lambda output, target: F.cross_entropy(output, target, reduction="sum"), 2, "sum"),
        (zero_for_twos, 2, "examples"),
    ],
)
def test_rows_that_only_some_batches_have_are_weighed_as_the_loss_weighs_them(
    loss: Any, rare: int, kind: str, way: str
) -> None:
    inputs, labels = blobs(400)
    labels %= 2
    labels[207::40] = rare  # none of them in the first batch, or among the few examples that are compared first
    given: dict[str, Any] = (
        {"loss": loss} if way == "loss" else {"step": lambda model, batch: loss(model(batch[0]), batch[1])}
    )
    descent, _ = started(tw.Task(model=network, data=(inputs, labels), **given), plan(batch_size=50))
    assert descent.problem.objective.reduction.kind == kind


def test_what_rows_far_off_show_of_a_loss_stands_though_no_examples_show_it() -> None:
    inputs, targets = rarely_high()
    targets = targets.clamp(max=1.0)
    task = tw.Task(model=lambda: nn.Linear(2, 1), loss=below_a_bound, data=(inputs, targets))
    descent, _ = started(task, plan(batch_size=160))
    assert descent.problem.objective.reduction.kind == "batch"


class Read(Dataset[tuple[Tensor, Tensor]]):
    """Examples that are read one by one."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(tensor[index] for tensor in self.tensors)


def without_a_number(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output[target != -9999], target[target != -9999])


def above_a_number(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output[target > -9000], target[target > -9000])


@pytest.mark.parametrize("made", [lambda *tensors: tensors, Read])
@pytest.mark.parametrize(("loss", "kind"), [(without_a_number, "targets"), (above_a_number, "batch")])
def test_a_number_for_missing_targets_that_only_validation_has_counts_there_as_the_loss_counts_it(
    loss: Any, kind: str, made: Any
) -> None:
    inputs = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3))
    targets = inputs.sum(1, keepdim=True)
    missing = targets.clone()
    missing[:1024][torch.arange(1024) % 4 > 0] = -9999.0
    task = tw.Task(
        model=lambda: nn.Linear(2, 1),
        loss=loss,
        data=made(inputs[:100], targets[:100]),
        validation=made(inputs, missing),
    )
    run = tw.train(task, plan(batch_size=20, accumulate=3, steps=3))
    if kind == "batch":
        assert any("no mean over its examples" in note for note in run.summary["notes"])
        return
    with torch.no_grad():
        assert run.metrics["loss"] == pytest.approx(float(loss(run.model(inputs), missing)), rel=1e-5)
    whole = tw.train(task, plan(batch_size=20, steps=3))
    assert torch.allclose(weights(run.model), weights(whole.model), atol=1e-5)
