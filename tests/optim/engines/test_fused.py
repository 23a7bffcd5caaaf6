"""The fused engine: the tensor engine's numbers, whatever the rule, the dtype, the layout and the number of threads."""

import hashlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from covering import covering

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.optim import Optimizer
from thalweg.optim.engines import kernels, make_engine, thread_pool
from thalweg.optim.engines.arithmetic import exact_norm
from thalweg.optim.engines.cpu import CpuEngine
from thalweg.optim.engines.fused import FusedBlock
from thalweg.rules import RULES
from thalweg.testing.rules import variants

ELEMENTWISE = [name for name, rule in RULES.items() if not rule.is_matrix]
CASES = [pytest.param(RULES[n], c, id=f"{n}-{i}") for n in ELEMENTWISE for i, c in enumerate(variants(RULES[n]))]
SHAPES = [(40, 30), (30,), (), (50_000,), (250, 200)]
DTYPES = [torch.float64, torch.float32]
MEASURED = [{}, {"clip_norm": 3.0, "cautious": True}, {"clip_norm": 3.0, "ema": 0.9}]
OPTIONS = [{}, {"ema": 0.9}, {"clip_norm": 3.0}, {"clip_value": 0.5, "clip_norm": 3.0}, {"maximize": True, "ema": 0.99}]


def descended(
    rule, constants, how="cpu", dtype=torch.float64, steps=6, shapes=SHAPES, turn=lambda w: w, measure=(), **options
):
    generator = torch.Generator().manual_seed(9)
    weights = [turn(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]
    optimizer = Optimizer(weights, rule, **{"lr": 0.01, "weight_decay": 0.1, "engine": how} | constants | options)
    for step in range(steps):
        for w in weights:
            w.grad = torch.sin(3 * w) + w
        optimizer.measure = step in measure
        optimizer.step()
    return weights, optimizer


def everything(weights, optimizer):
    return [t for w in weights for t in (w, *(optimizer.state[w][s] for s in sorted(optimizer.state[w])))]


def blocks_of(optimizer):
    return [block for _, _, partition in optimizer._engine._partitions for block, _ in partition]


@pytest.mark.parametrize(("rule", "constants", "dtype", "options"), covering(CASES, DTYPES, MEASURED))
def test_to_measure_a_step_changes_no_bit_of_it(rule, constants, dtype, options):
    if rule.average is not None:
        options = {"clip_norm": 3.0}
    ways = [descended(rule, constants, dtype=dtype, measure=some, **options) for some in ((), (1, 2, 5))]
    assert [way[1].last.update_norms is not None for way in ways] == [False, True]
    for a, b in zip(*(everything(*way) for way in ways), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("rule", "constants", "dtype", "options"), covering(CASES, DTYPES, OPTIONS))
def test_it_takes_the_tensor_engines_steps(rule, constants, dtype, options):
    if rule.average is not None:
        options = {name: value for name, value in options.items() if name != "ema"}
    ours = descended(rule, constants, "cpu", dtype, **options)
    theirs = descended(rule, constants, "tensors", dtype, **options)
    assert {type(b) for b in blocks_of(ours[1])} == {FusedBlock}
    near = 1e-12 if dtype is torch.float64 else 3e-6
    for a, b in zip(everything(*ours), everything(*theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)
    ours[1].measure = theirs[1].measure = True
    for one in (ours, theirs):
        one[1].step()
    for name in ("gradient_norms", "weight_norms", "update_norms"):
        a, b = (torch.as_tensor(getattr(one[1].last, name)) for one in (ours, theirs))
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("rule", "constants"), CASES)
def test_in_float32_it_is_as_near_to_float64_as_the_tensor_engine_is(rule, constants):
    exact, _ = descended(rule, constants, "tensors", torch.float64, steps=20)
    fused, _ = descended(rule, constants, "cpu", torch.float32, steps=20)
    tensors, _ = descended(rule, constants, "tensors", torch.float32, steps=20)
    # Of all weights together: where a gradient is nearly nothing, a single weight's update depends on its last bit.
    ours, theirs = (
        float(torch.cat([(a - b).flatten() for a, b in zip(exact, one, strict=True)]).square().mean().sqrt())
        for one in (fused, tensors)
    )
    assert ours <= 1.5 * theirs + 1e-7


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("rule", ["adamw", "rmsprop"])
def test_the_number_of_threads_changes_no_bit(rule, threads, monkeypatch):
    monkeypatch.setattr(thread_pool, "WEIGHTS_PER_THREAD", 1000)
    monkeypatch.setattr("thalweg.optim.engines.fused.CHUNK", 1 << 12)
    one = everything(*descended(rule, {}, dtype=torch.float32, ema=0.9, clip_norm=1.0))
    torch.set_num_threads(threads)
    several = everything(*descended(rule, {}, dtype=torch.float32, ema=0.9, clip_norm=1.0))
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


def test_two_threads_with_an_optimiser_each_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(thread_pool, "WEIGHTS_PER_THREAD", 1000)
    torch.set_num_threads(2)
    alone = everything(*descended("adamw", {}, steps=30))
    found = [None] * 4

    def run(i):
        found[i] = everything(*descended("adamw", {}, steps=30))

    runners = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(alone, one, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_takes_the_same_step(monkeypatch):
    """A kernel of OpenMP's would hang or be killed there; torch's own operations with several threads may."""
    monkeypatch.setattr(thread_pool, "WEIGHTS_PER_THREAD", 1000)
    torch.set_num_threads(2)
    weights, optimizer = descended("adamw", {})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        optimizer.step()
        os.write(writing, hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).digest())
        os._exit(0)
    os.close(writing)
    found = os.read(reading, 32)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    optimizer.step()
    assert found == hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).digest()


@pytest.mark.parametrize(
    "turn",
    [lambda w: w.t().contiguous().t() if w.dim() == 2 else w, lambda w: w.reshape(-1) if w.dim() == 2 else w],
    ids=["transposed", "flat"],
)
def test_dense_memory_is_updated_by_kernels_in_any_order_of_dimensions(turn):
    ours, optimizer = descended("adamw", {}, turn=turn, ema=0.9)
    theirs, _ = descended("adamw", {}, "tensors", turn=turn, ema=0.9)
    assert {type(b) for b in blocks_of(optimizer)} == {FusedBlock}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_memory_with_holes_and_half_precision_are_left_to_the_tensor_engine():
    weights = [torch.ones(4, 6)[:, ::2], torch.ones(5, dtype=torch.bfloat16), torch.ones(3)]
    optimizer = Optimizer(weights, "adamw", lr=0.1, engine="cpu")
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert [w.double().max().item() for w in weights] == pytest.approx([0.899] * 3, rel=0.01)
    assert sum(type(b) is FusedBlock for b in blocks_of(optimizer)) == 1


def test_gradients_of_another_dtype_or_layout_are_read_right():
    for turn in (torch.Tensor.double, lambda g: g.t().contiguous().t(), lambda g: torch.full((), 0.3).expand_as(g)):
        ours, theirs = torch.ones(4, 6), torch.ones(4, 6)
        for w, how in ((ours, "cpu"), (theirs, "tensors")):
            w.grad_dtype = None
            optimizer = Optimizer([w], "adamw", lr=0.1, engine=how)
            w.grad = turn(torch.linspace(-1, 1, 24).reshape(4, 6))
            optimizer.step()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norms_are_exact_at_any_scale(scale):
    generator = torch.Generator().manual_seed(2)
    weights = [torch.zeros(s) for s in SHAPES]
    optimizer = Optimizer(weights, "gradient_descent", lr=0.0, engine="cpu")
    for w in weights:
        w.grad = torch.randn(w.shape, generator=generator) * scale
    optimizer.step()
    assert list(optimizer.last.gradient_norms) == pytest.approx([exact_norm(w.grad) for w in weights], rel=1e-6)


@pytest.mark.parametrize("cautious", [False, True])
def test_gradients_clipped_by_value_and_by_norm_have_one_limit_whatever_the_groups_decays(cautious):
    weights = [torch.linspace(-1, 1, 20 + i) for i in range(8)]
    groups = [{"params": [w], "weight_decay": 0.1 * i} for i, w in enumerate(weights)]
    optimizer = Optimizer(groups, "momentum", lr=0.1, clip_norm=0.5, clip_value=0.3, cautious=cautious, engine="cpu")
    for _ in range(4):
        for w in weights:
            w.grad = torch.sin(3 * w) + w
        norm = torch.cat([w.grad for w in weights]).clamp(-0.3, 0.3).norm().item()
        optimizer.step()
        assert optimizer.last.clip_scale == pytest.approx(0.5 / norm, rel=1e-4)


def test_a_missing_gradient_moves_no_state_in_memory():
    weights = [torch.ones(50_000), torch.ones(3), torch.ones(3)]
    optimizer = Optimizer(weights, "adamw", lr=0.1, engine="cpu")
    places = []
    for missing in (None, None, 2, None):
        for i, w in enumerate(weights):
            w.grad = None if i == missing else torch.ones_like(w)
        optimizer.step()
        places.append(optimizer.state[weights[0]]["exp_avg"].data_ptr())
    assert len(set(places)) == 1
    assert [int(optimizer.state[w]["step"]) for w in weights] == [4, 4, 3]


def test_constants_are_rounded_once_not_twice():
    """In float32 `1 - 0.999` is 5e-5 off, which would show in the second moment after one step."""
    w = torch.zeros(1000)
    optimizer = Optimizer([w], "adamw", lr=0.0, engine="cpu")
    w.grad = torch.ones_like(w)
    optimizer.step()
    np.testing.assert_allclose(optimizer.state[w]["exp_avg_sq"].numpy(), np.float32(1 - 0.999), rtol=1e-7)


@pytest.mark.usefixtures("no_kernels")
def test_kernels_are_compiled_in_the_background_when_the_optimiser_is_made(monkeypatch):
    monkeypatch.setattr(kernels, "_prepared", set())
    optim.Lion([torch.ones(3, requires_grad=True)], lr=0.1, ema=0.9)
    for thread in compiling():
        thread.join()
    assert {name.rsplit("_", 1)[0] for name in kernels._loaded} == {"norms_float32", "lion_float32"}


def compiling():
    return [thread for thread in threading.enumerate() if thread.name == "thalweg-compiler"]


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("kinds", [[optim.AdamW], [optim.SGD, optim.Adam, optim.Lion], [optim.Prodigy]], ids=len)
def test_the_compiling_thread_ends_with_its_work_and_is_no_daemon(kinds, monkeypatch):
    monkeypatch.setattr(kernels, "_prepared", set())
    started, start = [], threading.Thread.start

    def noted(thread):
        if thread.name == "thalweg-compiler":  # it may have ended before anybody could list it
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)

    def make():
        for kind in kinds:
            w = torch.ones(3, requires_grad=True)
            optimizer = kind([w])
            w.grad = torch.ones(3)
            optimizer.step()

    maker = threading.Thread(target=make, daemon=True)  # whose own threads would be daemons too
    maker.start()
    maker.join()
    assert started
    assert not any(thread.daemon for thread in started)
    for thread in started:
        thread.join(timeout=60)
    assert not compiling()


LEAVING = """
import os, sys, threading, torch
from thalweg import optim
from thalweg.optim.engines import kernels

def make():
    optim.{kind}([torch.ones(3)])

{way}
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "way",
    [
        "make()",
        # Waited for: a daemon thread that is within PyTorch when the process ends aborts it, whatever it does there.
        "t = threading.Thread(target=make, daemon=True); t.start(); t.join()",
        "import atexit; atexit.register(make)",
        "make(); pid = os.fork(); make(); pid and sys.exit(os.waitpid(pid, 0)[1])",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=make, daemon=True); p.start(); p.join(); "
        "sys.exit(p.exitcode)",
    ],
    ids=["at once", "from a daemon thread", "while ending", "in a fork", "in a daemon process"],
)
def test_a_process_ends_well_whenever_it_ends_while_kernels_are_compiled(way, tmp_path):
    for kind in ("AdamW", "Lion"):
        script = LEAVING.format(kind=kind, way=way)
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / kind), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_engines_are_found_by_name():
    assert isinstance(make_engine("auto"), CpuEngine)
    assert isinstance(make_engine("cpu"), CpuEngine)
    with pytest.raises(RuleError, match="Did you mean 'tensors'"):
        optim.AdamW([torch.zeros(1)], engine="tensor")
