"""Our optimisers with PyTorch's own tools: scalers, schedules, averages, compilers, copies, processes."""

import contextlib
import copy
import itertools
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim import swa_utils

from thalweg import optim
from thalweg.errors import NonFiniteError
from thalweg.optim.engines import kernels, thread_pool

CLASSES = [kind for kind in map(vars(optim).get, optim.__all__) if isinstance(kind, type)]
CLASSES = [kind for kind in CLASSES if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
both_engines = pytest.mark.parametrize("engine", ["cpu", "tensors"])


def network(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def batch(dtype=torch.float32, seed=7):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def backward(model, x, scale=1.0):
    model.zero_grad()
    loss = model(x).square().mean()
    (loss * scale).backward()
    return loss.detach()


def descend(model, optimizer, steps, first=0):
    for i in range(first, first + steps):
        backward(model, batch(next(model.parameters()).dtype, seed=i))
        optimizer.step()


def bits(model, optimizer):
    held = [v for p in model.parameters() for v in optimizer.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    return [t.detach().clone() for t in (*model.parameters(), *held)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Gradient scalers

CLIPS = [{}, {"clip_norm": 0.05}, {"clip_value": 0.01}, {"clip_norm": 0.05, "clip_value": 0.02, "ema": 0.9}]


def scaled_step(scaler, model, optimizer, x, unscale=False):
    optimizer.zero_grad()
    loss = scaler.scale(model(x).square().mean())
    loss.backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("way", ["in the step", "unscale_"])
@pytest.mark.parametrize("options", CLIPS, ids=str)
@both_engines
def test_under_a_gradient_scaler_weights_and_record_are_those_without_one_bit_for_bit(engine, options, way):
    ends, records = [], []
    for is_scaled in (False, True):
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05, engine=engine, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=is_scaled)
        seen = []
        for i in range(4):
            scaled_step(scaler, model, optimizer, batch(seed=i), unscale=way == "unscale_")
            seen.append((optimizer.last.gradient_norm, *optimizer.last.gradient_norms, optimizer.last.clip_scale))
        ends.append(bits(model, optimizer))
        records.append(seen)
    assert same(*ends)
    assert records[0] == records[1]


def test_with_a_scaler_it_is_torchs_optimiser_with_that_scaler_and_clipping():
    ends = []
    for kind, options in ((optim.AdamW, {"clip_norm": 0.05}), (torch.optim.AdamW, {})):
        model = network(torch.float64)
        optimizer, scaler = kind(model.parameters(), lr=0.05, **options), torch.amp.GradScaler("cpu")
        for i in range(5):
            optimizer.zero_grad()
            scaler.scale(model(batch(torch.float64, i)).square().mean()).backward()
            if not options:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
        ends.append([*model.parameters()])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def overflowing(model, optimizer, scaler, bad=math.inf, unscale=False):
    """A step in which the scaled gradient of one weight overflows."""
    optimizer.zero_grad()
    scaler.scale(model(batch()).square().mean()).backward()
    model[0].weight.grad[0, 0] = bad
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def seen_by_a_host(kind, unscale):
    """What a program around an optimiser sees of three steps under a scaler, of which the second overflows."""
    model, seen, gradients = network(), [], []
    optimizer, scaler = kind(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = optimizer.step
    optimizer.step = lambda *a, **k: (seen.append("step"), step(*a, **k))[1]  # as Accelerate's wrapper does
    for i in range(3):
        if i == 1:
            overflowing(model, optimizer, scaler, unscale=unscale)
        else:
            scaled_step(scaler, model, optimizer, batch(seed=i), unscale=unscale)
        seen += [scaler.get_scale(), *(name for name in ("grad_scale", "found_inf") if hasattr(optimizer, name))]
        gradients.append([p.grad for p in model.parameters()])
    return [getattr(optimizer, "_step_supports_amp_scaling", False), *seen], gradients[0]


@pytest.mark.parametrize("unscale", [False, True], ids=["in the step", "unscale_"])
@every_class
def test_a_host_with_a_scaler_sees_what_it_sees_of_torchs_sgd(kind, unscale):
    (ours, gradients), (theirs, wanted) = (seen_by_a_host(k, unscale) for k in (kind, torch.optim.SGD))
    assert ours == theirs == [False, "step", 2.0**10, 2.0**9, "step", 2.0**9]
    assert same(gradients, wanted)


@pytest.mark.parametrize("unscale", [False, True], ids=["in the step", "unscale_"])
@both_engines
def test_a_step_that_a_scaler_skips_leaves_every_bit_and_does_not_count_as_a_skip_of_ours(engine, unscale):
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.05, engine=engine, ema=0.9, clip_norm=1.0)
    descend(model, optimizer, 2)
    before, last = bits(model, optimizer), optimizer.last
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for bad in (math.inf, math.nan) * 4:
        overflowing(model, optimizer, scaler, bad, unscale=unscale)
        assert optimizer.last is last
    assert optimizer.skips == 0
    assert same(before, bits(model, optimizer))
    assert scaler.get_scale() == 2.0**8
    scaled_step(scaler, model, optimizer, batch())
    assert not optimizer.last.skipped
    assert not same(before, bits(model, optimizer))


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_unscaled_by_hand_and_clipped_by_torch_it_goes_where_torchs_goes(kind, clip):
    ends = []
    for home in (optim, torch.optim):
        model = network(torch.float64)
        optimizer, scaler = getattr(home, kind)(model.parameters(), lr=0.05), torch.amp.GradScaler("cpu")
        for i in range(5):
            optimizer.zero_grad()
            scaler.scale(model(batch(torch.float64, i)).square().mean()).backward()
            scaler.unscale_(optimizer)
            clip(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
        ends.append([*model.parameters()])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_gradient_that_becomes_nan_after_the_scaler_has_checked_it_is_found_by_the_optimiser():
    model = network()
    optimizer, scaler = optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu")
    for times in (1, 2, 3):
        optimizer.zero_grad()
        scaler.scale(model(batch()).square().mean()).backward()
        scaler.unscale_(optimizer)
        model[0].weight.grad[0, 0] = math.nan
        if times < 3:
            scaler.step(optimizer)
            assert optimizer.skips == times
        else:
            with pytest.raises(NonFiniteError):
                scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("home", [optim, torch.optim], ids=lambda home: home.__name__)
def test_gradients_in_half_precision_are_refused_by_the_scaler_as_with_torchs_classes(home):
    model = network(torch.float16)
    optimizer, scaler = home.SGD(model.parameters(), lr=0.5), torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaled_step(scaler, model, optimizer, batch(torch.float16))


def test_two_optimisers_share_a_scaler_and_one_overflows_alone():
    model = network()
    first, second = optim.AdamW(model[0].parameters(), lr=0.1), optim.Lion(model[2].parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batch()).square().mean()).backward()
    model[0].bias.grad[0] = math.inf
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert first.last is None
    assert not second.last.skipped
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


def test_hooks_are_called_for_the_steps_that_a_scaler_lets_through():
    model, seen = network(), []
    optimizer, scaler = optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(o.last.skipped))
    schedule = schedulers.ExponentialLR(optimizer, 0.5)
    overflowing(model, optimizer, scaler)
    scaled_step(scaler, model, optimizer, batch())
    schedule.step()  # torch warns where no step came before
    assert seen == [False]
    assert optimizer.param_groups[0]["lr"] == 0.05


# Groups, gradients, copies


@both_engines
def test_a_group_added_in_mid_run_changes_nothing_for_the_others(engine):
    ends = []
    for adds in (False, True):
        model, late = network(), nn.Parameter(torch.ones(3))
        optimizer = optim.AdamW(model.parameters(), lr=0.05, engine=engine, ema=0.9)
        descend(model, optimizer, 3)
        if adds:
            optimizer.add_param_group({"params": [late], "lr": 0.5})
            late.grad = torch.ones(3)
        descend(model, optimizer, 3, first=3)
        ends.append(bits(model, optimizer))
        assert float(optimizer.state[late]["step"]) == 3.0 if adds else late not in optimizer.state
    assert same(*ends)


@both_engines
def test_a_parameter_put_in_anothers_place_in_a_group_is_the_one_that_moves(engine):
    old, new, other = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = optim.AdamW([old, other], lr=0.1, engine=engine)
    for _ in range(2):
        old.grad, other.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
    before = old.detach().clone()
    optimizer.param_groups[0]["params"][0] = new
    new.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(old.detach(), before)
    assert (new < 1).all()
    optimizer.param_groups[0]["params"].append(old)
    optimizer.step()
    assert (old < before).all()


def turned(name, g):
    """A gradient of the same numbers in another dtype or order of memory."""
    wide = torch.empty(*g.shape[:-1], 2 * g.shape[-1], dtype=g.dtype)[..., ::2]
    forms = {
        "transposed": lambda: g.t().contiguous().t(),
        "with holes": lambda: wide.copy_(g),
        "offset": lambda: torch.cat([g.new_zeros(3), g.flatten()])[3:].reshape(g.shape),
        "negated": lambda: torch.complex(g, -g).conj().imag,
        "of a graph": lambda: g.clone().requires_grad_() * 1,
    }
    return forms[name]() if name in forms else g.to(getattr(torch, name))


FORMS = ["float64", "float32", "bfloat16", "float16", "transposed", "with holes", "offset", "negated", "of a graph"]


@pytest.mark.parametrize("shape", [(4, 6), (300, 200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@both_engines
def test_gradients_may_change_dtype_and_layout_at_every_step(engine, dtype, shape):
    """Eighths of small whole numbers are the same in all of these dtypes, so every bit must be the same."""
    ends = []
    for forms in (["float32"] * 18, [form for pair in zip(FORMS, reversed(FORMS), strict=True) for form in pair]):
        generator = torch.Generator().manual_seed(4)
        w = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        w.grad_dtype = None  # PyTorch sees to it that both dtypes agree, unless it is told not to
        optimizer = optim.AdamW([w], lr=0.05, engine=engine, clip_value=5.0, ema=0.9)
        for form in forms:
            w.grad = turned(form, torch.randint(-64, 64, shape, generator=generator).float() / 8)
            optimizer.step()
        ends.append([w.detach(), *optimizer.state[w].values()])
    assert same(*ends)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_forgets_or_zeroes_and_the_descent_is_the_same(to_none):
    ends = []
    for way in (True, to_none):
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        for i in range(3):
            optimizer.zero_grad(set_to_none=way)
            assert all(p.grad is None if way or i == 0 else not p.grad.any() for p in model.parameters())
            model(batch(seed=i)).square().mean().backward()
            optimizer.step()
        ends.append(bits(model, optimizer))
    assert same(*ends)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
@every_class
def test_a_copy_in_mid_run_goes_on_bit_for_bit(kind, way):
    model = network()
    optimizer = kind(model.parameters(), clip_norm=0.1)
    schedule = schedulers.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)
    for i in range(3):
        descend(model, optimizer, 1, first=i)
        schedule.step()
    other = dict(zip(("model", "optimizer"), way([model, optimizer]), strict=True))
    descend(model, optimizer, 3, first=3)
    descend(other["model"], other["optimizer"], 3, first=3)
    assert same(bits(model, optimizer), bits(*other.values()))


@every_class
def test_a_closure_is_called_once_with_gradients_on_and_its_loss_is_returned(kind):
    model, alone, asked = network(), network(), []
    optimizer, other = kind(model.parameters()), kind(alone.parameters())

    def closure():
        assert torch.is_grad_enabled()
        asked.append(backward(model, batch(seed=len(asked))))
        return asked[-1]

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]
    assert losses == asked
    descend(alone, other, 3)
    assert same(bits(model, optimizer), bits(alone, other))


CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a profiler": torch.profiler.profile,
    "NumPy raising": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", [optim.AdamW, optim.RMSprop, optim.Prodigy, optim.Adafactor], ids=lambda k: k.__name__)
@both_engines
def test_a_step_is_the_same_whatever_it_is_taken_in(kind, engine, context):
    ends = []
    for enters in (False, True):
        model = network()
        optimizer = kind(model.parameters(), engine=engine, clip_norm=0.1, ema=0.9)
        for i in range(4):
            backward(model, batch(seed=i))
            with CONTEXTS[context]() if enters else contextlib.nullcontext():
                optimizer.step()
            assert torch.is_grad_enabled()
        ends.append(bits(model, optimizer))
    assert same(*ends)


# Threads


class Asked(list):
    """How many threads each kernel that runs in several was given."""

    def parallel(self, address, arguments, threads, flags):
        del flags
        self.append(threads)
        kernels._FUNCTION(address)(arguments)


def after_three_steps(threads):
    torch.set_num_threads(threads)
    w = torch.linspace(-1, 1, 300_000)
    optimizer = optim.AdamW([w], lr=0.05, engine="cpu", clip_norm=1.0)
    for _ in range(3):
        w.grad = w.sin() + 0.1
        optimizer.step()
    return [w, *optimizer.state[w].values()]


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_no_more_threads_run_a_kernel_than_torch_may_use_nor_than_there_is_work_for(threads, monkeypatch):
    asked = Asked()
    monkeypatch.setattr(thread_pool, "_openmp", lambda: asked.parallel)
    after_three_steps(threads)
    assert {*asked} == ({min(threads, 300_000 // thread_pool.WEIGHTS_PER_THREAD)} if threads > 1 else set())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_without_openmp_pythons_threads_take_the_same_steps_bit_for_bit(threads, monkeypatch):
    alone, counts = after_three_steps(1), []
    python_threads = thread_pool._python_threads

    def counted(count):
        counts.append(count)
        return python_threads(count)

    monkeypatch.setattr(thread_pool, "_openmp", lambda: None)
    monkeypatch.setattr(thread_pool, "_python_threads", counted)
    assert same(alone, after_three_steps(threads))
    assert {*counts} == ({threads - 1} if threads > 1 else set())


# Schedules


def sequential(optimizer):
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.ExponentialLR(optimizer, 0.9)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[4])


SCHEDULES = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.2, total_iters=6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.001, 0.05, 3, cycle_momentum=False),
    "CyclicLR with momentum": lambda o: schedulers.CyclicLR(o, 0.001, 0.05, 3, base_momentum=0.5, max_momentum=0.8),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.05, 12, cycle_momentum=False),
    "OneCycleLR with momentum": lambda o: schedulers.OneCycleLR(o, 0.05, 12),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1, threshold=0.5),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 3), schedulers.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SequentialLR": sequential,
    "SWALR": lambda o: swa_utils.SWALR(o, 0.001, anneal_epochs=4),
}
STEPS = 10


def test_all_of_torchs_schedules_are_tried():
    theirs = {name for name in schedulers.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert {name.split()[0] for name in SCHEDULES} == theirs


def follow(model, optimizer, schedule, steps, first=0):
    rates = []
    for i in range(first, first + steps):
        loss = backward(model, batch(torch.float64, seed=i % 3))
        optimizer.step()
        schedule.step(*([loss] if isinstance(schedule, schedulers.ReduceLROnPlateau) else []))
        group = optimizer.param_groups[0]
        rates.append((float(group["lr"]), group.get("betas"), group.get("momentum")))
    return rates


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("kind", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {})])
def test_a_schedule_of_torchs_leads_our_optimiser_where_it_leads_torchs(kind, options, name, tensor):
    ends = []
    for home in (optim, torch.optim):
        model = network(torch.float64)
        rate = torch.tensor(0.02, dtype=torch.float64) if tensor else 0.02
        optimizer = getattr(home, kind)(model.parameters(), lr=rate, **options)
        rates = follow(model, optimizer, SCHEDULES[name](optimizer), STEPS)
        ends.append((rates, [*model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert len(set(ends[0][0])) > 1
    for ours, theirs in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_and_its_optimiser_are_saved_and_go_on_bit_for_bit(name):
    model = network(torch.float64)
    optimizer = optim.AdamW(model.parameters(), lr=0.02)
    schedule = SCHEDULES[name](optimizer)
    follow(model, optimizer, schedule, 4)
    other = copy.deepcopy(model)
    continued = optim.AdamW(other.parameters(), lr=0.02)
    again = SCHEDULES[name](continued)
    again.load_state_dict(copy.deepcopy(schedule.state_dict()))
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rates = follow(model, optimizer, schedule, STEPS - 4, first=4)
    assert follow(other, continued, again, STEPS - 4, first=4) == rates
    assert same(bits(model, optimizer), bits(other, continued))


# Averages of the weights


@pytest.mark.parametrize("average", [None, swa_utils.get_ema_multi_avg_fn(0.9)], ids=["mean", "ema"])
def test_torchs_averaged_model_follows_as_it_follows_torchs_optimiser(average):
    ends = []
    for home in (optim, torch.optim):
        model = nn.Sequential(network(torch.float64), nn.BatchNorm1d(2).double())
        optimizer = home.SGD(model.parameters(), lr=0.1, momentum=0.9)
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=average)
        for i in range(5):
            backward(model, batch(torch.float64, i))
            optimizer.step()
            averaged.update_parameters(model)
        swa_utils.update_bn([batch(torch.float64, i) for i in range(3)], averaged)
        ends.append([*averaged.parameters(), *averaged.buffers()])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_our_average_is_torchs_ema_model_started_at_the_first_step_but_for_its_bias():
    """Torch's begins with the first weights alone; without the bias correction ours would be the same sum."""
    model, decay = network(torch.float64), 0.8
    optimizer = optim.SGD(model.parameters(), lr=0.1, ema=decay)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    visited = []
    for i in range(4):
        descend(model, optimizer, 1, first=i)
        theirs.update_parameters(model)
        visited.append([p.detach().clone() for p in model.parameters()])
    count = len(visited)
    with optimizer.averaged():
        for ours, its, first in zip(model.parameters(), theirs.module.parameters(), visited[0], strict=True):
            total = 1 - decay**count
            # theirs = decay^(n-1) w_1 + (1 - decay) Σ_{s>1} decay^(n-s) w_s
            wanted = (its - decay ** (count - 1) * first + (1 - decay) * decay ** (count - 1) * first) / total
            torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


# Compilers


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@both_engines
def test_a_compiled_model_descends_as_the_plain_one(dynamo, engine, backend):
    ends = []
    for compiles in (False, True):
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05, engine=engine, clip_norm=0.1, ema=0.9)
        descend(torch.compile(model, backend=backend) if compiles else model, optimizer, 4)
        ends.append(bits(model, optimizer))
    assert same(*ends)


@pytest.mark.parametrize("with_schedule", [False, True])
@both_engines
def test_a_compiled_function_steps_outside_of_the_compiler_to_the_same_bits(dynamo, engine, with_schedule):
    ends = []
    for compiles in (False, True):
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05, engine=engine, clip_norm=0.1, ema=0.9)
        schedule = schedulers.ExponentialLR(optimizer, 0.9) if with_schedule else None

        def train(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()

        run = torch.compile(train, backend="eager") if compiles else train
        for i in range(5):
            run(batch(seed=i))
            if i == 1:
                compiled = dynamo.utils.counters["frames"]["total"]
            if schedule is not None:
                schedule.step()
        ends.append(bits(model, optimizer))
    assert same(*ends)
    assert dynamo.utils.counters["frames"]["total"] == compiled  # nothing is compiled anew at each step


def test_in_a_graph_without_breaks_the_step_is_refused_by_torch(dynamo):
    w = nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([w])
    w.grad = torch.ones(3)
    with pytest.raises(dynamo.exc.Unsupported):
        torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    assert torch.equal(w.detach(), torch.ones(3))
    assert optimizer.last is None


# Tensors of other types


class Wrapped(torch.Tensor):
    """A tensor that is another one: it has a shape and a dtype, and no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        del types

        def inner(value):
            return value.inner if isinstance(value, Wrapped) else value

        found = function(
            *torch.utils._pytree.tree_map(inner, args), **torch.utils._pytree.tree_map(inner, kwargs or {})
        )
        if function._schema.is_mutable:
            return args[0]
        return torch.utils._pytree.tree_map(
            lambda v: Wrapped(v) if isinstance(v, torch.Tensor) and v.ndim else v, found
        )


class Tagged(nn.Parameter):
    """A parameter with memory as any, of a class of somebody's own."""


@pytest.mark.parametrize("shape", [(3,), (6, 4), (40_000,)], ids=str)
@both_engines
@every_class
def test_a_tensor_of_somebodys_own_type_moves_by_its_own_operations(kind, engine, shape):
    start = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    plain, tagged, wrapped = start.clone(), Tagged(start.clone()), Wrapped(start.clone())
    assert wrapped.data_ptr() == 0
    for p in (plain, tagged, wrapped):
        optimizer = kind([p], engine=engine, clip_norm=0.5)
        for _ in range(3):
            slope = (p.inner if isinstance(p, Wrapped) else p.detach()).sin() + 0.1
            p.grad = Wrapped(slope) if isinstance(p, Wrapped) else slope
            optimizer.step()
    torch.testing.assert_close(tagged.detach(), plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(wrapped.inner, plain, rtol=1e-12, atol=1e-14)
    assert not torch.equal(plain, start)


# Several processes


def run_together(world, way, folder):
    script = Path(__file__).with_name("sharded.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder / "store"), way],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for rank, process in enumerate(processes):
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, f"process {rank}: {said[-3000:]}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.heavy
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize(("world", "way"), [*itertools.product([1, 2, 3], ["fsdp", "ddp"])])
def test_sharded_over_processes_it_descends_as_the_whole_model_alone(world, way, tmp_path):
    run_together(world, way, tmp_path)
