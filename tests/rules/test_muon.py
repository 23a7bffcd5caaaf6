"""Muon: PyTorch's bits with `half`, its mathematics without, and what the iteration does to singular values."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import RuleError
from thalweg.optim import AdamW, Optimizer
from thalweg.rules.muon import muon, orthogonal
from thalweg.rules.plain_form import PlainForm

JORDAN = (3.4445, -4.7750, 2.0315)
SHAPES = [(7, 5), (5, 7), (64, 48), (1, 9), (9, 1)]
GRID = [
    {"nesterov": n, "momentum": m, "weight_decay": w, "adjust_lr_fn": f, "ns_steps": s}
    for n, m, w, f, s in itertools.product(
        [True, False], [0.95, 0.0], [0.0, 0.1], [None, "original", "match_rms_adamw"], [5, 2]
    )
]


def drawn(shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def descend(ours, theirs, a, b, steps=20):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for w, v in zip(a, b, strict=True):
            v.grad = torch.sin(3 * v) + v + 0.1 * torch.randn(v.shape, generator=generator)
            w.grad = v.grad.clone()
        ours.step()
        theirs.step()


def pair(options, dtype=torch.float32):
    a, b = ([drawn(shape, dtype) for shape in SHAPES] for _ in range(2))
    ours = Optimizer(a, muon, **{"lr": 0.02, "half": True, **options})
    return ours, torch.optim.Muon(b, **{"lr": 0.02, **options}), a, b


@pytest.mark.parametrize("options", GRID, ids=str)
def test_in_half_precision_it_is_torchs_muon_bit_for_bit(options):
    ours, theirs, a, b = pair(options)
    descend(ours, theirs, a, b)
    for w, v in zip(a, b, strict=True):
        assert torch.equal(w, v)
        assert torch.equal(ours.state[w]["momentum_buffer"], theirs.state[v]["momentum_buffer"])


@pytest.mark.parametrize("nesterov", [True, False])
def test_in_float32_it_differs_from_torchs_by_what_bfloat16_rounds(nesterov):
    options = {"nesterov": nesterov, "adjust_lr_fn": "original", "weight_decay": 0.0}
    _, theirs, a, b = pair({**options})
    exact = Optimizer(a, muon, lr=0.02, **options)
    descend(exact, theirs, a, b, steps=1)
    for w, v in zip(a, b, strict=True):
        moved = w - drawn(w.shape)
        apart = float((w - v).norm() / moved.norm())
        assert 1e-5 < apart < 0.05


def test_torchs_state_is_continued_here_and_ours_by_torch_bit_for_bit():
    ours, theirs, a, b = pair({})
    descend(torch.optim.Muon(a, lr=0.02), theirs, a, b, steps=5)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["adjust_lr_fn"] is None  # torch's word for "original"
    descend(ours, theirs, a, b)
    other = torch.optim.Muon(b, lr=0.5)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    descend(ours, other, a, b)
    assert all(torch.equal(w, v) for w, v in zip(a, b, strict=True))


def step_in_float64(w, g, m, *, lr, momentum, nesterov, weight_decay, adjust_lr_fn, ns_steps):
    """Muon written out once more, in NumPy, from the authors' post."""
    m = momentum * m + (1 - momentum) * g
    u = ((1 - momentum) * g + momentum * m if nesterov else m).reshape(len(w), -1)
    x = (u.T if u.shape[0] > u.shape[1] else u) / np.linalg.norm(u)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = JORDAN[0] * x + (JORDAN[1] * gram + JORDAN[2] * gram @ gram) @ x
    x = x.T if u.shape[0] > u.shape[1] else x
    scale = (
        0.2 * math.sqrt(max(u.shape))
        if adjust_lr_fn == "match_rms_adamw"
        else math.sqrt(max(1, u.shape[0] / u.shape[1]))
    )
    return (1 - lr * weight_decay) * w - lr * scale * x.reshape(w.shape), m


@pytest.mark.parametrize("options", GRID[::5], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 3, 2, 2)])
def test_in_float64_a_hundred_steps_are_the_mathematics_to_1e_12(shape, options):
    (w,), plain, m = [drawn(shape, torch.float64)], drawn(shape, torch.float64).numpy(), 0.0
    optimizer = Optimizer([w], muon, lr=0.02, **options)
    known = {name: options[name] for name in ("momentum", "nesterov", "weight_decay", "adjust_lr_fn", "ns_steps")}
    for _ in range(100):
        slope = np.sin(3 * plain) + plain
        w.grad = torch.from_numpy(slope)
        optimizer.step()
        plain, m = step_in_float64(plain, slope, m, lr=0.02, **known)
    np.testing.assert_allclose(w.numpy(), plain, rtol=0, atol=1e-12)


def test_the_plain_form_takes_the_same_steps_and_leaves_vectors_to_adamw():
    w, v = drawn((4, 3), torch.float64), drawn((4,), torch.float64)
    forms = [PlainForm(muon, t.numpy().copy(), lr=0.1) for t in (w, v)]
    optimizer = Optimizer([w, v], muon, lr=0.1, weight_decay=0.0)
    for _ in range(5):
        for t, one in zip((w, v), forms, strict=True):
            t.grad = torch.from_numpy(np.cos(one.w))
            one.step(t.grad.numpy())
        optimizer.step()
    assert forms[1].rule.name == "adamw"
    for t, one in zip((w, v), forms, strict=True):
        np.testing.assert_allclose(t.numpy(), one.w, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.lists(st.floats(0.01, 1.0), min_size=12, max_size=12), st.floats(-12, 30)
)
def test_every_direction_comes_out_nearly_as_long_whatever_the_shape_and_scale(rows, columns, lengths, exponent):
    """Singular values above 0.15 % of the norm; the polynomial's own bounds are 0.6818 and 1.2024."""
    u, _, v = np.linalg.svd(drawn((rows, columns), torch.float64).numpy(), full_matrices=False)
    s = np.array(lengths[: min(rows, columns)])
    made = torch.from_numpy((u * s) @ v * 10.0**exponent)
    found = torch.linalg.svdvals(orthogonal(made, JORDAN, 5, 1e-30))
    assert float(found.min()) > 0.68
    assert float(found.max()) < 1.21


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e30])
def test_scale_is_forgotten_also_where_squares_overflow(scale):
    """Momentum of one step is a twentieth; float32 squares overflow from 1.8e19 on."""
    w, g = torch.zeros(16, 8), drawn((16, 8))
    v = torch.zeros(16, 8)
    for one, factor in ((w, 1.0), (v, scale)):
        optimizer = Optimizer([one], muon, lr=1.0, weight_decay=0.0)
        one.grad = g * factor
        optimizer.step()
    torch.testing.assert_close(w, v, rtol=1e-4, atol=1e-5)
    assert w.norm() > 1


def test_of_rank_one_only_that_direction_moves():
    left, right = drawn((9, 1), torch.float64), drawn((1, 6), torch.float64, seed=2)
    found = torch.linalg.svdvals(orthogonal(left @ right, JORDAN, 5, 1e-7))
    assert 0.68 < float(found[0]) < 1.21
    assert float(found[1:].max()) < 1e-12


def test_without_a_gradient_a_matrix_only_decays():
    w = drawn((5, 3))
    optimizer = Optimizer([w], muon, lr=0.1, weight_decay=0.5)
    before = w.clone()
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert torch.equal(w, before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("shape", [(32, 8), (8, 32), (128, 128)])
def test_a_step_is_as_long_as_adamws_usual_one(shape):
    """RMS of the step over the rate: 0.2 x the singular values' mean square, whatever the shape; AdamW's is 0.2 to 0.4."""
    w = torch.zeros(shape)
    w.grad = drawn(shape)
    Optimizer([w], muon, lr=1.0, weight_decay=0.0).step()
    assert 0.13 < float(w.square().mean().sqrt()) < 0.25


def test_filters_move_as_the_matrix_of_their_outputs_against_the_rest():
    filters, flat = drawn((8, 3, 2, 2)), drawn((8, 3, 2, 2)).view(8, 12)
    for w in (filters, flat):
        w.grad = torch.cos(w)
        Optimizer([w], muon, lr=0.1).step()
    assert torch.equal(filters.view(8, 12), flat)


def test_what_is_no_matrix_moves_as_under_adamw_beside_it():
    both, alone = [drawn((4, 3)), drawn((4,))], [drawn((4,))]
    ours, theirs = Optimizer(both, muon, lr=0.1, weight_decay=0.3), AdamW(alone, lr=0.1, weight_decay=0.3)
    for _ in range(3):
        for w in (*both, *alone):
            w.grad = torch.sin(w)
        ours.step()
        theirs.step()
    assert torch.equal(both[1], alone[0])


def test_the_rate_may_be_a_tensor():
    g, ends = drawn((6, 4)), []
    for lr in (0.02, torch.tensor(0.02)):
        for half in (False, True):
            constants = {**muon.constants, "half": half}
            ends.append(muon(drawn((6, 4)), g, torch.zeros(6, 4), lr=lr, weight_decay=0.1, **constants)[0])
    for one, other in zip(ends[:2], ends[2:], strict=True):
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust_lr_fn": "orginal"}, "Did you mean 'original'"),
        ({"ns_steps": 2.5}, r"must be a whole number in \[0, 100\), not 2.5"),
        ({"ns_steps": 100}, r"in \[0, 100\)"),
        ({"ns_coefficients": (1.0, 2.0)}, "holds 3 numbers"),
        ({"half": 1}, "True or False"),
    ],
)
def test_constants_that_cannot_be_are_refused(options, message):
    with pytest.raises(RuleError, match=message):
        Optimizer([torch.zeros(2, 2)], muon, lr=0.1, **options)
