"""Steps as on an accelerator, without host synchronisation. Tested on the CPU, as if it were one."""

import copy
import math

import pytest
import torch
import torch._dynamo
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.errors import NonFiniteError
from thalweg.optim import Optimizer
from thalweg.optim.engines import arithmetic, blocks, device_resident, foreach
from thalweg.rules import RULES

SHAPES = [(40, 30), (30,), (), (50_000,)]


@pytest.fixture
def device_resident_on_cpu(monkeypatch):
    for module in (arithmetic, blocks):
        monkeypatch.setattr(module, "uses_numpy", lambda device: False)


@pytest.fixture
def compiling(monkeypatch, device_resident_on_cpu):
    torch._dynamo.reset()
    monkeypatch.setattr(foreach, "can_compile", lambda device: True)
    monkeypatch.setattr(foreach, "BACKEND", "eager")


def weights(shapes=SHAPES):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def descended(rule, nonfinite=(), steps=8, begin_average_at=None, **options):
    parameters = weights()
    if RULES[rule].average is not None:
        options.pop("ema", None)
        options.pop("cautious", None)
    optimizer = Optimizer(parameters, rule, engine="tensors", **{"lr": 0.01, "weight_decay": 0.1, **options})
    for step in range(steps):
        if step == begin_average_at:
            optimizer.ema = 0.9
        for i, p in enumerate(parameters):
            p.grad = (p.detach() * (i + 1)).sin() + 0.3
            if step in nonfinite and i == 3:
                p.grad[7] = math.nan if step % 2 else math.inf
        optimizer.step()
    return parameters, optimizer


def state_of(optimizer):
    return [entry[key] for entry in optimizer.state.values() for key in sorted(entry)]


@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 1.0, "ema": 0.9}, {"clip_value": 0.5, "clip_norm": 1.0, "cautious": True}]
)
@pytest.mark.parametrize("rule", RULES)
def test_it_takes_the_steps_of_the_host_and_a_nonfinite_one_leaves_no_trace(rule, options, monkeypatch):
    on_host, host_optimizer = descended(rule, nonfinite=(0, 3, 4), **options)
    for module in (arithmetic, blocks):
        monkeypatch.setattr(module, "uses_numpy", lambda device: False)
    on_device, device_optimizer = descended(rule, nonfinite=(0, 3, 4), **options)
    for one, other in zip(
        [*on_host, *state_of(host_optimizer)], [*on_device, *state_of(device_optimizer)], strict=True
    ):
        # Prodigy's first steps are a millionth long: which of their parts go uphill depends on rounding.
        rough = (
            {"rtol": 0.1, "atol": 1e-5}
            if rule == "prodigy" and "cautious" in options
            else {"rtol": 1e-9, "atol": 1e-12}
        )
        torch.testing.assert_close(other, one, **rough)


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
@pytest.mark.parametrize("mode", ["device_resident_on_cpu", "compiling"])
def test_an_average_that_begins_on_the_way_is_that_of_the_host(rule, mode, request):
    """Also where it begins with a step that is not taken."""
    _, host_optimizer = descended(rule, nonfinite=(1, 4), begin_average_at=4)
    request.getfixturevalue(mode)
    _, device_optimizer = descended(rule, nonfinite=(1, 4), begin_average_at=4)
    for one, other in zip(state_of(host_optimizer), state_of(device_optimizer), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


COMPILED = [{"clip_norm": 1.0, "ema": 0.9}, {"clip_value": 0.5, "clip_norm": 1.0, "cautious": True, "maximize": True}]
COMPILED_RULES = [name for name, rule in RULES.items() if not rule.is_matrix and rule.sums is None]
# To trace a step takes seconds, and is the same code for each rule: two stand for all where not all are tested.
SOON = {("adamw", 0), ("rmsprop", 1)}


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        pytest.param(rule, options, marks=() if (rule, i) in SOON else pytest.mark.heavy, id=f"{rule}-{i}")
        for rule in COMPILED_RULES
        for i, options in enumerate(COMPILED)
    ],
)
def test_compiled_over_lists_it_takes_the_same_steps(rule, options, monkeypatch, request):
    on_host, host_optimizer = descended(rule, nonfinite=(0, 3, 4), **options)
    request.getfixturevalue("compiling")
    on_device, device_optimizer = descended(rule, nonfinite=(0, 3, 4), **options)
    assert {type(block) for _, _, partition in device_optimizer._engine._partitions for block, _ in partition} == {
        foreach.ForeachBlock
    }
    for one, other in zip(
        [*on_host, *state_of(host_optimizer)], [*on_device, *state_of(device_optimizer)], strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    optimizer_numbers = []
    for optimizer in (host_optimizer, device_optimizer):
        optimizer.measure = True
        optimizer.step()
        optimizer_numbers.append(optimizer.last.on_host())
    for one, other in zip(*(record[4:] for record in optimizer_numbers), strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("compiling")
def test_another_rate_or_weight_decay_does_not_recompile():
    parameters, optimizer = descended("adamw", steps=2, clip_norm=1.0, ema=0.9)
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            optimizer.param_groups[0]["weight_decay"] = 0.1 / (step + 1)
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
    (block,) = (block for _, _, partition in optimizer._engine._partitions for block, _ in partition)
    assert len(block.functions) == 1


@pytest.mark.parametrize("rule", ["adamw", "adam"])
def test_compiled_over_lists_it_takes_a_decay_that_changes_at_every_step_as_the_host_does(rule, request):
    def run():
        parameters = weights()
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
        optimizer = Optimizer(groups, rule, lr=0.01, engine="tensors")
        for step in range(5):
            groups[0]["weight_decay"] = optimizer.param_groups[0]["weight_decay"] = 3 / (step + 1)
            for i, p in enumerate(parameters):
                p.grad = (p.detach() * (i + 1)).sin() + 0.3
            optimizer.step()
        return parameters

    on_host = run()
    request.getfixturevalue("compiling")
    for one, other in zip(on_host, run(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_where_torch_cannot_compile_the_step_runs_uncompiled_and_warns(monkeypatch, request):
    def broken(graph, inputs):
        raise RuntimeError("no such machine")

    on_host, _ = descended("adamw", nonfinite=(3,), clip_norm=1.0, ema=0.9)
    request.getfixturevalue("compiling")
    monkeypatch.setattr(foreach, "BACKEND", broken)
    with pytest.warns(UserWarning, match="could not compile"):
        on_device, _ = descended("adamw", nonfinite=(3,), clip_norm=1.0, ema=0.9)
    for one, other in zip(on_host, on_device, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, inside its compiler
@pytest.mark.usefixtures("device_resident_on_cpu")
def test_inductor_takes_the_same_steps(monkeypatch):
    on_host, _ = descended("adamw", nonfinite=(3,), clip_norm=1.0, ema=0.9)
    monkeypatch.setattr(foreach, "can_compile", lambda device: True)
    on_device, _ = descended("adamw", nonfinite=(3,), clip_norm=1.0, ema=0.9)
    for one, other in zip(on_host, on_device, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


class Synchronisations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("device_resident_on_cpu")
@pytest.mark.parametrize("rule", RULES)
def test_no_step_synchronises(rule, monkeypatch):
    monkeypatch.setattr(
        device_resident.DeviceSkipCounter, "update", lambda self, was_taken: None
    )  # which looks only at what has arrived
    parameters, optimizer = descended(rule, steps=2, clip_norm=1.0, ema=0.9, cautious=True)
    for p in parameters:
        p.grad = torch.ones_like(p)
    with Synchronisations() as synchronisations:
        optimizer.step()
    assert synchronisations.seen == 0
    optimizer.measure = True
    with Synchronisations() as synchronisations:
        optimizer.step()
    assert synchronisations.seen == 0
    with Synchronisations() as synchronisations:
        record = optimizer.last.on_host()
    assert record.gradient_norm == pytest.approx(math.sqrt(sum(p.numel() for p in parameters)))
    assert (record.skipped, record.nonfinite) == (False, 0)
    assert record.gradient_norms == pytest.approx([math.sqrt(p.numel()) for p in parameters])


@pytest.mark.usefixtures("device_resident_on_cpu")
def test_the_record_says_that_a_step_was_skipped():
    _, optimizer = descended("adamw", nonfinite=(2,), steps=3)
    record = optimizer.last.on_host()
    assert record.skipped is True
    assert record.nonfinite == 1
    assert not math.isfinite(record.gradient_norm)


@pytest.mark.usefixtures("device_resident_on_cpu")
def test_norms_that_overflow_float32_are_no_reason_to_skip():
    w = torch.ones(3, requires_grad=True)
    optimizer = Optimizer([w], "gradient_descent", lr=1.0, clip_norm=1.0, engine="tensors")
    w.grad = torch.full((3,), 1e30)
    optimizer.step()
    assert torch.allclose(w.detach(), torch.full((3,), 1 - 3**-0.5))


@pytest.mark.usefixtures("device_resident_on_cpu")
def test_three_nonfinite_steps_in_a_row_raise_some_steps_late():
    w = torch.ones(3, requires_grad=True)
    optimizer = Optimizer([w], "adamw", lr=0.1, engine="tensors")
    w.grad = torch.full((3,), math.nan)
    optimizer.step()
    optimizer.step()
    optimizer.step()
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        optimizer.step()
    assert torch.equal(w.detach(), torch.ones(3))
    patient = Optimizer([w], "adamw", lr=0.1, engine="tensors", on_nonfinite="skip")
    for _ in range(6):
        patient.step()


@pytest.mark.usefixtures("device_resident_on_cpu")
def test_parameters_without_a_gradient_have_nan_in_their_place():
    one, two, three = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimizer = Optimizer([one, two, three], "adamw", lr=0.1, engine="tensors")
    one.grad, three.grad = torch.ones(2), torch.full((2,), 2.0)
    optimizer.step()
    norms = optimizer.last.on_host().gradient_norms
    assert norms[0] == pytest.approx(2**0.5)
    assert math.isnan(norms[1])
    assert norms[2] == pytest.approx(8**0.5)


@pytest.mark.usefixtures("device_resident_on_cpu")
def test_state_saved_on_the_device_is_loaded_on_the_host(monkeypatch):
    parameters, optimizer = descended("nadam", steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    others = [p.detach().clone().requires_grad_() for p in parameters]
    monkeypatch.undo()
    continued = Optimizer(others, "nadam", lr=0.01, weight_decay=0.1, engine="tensors")
    continued.load_state_dict(saved)
    for p, q in zip(parameters, others, strict=True):
        p.grad = q.grad = torch.ones_like(p)
    optimizer.step()
    continued.step()
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0.0)
