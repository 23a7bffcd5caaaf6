"""The gradient noise scale of a task, where it is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.problem import Problem, open_task
from thalweg.landscape.noise_scale import NoiseScale
from thalweg.tuning.gradient_noise import measure_noise_scale


class Weights(nn.Module):
    """The weights w; the loss of an example x is w x, so that its gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(50))


def linear(model: nn.Module, batch: Any) -> Tensor:
    return (batch[0] @ model.get_parameter("w")).mean()


def problem(mean: float, deviation: float, **parts: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = mean / 50**0.5 + deviation / 50**0.5 * torch.randn(4096, 50, generator=generator)
    usual: dict[str, Any] = {"model": Weights, "step": linear, "data": (x,)}
    return open_task(tw.Task(**{**usual, **parts}))


def measure(made: Problem, size: int | None = 64, steps: int = 100, **knobs: Any) -> NoiseScale | None:
    return measure_noise_scale(made, tw.Plan(learning_rate=1e-3, batch_size=size, **knobs), steps, seconds=60)


def test_it_is_noise_over_gradient_where_both_are_known() -> None:
    found = measure(problem(mean=1.0, deviation=8.0))
    assert found is not None
    assert found.low <= 64 <= found.high
    assert 32 < found.value < 128


def test_data_without_noise_have_none() -> None:
    found = measure(problem(mean=1.0, deviation=0.0))
    assert found is not None
    assert found.value < 1e-3


def test_data_without_a_gradient_have_no_upper_end() -> None:
    found = measure(problem(mean=0.0, deviation=8.0))
    assert found is not None
    assert not found.is_known


def test_a_sum_is_taken_for_the_mean_that_it_is_made_of() -> None:
    def summed(model: nn.Module, batch: Any) -> Tensor:
        return linear(model, batch) * len(batch[0])

    found = measure(problem(mean=1.0, deviation=8.0, step=summed))
    assert found is not None
    assert found.low <= 64 <= found.high


@pytest.mark.parametrize("size", [None, 1, 4])
def test_batches_that_have_no_parts_to_compare_give_none(size: int | None) -> None:
    assert measure(problem(1.0, 1.0), size) is None


def test_a_descent_that_is_not_finite_gives_none() -> None:
    def explode(model: nn.Module, batch: Any) -> Tensor:
        return linear(model, batch) * torch.where(model.get_parameter("w").abs().sum() > 0, torch.nan, 1.0)

    assert measure(problem(1.0, 1.0, step=explode)) is None


def test_time_that_ends_before_the_first_steps_gives_none() -> None:
    assert measure_noise_scale(problem(1.0, 1.0), tw.Plan(learning_rate=1e-3), 100, seconds=0.0) is None


def test_measuring_leaves_everything_as_it_was_and_gives_the_same_again() -> None:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    data = (x, (x.sum(1) > 0).long())
    dropping = lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))  # noqa: E731
    made = open_task(tw.Task(model=dropping, loss=nn.functional.cross_entropy, data=data))
    state = torch.get_rng_state()
    first = measure_noise_scale(made, tw.Plan(learning_rate=1e-2, batch_size=16), 50, seconds=60)
    assert torch.equal(torch.get_rng_state(), state)
    assert measure_noise_scale(made, tw.Plan(learning_rate=1e-2, batch_size=16), 50, seconds=60) == first
