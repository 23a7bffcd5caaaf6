"""Schedule-free rules against the paper's three sequences x, y and z, each kept in full and written out."""

import copy
import itertools
import math

import pytest
import torch
from covering import covering

from thalweg.errors import RuleError
from thalweg.optim import Optimizer

SHAPES = [(7, 5), (5,), (), (33_000,)]
GRID = [
    {"beta": beta, "r": r, "weight_lr_power": power, "weight_decay": decay}
    for beta, r, power, decay in itertools.product([0.9, 0.5], [0.0, 1.0], [2.0, 0.0], [0.0, 0.1])
]


class Three:
    """The paper's algorithm: gradients at y, steps of z, and the average x; `beta2` None for plain descent."""

    def __init__(self, start, *, beta, r, weight_lr_power, weight_decay, beta2=None, eps=1e-8):
        self.x, self.y, self.z, self.v = start.clone(), start.clone(), start.clone(), torch.zeros_like(start)
        self.beta, self.r, self.power, self.decay = beta, r, weight_lr_power, weight_decay
        self.beta2, self.eps = beta2, eps
        self.taken, self.total, self.largest = 0, 0.0, 0.0

    def step(self, gradient, lr):
        self.taken += 1
        self.largest = max(self.largest, lr)
        weight = self.taken**self.r * self.largest**self.power
        self.total += weight
        share = weight / self.total
        step = gradient
        if self.beta2 is not None:
            self.v = self.beta2 * self.v + (1 - self.beta2) * gradient**2
            step = gradient / ((self.v / (1 - self.beta2**self.taken)).sqrt() + self.eps)
        self.z = self.z - lr * (step + self.decay * self.y)
        self.x = (1 - share) * self.x + share * self.z
        self.y = self.beta * self.x + (1 - self.beta) * self.z


def starts(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def rates(step):
    """A warm-up, then a rate that rises and falls."""
    return 0.05 * min(1.0, (step + 1) / 20) * (1 + 0.3 * math.sin(step / 7))


def slope(w, generator):
    return torch.sin(3 * w) + w + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)


def options(rule, beta, **rest):
    return {**rest, **({"momentum": beta} if rule == "schedule_free_sgd" else {"betas": (beta, 0.99)})}


def made(rule, weights, engine="auto", **given):
    return Optimizer(weights, rule, lr=0.05, engine=engine, **options(rule, **given))


NAMED_GRID = [pytest.param(given, id="-".join(map(str, given.values()))) for given in GRID]


@pytest.mark.parametrize(
    ("given", "rule", "engine"), covering(NAMED_GRID, ["schedule_free_sgd", "schedule_free_adamw"], ["cpu", "tensors"])
)
def test_two_hundred_steps_are_the_papers_in_y_and_in_x(rule, given, engine):
    weights = starts()
    theirs = [Three(w, beta2=0.99 if rule == "schedule_free_adamw" else None, **given) for w in weights]
    optimizer = made(rule, weights, engine, **given)
    generator = torch.Generator().manual_seed(2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = rates(step)
        for w, three in zip(weights, theirs, strict=True):
            gradient = slope(three.y, generator)
            w.grad = gradient.clone()
            three.step(gradient, rates(step))
        optimizer.step()
        for w, three in zip(weights, theirs, strict=True):
            torch.testing.assert_close(w, three.y, rtol=1e-12, atol=1e-12)
        if step % 20 == 0:
            with optimizer.averaged():
                for w, three in zip(weights, theirs, strict=True):
                    torch.testing.assert_close(w, three.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
def test_without_weights_by_rate_the_average_is_the_mean_of_all_z(rule):
    weights = starts(shapes=[(50,)])
    optimizer = made(rule, weights, beta=0.8, weight_lr_power=0.0)
    generator = torch.Generator().manual_seed(3)
    seen = []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = rates(step)
        weights[0].grad = slope(weights[0], generator)
        optimizer.step()
        seen.append(optimizer.state[weights[0]]["z"].clone())
    with optimizer.averaged():
        torch.testing.assert_close(weights[0], torch.stack(seen).mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_at_the_average_changes_no_bit_of_the_descent(rule, dtype):
    ends = []
    for looks in (False, True):
        weights = starts(dtype)
        optimizer = made(rule, weights, beta=0.9)
        generator = torch.Generator().manual_seed(4)
        for step in range(20):
            for w in weights:
                w.grad = slope(w.double(), generator).to(dtype)
            optimizer.step()
            if looks:
                before = weights[0].clone()
                with optimizer.averaged():
                    assert torch.equal(weights[0], before) == (step == 0)
        ends.append(weights)
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
def test_a_saved_state_goes_on_bit_for_bit_in_both_sequences(rule):
    generator = torch.Generator().manual_seed(5)
    slopes = [slope(starts()[0], generator) for _ in range(30)]

    def go(weights, optimizer, part):
        for gradient in part:
            weights[0].grad = gradient.clone()
            optimizer.step()

    straight, halted = starts()[:1], starts()[:1]
    one, other = made(rule, straight, beta=0.9), made(rule, halted, beta=0.9)
    go(straight, one, slopes)
    go(halted, other, slopes[:17])
    resumed = made(rule, halted, beta=0.9)
    resumed.load_state_dict(copy.deepcopy(other.state_dict()))
    go(halted, resumed, slopes[17:])
    assert torch.equal(straight[0], halted[0])
    with one.averaged(), resumed.averaged():
        assert torch.equal(straight[0], halted[0])


def test_a_first_rate_of_zero_neither_moves_nor_weighs():
    weights = [torch.ones(3, dtype=torch.float64)]
    optimizer = made("schedule_free_sgd", weights, beta=0.9)
    for lr in (0.0, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        weights[0].grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
    with optimizer.averaged():
        torch.testing.assert_close(weights[0], torch.full((3,), 0.9, dtype=torch.float64))


def test_state_has_the_authors_names():
    weights = starts(shapes=[(3,)])
    optimizer = made("schedule_free_adamw", weights, beta=0.9)
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert optimizer.state[weights[0]].keys() == {"step", "z", "exp_avg_sq", "weight_sum", "lr_max"}
    assert {"betas", "eps", "r", "weight_lr_power"} <= optimizer.param_groups[0].keys()


def test_the_average_of_a_noisy_descent_lies_lower_than_the_weights():
    """On a quadratic with noisy gradients at a constant rate: the noise is averaged away, over 8 seeds each."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.full((100,), 3.0, dtype=torch.float64)]
        optimizer = made("schedule_free_sgd", weights, beta=0.9)
        for _ in range(2000):
            weights[0].grad = weights[0] + torch.randn(100, generator=generator, dtype=torch.float64)
            optimizer.step()
        of_weights = float((optimizer.state[weights[0]]["z"] ** 2).mean())
        with optimizer.averaged():
            assert float((weights[0] ** 2).mean()) < of_weights / 10


def test_the_authors_saved_state_goes_on_where_its_weights_were_y():
    """Their groups hold what is carried here with each parameter."""
    weights, other = starts(), starts()
    one = made("schedule_free_adamw", weights, beta=0.9)
    generator = torch.Generator().manual_seed(6)
    for _ in range(10):
        for w in weights:
            w.grad = slope(w, generator)
        one.step()
    saved = copy.deepcopy(one.state_dict())
    moved = {"weight_sum": "weight_sum", "lr_max": "lr_max", "step": "k"}
    theirs = saved["param_groups"][0]
    theirs.update({new: saved["state"][0][old].item() for old, new in moved.items()}, train_mode=True, foreach=False)
    for entry in saved["state"].values():
        for name in moved:
            del entry[name]
    for w, twin in zip(weights, other, strict=True):
        twin.copy_(w)
    two = made("schedule_free_adamw", other, beta=0.5)
    two.load_state_dict(saved)
    for w, twin in zip(weights, other, strict=True):
        w.grad = slope(w, generator)
        twin.grad = w.grad.clone()
    one.step()
    two.step()
    assert all(map(torch.equal, weights, other))
    with one.averaged(), two.averaged():
        assert all(map(torch.equal, weights, other))


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
def test_a_state_saved_when_the_weights_were_x_is_refused(rule):
    optimizer = made(rule, starts(), beta=0.9)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["train_mode"] = False
    with pytest.raises(RuleError, match="saved with train_mode=False"):
        optimizer.load_state_dict(saved)
