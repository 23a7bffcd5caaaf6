"""Adafactor: PyTorch's numbers and state, the factors' mathematics, and the memory they keep."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from thalweg.errors import RuleError
from thalweg.optim import Optimizer
from thalweg.rules.adafactor import adafactor
from thalweg.rules.plain_form import PlainForm

SHAPES = [(7, 5), (5,), (3, 2, 4, 2), (1, 6), (6, 1), ()]
GRID = [
    {"eps": e, "d": d, "beta2_decay": b, "weight_decay": w, "maximize": x}
    for e, d, b, w, x in itertools.product(
        [(1e-16, 1e-3), (0.3, 0.5)], [1.0, 1.7], [-0.8, -0.3], [0.0, 0.1], [False, True]
    )
][::3]  # each value of each option, and each two of them together


def starts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def descend(ours, theirs, a, b, steps):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for w, v in zip(a, b, strict=True):
            v.grad = torch.sin(3 * v) + v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype)
            if v.shape == (7, 5):
                v.grad[2] = 0.0  # a dead unit: its factor is 0, and eps1 divides
            w.grad = v.grad.clone()
        ours.step()
        theirs.step()


def pair(options, dtype=torch.float64):
    a, b = starts(dtype), starts(dtype)
    options = {"lr": 0.05, "eps": (1e-16, 1e-3), **options}
    return Optimizer(a, adafactor, **options), torch.optim.Adafactor(b, **options), a, b


@pytest.mark.parametrize("options", GRID, ids=str)
def test_two_hundred_steps_are_torchs_to_1e_12(options):
    ours, theirs, a, b = pair(options)
    descend(ours, theirs, a, b, steps=200)
    for w, v in zip(a, b, strict=True):
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)


def test_at_the_defaults_float32_weights_move_as_under_torchs_defaults():
    a, b = starts(torch.float32), starts(torch.float32)
    descend(Optimizer(a, adafactor, lr=1e-2), torch.optim.Adafactor(b), a, b, steps=50)
    for w, v in zip(a, b, strict=True):
        torch.testing.assert_close(w, v, rtol=1e-5, atol=1e-6)


def test_torchs_state_is_continued_here_and_ours_by_torch():
    ours, theirs, a, b = pair({})
    descend(torch.optim.Adafactor(a, lr=0.05, eps=(1e-16, 1e-3)), theirs, a, b, steps=5)
    ours.load_state_dict(theirs.state_dict())
    descend(ours, theirs, a, b, steps=20)
    other = torch.optim.Adafactor(b, lr=0.5)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    descend(ours, other, a, b, steps=20)
    for w, v in zip(a, b, strict=True):
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)
        mine, its = ours.state[w], other.state[v]
        assert {k: (t.shape, t.dtype) for k, t in mine.items()} == {k: (t.shape, t.dtype) for k, t in its.items()}


def test_torchs_default_eps_of_none_is_read_as_our_number():
    a, b = starts(torch.float32), starts(torch.float32)
    ours, theirs = Optimizer(a, adafactor, lr=0.5), torch.optim.Adafactor(b)
    descend(torch.optim.Adafactor(a), theirs, a, b, steps=3)
    assert theirs.state_dict()["param_groups"][0]["eps"] == (None, 1e-3)
    ours.load_state_dict(theirs.state_dict())
    descend(ours, theirs, a, b, steps=20)
    for w, v in zip(a, b, strict=True):
        torch.testing.assert_close(w, v, rtol=1e-5, atol=1e-6)


def test_squares_that_are_a_product_of_rows_and_columns_are_known_exactly():
    rows, columns = np.array([[1.0], [4.0], [9.0]]), np.array([[1.0, 0.25, 16.0, 2.0]])
    g = np.sqrt(rows * columns) * np.array([1, -1, 1, -1])
    moved, row, column, _ = adafactor(
        np.zeros((3, 4)), g, 0 * rows, 0 * columns, 0.0, lr=0.1, weight_decay=0.0, share=1.0, longest=0.1
    )
    np.testing.assert_allclose(row * column / row.mean(), g * g, rtol=1e-14)
    np.testing.assert_allclose(moved, -0.1 * 1e-3 * np.sign(g), rtol=1e-12)


def test_a_step_is_a_share_of_the_weights_and_never_longer():
    """At scales a thousand apart the relative step is the same; a gradient that jumps makes none longer than the rate."""
    for scale in (1.0, 1000.0):
        w = scale * starts()[0]
        optimizer = Optimizer([w], adafactor, lr=0.01)
        for step in range(20):
            before = w.clone()
            w.grad = torch.cos(w) * (1e6 if step == 15 else 1.0)
            optimizer.step()
            length = float((w - before).square().mean().sqrt() / before.square().mean().sqrt())
            assert length <= 0.01 * (1 + 1e-9)
            assert length > 0.002 or step > 15


def test_the_rate_falls_as_one_over_the_root_of_the_step_once_that_is_lower():
    w = torch.ones(3, 3, dtype=torch.float64)
    optimizer = Optimizer([w], adafactor, lr=0.5)
    for step in range(1, 30):
        before = w.clone()
        w.grad = torch.ones_like(w)
        optimizer.step()
        size = max(1e-3, float(before.abs().max()))
        assert float((before - w)[0, 0]) == pytest.approx(size * min(0.5, 1 / math.sqrt(step)), rel=1e-9)


def test_the_plain_form_takes_the_same_steps():
    tensors = [starts()[0], starts()[1]]
    forms = [PlainForm(adafactor, t.numpy().copy()) for t in tensors]
    optimizer = Optimizer(tensors, adafactor, lr=1e-2)
    for _ in range(5):
        for t, one in zip(tensors, forms, strict=True):
            t.grad = torch.from_numpy(np.cos(one.w))
            one.step(t.grad.numpy())
        optimizer.step()
    for t, one in zip(tensors, forms, strict=True):
        np.testing.assert_allclose(t.numpy(), one.w, rtol=1e-12)


@pytest.mark.parametrize("huge", [1e16, 1e25, -3.4e38])
def test_a_gradient_whose_square_overflows_makes_no_step_longer_and_nothing_nan(huge):
    weights = starts(torch.float32)
    optimizer = Optimizer(weights, adafactor, lr=0.01)
    for step in range(40):
        before = [w.clone() for w in weights]
        for w in weights:
            w.grad = torch.cos(w)
            if step == 1:
                w.grad.view(-1)[0] = huge
        optimizer.step()
        for w, old in zip(weights, before, strict=True):
            assert w.isfinite().all()
            assert float((w - old).norm()) <= 0.0101 * float(old.norm())
    assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())


@pytest.mark.parametrize("step", [1, 3, 50])
def test_step_and_rate_may_be_tensors_where_no_step_waits_for_the_device(step):
    g = torch.cos(starts(torch.float32)[0])
    ends = []
    for kind in (float, lambda number: torch.tensor(number, dtype=torch.float64)):
        numbers = {**adafactor.constants, "lr": kind(0.2), "weight_decay": 0.1}
        numbers |= adafactor.scalars(kind(step), numbers)
        rows, columns = torch.ones(7, 1), torch.ones(1, 5)
        ends.append(adafactor(starts(torch.float32)[0], g, rows, columns, 0.0, **numbers)[:3])
    for one, other in zip(*ends, strict=True):
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def bytes_kept(optimizer):
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())


def test_the_state_of_a_matrix_is_one_number_a_row_and_one_a_column():
    """1,000 x 500 with a bias: AdamW keeps 4.0 MB beside the 2.0 MB of weights, this 8 KB."""
    kept = {}
    for rule in (adafactor, "adamw"):
        weights = [torch.zeros(1000, 500), torch.zeros(500)]
        optimizer = Optimizer(weights, rule, lr=1e-3)
        for w in weights:
            w.grad = torch.ones_like(w)
        optimizer.step()
        kept[str(getattr(rule, "name", rule))] = bytes_kept(optimizer)
    assert kept["adamw"] == 2 * 4 * 500_500 + 2 * 4
    assert kept["adafactor"] == 4 * (1000 + 500 + 500) + 2 * 4


def test_a_gradient_of_nothing_moves_nothing():
    weights = starts(torch.float32)
    optimizer = Optimizer(weights, adafactor, lr=0.1)
    before = [w.clone() for w in weights]
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))


@pytest.mark.parametrize(
    "options", [{"beta2_decay": 0.1}, {"d": 0.5}, {"eps": (0.0, 1e-3)}, {"eps": (1e-30, -1.0)}, {"eps": 1e-3}]
)
def test_constants_that_cannot_be_are_refused(options):
    with pytest.raises(RuleError):
        Optimizer([torch.zeros(2, 2)], adafactor, lr=0.1, **options)
