"""Losses, gradients and products of a model's surface, against dense derivatives and `curvlinops`."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from thalweg.errors import TaskError
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective
from thalweg.records.task import Task


def data(count=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=draw), torch.randint(0, 3, (count,), generator=draw)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype).eval()


def surface_of(model, loss=None, batches=3, dtype=torch.float64, step=None):
    inputs, labels = data()
    inputs = inputs.to(dtype)
    task = Task(model=model, loss=None if step else loss or nn.CrossEntropyLoss(), data=(inputs, labels), step=step)
    parts = [
        Part((x, y), len(x) / 30)
        for x, y in zip(inputs.tensor_split(batches), labels.tensor_split(batches), strict=True)
    ]
    return ModelSurface(model, Objective(task), parts)


def dense(surface, loss=None):
    inputs, labels = torch.cat([p.batch[0] for p in surface.parts]), torch.cat([p.batch[1] for p in surface.parts])

    def whole(point):
        weights = dict(zip(surface.names, surface.shaped(point), strict=True))
        return (loss or nn.CrossEntropyLoss())(functional_call(surface.model, weights, (inputs,)), labels)

    return whole


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_loss_gradient_and_products_are_those_of_all_data_at_once(batches):
    surface = surface_of(network(), batches=batches)
    whole, point = dense(surface), surface.point
    exact = torch.autograd.functional.hessian(whole, point)
    assert surface.loss(point) == pytest.approx(float(whole(point)), rel=1e-12)
    torch.testing.assert_close(surface.slope(point).gradient, torch.func.grad(whole)(point))
    product = surface.hessian(point)
    columns = torch.stack([product(row) for row in torch.eye(surface.size, dtype=torch.float64)])
    torch.testing.assert_close(columns, exact)
    elsewhere = point + 0.3
    torch.testing.assert_close(
        surface.hessian(elsewhere)(point), torch.autograd.functional.hessian(whole, elsewhere) @ point
    )
    torch.testing.assert_close(product(point), exact @ point)  # the graphs of the first point were kept


def test_gauss_newton_products_are_those_of_the_jacobian():
    surface = surface_of(network())
    inputs = torch.cat([p.batch[0] for p in surface.parts])
    labels = torch.cat([p.batch[1] for p in surface.parts])

    def outputs(point):
        return functional_call(surface.model, dict(zip(surface.names, surface.shaped(point), strict=True)), (inputs,))

    point = surface.point
    jacobian = torch.autograd.functional.jacobian(outputs, point).reshape(-1, surface.size)
    of_loss = torch.autograd.functional.hessian(
        lambda o: nn.functional.cross_entropy(o.view(30, 3), labels), outputs(point).reshape(-1)
    )
    exact = jacobian.T @ of_loss @ jacobian
    product = surface.multiplied("gauss-newton", point)
    columns = torch.stack([product(row) for row in torch.eye(surface.size, dtype=torch.float64)])
    torch.testing.assert_close(columns, exact)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_products_are_those_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="it comes with the packages of `make test-all`")
    surface = surface_of(network(torch.float32), dtype=torch.float32)
    given = (
        surface.model,
        nn.CrossEntropyLoss(),
        list(surface.model.parameters()),
        [part.batch for part in surface.parts],
    )
    vector = torch.randn(surface.size, generator=torch.Generator().manual_seed(1))
    for matrix, other in (
        ("hessian", curvlinops.HessianLinearOperator),
        ("gauss-newton", curvlinops.GGNLinearOperator),
    ):
        found = surface.multiplied(matrix, surface.point)(vector)
        torch.testing.assert_close(found, other(*given) @ vector, rtol=1e-4, atol=1e-6)


def test_the_weights_are_put_back_bit_for_bit():
    model = network(torch.float32)
    surface = surface_of(model, dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    with surface.put_back():
        surface.loss(surface.point + 1)
        assert not torch.equal(before[0], model[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def test_an_operation_without_a_second_derivative_is_differenced_and_named():
    class Sine(nn.Module):
        def forward(self, x):
            return NoSecondDerivative.apply(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Sine(), nn.Linear(5, 3)).double()
    surface = surface_of(model)
    product = surface.hessian(surface.point)
    vector = torch.linspace(-1, 1, surface.size, dtype=torch.float64)

    class Known(nn.Module):
        def forward(self, x):
            return x.sin()

    known = nn.Sequential(model[0], Known(), model[2])
    exact = surface_of(known).hessian(surface.point)(vector)
    torch.testing.assert_close(product(vector), exact, rtol=1e-4, atol=1e-6)
    assert "differentiated once" in surface.differences


def test_a_loss_that_is_random_has_no_surface():
    model = nn.Sequential(network(), nn.Dropout(0.5)).train()
    with pytest.raises(TaskError, match="differs between two calls"):
        surface_of(model).check_repeats()
    surface_of(model.eval()).check_repeats()


def test_a_model_without_weights_has_no_surface():
    with pytest.raises(TaskError, match="trains no weights"):
        surface_of(nn.Flatten())


def test_attention_and_recurrent_layers_have_products():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.gru = (
                nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
                nn.GRU(4, 3, batch_first=True),
            )

        def forward(self, x):
            return self.gru(self.inner(x[:, None].expand(-1, 3, -1)))[0][:, -1]

    torch.manual_seed(0)
    surface = surface_of(Attention().double().eval())
    point, vector = surface.point, torch.randn(surface.size, dtype=torch.float64)
    found = surface.hessian(point)(vector)
    assert not surface.differences
    torch.testing.assert_close(found, surface._difference(point, vector), rtol=1e-3, atol=1e-4)


def test_the_sampling_error_of_the_gradient_is_that_of_other_samples():
    """Of many samples of a fixed population, the mean squared distance to its gradient is what is estimated."""
    draw = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(600, 4, generator=draw).double(), torch.randn(600, 1, generator=draw).double()
    model = nn.Linear(4, 1).double()
    task = Task(model=model, loss=nn.MSELoss(), data=(inputs, targets))
    whole = ModelSurface(model, Objective(task), [Part((inputs, targets), 1.0)])
    exact, estimates, distances = whole.slope(whole.point).gradient, [], []
    for _ in range(200):
        rows = torch.randperm(600, generator=draw)[:120]
        parts = [Part((inputs[part], targets[part]), 1 / 8) for part in rows.view(8, 15)]
        slope = ModelSurface(model, Objective(task), parts, share_of_data=0.2).slope(whole.point)
        estimates.append(slope.squared_error)
        distances.append(float((slope.gradient - exact).square().sum()))
    assert sum(estimates) / 200 == pytest.approx(sum(distances) / 200, rel=0.15)


def test_a_second_derivative_that_is_wrong_is_differenced_and_named():
    """That of PyTorch's weight normalisation is, in silence."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)).double()
    model = nn.Sequential(normed, nn.Tanh(), nn.Linear(5, 3).double())

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            parts = normed.parametrizations.weight
            self.bias, self.length, self.direction = normed.bias, parts.original0, parts.original1

        def forward(self, x):
            return x @ (self.length * self.direction / self.direction.norm(dim=1, keepdim=True)).T + self.bias

    surface, by_hand = surface_of(model), surface_of(nn.Sequential(ByHand(), nn.Tanh(), model[2]))
    surface.check_symmetric()
    by_hand.check_symmetric()
    vector = torch.linspace(-1, 1, surface.size, dtype=torch.float64)
    assert "not symmetric" in surface.differences
    assert not by_hand.differences
    assert [p.shape for p in surface.parameters] == [p.shape for p in by_hand.parameters]
    found, exact = surface.hessian(surface.point)(vector), by_hand.hessian(by_hand.point)(vector)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [nn.ReLU, nn.GELU, nn.Softplus, nn.SiLU, lambda: nn.LayerNorm(5), lambda: nn.BatchNorm1d(5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_second_derivative_that_is_right_is_kept(layer, dtype):
    torch.manual_seed(0)
    surface = surface_of(nn.Sequential(nn.Linear(4, 5), layer(), nn.Linear(5, 3)).to(dtype).eval(), dtype=dtype)
    surface.check_symmetric()
    assert not surface.differences
