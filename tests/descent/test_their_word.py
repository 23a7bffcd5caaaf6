"""What people bring holds: their loader's batches, what their loss takes, their model's two modes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import thalweg as tw

generator = torch.Generator().manual_seed(0)
X = torch.randn(200, 3, generator=generator)
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(200, 1, generator=generator)
Z = X @ torch.randn(3, 4, generator=generator)
LABELS = (Y[:, 0] > 0).long() + (Y[:, 0] > 2).long()


def linear() -> nn.Module:
    return nn.Linear(3, 4)


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(output, dim=1) @ F.normalize(target, dim=1).T, torch.arange(len(output)))


def plan(**knobs: Any) -> tw.Plan:
    values: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 16, "keep": "last", **knobs}
    return tw.Plan(**values)


def loaded(*tensors: Tensor, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), **options)


def over(batches: list[tuple[Tensor, Tensor]], run: tw.Run, loss: Any) -> float:
    """The mean loss over these batches, as a loop of one's own would compute it."""
    with torch.no_grad():
        losses = [(float(loss(run.model(x), y)), len(x)) for x, y in batches]
    return sum(value * size for value, size in losses) / sum(size for _, size in losses)


@pytest.mark.parametrize(
    "options", [{"batch_size": 32, "drop_last": True}, {"batch_size": 7}, {"batch_size": 200}, {"batch_size": 1}]
)
def test_validation_goes_through_the_loaders_own_batches(options: dict[str, Any]) -> None:
    validation = loaded(X, Z, **options)
    run = tw.train(tw.Task(linear, contrastive, (X, Z), validation=validation), plan(), steps=6)
    assert run.metrics["loss"] == pytest.approx(over(list(validation), run, contrastive), rel=1e-5)


@pytest.mark.parametrize("batch_size", [8, 50])
def test_a_loss_that_depends_on_the_batch_is_judged_in_batches_of_trainings_size(batch_size: int) -> None:
    run = tw.train(tw.Task(linear, contrastive, (X, Z), validation=(X, Z)), plan(batch_size=batch_size), steps=6)
    batches = list(zip(X.split(batch_size), Z.split(batch_size), strict=True))
    assert run.metrics["loss"] == pytest.approx(over(batches, run, contrastive), rel=1e-5)


def test_metrics_see_what_the_loader_gives() -> None:
    sizes: list[int] = []
    passes: list[list[int]] = []

    class Counted:
        def reset(self) -> None:
            sizes.clear()

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            sizes.append(len(outputs))

        def compute(self) -> float:
            passes.append(list(sizes))
            return float(len(sizes))

    validation = loaded(X, Z, batch_size=48, drop_last=True)
    tw.train(tw.Task(linear, F.mse_loss, (X, Z), validation=validation, metrics={"n": Counted()}), plan(), steps=2)
    assert [48] * 4 in passes


class ForEight(nn.Module):
    """A model made for batches of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.place = nn.Linear(3, 1), nn.Parameter(torch.zeros(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.place


class Reshaping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(4, 2, 1).reshape(8, 1)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 5), nn.Linear(5, 1)
        self.register_buffer("hidden", torch.zeros(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.cell(x, self.hidden)
        self.hidden = hidden.detach()
        return self.out(hidden)


@pytest.mark.parametrize("model", [ForEight, Reshaping, Stateful])
def test_a_model_made_for_one_batch_size_meets_no_other(model: Any) -> None:
    data = loaded(X, Y, batch_size=8, drop_last=True, shuffle=True)
    task = tw.Task(model, F.mse_loss, data, validation=loaded(X[:60], Y[:60], batch_size=8, drop_last=True))
    assert not [d for d in tw.check(task) if d.severity == "critical"]
    assert math.isfinite(tw.fit(task, epochs=1, effort=1, progress=False).metrics["loss"])
    assert math.isfinite(tw.fit(task, steps=20, effort="quick", progress=False).metrics["loss"])


class Ragged(Dataset[Any]):
    """Sequences of unequal length, and their value."""

    def __len__(self) -> int:
        return 150

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value = (index * 37 % 150) / 150
        return torch.full((1 + index % 7, 3), value), torch.tensor([value])


def longest_first(examples: list[Any]) -> list[Any]:
    return sorted(examples, key=lambda example: -len(example[0]))


def packed(examples: list[Any]) -> tuple[PackedSequence, Tensor]:
    examples = longest_first(examples)
    return pack_sequence([x for x, _ in examples]), torch.stack([y for _, y in examples])


def padded(examples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    examples = longest_first(examples)
    lengths = torch.tensor([len(x) for x, _ in examples])
    return pad_sequence([x for x, _ in examples], batch_first=True), lengths, torch.stack([y for _, y in examples])


def as_graph(examples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    nodes = torch.cat([x for x, _ in examples])
    owner = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor([len(x) for x, _ in examples]))
    pooling = torch.zeros(len(examples), len(nodes)).index_put_((owner, torch.arange(len(nodes))), torch.ones(()))
    pooling = pooling / pooling.sum(1, keepdim=True)
    return nodes, pooling.to_sparse(), torch.stack([y for _, y in examples])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.out = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, sequences: PackedSequence) -> Tensor:
        assert isinstance(sequences, PackedSequence)
        return self.out(self.memory(sequences)[1][0])


class Padded(Packed):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.out(self.memory(pack_padded_sequence(x, lengths, batch_first=True))[1][0])


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, nodes: Tensor, pooling: Tensor) -> Tensor:
        return torch.sparse.mm(pooling, self.layer(nodes))


class DeafPacked(Packed):
    def forward(self, sequences: PackedSequence) -> Tensor:
        return self.out.bias.expand(int(sequences.batch_sizes[0]), 1)


RAGGED = {"packed": (Packed, packed), "sorted and padded": (Padded, padded), "a sparse graph": (Pooling, as_graph)}


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("with_loader", [True, False])
def test_batches_that_cannot_be_rearranged_are_checked_searched_and_trained(kind: str, with_loader: bool) -> None:
    model, collate = RAGGED[kind]
    if with_loader:
        data: Any = DataLoader(Ragged(), batch_size=16, shuffle=True, collate_fn=collate)
        task = tw.Task(model, F.mse_loss, data, validation=DataLoader(Ragged(), batch_size=16, collate_fn=collate))
    else:
        task = tw.Task(model, F.mse_loss, Ragged(), validation=Ragged(), collate_fn=collate)
    assert not [d for d in tw.check(task) if d.severity == "critical"]
    run = tw.fit(task, epochs=4, effort="quick", progress=False)
    assert run.metrics["loss"] < 0.08  # the targets' variance


def test_a_model_that_ignores_packed_inputs_is_still_found() -> None:
    task = tw.Task(DeafPacked, F.mse_loss, DataLoader(Ragged(), batch_size=16, shuffle=True, collate_fn=packed))
    assert "output ignores input" in [d.symptom for d in tw.check(task)]


def ignoring_zero(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, ignore_index=0)


def over_present(output: Tensor, target: Tensor) -> Tensor:
    present = ~torch.isnan(target)
    return F.mse_loss(output[present], target[present])


def tokens(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return ignoring_zero(model(x), y), (y != 0).sum()


def masked_by_hand(output: Tensor, target: Tensor) -> Tensor:
    """Its cross-entropy leaves out -100, as it does by default, but what counts is told by another mask."""
    mask = target != 0
    return (F.cross_entropy(output, target, reduction="none") * mask).sum() / mask.sum()


def weighed(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    numbers, weights = target
    return ((output - numbers).square() * weights).sum() / weights.sum()


def where_marked(output: Tensor, target: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output[target["mask"]], target["labels"][target["mask"]])


def time_first(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    labels, lengths = target
    steps = output.unflatten(1, (2, 2)).transpose(0, 1).log_softmax(-1)
    return F.ctc_loss(steps, labels, torch.full((len(labels),), 2), lengths)


class Silent(nn.Linear):
    """Starts with the same output for all."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def marked_mean(model: nn.Module, batch: Any) -> Tensor:
    x, labels, mask = batch
    return F.cross_entropy(model(x)[mask], labels[mask])


MARKS = torch.arange(200) % 7 < 3
WITH_GAPS = torch.where(torch.rand(200, 4, generator=generator) < 0.4, math.nan, Z)
IN_PARTS: dict[str, dict[str, Any]] = {
    "partial": {"loss": functools.partial(F.cross_entropy, ignore_index=0), "data": (X, LABELS)},
    "function": {"loss": ignoring_zero, "data": (X, LABELS)},
    "weights in a lambda": {
        "loss": lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([0.2, 3.0, 1.0, 1.0])),
        "data": (X, LABELS),
    },
    "missing targets": {"loss": over_present, "data": (X, WITH_GAPS)},
    "a mask by hand": {"loss": masked_by_hand, "data": (X, LABELS)},
    "weights beside the target": {"loss": weighed, "data": (X, (Z, 0.1 + Z.abs()))},
    "a mask beside the target": {"loss": where_marked, "data": (X, {"labels": LABELS, "mask": MARKS})},
    "outputs by time": {
        "loss": time_first,
        "data": (X, (torch.ones(200, 1, dtype=torch.long), (LABELS > 1).long())),
    },
    "a sum": {"loss": nn.MSELoss(reduction="sum"), "data": (X, Z)},
    "a step with its weight": {"step": tokens, "data": (X, LABELS)},
    "a step that sums": {"step": lambda m, b: (m(b[0]) - b[1]).square().sum(), "data": (X, Z)},
}


@pytest.mark.parametrize("case", IN_PARTS)
def test_a_step_in_parts_is_the_whole_step_whatever_the_loss_averages_over(case: str) -> None:
    task = tw.Task(linear, **IN_PARTS[case])
    made = plan(rule="gradient_descent", learning_rate=0.002, batch_size=40, clip_norm=None)
    whole, parts = (tw.train(task, made.replace(accumulate=n), steps=8) for n in (1, 4))
    assert parts.history["loss"][1:].tolist() == pytest.approx(whole.history["loss"][1:].tolist(), rel=1e-4)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not [event for event in parts.events if "parts" in event.message]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"loss": contrastive}, "no mean over its examples"),
        ({"loss": lambda o, t: F.mse_loss(o, t).sqrt()}, r"return \(loss, weight\) from step"),
        ({"step": lambda m, b: contrastive(m(b[0]), b[1])}, "take smaller batches"),
        ({"step": lambda m, b: F.mse_loss(m(b[0]) + torch.randn(4), b[1])}, "could not be tested"),
    ],
)
def test_a_loss_that_cannot_be_cut_into_parts_is_named(parts: dict[str, Any], told: str) -> None:
    run = tw.train(tw.Task(linear, data=(X, Z), **parts), plan(batch_size=40, accumulate=4), steps=2)
    (event,) = [event for event in run.events if event.kind == "note"]
    assert event.step == 0
    assert re.search(told, event.message)


def marked_error(model: nn.Module, batch: Any) -> Tensor:
    x, z, mask = batch
    return F.mse_loss(model(x)[mask], z[mask])


def marked_error_if_any(model: nn.Module, batch: Any) -> Tensor:
    """The same, but zero where no target counts: so that a part of such examples makes it look like a sum."""
    x, z, mask = batch
    return ((model(x) - z).square().mean(1) * mask).sum() / mask.sum().clamp(min=1)


@pytest.mark.parametrize("step", [marked_error, marked_error_if_any])
@pytest.mark.parametrize("model", [linear, Silent])
@pytest.mark.parametrize("mask", [MARKS, torch.arange(200) > 12])  # of the second the first examples do not tell
def test_a_step_that_leaves_targets_out_without_saying_so_is_named(step: Any, model: Any, mask: Tensor) -> None:
    run = tw.train(tw.Task(model, step=step, data=(X, Z, mask)), plan(batch_size=40, accumulate=4), steps=2)
    (event,) = [event for event in run.events if event.kind == "note"]
    assert "return (loss, weight) from step" in event.message


SEQUENCES = torch.randint(1, 4, (200, 6), generator=generator)
GAPS = SEQUENCES.masked_fill(torch.rand(200, 6, generator=generator) < 0.4, -100)


def sequence_model() -> nn.Module:
    return nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4))


def shifted(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def per_token(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x).transpose(1, 2), y, reduction="sum") / (y != -100).sum()


def ignoring_step(model: nn.Module, batch: Any) -> Tensor:
    return ignoring_zero(model(batch[0]), batch[1])


CALLS: dict[str, dict[str, Any]] = {
    "targets that the loss shifts": {"model": sequence_model, "loss": shifted, "data": (SEQUENCES, GAPS)},
    "a sum over a count": {"model": sequence_model, "step": per_token, "data": (SEQUENCES, GAPS)},
    "a mask in a step": {"model": linear, "step": marked_mean, "data": (X, LABELS, MARKS)},
    "a mask that first examples do not tell": {"model": Silent, "step": marked_mean, "data": (X, LABELS, torch.arange(200) > 12)},
    "a step that ignores": {"model": linear, "step": ignoring_step, "data": (X, LABELS.sort().values)},
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_mean_over_what_a_class_loss_was_called_with_is_exact_in_parts_and_in_validation(case: str) -> None:
    task = tw.Task(**CALLS[case], validation=CALLS[case]["data"])
    made = plan(rule="gradient_descent", learning_rate=0.01, batch_size=40, keep="last")
    whole, parts = (tw.train(task, made.replace(accumulate=n), steps=8) for n in (1, 4))
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not [event for event in parts.events if "parts" in event.message]
    x, *rest = CALLS[case]["data"]
    true = task.step(whole.model, (x, *rest)) if task.step else task.loss(whole.model(x), *rest)
    in_small_batches = tw.evaluate(whole, loaded(x, *rest, batch_size=7))
    assert in_small_batches["loss"] == pytest.approx(float(true.detach()), rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("with_step", [True, False])
def test_first_batches_without_any_target_do_not_stop_data_that_have_some(with_step: bool) -> None:
    data = (X, LABELS.sort().values)
    how: dict[str, Any] = {"step": lambda m, b: ignoring_zero(m(b[0]), b[1])} if with_step else {"loss": ignoring_zero}
    assert tw.train(tw.Task(linear, data=data, **how), plan(batch_size=40), steps=5).metrics["loss"] > 0
    loader = DataLoader(torch.utils.data.TensorDataset(*data), 16, sampler=range(200))  # a stream: batches as they come
    with pytest.raises(
        tw.ThalwegError, match=r"first training batch: all its targets are 0, which cross_entropy leaves out"
    ):
        tw.check(tw.Task(linear, data=loader, **how))
    every = (X, torch.zeros_like(LABELS))
    with pytest.raises(tw.ThalwegError, match="Leave out examples without a target"):
        tw.check(tw.Task(linear, data=every, **how))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_may_weigh_some_batches_nothing(parts: int) -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        x, y = batch
        return ignoring_zero(model(x), y), (y != 0).sum()

    labels = torch.where(torch.arange(200) < 150, 0, 1 + LABELS % 3)
    data = (X, labels)
    run = tw.train(
        tw.Task(linear, step=step, data=data, validation=data), plan(batch_size=8, accumulate=parts), steps=30
    )
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert run.metrics["loss"] == pytest.approx(ignoring_zero(run.model(X), labels).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda o, t: F.cross_entropy(o, t) + 0])
def test_a_mean_over_examples_is_known_where_all_start_with_the_same_loss(loss: Any) -> None:
    run = tw.train(
        tw.Task(Silent, step=lambda m, b: loss(m(b[0]), b[1]), data=(X, LABELS)),
        plan(batch_size=40, accumulate=4),
        steps=2,
    )
    assert not [event for event in run.events if event.kind == "note"]


def test_memory_that_runs_out_says_where_the_parts_are_not_the_whole() -> None:
    class Large(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if self.training and len(input) > 32:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(input)

    run = tw.train(tw.Task(lambda: Large(3, 4), contrastive, (X, Z)), plan(batch_size=64), steps=2)
    (event,) = [event for event in run.events if event.kind == "out_of_memory"]
    assert "This loss is no mean over its examples" in event.message


def test_memory_that_runs_out_in_validation_halves_only_what_can_be_cut() -> None:
    class Large(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if not self.training and len(input) > 60:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(input)

    validation = loaded(X, Z, batch_size=100)
    run = tw.train(tw.Task(lambda: Large(3, 4), F.mse_loss, (X, Z), validation=validation), plan(), steps=2)
    weight, bias = run.model.state_dict().values()
    assert run.metrics["loss"] == pytest.approx(F.mse_loss(X @ weight.T + bias, Z).item(), rel=1e-5)
    with pytest.raises(tw.TaskError, match=r"Memory ran out|Memory runs out"):
        tw.train(tw.Task(lambda: Large(3, 4), contrastive, (X, Z), validation=validation), plan(), steps=2)


class WorstGroup:
    """A mean of the means of two groups, whose weights follow their losses from call to call."""

    def __init__(self) -> None:
        self.weights = [0.5, 0.5]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        losses = (output - target).square().mean(1)
        first = target[:, 0] > 0.3
        means = [losses[part].mean() if part.any() else losses.sum() * 0 for part in (first, ~first)]
        if torch.is_grad_enabled():
            self.weights = [
                w * math.exp(0.05 * float(mean.detach())) for w, mean in zip(self.weights, means, strict=True)
            ]
            self.weights = [w / sum(self.weights) for w in self.weights]
        return sum(w * mean for w, mean in zip(self.weights, means, strict=True))


@pytest.mark.parametrize("own_step", [False, True])
def test_a_loss_that_is_no_mean_is_named_also_where_it_moves_from_call_to_call(own_step: bool) -> None:
    loss = WorstGroup()
    parts = {"step": lambda m, b: loss(m(b[0]), b[1])} if own_step else {"loss": loss}
    run = tw.train(tw.Task(linear, data=(X, Z), validation=(X, Z), **parts), plan(), steps=2)
    assert any("no mean over its examples" in note for note in run.summary["notes"])


def test_of_a_mean_that_moves_from_call_to_call_nothing_is_said_and_no_parts_are_called_exact() -> None:
    calls = [0]

    def fading(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return F.mse_loss(output, target) * (1 + 1 / calls[0])

    run = tw.train(tw.Task(linear, fading, (X, Z)), plan(accumulate=2), steps=2)
    assert not any("no mean over its examples" in note for note in run.summary["notes"])
    assert any("could not be tested" in event.message for event in run.events)


SUMMED: dict[str, dict[str, Any]] = {
    "function": {"loss": lambda o, t: (o - t).square().sum()},
    "module": {"loss": nn.MSELoss(reduction="sum")},
    "step": {"step": lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="sum")},
    "pixels and examples": {"loss": lambda o, t: F.binary_cross_entropy_with_logits(o, t.sigmoid(), reduction="sum")},
}


@pytest.mark.parametrize("case", SUMMED)
def test_a_summed_loss_is_named_before_training_and_its_validation_is_that_of_a_batch(case: str) -> None:
    task = tw.Task(linear, data=(X, Z), validation=(X, Z), **SUMMED[case])
    assert [d.severity for d in tw.check(task) if d.symptom == "summed loss"] == ["warning"]
    said: list[str] = []
    run = tw.train(task, plan(learning_rate=1e-6), steps=12, say=said.append)
    assert any("summed loss" in text for text in said)
    assert "summed loss" in [d.symptom for d in run.diagnoses]
    assert run.metrics["loss"] == pytest.approx(run.history["loss"][1:13].mean(), rel=0.25)


@pytest.mark.parametrize(
    "loss", [F.mse_loss, contrastive, lambda o, t: (o - t).square().sum(1).mean(), over_present, nn.HuberLoss()]
)
def test_a_loss_that_is_no_sum_is_not_called_one(loss: Any) -> None:
    assert "summed loss" not in [d.symptom for d in tw.check(tw.Task(linear, loss, (X, Z)))]


class Energy(nn.Module):
    """Gives forces: the gradient of an energy by the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)[0]


class FrozenEnergy(Energy):
    """Its normalisation is frozen, and its statistics move with every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.inner[1].requires_grad_(False)


def test_drifting_statistics_are_found_of_a_model_that_takes_gradients_itself() -> None:
    found = tw.check(tw.Task(FrozenEnergy, F.mse_loss, (X, 2 * X)))
    assert "frozen statistics move" in [d.symptom for d in found]


def physics(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].detach().requires_grad_()
    u = model(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return (slope.sum(1, keepdim=True) - u).square().mean() + F.mse_loss(u, batch[1])


class Penalised(nn.Module):
    """A loss on the slope of the output, whose input it is given as part of the output."""

    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        u, x = output
        return F.mse_loss(u, target) + 0.1 * torch.autograd.grad(u.sum(), x, create_graph=True)[0].square().mean()


class WithInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(torch.is_grad_enabled())
        return self.inner(x), x


SLOPES: dict[str, dict[str, Any]] = {
    "forces": {"model": Energy, "loss": F.mse_loss, "data": (X, 2 * X), "validation": (X, 2 * X)},
    "forces without validation": {"model": Energy, "loss": F.mse_loss, "data": (X, 2 * X)},
    "a step": {"model": lambda: nn.Linear(3, 1), "step": physics, "data": (X, Y), "validation": (X, Y)},
    "a loss": {"model": WithInput, "loss": Penalised(), "data": (X, Y), "validation": (X, Y)},
}


@pytest.mark.parametrize("case", SLOPES)
def test_losses_that_take_gradients_themselves_are_validated(case: str) -> None:
    task = tw.Task(**SLOPES[case])
    assert not [d for d in tw.check(task) if d.severity == "critical"]
    run = tw.fit(task, steps=12, effort="quick", progress=False)
    assert math.isfinite(run.metrics["loss"])
    assert not any(p.requires_grad and p.grad is not None and p.grad.grad_fn for p in run.model.parameters())


class Detector(nn.Module):
    """As torchvision's: losses while training, boxes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = self.layer(x)
        return {"box": F.mse_loss(out, y)} if self.training and y is not None else [{"boxes": out}]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        return (self.layer(x), self.layer(x)) if self.training else self.layer(x)


@pytest.mark.parametrize("validation", [None, (X, Y)])
def test_a_model_that_gives_something_else_in_evaluation_mode_is_told_of_evaluate_and_that_helps(
    validation: Any,
) -> None:
    parts: dict[str, Any] = {"data": (X, Y), "validation": validation, "step": lambda m, b: m(*b)["box"]}
    with pytest.raises(tw.TaskError, match=r"In training mode the same batch passes: .* evaluate\(model, batch\)"):
        tw.check(tw.Task(Detector, **parts))
    task = tw.Task(Detector, evaluate=lambda m, b: F.mse_loss(m(b[0])[0]["boxes"], b[1]), **parts)
    assert math.isfinite(tw.fit(task, steps=10, effort=1, progress=False).metrics["loss"])


def test_a_loss_that_is_given_another_kind_of_output_in_evaluation_mode_is_named() -> None:
    said: list[str] = []
    loss = lambda o, t: F.mse_loss(o[0].reshape(-1)[: len(t)], t[: len(o[0].reshape(-1)), 0])  # noqa: E731
    tw.train(tw.Task(TwoHeads, loss, (X, Y), validation=(X, Y)), plan(), steps=2, say=said.append)
    assert any(
        "In evaluation mode the model gives a tensor" in text and "evaluate(model, batch)" in text for text in said
    )


class Imputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x.nan_to_num(), torch.isnan(x).float()], 1))


class Masked(nn.Module):
    """Attention with a mask of 0 and -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.value(x * (self.score(x) + mask).softmax(1))


GAPS = torch.where(torch.rand(200, 3, generator=generator) < 0.2, math.nan, X)
MASK = torch.where(torch.rand(200, 3, generator=generator) < 0.3, -math.inf, 0.0)
MASK[:, 0] = 0.0
TAKEN: dict[str, dict[str, Any]] = {
    "targets": {"model": linear, "loss": over_present, "data": (X, WITH_GAPS), "validation": (X, WITH_GAPS)},
    "inputs": {"model": Imputing, "loss": F.mse_loss, "data": (GAPS, Z), "validation": (GAPS, Z)},
    "a mask": {"model": Masked, "loss": F.mse_loss, "data": ((X, MASK), Z), "validation": ((X, MASK), Z)},
    "one late row": {
        "model": linear,
        "loss": over_present,
        "data": (X, torch.cat([Z[:-1], torch.full((1, 4), math.nan)])),
    },
}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("as_items", [False, True])
def test_what_model_or_loss_take_is_no_fault_of_the_data(kind: str, as_items: bool) -> None:
    parts = dict(TAKEN[kind])
    if as_items:
        x, y = parts["data"]
        rows = zip(*x, strict=True) if isinstance(x, tuple) else x
        parts["data"] = [(row, target) for row, target in zip(rows, y, strict=True)]
    said: list[str] = []
    run = tw.fit(tw.Task(**parts), steps=30, effort="quick", progress=False, say=said.append)
    assert math.isfinite(run.metrics["loss"])
    assert not [d for d in run.diagnoses if d.severity == "critical"]
    assert not run.history["loss"].size or math.isfinite(run.history["loss"][-1])
    if not as_items:
        assert any("has NaN or infinity in" in text and "finite all the same" in text for text in said)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"data": (X, WITH_GAPS), "loss": F.mse_loss}, r"`data` \(part 2, .*\) has NaN or infinity in \d+ of 200 rows"),
        ({"data": (GAPS, Z), "loss": F.mse_loss}, r"`data` \(part 1, .* and the loss is nan there\. Drop or fill them"),
        (
            {"data": (X, Z), "validation": (X, WITH_GAPS), "loss": F.mse_loss},
            r"`validation` \(part 2, .* and the loss is nan there",
        ),
        (
            {
                "data": (X, WITH_GAPS),
                "loss": lambda o, t: torch.where(torch.isnan(t), 0.0, (o - t).square()).mean(),
            },
            r"its gradient is not: a NaN times zero is NaN\. Replace them before",
        ),
        (
            {"data": (X, torch.cat([Z[:-1], torch.full((1, 4), math.inf)])), "loss": F.mse_loss},
            r"in 1 of 200 rows: rows 199",
        ),
    ],
)
def test_what_the_loss_does_not_take_is_refused_with_its_rows(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(tw.DataError, match=told):
        tw.train(tw.Task(linear, **parts), plan(), steps=2)


def test_missing_targets_are_not_blamed_for_a_run_that_diverges() -> None:
    task = tw.Task(linear, over_present, (X, WITH_GAPS), validation=(X, WITH_GAPS))
    with pytest.raises(tw.DivergedError):
        tw.train(task, plan(rule="gradient_descent", learning_rate=1e18, clip_norm=None), steps=60)


class Odd(IterableDataset[Any]):
    """One example more than batches of eight hold."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X[:33], Y[:33], strict=True)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("data", "knobs", "mended", "mended_knobs"),
    [
        (Odd(), {}, Odd(), {"drop_last": True}),
        (Odd(), {}, Odd(), {"batch_size": 11}),
        (DataLoader(Odd(), batch_size=8), None, DataLoader(Odd(), batch_size=8, drop_last=True), None),
        (DataLoader(Odd(), batch_size=8), None, DataLoader(Odd(), batch_size=11), None),
    ],
)
def test_the_advice_on_a_streams_last_batch_of_one_helps(data: Any, knobs: Any, mended: Any, mended_knobs: Any) -> None:
    def made(knobs: Any) -> tw.Plan:
        return tw.Plan(learning_rate=0.01) if knobs is None else plan(**{"batch_size": 8, **knobs})

    told = r"set drop_last=True, in your DataLoader where you give one, else in the plan .*, or another batch size"
    with pytest.raises(tw.TaskError, match=told):
        tw.train(tw.Task(normalised, F.mse_loss, data), made(knobs), steps=12)
    assert math.isfinite(
        tw.train(tw.Task(normalised, F.mse_loss, mended), made(mended_knobs), steps=12).metrics["loss"]
    )


def test_a_batch_sampler_over_a_part_of_the_data_trains_on_that_part() -> None:
    sampler = BatchSampler(SubsetRandomSampler(range(40)), 8, drop_last=True)
    marked = torch.where(torch.arange(200)[:, None] < 40, X, math.nan)
    data = DataLoader(TensorDataset(marked, Y), batch_sampler=sampler)
    run = tw.train(tw.Task(lambda: nn.Linear(3, 1), F.mse_loss, data), tw.Plan(learning_rate=0.01), steps=12)
    assert run.plan.batch_size == 8
    assert math.isfinite(run.metrics["loss"])
    assert all(math.isfinite(value) for value in run.history["loss"][1:])


def test_a_stream_is_seen_whole_in_training() -> None:
    seen: set[float] = set()

    def noting(model: nn.Module, batch: Any) -> Tensor:
        seen.update(batch[0][:, 0].tolist())
        return F.mse_loss(model(batch[0]), batch[1])

    class Short(Odd):
        def __len__(self) -> int:
            return 16

    run = tw.train(tw.Task(lambda: nn.Linear(3, 1), data=Short(), step=noting), plan(batch_size=8), epochs=5)
    assert seen == set(X[:33, 0].tolist())
    assert [e.message for e in run.events if "its len() says 2" in e.message]


@pytest.mark.parametrize("column", [False, True])
def test_missing_labels_are_told_and_the_advice_works(column: bool) -> None:
    labels = torch.where(torch.arange(200) % 9 == 4, math.nan, LABELS.double())
    labels = labels[:, None] if column else labels
    with pytest.raises(tw.ThalwegError, match=r"with NaN.*Give -100.*y\.nan_to_num\(-100\)\.long\(\)") as refused:
        tw.check(tw.Task(linear, F.cross_entropy, (X, labels)))
    followed = eval(str(refused.value).rpartition(": ")[2].rstrip("."), {"y": labels})
    run = tw.train(tw.Task(linear, F.cross_entropy, (X, followed)), plan(), steps=2)
    assert run.metrics["loss"] == pytest.approx(F.cross_entropy(run.model(X), followed).item(), rel=1e-5)


def test_values_that_are_no_number_in_the_models_dtype_are_told() -> None:
    with pytest.raises(tw.ThalwegError, match=r"in 200 of 200 rows.*too large: float32 ends at 3\.4e\+38\)"):
        tw.check(tw.Task(linear, F.mse_loss, (X.double() * 1e300, Z)))


def test_an_empty_stream_is_named() -> None:
    class Empty(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(tw.ThalwegError, match="The stream `validation` gave no batch"):
        tw.check(tw.Task(linear, F.mse_loss, (X, Z), validation=Empty()))


def separated(output: Tensor, target: Tensor) -> Tensor:
    """Distances within classes less those between: NaN for a batch of one class."""
    distances, same = torch.cdist(output, output), target[:, None] == target
    return distances[same].mean() - distances[~same].mean()


def two_heads(output: Tensor, target: Tensor) -> Tensor:
    first, second = target.T
    return F.cross_entropy(output, first, ignore_index=-1) + F.cross_entropy(output, second, ignore_index=-1)


SORTED = LABELS.sort()
PARTLY = torch.stack([torch.where(torch.arange(200) < 60, -1, LABELS), LABELS], 1)
FIRST_IGNORED = torch.where(torch.arange(200) < 40, -100, LABELS)


@pytest.mark.parametrize(
    ("loss", "data"),
    [
        (separated, (X[SORTED.indices], SORTED.values)),
        (separated, loaded(X[SORTED.indices], SORTED.values, batch_size=20, shuffle=True)),
        (F.cross_entropy, (X, FIRST_IGNORED)),
        (two_heads, (X, PARTLY)),
    ],
)
def test_data_whose_first_examples_have_no_loss_are_rehearsed_with_others(loss: Any, data: Any) -> None:
    task = tw.Task(linear, loss, data)
    assert not [found for found in tw.check(task) if found.severity == "critical"]
    run = tw.train(task, plan() if isinstance(data, tuple) else plan(batch_size=20), steps=10)
    assert math.isfinite(run.metrics["loss"])


def test_a_loss_that_is_never_finite_is_still_refused() -> None:
    with pytest.raises(tw.TaskError, match="The loss is nan on the first training batch: all its targets are -100"):
        tw.train(tw.Task(linear, F.cross_entropy, (X, torch.full((200,), -100))), plan(), steps=1)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


def in_training_mode(model: nn.Module, batch: Any) -> Tensor:
    """As a detector is evaluated that gives its losses in training mode only."""
    model.train()
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("evaluate", [None, in_training_mode])
def test_buffers_that_change_in_validation_are_put_back(evaluate: Any) -> None:
    task = tw.Task(Normalised, F.mse_loss, (X, Z), (X, Z), evaluate=evaluate)
    often, once = (tw.train(task, plan(validate_every=every), steps=6) for every in (1, 6))
    assert often.model.calls.item() == once.model.calls.item() == 6
    assert torch.equal(often.model.layers[1].running_mean, once.model.layers[1].running_mean)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda o, t: o.square().mean(), False),
        (F.mse_loss, True),
        (lambda o, t: F.cross_entropy(o, t.long()[:, 0]), True),
    ],
)
def test_a_target_that_only_fills_its_place_is_not_said_to_be_all_alike(loss: Any, told: bool) -> None:
    found = tw.check(tw.Task(linear, loss, (X, torch.zeros(200, 4))))
    assert any("all alike" in one.symptom for one in found) is told


def counted(model: nn.Module, batch: Any) -> Any:
    keep = batch[1] > 0
    return F.mse_loss(model(batch[0])[keep], batch[1][keep]), keep.sum()


def with_accuracy(model: nn.Module, batch: Any) -> Any:
    loss = F.mse_loss(model(batch[0]), batch[1])
    return loss, (model(batch[0]) > 0).eq(batch[1] > 0).float().mean()


def with_largest(model: nn.Module, batch: Any) -> Any:
    return F.mse_loss(model(batch[0]), batch[1]), batch[1].abs().max()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"step": with_accuracy}, True),
        ({"step": with_largest}, True),
        ({"loss": F.mse_loss, "evaluate": with_accuracy}, True),
        ({"step": counted}, False),
        ({"step": lambda m, b: (F.mse_loss(m(b[0]), b[1]), len(b[0]))}, False),
        ({"step": lambda m, b: (contrastive(m(b[0]), b[1]), len(b[0]))}, False),
    ],
)
def test_a_second_figure_that_is_no_weight_is_named(parts: dict[str, Any], told: bool) -> None:
    task = tw.Task(linear, data=(X, Z), validation=(X + 1, Z), **parts)
    assert any(found.symptom == "weights that do not fit" for found in tw.check(task)) is told


def test_steps_in_parts_say_that_batch_normalisation_sees_the_parts() -> None:
    run = tw.train(tw.Task(Normalised, F.mse_loss, (X, Z)), plan(accumulate=2), steps=2)
    assert [e.message for e in run.events if e.kind == "note"] == [
        "Steps go in 2 parts. Batch normalisation takes its statistics of each part."
    ]


def dice(output: Tensor, target: Tensor) -> Tensor:
    return 1 - 2 * (output.sigmoid() * target).sum() / (output.sigmoid().sum() + target.sum())


@pytest.mark.parametrize(
    ("loss", "target", "told"),
    [
        (dice, (Z > 0) * 255, True),
        (dice, ((Z > 0) * 255).byte(), True),
        (dice, (Z > 0) * 255.0, True),
        (dice, (Z > 0).float(), False),
        (lambda o, t: dice(o, t / 255), (Z > 0) * 255.0, False),
        (functools.partial(F.cross_entropy, ignore_index=255), (Z[:, 0] > 0) * 255, False),
        (F.l1_loss, (Z > 0) * 255.0, False),
    ],
)
def test_a_mask_as_image_files_hold_it_is_named(loss: Any, target: Any, told: bool) -> None:
    found = tw.check(tw.Task(linear, loss, (X, target)))
    assert any(one.symptom == "mask of 0 and 255" for one in found) is told


@pytest.mark.parametrize(
    ("data", "validation", "batches"),
    [
        ((X, Z), None, "batches of the training's size"),
        (loaded(X, Z, batch_size=16), (X, Z), "batches of the training's size"),
        ((X, Z), loaded(X, Z, batch_size=50), "the loader's own batches"),
    ],
)
@pytest.mark.parametrize("loss", [contrastive, lambda o, t: F.mse_loss(o, t).sqrt()])
def test_that_validation_averages_over_batches_a_loss_that_depends_on_them_is_said(
    data: Any, validation: Any, batches: str, loss: Any
) -> None:
    notes: list[str] = []
    tw.check(tw.Task(linear, loss, data, validation=validation), say=notes.append)
    assert any(
        f"no mean over its examples (it compares them, or divides sums, say). Validation averages it over {batches};"
        in n
        for n in notes
    )


def test_of_a_loss_that_is_a_mean_or_a_sum_no_such_thing_is_said() -> None:
    for loss in (F.mse_loss, nn.MSELoss(reduction="sum"), lambda o, t: F.smooth_l1_loss(o, t) + F.l1_loss(o, t)):
        notes: list[str] = []
        tw.check(tw.Task(linear, loss, (X, Z)), say=notes.append)
        assert not notes


def squeezed(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output[:, :1].squeeze(), target[:, 0].gt(0).float())


def by_fours(output: Tensor, target: Tensor) -> Tensor:
    return (output.unflatten(0, (-1, 4)) - target.unflatten(0, (-1, 4))).square().mean()


@pytest.mark.parametrize(
    ("model", "loss", "count", "told"),
    [
        (
            lambda: nn.Sequential(linear(), nn.BatchNorm1d(4)),
            F.mse_loss,
            33,
            r"is a single one, .*Expected more than 1 value",
        ),
        (linear, squeezed, 33, "a single one"),
        (linear, by_fours, 38, "one of 6"),
    ],
)
def test_a_loaders_last_batch_that_fails_is_told_by_check_before_training_refuses_it(
    model: Any, loss: Any, count: int, told: str
) -> None:
    def task(**options: Any) -> tw.Task:
        return tw.Task(model, loss, loaded(X[:count], Z[:count], **options))

    told = (
        rf"{count} examples in the loader's batches of 8, .*{told}.* Set drop_last=True in the DataLoader, or another"
    )
    for verb in (
        tw.check,
        lambda made: tw.train(made, tw.Plan(), steps=5),
        lambda made: tw.fit(made, steps=5, effort=1),
    ):
        with pytest.raises(tw.DataError, match=told):
            verb(task(batch_size=8))
    tw.check(task(batch_size=8, drop_last=True))
    assert tw.train(task(batch_size=8, drop_last=True), tw.Plan(), steps=5).summary["status"] == "finished"


def test_a_last_batch_of_one_that_only_training_cannot_take_is_evaluated() -> None:
    data = loaded(X[:33], Z[:33], batch_size=8)
    task = tw.Task(lambda: nn.Sequential(linear(), nn.BatchNorm1d(4)), F.mse_loss, data)
    assert math.isfinite(tw.evaluate(task, data)["loss"])


def test_an_evaluate_that_returns_a_table_is_told_what_to_return_and_that_works() -> None:
    def evaluate(model: nn.Module, batch: Any) -> Any:
        error = F.mse_loss(model(batch[0]), batch[1])
        return {"val_loss": error, "rmse": error.sqrt()}

    def mended(model: nn.Module, batch: Any) -> Any:
        losses = evaluate(model, batch)
        return losses["val_loss"], None, {"rmse": losses["rmse"]}

    task = functools.partial(tw.Task, linear, F.mse_loss, (X, Z), validation=(X, Z))
    with pytest.raises(
        tw.TaskError,
        match=r"`evaluate` returned a dict\. .* \(losses\['val_loss'\], None, \{'accuracy': accuracy\}\)\.",
    ):
        tw.check(task(evaluate=evaluate))
    assert "rmse" in tw.evaluate(task(evaluate=mended))
