"""Layers that see only the data are multiplied once for a whole plane: losses are the same, and what they cost is less."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective
from thalweg.records.task import Task

AT = [(0.0, 0.0), (0.3, -0.7), (1.5, 2.0), (-4.0, 0.1)]


class Twice(nn.Module):
    """Its first layer is called for the data, and for what it made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(40, 40), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


class Detached(nn.Module):
    """Its second layer's input depends on the first one's weights, without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.tanh(self.first(x)).detach())))


class Shared(nn.Module):
    """Its first layer's weights are used once more, without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(40, 40), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(torch.tanh(self.first(x)) @ self.first.weight))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(40, 36), nn.ReLU(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3)),
    "no bias": lambda: nn.Sequential(nn.Linear(40, 16, bias=False), nn.Tanh(), nn.Linear(16, 3)),
    "dropout": lambda: nn.Sequential(
        nn.Dropout(0.5), nn.Linear(40, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (8, 5)),
        nn.Conv1d(8, 6, 4, padding=2, padding_mode="circular"),
        nn.GELU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ),
    "frozen trunk": frozen,
    "called twice": Twice,
    "detached": Detached,
    "shared weights": Shared,
    "narrow": lambda: nn.Sequential(
        nn.Unflatten(1, (10, 4)), nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(50, 3)
    ),
    "weight normalisation": lambda: nn.Sequential(weight_norm(nn.Linear(40, 16)), nn.Tanh(), nn.Linear(16, 3)),
}
MAPPED = {"mlp", "no bias", "dropout", "convolution", "frozen trunk", "shared weights"}


def surface(name: str, batches: int = 3, dtype: torch.dtype = torch.float64) -> ModelSurface:
    torch.manual_seed(0)
    x, y = torch.randn(30, 40, dtype=dtype), torch.randint(0, 3, (30,))
    model = MODELS[name]().to(dtype)
    model(x)
    model.eval()
    task = Task(model=model, loss=nn.CrossEntropyLoss(), data=(x, y))
    parts = [
        Part(batch, len(batch[0]) / 30) for batch in zip(x.split(30 // batches), y.split(30 // batches), strict=True)
    ]
    return ModelSurface(model, Objective(task), parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_losses_over_a_plane_are_those_of_the_points(name, dtype):
    found = surface(name, dtype=dtype)
    point = found.point
    directions = [torch.randn(found.size, dtype=dtype, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    exact = [found.loss(point + a * directions[0] + b * directions[1]) for a, b in AT]
    first = next(
        module
        for module in found.model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d) and module.weight.requires_grad
    )
    with found.over(point, directions) as loss_at:
        assert ("forward" in vars(first)) == (name in MAPPED)
        assert [loss_at(a, b) for a, b in AT] == pytest.approx(exact, rel=1e-10 if dtype == torch.float64 else 2e-5)
    assert not any("forward" in vars(module) for module in found.model.modules())
    assert found.loss(point) == pytest.approx(exact[0], rel=1e-12)


def test_one_direction_and_an_error_within_leave_the_model_as_it_was():
    found = surface("mlp")
    direction, point = torch.ones(found.size, dtype=torch.float64), found.point
    exact = found.loss(point + 0.5 * direction)

    def fail() -> None:
        with found.over(point, (direction,)) as loss_at:
            assert loss_at(0.5) == pytest.approx(exact, rel=1e-10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any("forward" in vars(module) for module in found.model.modules())
    assert found.loss(point + 0.5 * direction) == pytest.approx(exact, rel=1e-12)


def test_the_wide_layer_is_multiplied_no_more():
    found, calls = surface("mlp", batches=1), []
    true = nn.functional.linear

    def counted(given, weight, bias=None):
        calls.append(tuple(weight.shape))
        return true(given, weight, bias)

    nn.functional.linear = counted
    try:
        with found.over(found.point, (torch.ones(found.size, dtype=torch.float64),)) as loss_at:
            calls.clear()
            for step in range(10):
                loss_at(step / 10)
    finally:
        nn.functional.linear = true
    assert calls == [(3, 16)] * 10
