"""The kind of a place: critical points that are known in closed form, rotated and rescaled, and saddles of trained networks."""

import itertools
import math

import pytest
import torch
from torch import nn

from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.place import find_place
from thalweg.landscape.surface import FunctionSurface

torch64 = torch.float64


def rotation(size, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch64))[0]


def polished(function, point):
    """Newton's method, from a point that is known to some digits."""
    point = torch.tensor(point, dtype=torch64)
    for _ in range(20):
        gradient = torch.func.grad(function)(point)
        hessian = torch.autograd.functional.hessian(function, point)
        step = torch.linalg.lstsq(hessian, gradient[:, None]).solution[:, 0]
        if not torch.isfinite(step).all() or float(step.norm()) > 0.1:
            break
        point = point - step
    return point


def himmelblau(w):
    return (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2


def beale(w):
    x, y = w
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def camel(w):
    x, y = w
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (-4 + 4 * y**2) * y**2


def styblinski(w):
    return (w**4 - 16 * w**2 + 5 * w).sum() / 2


def rastrigin(w):
    return 10 * len(w) + (w**2 - 10 * torch.cos(2 * math.pi * w)).sum()


def rosenbrock(w):
    return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


CAMEL = {
    (0.089842, -0.712656): 0, (-0.089842, 0.712656): 0, (1.703607, -0.796084): 0, (-1.703607, 0.796084): 0,
    (1.607105, 0.568651): 0, (-1.607105, -0.568651): 0, (0.0, 0.0): 1,
}  # fmt: skip
HIMMELBLAU = {
    (3.0, 2.0): 0, (-2.805118, 3.131312): 0, (-3.779310, -3.283186): 0, (3.584428, -1.848126): 0,
    (0.086678, 2.884255): 1, (-3.073026, -0.081353): 1, (3.385154, 0.073852): 1, (-0.127961, -1.953715): 1,
    (-0.270845, -0.923039): 2,
}  # fmt: skip


def labelled():
    """Points, each with its function, index and number of directions."""
    points = [(himmelblau, point, index) for point, index in HIMMELBLAU.items()]
    points += [(camel, point, index) for point, index in CAMEL.items()]
    points += [(beale, (3.0, 0.5), 0), (beale, (0.0, 1.0), 1)]
    points += [(rosenbrock, (1.0,) * size, 0) for size in (2, 3, 5)]
    roots = {-2.903534: 0, 0.156731: 1, 2.746803: 0}
    for size in (1, 2, 3, 4):
        points += [(styblinski, point, sum(roots[x] for x in point)) for point in itertools.product(roots, repeat=size)]
    tops = {0.0: 0, 0.502546: 1, 0.994959: 0}
    for size in (1, 2, 3):
        points += [(rastrigin, point, sum(tops[x] for x in point)) for point in itertools.product(tops, repeat=size)]
    return points


def kind_of(index, size):
    return "minimum" if index == 0 else "maximum" if index == size else "saddle point"


def place_at(function, point, **given):
    surface = FunctionSurface(function, point)
    pairs = eigenpairs(surface.hessian(point), point, top=0, bottom=len(point))
    return find_place(surface, point, surface.slope(point), pairs, **given)


TRANSFORMS = [(1.0, 1.0, False), (1e-6, 1.0, True), (1e6, 1.0, True), (1.0, 1e-6, True), (1.0, 1e6, True)]


@pytest.mark.parametrize(("of_loss", "of_weights", "turned"), TRANSFORMS)
def test_every_known_critical_point_is_classified_with_its_index(of_loss, of_weights, turned):
    wrong, points = [], labelled()
    for number, (function, point, index) in enumerate(points):
        exact = polished(function, point)
        turn = rotation(len(exact), number) if turned else torch.eye(len(exact), dtype=torch64)

        def moved(w, function=function, turn=turn):
            return of_loss * function(turn @ (w / of_weights))

        found = place_at(moved, of_weights * (turn.T @ exact))
        if (found.kind, found.index) != (kind_of(index, len(exact)), index):
            wrong.append((function.__name__, point, index, found.kind, found.index, found.reason))
    assert len(points) >= 170
    assert not wrong, wrong


@pytest.mark.parametrize("seed", range(40))
def test_points_that_are_not_critical_are_slopes(seed):
    draw = torch.Generator().manual_seed(seed)
    for function in (himmelblau, camel, styblinski, rastrigin):
        point = 2 * torch.randn(2, generator=draw, dtype=torch64)
        found = place_at(function, point)
        gain = found.figures["gain of a step"]
        if gain > 0.05:
            assert found.kind == "slope", (function.__name__, point, found)


DEGENERATE = {
    "monkey saddle": (lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, "saddle point"),
    "x^4 - y^4": (lambda w: w[0] ** 4 - w[1] ** 4, "saddle point"),
    "x^3": (lambda w: w[0] ** 3 + 0 * w[1], "saddle point"),
    "x^3 + y^2": (lambda w: w[0] ** 3 + w[1] ** 2, "saddle point"),
    "x^4 + y^4": (lambda w: w[0] ** 4 + w[1] ** 4, "minimum"),
    "x^4 + y^2": (lambda w: w[0] ** 4 + w[1] ** 2, "minimum"),
    "y^2": (lambda w: w[1] ** 2 + 0 * w[0], "minimum"),
    "nothing": (lambda w: 0 * w.sum() + 3, "plateau"),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_where_the_curvature_vanishes_losses_decide(case, scale):
    function, kind = DEGENERATE[case]
    turn = rotation(2, 5)
    found = place_at(lambda w: function(turn @ w / scale), torch.zeros(2, dtype=torch64))
    assert found.kind == kind, found


def test_a_flat_minimum_has_its_flat_direction_said():
    found = place_at(lambda w: w[0] ** 2 * w[1] ** 2, torch.tensor([0.0, 2.0], dtype=torch64))
    assert found.kind == "minimum"
    assert "flat" in found.reason


LINEAR = {(): 9, (0,): 4, (1,): 5, (2,): 6, (0, 1): 1, (0, 2): 2, (1, 2): 3, (0, 1, 2): 0}


@pytest.mark.parametrize("kept", LINEAR)
def test_critical_points_of_a_deep_linear_network_have_the_index_of_theory(kept):
    """|B A - S|^2 / 2 with S = diag(3, 2, 1): one critical point for each set of modes that are kept."""
    target = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch64))
    half = torch.diag(torch.tensor([math.sqrt(3 - i) if i in kept else 0.0 for i in range(3)], dtype=torch64))

    def loss(w):
        return (w[:9].view(3, 3) @ w[9:].view(3, 3) - target).square().sum() / 2

    found = place_at(loss, torch.cat([half.flatten(), half.flatten()]))
    assert found.index == LINEAR[kept]
    assert found.kind == ("minimum" if kept == (0, 1, 2) else "saddle point"), found


@pytest.mark.parametrize("seed", range(6))
def test_a_trained_network_with_a_neuron_split_in_two_is_at_a_saddle(seed):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 2, generator=draw, dtype=torch64)
    teacher = torch.tensor([[1.0, -0.5], [0.3, 1.2]], dtype=torch64)
    targets = torch.tanh(inputs @ teacher) @ torch.tensor([[1.0], [-0.7]], dtype=torch64)
    targets += 0.1 * torch.randn(60, 1, generator=draw, dtype=torch64)

    def network(w, units):
        first, bias, second = w[: 2 * units].view(units, 2), w[2 * units : 3 * units], w[3 * units :].view(1, units)
        return torch.tanh(inputs @ first.T + bias) @ second.T

    def loss(w, units=2):
        return (network(w, units) - targets).square().mean()

    point = torch.randn(8, generator=draw, dtype=torch64).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    optimizer.step(closure)
    ended = point.detach()
    at_two = place_at(loss, ended)
    assert at_two.kind == "minimum", at_two
    first, bias, second = ended[:4].view(2, 2), ended[4:6], ended[6:]
    kinds = set()
    for share in (0.3, 0.5, -0.5, 1.5):
        split = torch.cat(
            [first.flatten(), first[1], bias, bias[1:], second[:1], share * second[1:], (1 - share) * second[1:]]
        )
        found = place_at(lambda w: loss(w, 3), split)
        assert float(torch.func.grad(lambda w: loss(w, 3))(split).norm()) < 1e-8
        exact = int(
            (torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda w: loss(w, 3), split)) < -1e-9).sum()
        )
        assert found.index == exact
        kinds.add(found.kind)
        assert found.kind == ("saddle point" if exact else "minimum")
    assert "saddle point" in kinds


def test_a_rule_at_its_stable_edge_is_said_to_be_there():
    point = torch.tensor([1.0, 1e-3], dtype=torch64)
    found = place_at(lambda w: w[0] ** 2 / 20 + 100 * w[1] ** 2, point, edge=(200.0, 205.0))
    assert found.kind == "edge of stability"
    assert "0.98" in found.reason


def test_a_gradient_near_its_sampling_error_tells_nothing():
    surface = FunctionSurface(lambda w: (w * w).sum(), torch.tensor([0.1, 0.2], dtype=torch64))
    pairs = eigenpairs(surface.hessian(surface.point), surface.point)
    slope = surface.slope(surface.point)
    norm2 = float(slope.gradient.square().sum())
    kinds = [
        find_place(surface, surface.point, slope._replace(squared_error=norm2 / ratio), pairs, scale=0.05).kind
        for ratio in (1, 2, 9)
    ]
    assert kinds == ["minimum", "cannot tell", "slope"]


def test_a_dead_network_is_on_a_plateau():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()

    def loss(w):
        hidden = torch.relu(torch.ones(5, 3, dtype=torch64) @ w[:12].view(4, 3).T - 100)
        return (hidden @ w[12:].view(2, 4).T - 1).square().mean()

    point = torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()])
    assert place_at(loss, point, scale=1.0, began=(1.0, 10.0)).kind == "plateau"
