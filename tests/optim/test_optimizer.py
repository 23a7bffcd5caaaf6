import copy
import io
import math
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thalweg import optim, rules
from thalweg.errors import NonFiniteError, RuleError
from thalweg.optim import Optimizer
from thalweg.rules import RULES

NAMES = ["SGD", "GradientDescent", "Momentum", "Nesterov", "RMSprop", "Adam", "AdamW"]


def weights(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes or ((4, 3), (3,))
    ]


def feel(params, scale=1.0):
    for p in params:
        p.grad = (scale * (p.detach() - 0.5)).to(p.dtype)


def take_steps(optimizer, steps=1):
    for _ in range(steps):
        feel(p for g in optimizer.param_groups for p in g["params"])
        optimizer.step()


def bits(optimizer):
    params = [p for g in optimizer.param_groups for p in g["params"]]
    held = [v.clone() for p in params for v in optimizer.state.get(p, {}).values()]
    return [p.detach().clone() for p in params] + held


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# What a step says of itself


def test_the_record_of_a_step():
    params = weights((2,), (3,))
    optimizer = optim.SGD(params, lr=0.1, clip_norm=1.0)
    assert optimizer.last is None
    params[0].grad = torch.tensor([3.0, 0.0], dtype=torch.float64)
    params[1].grad = torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64)
    optimizer.step()
    last = optimizer.last
    assert last.gradient_norm == 5.0
    assert list(last.gradient_norms) == [3.0, 4.0]
    assert last.clip_scale == pytest.approx(1 / 5, rel=1e-6)
    assert (last.skipped, last.nonfinite, last.weight_norms, last.update_norms) == (False, 0, None, None)


@pytest.mark.parametrize("size", [6, 40_000])
def test_measure_gives_the_next_steps_weight_and_update_norms(size):
    params = weights((size,), (3,))
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    before = [p.detach().clone() for p in params]
    optimizer.measure = True
    take_steps(optimizer)
    torch.testing.assert_close(optimizer.last.weight_norms, torch.stack([b.norm() for b in before]).float())
    moved = torch.stack([(p.detach() - b).norm() for p, b in zip(params, before, strict=True)]).float()
    torch.testing.assert_close(optimizer.last.update_norms, moved)
    take_steps(optimizer)
    assert optimizer.last.update_norms is None


def test_norms_of_parameters_without_a_gradient_are_nan_in_their_place():
    params = weights((2,), (3,), (2,))
    optimizer = optim.SGD(params, lr=0.1)
    feel([params[0], params[2]])
    optimizer.measure = True
    optimizer.step()
    for norms in (optimizer.last.gradient_norms, optimizer.last.weight_norms, optimizer.last.update_norms):
        assert [math.isnan(n) for n in norms] == [False, True, False]


def test_without_any_gradient_nothing_happens():
    params = weights()
    optimizer = optim.AdamW(params, lr=0.1, ema=0.9)
    before = bits(optimizer)
    optimizer.step()
    assert same(before, bits(optimizer))
    assert optimizer.last.gradient_norm == 0.0
    assert not optimizer.last.skipped


def test_the_gradient_is_only_read():
    params = weights((5,), (40_000,))
    optimizer = optim.AdamW(params, lr=0.1, clip_norm=0.01, clip_value=0.1, maximize=True)
    feel(params)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert same(before, [p.grad for p in params])


# Gradients that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [5, 40_000])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_leaves_every_bit(name, size, bad):
    params = weights((3,), (size,), (2,))
    optimizer = getattr(optim, name)(params, lr=0.1, ema=0.9, clip_norm=1.0, clip_value=0.3)
    take_steps(optimizer, 2)
    before = bits(optimizer)
    feel(params)
    params[1].grad[size - 1] = bad
    params[2].grad[0] = bad
    optimizer.step()
    assert same(before, bits(optimizer))
    assert (optimizer.last.skipped, optimizer.last.nonfinite) == (True, 2)
    assert math.isnan(optimizer.last.gradient_norm)
    assert math.isfinite(optimizer.last.gradient_norms[0])
    assert not math.isfinite(optimizer.last.gradient_norms[1])


def test_a_first_step_that_is_skipped_makes_no_state_and_the_next_counts_as_first():
    params, others = weights(), weights()
    optimizer, other = optim.AdamW(params, lr=0.1), optim.AdamW(others, lr=0.1)
    feel(params)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    assert len(optimizer.state) == 0
    take_steps(optimizer, 3)
    take_steps(other, 3)
    assert same(bits(optimizer), bits(other))


def spoil(optimizer, times):
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for _ in range(times):
        feel(params)
        params[0].grad.view(-1)[0] = math.nan
        optimizer.step()


def test_three_skips_in_a_row_raise_and_name_the_parameter():
    module = nn.Linear(3, 2)
    optimizer = optim.AdamW(module.named_parameters(), lr=0.1)
    spoil(optimizer, 2)
    take_steps(optimizer)
    spoil(optimizer, 2)
    before = bits(optimizer)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* 1 elements, of weight\. No weight took any of them"):
        spoil(optimizer, 1)
    assert same(before, bits(optimizer))
    assert optimizer.last.skipped


def test_skip_goes_on_for_ever():
    optimizer = optim.AdamW(weights(), lr=0.1, on_nonfinite="skip")
    spoil(optimizer, 10)
    assert optimizer.skips == 10


@pytest.mark.parametrize("size", [4, 40_000])
def test_a_finite_gradient_whose_norm_overflows_is_clipped_not_skipped(size):
    w = torch.zeros(size)
    optimizer = optim.SGD([w], lr=1.0, clip_norm=1.0)
    w.grad = torch.full((size,), 3e30)
    optimizer.step()
    assert optimizer.last.gradient_norm == pytest.approx(3e30 * math.sqrt(size))
    assert not optimizer.last.skipped
    torch.testing.assert_close(w, torch.full((size,), -1 / math.sqrt(size)))


def test_a_float64_norm_that_overflows_is_found_by_rescaling():
    w = torch.zeros(4, dtype=torch.float64)
    optimizer = optim.SGD([w], lr=1.0, clip_norm=1.0)
    w.grad = torch.full((4,), 1e200, dtype=torch.float64)
    optimizer.step()
    assert optimizer.last.gradient_norm == pytest.approx(2e200)
    torch.testing.assert_close(w, torch.full((4,), -0.5, dtype=torch.float64))


def test_a_norm_that_underflows_is_not_called_zero():
    w = torch.zeros(4)
    optimizer = optim.SGD([w], lr=1.0)
    w.grad = torch.full((4,), 1e-30)
    optimizer.step()
    assert optimizer.last.gradient_norm == pytest.approx(2e-30)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8), st.floats(1e-6, 1e6))
def test_a_clipped_gradient_is_never_longer_than_the_norm_nor_turned(entries, clip_norm):
    w = torch.zeros(len(entries))
    optimizer = optim.SGD([w], lr=1.0, clip_norm=clip_norm)
    w.grad = torch.tensor(entries)
    optimizer.step()
    step, gradient = -w.double(), torch.tensor(entries).double()
    assert float(step.norm()) <= clip_norm * (1 + 1e-5)
    if float(gradient.norm()) < clip_norm * (1 - 1e-5) - 1e-6:
        assert torch.equal(step, gradient)


def test_clip_norm_may_be_turned_on_between_steps():
    params = weights()
    optimizer = optim.SGD(params, lr=0.1)
    take_steps(optimizer)
    assert optimizer.last.clip_scale == 1.0
    optimizer.clip_norm = 1e-3
    take_steps(optimizer)
    assert optimizer.last.clip_scale < 0.01


def test_a_rate_that_became_nan_moves_nothing():
    params = weights()
    optimizer = optim.AdamW(params, lr=0.1)
    take_steps(optimizer)
    before = bits(optimizer)
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(RuleError, match="learning rate has become nan"):
        take_steps(optimizer)
    assert same(before, bits(optimizer))


# The average of the weights


@pytest.mark.parametrize("size", [5, 40_000])
def test_the_average_is_the_weighted_mean_of_the_weights_visited(size):
    params = weights((size,))
    decay, visited = 0.8, []
    optimizer = optim.AdamW(params, lr=0.1, ema=decay)
    for t in range(1, 8):
        take_steps(optimizer)
        visited.append(params[0].detach().clone())
        shares = torch.tensor([decay ** (t - s) for s in range(1, t + 1)], dtype=torch.float64)
        expected = (shares[:, None] * torch.stack(visited)).sum(0) / shares.sum()
        torch.testing.assert_close(optimizer.state[params[0]]["ema"], expected, rtol=1e-12, atol=1e-12)


def test_averaged_swaps_the_average_in_and_the_very_bits_back():
    params = weights((5,), (40_000,))
    optimizer = optim.SGD(params, lr=0.1, ema=0.9)
    take_steps(optimizer, 3)
    before = bits(optimizer)
    with optimizer.averaged() as averages:
        for p in params:
            assert torch.equal(p, averages[p])
            assert not torch.equal(p, before[0 if p is params[0] else 1])
    assert same(before, bits(optimizer))


def test_averaged_gives_the_bits_back_when_something_raises_inside():
    params = weights()
    optimizer = optim.SGD(params, lr=0.1, ema=0.9)
    take_steps(optimizer, 3)
    before = bits(optimizer)
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert same(before, bits(optimizer))
    take_steps(optimizer)


def test_a_step_or_a_second_entry_inside_averaged_is_refused():
    optimizer = optim.SGD(weights(), lr=0.1, ema=0.9)
    take_steps(optimizer, 3)
    with optimizer.averaged():
        with pytest.raises(RuleError, match="A step inside"):
            take_steps(optimizer)
        with pytest.raises(RuleError, match="cannot be entered twice"), optimizer.averaged():
            pass
        for verb in (optimizer.state_dict, lambda: copy.deepcopy(optimizer), lambda: optimizer.load_state_dict({})):
            with pytest.raises(RuleError, match="leave it first"):
                verb()
    take_steps(optimizer)


def test_averaged_needs_room_for_one_tensor_at_a_time():
    """Weights and average change places: what held the average holds the weights meanwhile."""
    params = weights((5,), (40_000,))
    optimizer = optim.SGD(params, lr=0.1, ema=0.9)
    take_steps(optimizer, 3)
    own = [p.detach().clone() for p in params]
    with optimizer.averaged():
        assert all(torch.equal(optimizer.state[p]["ema"], w) for p, w in zip(params, own, strict=True))


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion", "rmsprop", "muon"])
@pytest.mark.parametrize("engine", ["auto", "tensors"])
@pytest.mark.parametrize("reloaded_at", [None, 6, 14])
def test_an_average_that_begins_on_the_way_counts_from_there(rule, engine, reloaded_at):
    def made(values):
        params = [torch.nn.Parameter(v.detach().clone()) for v in values]
        return params, optim.build(rule, params, lr=0.05, engine=engine)

    generator = torch.Generator().manual_seed(0)
    params, optimizer = made(torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 600))
    after = []
    for step in range(20):
        if step == reloaded_at:
            saved, ema = copy.deepcopy(optimizer.state_dict()), optimizer.ema
            params, optimizer = made(params)
            optimizer.load_state_dict(saved)
            optimizer.ema = ema
        if step == 9:
            optimizer.ema = 0.9
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        if step >= 9:
            after.append([p.detach().clone() for p in params])
    powers = [0.9 ** (len(after) - 1 - n) for n in range(len(after))]
    with optimizer.averaged() as averages:
        for place, p in enumerate(params):
            expected = sum(power * w[place] for power, w in zip(powers, after, strict=True)) / sum(powers)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-9)
        assert len(averages) == 2


def test_averaged_without_ema_says_what_to_do():
    with pytest.raises(RuleError, match=r"give the optimiser ema=0\.999"), optim.SGD(weights()).averaged():
        pass


def test_the_average_may_be_turned_on_late():
    params = weights()
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    take_steps(optimizer, 3)
    optimizer.ema = 0.5
    take_steps(optimizer)
    with optimizer.averaged() as averages:
        assert set(averages) == set(params)


# The contract of torch.optim.Optimizer


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_downhill_on_a_strided_parameter_too(name):
    base = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for w in (base.clone().requires_grad_(), base.clone()[:, ::2].requires_grad_(), base.clone().t().requires_grad_()):
        optimizer = getattr(optim, name)([w.detach().requires_grad_()], lr=0.01)
        p = optimizer.param_groups[0]["params"][0]
        start = float(p.detach().square().sum())
        for _ in range(50):
            optimizer.zero_grad()
            (p**2).sum().backward()
            optimizer.step()
        assert float(p.detach().square().sum()) < start


@pytest.mark.parametrize("shape", [(300, 200), (6, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_transposed_weights_move_as_contiguous_ones(name, shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, turned = start.clone(), start.t().contiguous().t()
    assert not turned.is_contiguous()
    for w in (plain, turned):
        optimizer = getattr(optim, name)([w], lr=0.01, ema=0.9)
        take_steps(optimizer, 3)
    assert torch.equal(plain, turned)


def test_a_closure_runs_with_gradients_on_and_its_loss_comes_back():
    (w,) = weights((3,))
    optimizer = optim.SGD([w], lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    before = float(w.detach().square().sum())
    with torch.no_grad():
        assert float(optimizer.step(closure).detach()) == before
        assert not torch.is_grad_enabled()
    assert float(w.detach().square().sum()) < before


def test_hooks_run_around_the_step():
    params, seen = weights(), []
    optimizer = optim.AdamW(params, lr=0.1)
    optimizer.register_step_pre_hook(lambda o, a, k: seen.append(("before", o.last is None)))
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(("after", o.last is None)))
    optimizer.register_state_dict_post_hook(lambda o, d: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("loading"))
    take_steps(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [("before", True), ("after", False), "saved", "loading"]


def test_zero_grad_forgets_or_zeroes():
    params = weights()
    optimizer = optim.AdamW(params)
    feel(params)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().sum() == 0 for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_its_groups_and_its_rule(name):
    text = repr(getattr(optim, name)(weights(), lr=0.25))
    assert text.startswith(f"{name} by ")
    assert "lr: 0.25" in text


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_continues_on_its_own_with_the_same_bits(name, way):
    optimizer = getattr(optim, name)(weights((4,), (40_000,)), lr=0.1, ema=0.9, clip_norm=1.0)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    take_steps(optimizer, 3)
    other = way(optimizer)
    assert type(other) is type(optimizer)
    assert (other.clip_norm, other.ema, other.rule) == (1.0, 0.9, optimizer.rule)
    before = bits(optimizer)
    take_steps(other, 2)
    assert same(before, bits(optimizer))
    take_steps(optimizer, 2)
    assert same(bits(optimizer), bits(other))


def test_a_model_and_its_optimiser_are_copied_together():
    model = nn.Linear(2, 2)
    both = {"model": model, "optimizer": optim.AdamW(model.parameters(), lr=0.1)}
    take_steps(both["optimizer"])
    other = copy.deepcopy(both)
    take_steps(other["optimizer"])
    assert other["optimizer"].param_groups[0]["params"][0] is other["model"].weight
    assert not torch.equal(other["model"].weight, model.weight)


@pytest.mark.parametrize("rule", RULES)
def test_state_goes_through_a_file_without_unpickling_code(rule):
    ema = 0.9 if RULES[rule].average is None else None
    optimizer = Optimizer(weights(), rule, lr=0.1, ema=ema)
    take_steps(optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = Optimizer([p.detach().clone() for p in optimizer.param_groups[0]["params"]], rule, lr=0.5, ema=ema)
    other.load_state_dict(saved)
    take_steps(optimizer, 3)
    take_steps(other, 3)
    assert same(bits(optimizer), bits(other))
    assert other.param_groups[0]["lr"] == 0.1


def test_a_loaded_state_is_a_copy_and_an_earlier_one_stays_what_it_was():
    optimizer = optim.AdamW(weights(), lr=0.1)
    take_steps(optimizer, 2)
    early = optimizer.state_dict()
    kept = copy.deepcopy(early)
    take_steps(optimizer, 1)
    optimizer.load_state_dict(copy.deepcopy(kept))
    take_steps(optimizer, 2)
    optimizer.load_state_dict(kept)
    saved = {k: v.clone() for k, v in kept["state"][0].items()}
    take_steps(optimizer, 3)
    assert all(torch.equal(v, saved[k]) for k, v in kept["state"][0].items())


def test_a_state_tensor_that_somebody_replaced_or_changed_is_used():
    params, others = weights(), weights()
    optimizer, other = optim.SGD(params, lr=0.1, momentum=0.9), optim.SGD(others, lr=0.1, momentum=0.9)
    take_steps(optimizer, 2)
    take_steps(other, 2)
    replaced = torch.full_like(params[0], 3.0)
    optimizer.state[params[0]]["momentum_buffer"] = replaced
    other.state[others[0]]["momentum_buffer"].fill_(3.0)
    take_steps(optimizer, 2)
    take_steps(other, 2)
    assert same(bits(optimizer), bits(other))
    assert (replaced == 3.0).all()


def test_state_that_somebody_cleared_starts_anew():
    params, others = weights(), weights()
    optimizer = optim.AdamW(params, lr=0.1)
    take_steps(optimizer, 3)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    optimizer.state.clear()
    fresh = optim.AdamW(others, lr=0.1)
    take_steps(optimizer, 2)
    take_steps(fresh, 2)
    assert same(bits(optimizer), bits(fresh))


def test_a_step_count_that_somebody_set_is_believed():
    params, others = weights(), weights()
    optimizer, other = optim.AdamW(params, lr=0.1), torch.optim.AdamW(others, lr=0.1)
    take_steps(optimizer, 2)
    take_steps(other, 2)
    for one, of in ((optimizer, params), (other, others)):
        for p in of:
            one.state[p]["step"].fill_(50.0)
    take_steps(optimizer, 2)
    take_steps(other, 2)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert optimizer.state[params[0]]["step"] == 52.0


def test_steps_beyond_what_float32_counts_are_still_counted():
    (w,) = weights((3,))
    optimizer = optim.AdamW([w], lr=0.1)
    take_steps(optimizer)
    optimizer.state[w]["step"].fill_(2.0**24 - 1)
    take_steps(optimizer, 6)
    assert optimizer.state[w]["step"] == 2.0**24 + 4


def test_a_parameter_moved_to_another_dtype_takes_its_state_along():
    (w,) = weights((3,), dtype=torch.float32)
    p = nn.Parameter(w.detach())
    optimizer = optim.AdamW([p], lr=0.1, ema=0.9)
    take_steps(optimizer, 2)
    before = optimizer.state[p]["exp_avg"].clone()
    p.data = p.data.double()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype is torch.float64
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.9 * before.double())


def test_weights_whose_storage_is_replaced_are_followed():
    p = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([p], lr=0.5)
    take_steps(optimizer)
    p.data = torch.full((3,), 4.5)
    take_steps(optimizer)
    assert torch.equal(p.detach(), torch.full((3,), 2.5))


def test_dtypes_mix_in_one_group_and_halves_keep_their_state_in_float32():
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    params = [torch.ones(5, dtype=d) for d in dtypes] + [torch.ones(40_000, dtype=torch.bfloat16)]
    optimizer = optim.AdamW(params, lr=0.01, ema=0.9, clip_norm=1.0)
    take_steps(optimizer, 3)
    assert [p.dtype for p in params] == [*dtypes, torch.bfloat16]
    held = [optimizer.state[p]["exp_avg_sq"].dtype for p in params]
    assert held == [torch.float64, torch.float32, torch.float32, torch.float32, torch.float32]
    exact = params[0]
    for p in params[1:4]:
        torch.testing.assert_close(p.double(), exact, rtol=1e-2, atol=1e-2)


def test_halves_state_survives_loading_to_the_bit():
    params = [torch.linspace(-1, 1, 9).bfloat16()]
    optimizer = optim.AdamW(params, lr=0.01, ema=0.9)
    take_steps(optimizer, 3)
    others = [p.clone() for p in params]
    other = optim.AdamW(others, lr=0.01, ema=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, 3)
    take_steps(other, 3)
    assert same(bits(optimizer), bits(other))


def test_half_precision_averages_do_not_stand_still():
    w = torch.ones(1, dtype=torch.bfloat16)
    optimizer = optim.Adam([w], lr=0.0)
    for _ in range(2000):
        w.grad = torch.full_like(w, 0.01)
        optimizer.step()
    assert float(optimizer.state[w]["exp_avg_sq"]) == pytest.approx(1e-4 * (1 - 0.999**2000), rel=0.01)


def test_tied_parameters_are_moved_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    start = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(model[1].weight.detach(), start - 1.0)


def test_empty_parameters_do_no_harm():
    params = [torch.zeros(0), torch.ones(2), torch.zeros(3, 0)]
    optimizer = optim.AdamW(params, lr=0.1, ema=0.9, clip_norm=1.0)
    optimizer.measure = True
    take_steps(optimizer, 2)
    assert optimizer.last.gradient_norms[0] == 0.0


def test_autograd_notices_that_weights_were_changed():
    w = torch.ones(3, requires_grad=True)
    loss = (w**3).sum()
    optimizer = optim.SGD([w], lr=0.1)
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_parameter_group_is_added_with_its_own_settings():
    params = weights((2,), (3,))
    optimizer = optim.AdamW(params[:1], lr=0.1)
    take_steps(optimizer, 2)
    optimizer.add_param_group({"params": params[1], "lr": 0.2, "beta2": 0.9})
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.9)
    take_steps(optimizer, 2)
    assert [float(optimizer.state[p]["step"]) for p in params] == [4.0, 2.0]


def test_it_leaves_the_process_as_it_found_it():
    torch.manual_seed(11)
    expected = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    take_steps(optim.AdamW(weights(), lr=0.1, ema=0.9, clip_norm=1.0), 2)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == expected[1:]


def test_weights_that_overflow_warn_nobody():
    w = torch.tensor([3e38])
    optimizer = optim.SGD([w], lr=1e30)
    w.grad = torch.tensor([1e20])
    optimizer.step()
    assert math.isinf(float(w))


# What is refused, before anything is touched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"`lr` is -1\.0, but it must be a finite number, zero or above"),
        ({"lr": math.nan}, "`lr` is nan"),
        ({"lr": "fast"}, "`lr` is 'fast'"),
        ({"lr": torch.ones(2)}, "a tensor of one element"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"clip_norm": 0.0}, "`clip_norm` is 0.0, but it must be a number above zero"),
        ({"clip_value": -1.0}, "`clip_value` is -1.0"),
        ({"ema": 1.0}, "`ema` is 1.0, but it must be between 0 and 1"),
        ({"on_nonfinite": "ignore"}, "'raise' or 'skip'"),
        ({"engine": "tensor"}, r"no engine 'tensor'.*Did you mean 'tensors'"),
        ({"maximize": 1}, "`maximize` is 1"),
        ({"beta_2": 0.9}, r"no constant 'beta_2'.*Did you mean 'beta2'"),
        ({"betas": (0.9, 1.0)}, r"beta2 of adamw must be a number in \[0, 1\)"),
        ({"eps": 0.0}, r"eps of adamw must be a number in \(0, inf\)"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options, message):
    with pytest.raises(RuleError, match=message):
        Optimizer(weights(), "adamw", **{"lr": 0.1, **options})


def test_a_sparse_gradient_is_refused_before_anything_moves():
    table = nn.Embedding(5, 2, sparse=True)
    other = torch.ones(2, requires_grad=True)
    optimizer = optim.AdamW([other, table.weight], lr=0.1)
    (table(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(RuleError, match=r"parameter 1 of group 0 is sparse, .*: make the embedding with sparse=False"):
        optimizer.step()
    assert torch.equal(other.detach(), torch.ones(2))


def test_loading_what_does_not_fit_changes_nothing():
    optimizer = optim.Adam(weights(), lr=0.1)
    take_steps(optimizer)
    before, groups = bits(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    for spoil_group, message in [
        ({"amsgrad": "yes"}, "amsgrad of adam"),
        ({"betas": (2.0, 0.9)}, "beta1 of adam"),
        ({"lr": -1}, "`lr`"),
    ]:
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0].update(spoil_group)
        with pytest.raises(RuleError, match=message):
            optimizer.load_state_dict(saved)
    assert same(before, bits(optimizer))
    assert optimizer.state_dict()["param_groups"] == groups


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("bad", [False, True])
def test_no_gradient_is_kept_alive_by_a_step_taken_or_skipped(engine, bad):
    small, large, matrix = (torch.ones(s, requires_grad=True) for s in ((3,), (40_000,), (4, 5)))
    optimizers = [
        optim.AdamW([small, large], lr=0.1, engine=engine),
        Optimizer([matrix], "muon", lr=0.1, engine=engine),
    ]
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, math.nan if bad else 1.0)
        seen = [weakref.ref(p.grad) for p in optimizer.param_groups[0]["params"]]
        optimizer.step()
        optimizer.zero_grad()
        assert [gradient() for gradient in seen] == [None] * len(seen)


def test_a_rule_may_be_given_as_a_value_and_carry_any_start():
    @rules.rule(state={"anchor": ("anchor", "weights"), "count": ("count", 1.0)}, source="here")
    def leashed(w, g, anchor, count, *, lr, leash=0.1):
        """Stay near the start."""
        return w - lr * (g + leash * (w - anchor)), anchor, count + 1.0

    (w,) = weights((3,))
    start = w.detach().clone()
    optimizer = Optimizer([w], leashed, lr=0.1)
    take_steps(optimizer, 3)
    assert torch.equal(optimizer.state[w]["anchor"], start)
    assert torch.equal(optimizer.state[w]["count"], torch.full((3,), 4.0, dtype=torch.float64))
