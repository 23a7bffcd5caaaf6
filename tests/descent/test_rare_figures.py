"""What is measured beside the steps: the noise of the gradient, as it is, where a batch may be cut, and nowhere else."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, started, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import thalweg as tw
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.rare_figures import RareFigures, first_part
from thalweg.landscape.noise_scale import noise_every


def exact(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The squared norm of the mean gradient, and the trace of the covariance of single examples' gradients."""
    rows: list[Tensor] = []
    for k in range(len(x)):
        loss = F.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    each = torch.stack(rows)
    return float(each.mean(0).square().sum()), float((each - each.mean(0)).square().sum() / len(x))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_both_estimates_are_right_on_average(accumulate: int) -> None:
    x, y = blobs(480)
    task = classes(data=(x, y))
    descent, recorder = started(task, plan(batch_size=32, accumulate=accumulate, replacement=True))
    rare, found = RareFigures(descent, recorder), list[tuple[float, float]]()
    for _ in range(300):
        compute_gradient(descent, recorder)
        noise = rare._noise()
        assert noise is not None
        found.append(noise)
    error = np.std(found, axis=0) / np.sqrt(len(found))
    expected = exact(descent.model, x, y)
    assert (np.abs(np.mean(found, axis=0) - expected) < 4 * error).all()
    assert (error < 0.1 * np.array(expected)).all()


def test_what_follows_of_the_rest_is_the_rests_own_gradient() -> None:
    descent, recorder = started(classes(), plan(batch_size=16))
    compute_gradient(descent, recorder)
    found = RareFigures(descent, recorder)._noise()
    assert descent.last_draw is not None
    x, y = descent.last_draw.parts[0]
    part, rest = (
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(F.cross_entropy(descent.model(x[k]), y[k]), descent.parameters)]
        )
        for k in (slice(0, 4), slice(4, 16))
    )
    expected = float(part @ rest), float((part - rest).square().sum()) / (1 / 4 + 1 / 12)
    assert found == pytest.approx(expected, rel=1e-4)


class Items(Dataset[Any]):
    def __init__(self) -> None:
        self.x, self.y = blobs()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> Any:
        return self.x[k], self.y[k]


@pytest.mark.parametrize(
    ("changes", "knobs", "size"),
    [
        ({}, {"batch_size": 32}, 8),
        ({}, {"batch_size": 4}, 2),
        ({}, {"batch_size": 3}, None),
        ({}, {"batch_size": 30, "accumulate": 3}, 10),
        ({"data": Items()}, {"batch_size": 32}, 8),
        ({"data": Items(), "collate_fn": torch.utils.data.default_collate}, {"batch_size": 32}, 8),
        (
            {"data": Items(), "collate_fn": lambda rows: torch.utils.data.default_collate(rows)},
            {"batch_size": 32},
            None,
        ),
        ({"data": DataLoader(Items(), batch_size=32)}, {}, None),
        ({"data": DataLoader(TensorDataset(*blobs()), batch_size=32)}, {}, None),
    ],
)
def test_a_batch_is_cut_only_where_the_user_did_not_make_it(changes: Any, knobs: Any, size: int | None) -> None:
    made = plan(**knobs) if knobs else tw.Plan(learning_rate=1e-2, steps=30)
    descent, recorder = started(classes(**changes), made)
    compute_gradient(descent, recorder)
    assert descent.last_draw is not None
    part = first_part(descent, descent.last_draw)
    assert (part and part.sizes[0]) == size
    if part is not None:
        first = descent.last_draw.parts[0]
        assert all(torch.equal(a, b[: part.sizes[0]]) for a, b in zip(part.parts[0], first, strict=True))
    descent.batches.close()


def test_measuring_changes_no_bit_and_is_bounded_and_off_without_a_watch() -> None:
    runs = [
        tw.train(classes(model=lambda: network(nn.BatchNorm1d(12), nn.Dropout(0.1))), plan(steps=210, watch=on))
        for on in (True, False)
    ]
    assert weights(runs[0].model).equal(weights(runs[1].model))
    told = runs[0].history["step"][np.isfinite(runs[0].history["noise/trace"])]
    assert told.tolist() == [100, 200]
    assert "noise/trace" not in runs[1].history


def test_of_a_sum_nothing_is_measured() -> None:
    task = classes(loss=nn.CrossEntropyLoss(reduction="sum"), metrics={})
    run = tw.train(task, plan(steps=110, learning_rate=1e-3))
    assert "noise/trace" not in run.history


def test_a_failure_beside_the_steps_is_said_once_and_the_run_goes_on() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            assert not (self.training and len(x) == 4), "made for batches of sixteen"
            return self.net(x)

    run = tw.train(classes(model=Fixed), plan(steps=330))
    told = [e.message for e in run.events if "not measured any more" in e.message]
    assert len(told) == 1
    assert told[0].startswith("From here on the noise of the gradient is not measured any more: ")
    assert "made for batches of sixteen" in told[0]
    assert run.summary["status"] == "finished"


@pytest.mark.parametrize(("total", "most"), [(500, 5), (1000, 10), (10_000, 50), (1_000_000, 2500)])
def test_measurements_are_few(total: int, most: int) -> None:
    assert 0 < total // noise_every(total) <= most
