"""Whole tensors under a matrix rule."""

import pytest
import torch

from thalweg.optim import Optimizer
from thalweg.rules.rule import matrix_rule

calls = []


@matrix_rule(state={"m": ("m", "zeros")}, source="here")
def counted(w, g, m, *, lr, weight_decay=0.0):
    """Momentum that counts how often it is evaluated."""
    calls.append(1)
    m = 0.9 * m + g
    return (1 - lr * weight_decay) * w - lr * m, m


def descended(rule, dtype=torch.float64, **options):
    w = torch.linspace(-1, 1, 20, dtype=dtype).view(4, 5)
    optimizer = Optimizer([w], rule, lr=0.1, **options)
    for step in range(4):
        w.grad = torch.cos(7 * w + step).to(dtype)
        optimizer.step()
    return w, optimizer


def test_a_cautious_step_evaluates_the_equation_once_and_moves_only_against_the_gradient():
    calls.clear()
    w, optimizer = descended(counted, weight_decay=0.3, cautious=True)
    assert len(calls) == 4
    before, m = w.clone(), optimizer.state[w]["m"].clone()
    w.grad = torch.sin(9 * before)
    optimizer.step()
    update = -0.1 * (0.9 * m + w.grad)
    is_aligned = update * w.grad < 0
    assert 0 < int(is_aligned.sum()) < 20
    wanted = before + torch.where(is_aligned, update, 0.0) * 20 / is_aligned.sum() - 0.1 * 0.3 * before
    torch.testing.assert_close(w, wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_weights_of_sixteen_bits_are_calculated_and_their_state_kept_in_float32(rule):
    half, optimizer = descended(rule, torch.bfloat16)
    full, _ = descended(rule, torch.float32)
    assert {t.dtype for k, t in optimizer.state[half].items() if k != "step"} == {torch.float32}
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_weights_that_lie_differently_in_memory_take_the_same_steps(rule):
    ends = []
    for turn in (lambda t: t, lambda t: t.to(memory_format=torch.channels_last)):
        w = turn(torch.linspace(-1, 1, 4 * 3 * 2 * 2, dtype=torch.float64).view(4, 3, 2, 2).clone())
        optimizer = Optimizer([w], rule, lr=0.1, ema=0.9)
        for _ in range(3):
            w.grad = turn(torch.cos(5 * w))
            optimizer.step()
        ends += [w, optimizer.state[w]["ema"]]
    for one, other in zip(ends[:2], ends[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_tensors_without_an_element_are_left_as_they_are(rule):
    w = [torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(0)]
    optimizer = Optimizer(w, rule, lr=0.1)
    for p in w:
        p.grad = torch.zeros_like(p)
    optimizer.measure = True
    optimizer.step()
    assert optimizer.last.update_norms.tolist() == [0.0] * 3
    assert [tuple(p.shape) for p in w] == [(0, 3), (3, 0), (0,)]


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_the_steps_record_has_the_norms(rule):
    w, optimizer = descended(rule)
    before, optimizer.measure = w.clone(), True
    w.grad = torch.cos(w)
    optimizer.step()
    assert float(optimizer.last.weight_norms[0]) == pytest.approx(float(before.norm()), rel=1e-6)
    assert float(optimizer.last.update_norms[0]) == pytest.approx(float((w - before).norm()), rel=1e-5)
    assert float(optimizer.last.gradient_norms[0]) == pytest.approx(float(w.grad.norm()), rel=1e-6)
