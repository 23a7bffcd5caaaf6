"""Prodigy against the authors' program, written out over flat weights; and what d comes to."""

import copy
import math

import pytest
import torch
from covering import covering

from thalweg.errors import RuleError
from thalweg.optim import Optimizer

SHAPES = [(7, 5), (5,), (), (33_000,)]
GRID = [
    {},
    {"betas": (0.9, 0.99), "beta3": 0.95, "use_bias_correction": True},
    {"betas": (0.5, 0.9), "weight_decay": 0.1, "safeguard_warmup": True, "growth_rate": 1.02},
    {"weight_decay": 0.1, "decouple": False, "d_coef": 2.0, "growth_rate": 1.5},
    {
        "weight_decay": 0.01,
        "use_bias_correction": True,
        "safeguard_warmup": True,
        "d0": 1e-4,
        "d_coef": 0.5,
        "eps": 1e-4,
    },
]


class Written:
    """The authors' `Prodigy.step`, all tensors as one."""

    def __init__(self, w, *, betas=(0.9, 0.999), beta3=0.0, eps=1e-8, weight_decay=0.0, decouple=True, d_coef=1.0,
                 use_bias_correction=False, safeguard_warmup=False, d0=1e-6, growth_rate=0.0):  # fmt: skip
        self.w, self.p0 = w.clone(), w.clone()
        self.m, self.v, self.s = (torch.zeros_like(w) for _ in range(3))
        self.beta1, self.beta2 = betas
        self.beta3 = beta3 or math.sqrt(self.beta2)
        self.eps, self.decay, self.decouple, self.d_coef, self.d0 = eps, weight_decay, decouple, d_coef, d0
        self.corrects, self.safeguards = use_bias_correction, safeguard_warmup
        self.growth = growth_rate or math.inf
        self.d = self.d_max = d0
        self.numerator, self.k = 0.0, 0

    def step(self, grad, lr):
        d, k = self.d, self.k
        correction = ((1 - self.beta2 ** (k + 1)) ** 0.5) / (1 - self.beta1 ** (k + 1)) if self.corrects else 1
        dlr = d * lr * correction
        if not self.decouple:
            grad = grad + self.decay * self.w
        self.numerator = self.numerator * self.beta3 + (d / self.d0) * dlr * float(grad @ (self.p0 - self.w))
        self.m = self.beta1 * self.m + d * (1 - self.beta1) * grad
        self.v = self.beta2 * self.v + d * d * (1 - self.beta2) * grad**2
        self.s = self.beta3 * self.s + (d / self.d0) * (d if self.safeguards else dlr) * grad
        d_hat = self.d_coef * self.numerator / float(self.s.abs().sum())
        if d == self.d0:
            d = max(d, d_hat)
        self.d_max = max(self.d_max, d_hat)
        self.d = d = min(self.d_max, d * self.growth)
        if self.decouple:
            self.w = self.w - self.decay * dlr * self.w
        self.w = self.w - dlr * self.m / (self.v.sqrt() + d * self.eps)
        self.k += 1


def starts(scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def slope(w, generator):
    return torch.sin(3 * (w - 1)) + (w - 1) + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)


def rates(step):
    return 0.5 * (1 + math.cos(math.pi * step / 250))


@pytest.mark.parametrize(
    ("given", "start", "engine"),
    covering(
        [pytest.param(given, id=str(i)) for i, given in enumerate(GRID)],
        [(0.0, 1e-12), (1.0, 1e-8)],
        ["cpu", "tensors"],
    ),
)
def test_two_hundred_steps_are_the_authors_in_weights_and_in_d(given, start, engine):
    scale, tolerance = start
    # The first steps are a millionth long, so that w0 - w keeps ten digits only, unless w0 is zero: d inherits that.
    weights = starts(scale)
    theirs = Written(flat(weights), **given)
    optimizer = Optimizer(weights, "prodigy", lr=1.0, engine=engine, **given)
    generator = torch.Generator().manual_seed(2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = rates(step)
        gradient = slope(theirs.w, generator)
        for w, part in zip(weights, gradient.split([w.numel() for w in weights]), strict=True):
            w.grad = part.reshape(w.shape).clone()
        optimizer.step()
        theirs.step(gradient, rates(step))
        torch.testing.assert_close(flat(weights), theirs.w, rtol=tolerance, atol=tolerance)
        assert optimizer.state[weights[0]]["d"].item() == pytest.approx(theirs.d, rel=tolerance)
    assert theirs.d > 10 * theirs.d0


def test_groups_that_differ_in_decay_alone_share_one_d():
    weights = starts()
    groups = [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]
    optimizer = Optimizer(groups, "prodigy", lr=1.0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        for w in weights:
            w.grad = slope(w, generator)
        optimizer.step()
    found = {state["d"].item() for state in optimizer.state.values()}
    assert len(found) == 1
    assert found.pop() > 1e-3


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_d_and_the_path_do_not_depend_on_the_gradients_scale(factor):
    ends = []
    for scale in (1.0, factor):
        weights = [torch.zeros(50, dtype=torch.float64)]
        optimizer = Optimizer(weights, "prodigy", lr=1.0, eps=1e-30)
        for _ in range(100):
            weights[0].grad = scale * (weights[0] - 3.0)
            optimizer.step()
        ends.append((weights[0].clone(), optimizer.state[weights[0]]["d"].item()))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-9, atol=0.0)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-9)


@pytest.mark.parametrize("distance", [0.01, 1.0, 100.0])
def test_d_comes_to_the_distance_that_there_is_to_go(distance):
    """On |w - distance| the lower bound of d grows to a fair share of the distance, and never beyond it."""
    weights = [torch.zeros(1, dtype=torch.float64)]
    optimizer = Optimizer(weights, "prodigy", lr=1.0)
    for _ in range(1000):
        weights[0].grad = torch.sign(weights[0] - distance)
        optimizer.step()
    d = optimizer.state[weights[0]]["d"].item()
    assert 0.05 * distance < d <= distance


def test_d_never_falls():
    weights = starts()[:1]
    optimizer = Optimizer(weights, "prodigy", lr=1.0)
    generator = torch.Generator().manual_seed(4)
    seen = [0.0]
    for _ in range(200):
        weights[0].grad = slope(weights[0], generator)
        optimizer.step()
        seen.append(optimizer.state[weights[0]]["d"].item())
    assert seen == sorted(seen)
    assert seen[-1] > seen[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_a_saved_state_goes_on_bit_for_bit_with_its_d(dtype, engine):
    generator = torch.Generator().manual_seed(5)
    slopes = [slope(starts()[0], generator).to(dtype) for _ in range(40)]

    def go(weights, optimizer, part):
        for gradient in part:
            weights[0].grad = gradient.clone()
            optimizer.step()

    straight, halted = ([starts()[0].to(dtype)] for _ in range(2))
    d0 = 1e-2 if dtype is torch.bfloat16 else 1e-6
    one, other = (Optimizer(weights, "prodigy", lr=1.0, d0=d0, engine=engine) for weights in (straight, halted))
    go(straight, one, slopes)
    go(halted, other, slopes[:17])
    resumed = Optimizer(halted, "prodigy", lr=1.0, d0=d0, engine=engine)
    resumed.load_state_dict(copy.deepcopy(other.state_dict()))
    go(halted, resumed, slopes[17:])
    assert torch.equal(straight[0], halted[0])
    assert torch.equal(one.state[straight[0]]["d"], resumed.state[halted[0]]["d"])
    assert one.state[straight[0]]["d"].item() > d0


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_gradients_of_nothing_leave_everything_where_it_is(engine):
    weights = [torch.ones(3)]
    optimizer = Optimizer(weights, "prodigy", lr=1.0, engine=engine)
    for _ in range(3):
        weights[0].grad = torch.zeros(3)
        optimizer.step()
    assert weights[0].tolist() == [1.0, 1.0, 1.0]
    assert optimizer.state[weights[0]]["d"].item() == 1e-6


def test_state_has_the_authors_names():
    weights = [torch.ones(3)]
    optimizer = Optimizer(weights, "prodigy", lr=1.0)
    weights[0].grad = torch.ones(3)
    optimizer.step()
    own = {"step", "p0", "exp_avg", "exp_avg_sq", "s", "d", "d_max", "d_numerator"}
    assert optimizer.state[weights[0]].keys() == own


@pytest.mark.parametrize("wrong", [{"d0": 0.0}, {"growth_rate": -1.0}, {"beta3": 1.0}, {"d_coef": 0.0}])
def test_constants_that_cannot_be_are_refused(wrong):
    with pytest.raises(RuleError, match=next(iter(wrong))):
        Optimizer([torch.ones(3)], "prodigy", lr=1.0, **wrong)
