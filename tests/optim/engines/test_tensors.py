import math

import pytest
import torch
from covering import covering

from thalweg.optim import Optimizer
from thalweg.optim.engines import blocks, chunked, flattened, make_engine, tensors
from thalweg.optim.engines.arithmetic import exact_norm
from thalweg.optim.engines.chunked import ChunkedBlock
from thalweg.optim.engines.flattened import FlattenedBlock
from thalweg.optim.engines.tensors import TensorEngine
from thalweg.rules import RULES, get
from thalweg.testing.rules import variants

ELEMENTWISE = [name for name, rule in RULES.items() if not rule.is_matrix]
CASES = [pytest.param(RULES[n], c, id=f"{n}-{i}") for n in ELEMENTWISE for i, c in enumerate(variants(RULES[n]))]
SHAPES = [(40, 30), (30,), (), (50_000,), (250, 200)]

SIZES = [
    (tensors, "SMALL", 1),
    (tensors, "SMALL", 1 << 30),
    (chunked, "CHUNK", 777),
    (flattened, "CHUNK_BYTES", 555 * 8),
]


def descended(rule, constants, dtype=torch.float64, steps=4, shapes=SHAPES, gradient=None, **options):
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    settings = {"lr": 0.01, "weight_decay": 0.1, "ema": 0.9, "clip_norm": 3.0, "clip_value": 0.5, "engine": "tensors"}
    if get(rule).average is not None:
        settings["ema"] = None
    optimizer = Optimizer(weights, rule, **settings | constants | options)
    for _ in range(steps):
        for w in weights:
            w.grad = gradient(w) if gradient else torch.sin(w)
        optimizer.step()
    return [t for w in weights for t in (w, *(optimizer.state[w][s] for s in sorted(optimizer.state[w])))], optimizer


def blocks_of(optimizer):
    return [block for _, _, partition in optimizer._engine._partitions for block, _ in partition]


@pytest.mark.parametrize(
    ("rule", "constants", "dtype"), covering(CASES, [torch.float64, torch.float32, torch.bfloat16])
)
def test_flattened_alone_or_in_chunks_the_bits_are_the_same(rule, constants, dtype, monkeypatch):
    plain = {"clip_norm": None}  # norms are summed in another order, so the scale may differ by an ulp
    usual, optimizer = descended(rule, constants, dtype, **plain)
    assert {type(b) for b in blocks_of(optimizer)} == {FlattenedBlock, ChunkedBlock}
    for module, name, value in SIZES:
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            other, _ = descended(rule, constants, dtype, **plain)
        if rule.sums is None:
            assert all(torch.equal(a, b) for a, b in zip(usual, other, strict=True)), (name, value)
        else:  # what is summed over all weights is summed in another order
            near = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {}
            for a, b in zip(usual, other, strict=True):
                torch.testing.assert_close(a, b, **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rule", "constants"), CASES)
def test_on_tensors_as_on_accelerators_it_gives_what_it_gives_on_arrays(rule, constants, dtype, monkeypatch):
    usual, _ = descended(rule, constants, dtype)
    monkeypatch.setattr(blocks, "uses_numpy", lambda device: False)
    other, optimizer = descended(rule, constants, dtype)
    near = 1e-12 if dtype is torch.float64 else 1e-5
    for a, b in zip(usual, other, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * near, atol=near)
    optimizer.measure = True
    optimizer.step()
    assert len(optimizer.last.update_norms) == len(SHAPES)


@pytest.mark.parametrize("rule", ["adamw", "rmsprop"])
def test_the_number_of_threads_changes_no_bit(rule):
    one, _ = descended(rule, {}, torch.float32)
    torch.set_num_threads(2)
    two, _ = descended(rule, {}, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_that_lie_differently_in_memory_are_read_right():
    def turned(w):
        return torch.sin(w).t().contiguous().t() if w.dim() == 2 else torch.sin(w)

    usual, _ = descended("adamw", {}, clip_norm=None)
    other, _ = descended("adamw", {}, clip_norm=None, gradient=turned)
    assert all(torch.equal(a, b) for a, b in zip(usual, other, strict=True))


def test_an_expanded_gradient_is_read_right():
    usual, _ = descended("adamw", {}, gradient=lambda w: torch.full_like(w, 0.3))
    other, _ = descended("adamw", {}, gradient=lambda w: torch.tensor(0.3, dtype=w.dtype).expand_as(w))
    for a, b in zip(usual, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_groups_that_differ_in_decay_alone_share_a_block():
    weights = [torch.ones(3), torch.ones(2)]
    groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]
    optimizer = Optimizer(groups, "adamw", lr=0.1, engine="tensors")
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert len(blocks_of(optimizer)) == 1
    assert weights[0].tolist() == pytest.approx([0.99] * 3)
    assert weights[1].tolist() == [1.0] * 2


def test_a_block_is_used_again_at_the_next_step_and_where_another_parameters_gradient_is_missing():
    weights = [torch.ones(50_000), torch.ones(3), torch.ones(3)]
    optimizer = Optimizer(weights, "adamw", lr=0.1, engine="tensors")
    seen = []
    for missing in (None, None, 2, None):
        for i, w in enumerate(weights):
            w.grad = None if i == missing else torch.ones_like(w)
        optimizer.step()
        seen.append(blocks_of(optimizer))
    assert seen[0] == seen[1]
    assert seen[1][0] is seen[2][0] is seen[3][0]


def test_state_in_optimizer_state_is_what_the_engine_calculates_with():
    weights = [torch.ones(3, 2), torch.ones(4), torch.ones(50_000)]
    optimizer = Optimizer(weights, "momentum", lr=0.1, momentum=0.5, engine="tensors")
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    for w in weights:
        assert torch.equal(optimizer.state[w]["momentum_buffer"], torch.ones_like(w))
        optimizer.state[w]["momentum_buffer"].fill_(4.0)
    optimizer.step()
    for w in weights:
        assert torch.equal(optimizer.state[w]["momentum_buffer"], torch.full_like(w, 3.0))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norms_are_exact_at_any_scale(scale):
    generator = torch.Generator().manual_seed(2)
    weights = [torch.zeros(s) for s in SHAPES]
    optimizer = Optimizer(weights, "gradient_descent", lr=0.0, engine="tensors")
    for w in weights:
        w.grad = torch.randn(w.shape, generator=generator) * scale
    optimizer.step()
    each = [exact_norm(w.grad) for w in weights]
    assert list(optimizer.last.gradient_norms) == pytest.approx(each, rel=1e-5)
    assert optimizer.last.gradient_norm == pytest.approx(math.hypot(*each), rel=1e-5)


def test_an_engine_is_made_by_name_each_for_its_optimiser():
    assert type(make_engine("tensors")) is TensorEngine
    assert make_engine("tensors") is not make_engine("tensors")


def test_a_large_tensors_memory_is_its_state_and_a_few_chunks():
    w = torch.zeros(3_000_000)
    optimizer = Optimizer([w], "adamw", lr=0.1, engine="tensors")
    w.grad = torch.ones_like(w)
    optimizer.step()
    (block,) = blocks_of(optimizer)
    spare = sum(t.numel() for pool in block.pools.values() for t in pool)
    assert spare <= 16 * chunked.CHUNK
