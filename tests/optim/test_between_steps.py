"""What changes or breaks between two steps: refused before anything is updated, or without effect on the step."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.errors import RuleError

both_engines = pytest.mark.parametrize("engine", ["cpu", "tensors"])
CLASSES = [kind for kind in map(vars(optim).get, optim.__all__) if isinstance(kind, type)]
CLASSES = [kind for kind in CLASSES if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer]


@pytest.mark.parametrize(
    "view",
    [lambda w: w.view(12), lambda w: w.view(3, 4), lambda w: w.view(6, 2).view(torch.float64)],
    ids=["flat", "turned", "float64"],
)
@pytest.mark.parametrize("steps", [1, 2, 6])
@both_engines
def test_another_shape_or_dtype_of_the_same_memory_is_refused(engine, view, steps):
    w = torch.ones(4, 3)
    optimizer = optim.AdamW([("w", w)], lr=0.1, engine=engine)
    for _ in range(steps):
        w.grad = torch.ones(4, 3)
        optimizer.step()
    before = w.clone()
    w.grad = None
    w.data = view(w.data)
    w.grad = torch.ones_like(w)
    with pytest.raises(RuleError, match=r"w has become shape .*, but its state `exp_avg` is of shape \(4, 3\)"):
        optimizer.step()
    assert torch.equal(view(before), w)


@both_engines
def test_float_bits_seen_as_whole_numbers_are_refused(engine):
    w = torch.ones(4, 3)
    optimizer = optim.AdamW([("w", w)], lr=0.1, engine=engine)
    for _ in range(3):
        w.grad = torch.ones(4, 3)
        optimizer.step()
    w.grad = None
    w.data = w.data.view(torch.int32)
    w.grad = torch.ones(4, 3, dtype=torch.int32)
    with pytest.raises(RuleError, match=r"w has become torch\.int32"):
        optimizer.step()


@both_engines
def test_a_gradient_that_becomes_whole_numbers_is_not_read_as_floats(engine):
    w = torch.ones(4)
    w.grad_dtype = None
    optimizer = optim.SGD([("w", w)], lr=0.1, engine=engine)
    for _ in range(4):
        w.grad = torch.ones(4)
        optimizer.step()
    before = w.clone()
    w.grad = torch.tensor([1, 2, -3, 4], dtype=torch.int32)
    with pytest.raises(RuleError, match=r"the gradient of w is torch\.int32"):
        optimizer.step()
    assert torch.equal(w, before)


def stepped_by_adamw(n, steps):
    w = torch.ones(n)
    optimizer = optim.AdamW([("w", w)], lr=0.1, engine="cpu")
    for _ in range(steps):
        w.grad = torch.ones(n)
        optimizer.step()
    return w, optimizer


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("n", [24, 40_000])
def test_freed_state_is_found_before_a_kernel_writes_there(n, left, steps):
    w, optimizer = stepped_by_adamw(n, steps)
    before = w.clone()
    optimizer.state[w]["exp_avg"].untyped_storage().resize_(left)
    with pytest.raises(RuleError, match=f"memory of the state `exp_avg` of w has been freed: {left} bytes are left"):
        optimizer.step()
    assert torch.equal(w, before)


def test_state_of_another_shape_under_the_same_tensor_is_found_before_a_kernel_writes_there():
    w, optimizer = stepped_by_adamw(40_000, 5)
    before = w.clone()
    optimizer.state[w]["exp_avg"].data = torch.ones(2, 2)
    with pytest.raises(RuleError, match=r"but its state `exp_avg` is of shape \(2, 2\)"):
        optimizer.step()
    assert torch.equal(w, before)


@both_engines
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_torchs_default_device_has_no_effect_on_a_step(kind, engine):
    ends = []
    for device in ("cpu", "meta"):
        w = nn.Parameter(torch.linspace(-1, 1, 12, device="cpu").reshape(4, 3))
        with torch.device(device):
            optimizer = kind([w], engine=engine, **({} if kind([w]).averages else {"ema": 0.9}))
            for _ in range(4):
                w.grad = w.detach().sin()
                optimizer.measure = True
                optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            w.grad = w.detach().sin()
            optimizer.step()
        ends.append([w.detach(), *optimizer.state[w].values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("value", [math.nan, -5.0, math.inf])
@both_engines
def test_a_count_that_became_impossible_where_it_stands_is_refused(engine, value):
    w = torch.ones(3)
    optimizer = optim.AdamW([("w", w)], engine=engine)
    for _ in range(4):
        w.grad = torch.ones(3)
        optimizer.step()
    before = w.clone()
    optimizer.state[w]["step"].fill_(value)
    with pytest.raises(RuleError, match="the step count of w has become"):
        optimizer.step()
    assert torch.equal(w, before)


@both_engines
def test_constants_in_tensors_are_numbers_and_may_be_written_into(engine):
    w, v = torch.ones(3), torch.ones(3)
    b1, b2, eps = torch.tensor(0.5), torch.tensor(0.75), torch.tensor(2.0**-20)
    one = optim.AdamW([w], betas=(b1, b2), eps=eps, engine=engine)
    two = optim.AdamW([v], betas=(0.5, 0.75), eps=2.0**-20, engine=engine)
    for i in range(4):
        w.grad, v.grad = torch.ones(3), torch.ones(3)
        one.step()
        two.step()
        assert torch.equal(w, v)
        b1.fill_(0.25 * (i + 1) / 2)
        two.param_groups[0]["betas"] = (0.25 * (i + 1) / 2, 0.75)


@both_engines
@pytest.mark.parametrize("lr", [b"0.1", np.array(0.1), np.bool_(True), 10**400, torch.tensor(0.1 + 0j)], ids=str)
def test_more_that_is_no_rate(engine, lr):
    with pytest.raises(RuleError, match=r"`lr` is .*, but it must be"):
        optim.AdamW([torch.ones(2)], lr=lr, engine=engine)
    w = torch.ones(2)
    optimizer = optim.AdamW([w], engine=engine)
    for _ in range(4):
        w.grad = torch.ones(2)
        optimizer.step()
    before = w.clone()
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(RuleError, match="The learning rate has become"):
        optimizer.step()
    assert torch.equal(w, before)


@both_engines
@pytest.mark.parametrize("shape", [(0,), (4, 0)], ids=str)
def test_a_cautious_step_on_nothing(engine, shape):
    e, w = torch.ones(shape), torch.ones(3)
    optimizer = optim.AdamW([e, w], engine=engine, cautious=True)
    e.grad, w.grad = torch.ones(shape), torch.ones(3)
    optimizer.step()
    assert (w < 1).all()


@both_engines
def test_after_a_step_that_raised_a_scaler_scales_as_before(engine):
    w = nn.Parameter(torch.ones(3))
    optimizer, scaler = optim.SGD([w], lr=0.1, engine=engine), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(rate=0.1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        scaler.scale((w * w).sum() / 2).backward()
        scaler.step(optimizer)

    with pytest.raises(RuleError):
        step(math.nan)
    scaler.update()
    step()
    scaler.update()
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.9))
    with pytest.raises(RuleError):
        step(math.nan)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.zero_grad()
    ((w * w).sum() / 2).backward()
    optimizer.step()  # without the scaler
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.81))


def test_betas_given_as_a_list_cannot_change_unseen():
    w = torch.ones(3)
    optimizer = optim.AdamW([{"params": [w], "betas": [0.5, 0.9]}])
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize("rule", ["Muon", "Adafactor", "AdamW"])
def test_autocast_around_a_step_rounds_nothing_in_it(rule):
    ends = []
    for enabled in (False, True):
        torch.manual_seed(0)
        w = torch.randn(40, 30)
        optimizer = getattr(optim, rule)([w], lr=0.01)
        for _ in range(3):
            w.grad = torch.sin(3 * w)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        ends.append(w)
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_whose_memory_was_cut_short_is_not_loaded(dtype):
    w, other = torch.ones(24, dtype=dtype), torch.ones(24, dtype=dtype)
    one, two = optim.SGD([w], lr=0.1, momentum=0.9), optim.SGD([other], lr=0.1, momentum=0.9)
    w.grad = torch.ones_like(w)
    one.step()
    saved = one.state_dict()
    saved["state"][0]["momentum_buffer"] = cut = torch.ones(24)
    cut.untyped_storage().resize_(40)
    with pytest.raises(RuleError, match="The memory of the state `momentum_buffer` of parameter 0 has been freed"):
        two.load_state_dict(saved)
    assert not two.state


@both_engines
@pytest.mark.parametrize("rule", ["adamw", "schedule_free_adamw"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), ()])
def test_weights_that_became_larger_than_their_average_are_not_lost_to_it(engine, rule, shape):
    w = torch.ones(4)
    optimizer = optim.Optimizer([("w", w)], rule, lr=0.1, engine=engine, **({} if "free" in rule else {"ema": 0.9}))
    w.grad = torch.ones(4)
    optimizer.step()
    w.grad, w.data = None, torch.full(shape, 7.0)
    with pytest.raises(RuleError, match=r"w has become shape .*, but its"), optimizer.averaged():
        pass
    assert torch.equal(w, torch.full(shape, 7.0))


NO_NUMBERS = [10**400, torch.ones((), device="meta"), torch.ones(2), None, 1j, "x"]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=["huge", "meta", "two", "none", "complex", "text"])
@both_engines
def test_a_constant_that_is_no_number_is_a_sentence_at_the_start_and_later(engine, value):
    with pytest.raises(RuleError, match="beta1 of adamw must be a number in"):
        optim.Optimizer([torch.ones(3)], "adamw", lr=0.1, beta1=value, engine=engine)
    w = torch.ones(3)
    optimizer = optim.AdamW([w], clip_norm=1.0, engine=engine)
    for _ in range(4):
        w.grad = torch.ones(3)
        optimizer.step()
    before = w.clone()
    for name, wrong in (("betas", (value, 0.9)), ("eps", value), ("weight_decay", value)):
        if value is None and name == "betas":  # the default, as PyTorch has it
            continue
        right = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = wrong
        with pytest.raises(RuleError, match="must be a"):
            optimizer.step()
        optimizer.param_groups[0][name] = right
    optimizer.clip_norm = value
    if value is not None:
        with pytest.raises(RuleError, match=r"`clip_norm` is .*, but it must be a number"):
            optimizer.step()
    assert torch.equal(w, before)


@pytest.mark.parametrize("value", [*NO_NUMBERS, math.nan, torch.tensor(math.inf)], ids=str)
@pytest.mark.parametrize("rule", ["schedule_free_adamw", "prodigy", "nadam"])
@both_engines
def test_a_carried_number_that_is_none_is_refused_where_it_is_loaded_and_where_it_is_read(engine, rule, value):
    w = torch.ones(3)
    optimizer = optim.Optimizer([w], rule, lr=0.1, engine=engine)
    for _ in range(2):
        w.grad = torch.ones(3)
        optimizer.step()
    before, name = w.clone(), next(iter(optimizer.rule.carried))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][name] = value
    with pytest.raises(RuleError, match=f"`{name}` in the state of a parameter is .* must be a finite number"):
        optimizer.load_state_dict(saved)
    optimizer.state[w][name] = value
    with pytest.raises(RuleError, match=f"`{name}` in the state of a parameter is .* must be a finite number"):
        optimizer.step()
    assert torch.equal(w, before)


def test_numbers_of_state_in_numpy_arrays_are_loaded():
    w, other = torch.ones(3), torch.ones(3)
    one, two = (optim.Optimizer([p], "schedule_free_adamw", lr=0.1) for p in (w, other))
    w.grad = torch.ones(3)
    one.step()
    saved = copy.deepcopy(one.state_dict())
    saved["state"][0] = {k: v.numpy() if v.ndim == 0 else v for k, v in saved["state"][0].items()}
    two.load_state_dict(saved)
    other.copy_(w)
    for p, optimizer in ((w, one), (other, two)):
        p.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(w, other)
