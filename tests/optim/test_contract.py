"""What a rule may say beside its equation: numbers carried, sums over all weights, an average of its own, whole matrices."""

import copy

import numpy as np
import pytest
import torch

from thalweg.errors import RuleError
from thalweg.optim import AdamW, Optimizer
from thalweg.rules import RULES, rule
from thalweg.rules.plain_form import PlainForm
from thalweg.rules.rule import matrix_rule

ENGINES = ["cpu", "tensors"]
SHAPES = [(3, 5), (7,), (40_000,)]


def weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def descend(optimizer, parameters, steps=5):
    for _ in range(steps):
        for i, p in enumerate(parameters):
            p.grad = (p.detach() * (i + 1)).sin() + 0.1
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def fading(step, numbers):
    return {"product": numbers["product"] * numbers["fade"], "rate": numbers["lr"] * numbers["product"] / step}


@rule(scalars=fading, carried={"product": "begin"}, source="here")
def faded(w, g, *, lr, fade=0.9, begin=2.0, rate):
    """A rate that fades with a product carried from step to step."""
    return w - rate * g


def slopes(w, g, *, lr, far):
    return g * g + far * w * w, w


def longer(sums, numbers):
    return {"far": numbers["far"] + sums[0] / 1e3, "long": numbers["lr"] / (1 + abs(sums[1]))}


@rule(sums=slopes, decide=longer, carried={"far": 1.0}, source="here")
def measured(w, g, *, lr, far, long):
    """A step as long as two sums over all weights say."""
    return w - long * g - 1e-6 * far * w


@rule(state={"z": ("z", "weights")}, average=lambda w, z, *, beta: 2 * w - z + 0 * beta, source="here")
def away(w, g, z, *, lr, beta=0.5):
    """Weights that are not those to judge by."""
    return w - lr * g, z - beta * g


@matrix_rule(state={"m": ("m", "zeros"), "r": ("r", "zeros", None, "rows", "matrices")}, source="here")
def crossed(w, g, m, r, *, lr, beta=0.5):
    """Matrices by their products."""
    m = beta * m + g
    if w.ndim < 2:
        return w - lr * m, m, r
    return w - lr * (m @ m.mT @ m) / (1.0 + (m * m).sum()), m, r + (g * g).mean(-1, keepdim=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_carried_numbers_follow_the_plain_form(engine):
    parameters = weights()
    plain_forms = [PlainForm(faded, p.detach().numpy().copy(), lr=0.1) for p in parameters]
    optimizer = Optimizer(parameters, faded, lr=0.1, engine=engine)
    ends = descend(optimizer, parameters)
    for i, (plain_form, end) in enumerate(zip(plain_forms, ends, strict=True)):
        for _ in range(5):
            plain_form.step(np.sin(plain_form.w * (i + 1)) + 0.1)
        np.testing.assert_allclose(end.numpy(), plain_form.w, rtol=1e-13)
        assert optimizer.state[parameters[i]]["product"].item() == pytest.approx(2.0 * 0.9**5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_carried_numbers_are_saved_and_loaded_in_full(engine, dtype):
    parameters = weights(dtype)
    optimizer = Optimizer(parameters, faded, lr=0.1, engine=engine)
    descend(optimizer, parameters, 3)
    other = weights(dtype)
    for mine, theirs in zip(other, parameters, strict=True):
        mine.data.copy_(theirs.data)
    continued = Optimizer(other, faded, lr=0.1, engine=engine)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, two in zip(descend(optimizer, parameters), descend(continued, other), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_go_over_all_weights_of_a_group_whatever_blocks_they_are_in(engine):
    parameters = weights()
    whole = PlainForm(measured, torch.cat([p.detach().flatten() for p in parameters]).numpy(), lr=0.1)
    optimizer = Optimizer(parameters, measured, lr=0.1, engine=engine)
    factors = np.concatenate([np.full(p.numel(), i + 1.0) for i, p in enumerate(parameters)])
    ends = descend(optimizer, parameters)
    for _ in range(5):
        whole.step(np.sin(whole.w * factors) + 0.1)
    np.testing.assert_allclose(torch.cat([e.flatten() for e in ends]).numpy(), whole.w, rtol=1e-10)
    assert optimizer.state[parameters[0]]["far"].item() == pytest.approx(whole.carried["far"], rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rules_own_average_is_shown_and_the_weights_come_back_bit_for_bit(engine):
    parameters = weights(torch.float32)
    optimizer = Optimizer(parameters, away, lr=0.1, engine=engine)
    before = descend(optimizer, parameters)
    wanted = [2 * p.detach() - optimizer.state[p]["z"] for p in parameters]
    with optimizer.averaged():
        for p, average in zip(parameters, wanted, strict=True):
            assert torch.equal(p.detach(), average)
    for p, own in zip(parameters, before, strict=True):
        assert torch.equal(p.detach(), own)


@pytest.mark.parametrize("option", [{"ema": 0.9}, {"cautious": True}])
def test_a_rule_that_averages_takes_no_second_average(option):
    with pytest.raises(RuleError, match="averages the weights itself"):
        Optimizer(weights(), away, lr=0.1, **option)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_matrix_rule_sees_whole_tensors_and_keeps_state_in_its_shape(engine):
    parameters = weights()[:2]
    optimizer = Optimizer(parameters, crossed, lr=0.1, engine=engine, ema=0.9)
    descend(optimizer, parameters, 1)
    matrix, vector = parameters
    assert optimizer.state[matrix]["r"].shape == (3, 1)
    assert "r" not in optimizer.state[vector]
    started = weights()[0].detach()
    g = started.sin() + 0.1
    assert torch.allclose(matrix.detach(), started - 0.1 * (g @ g.mT @ g) / (1 + (g * g).sum()), rtol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_no_matrix_goes_by_the_rest(engine):
    from thalweg.rules.adamw import adamw

    @matrix_rule(rest=adamw, source="here")
    def halved(w, g, *, lr, weight_decay=0.0):
        """Half of a matrix."""
        return w / 2

    parameters, alone = weights(), weights()
    optimizer = Optimizer(parameters, halved, lr=0.1, weight_decay=0.1, engine=engine)
    optimizer.measure = True
    ends = descend(optimizer, parameters, 1)
    assert torch.equal(ends[0], alone[0].detach() / 2)
    for p, end in zip(
        alone[1:], descend(AdamW(alone, lr=0.1, weight_decay=0.1, engine=engine), alone, 1)[1:], strict=True
    ):
        del p
        assert any(torch.equal(end, other) for other in ends[1:])
    assert optimizer.last is not None
    wanted = [float((w.detach()).norm()) for w in weights()]
    np.testing.assert_allclose(optimizer.last.weight_norms.tolist(), wanted, rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["momentum", "adamw", "lion"])
def test_a_cautious_step_moves_only_what_goes_against_its_gradient(engine, name):
    parameters = weights()
    optimizer = Optimizer(parameters, name, lr=0.01, weight_decay=0.0, engine=engine, cautious=True)
    plain = Optimizer(weights(), name, lr=0.01, weight_decay=0.0, engine=engine)
    descend(optimizer, parameters, 3)
    plain_weights = plain.param_groups[0]["params"]
    for mine, theirs in zip(plain_weights, parameters, strict=True):
        mine.data.copy_(theirs.data)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    generator = torch.Generator().manual_seed(9)
    for mine, theirs in zip(plain_weights, parameters, strict=True):
        mine.grad = theirs.grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    plain.step()
    for old, free, kept in zip(before, plain_weights, parameters, strict=True):
        way = free.detach() - old
        aligned = way * free.grad < 0
        assert old.numel() < 100 or 0.2 < aligned.double().mean() < 0.999
        wanted = old + torch.where(aligned, way, 0.0) / aligned.double().mean().clamp(min=1e-3)
        assert torch.allclose(kept.detach(), wanted, rtol=1e-12, atol=1e-15)


def test_cautious_steps_are_the_same_on_both_engines():
    ends = []
    for engine in ENGINES:
        parameters = weights()
        groups = [{"params": parameters[:1], "weight_decay": 0.3}, {"params": parameters[1:]}]
        optimizer = AdamW(groups, lr=0.01, weight_decay=0.1, engine=engine, cautious=True, clip_norm=1.0, ema=0.9)
        ends.append(descend(optimizer, parameters, 20))
    for one, two in zip(*ends, strict=True):
        assert torch.allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_surprises_its_second_moment_is_measured(engine):
    parameters = weights(torch.float32)
    optimizer = AdamW(parameters, lr=1e-3, engine=engine)
    for step in range(30):
        for i, p in enumerate(parameters):
            p.grad = torch.full_like(p, (10.0 if step == 29 and i == 1 else 1.0))
        optimizer.measure = True
        optimizer.step()
        assert optimizer.last is not None
        ratios = optimizer.last.gradient_ratios.tolist()
        if step < 29:
            assert ratios == pytest.approx([1.0] * 3, rel=1e-3)
    v = optimizer.state[parameters[1]]["exp_avg_sq"].flatten()[0].item() / (1 - 0.999**30)
    assert ratios == pytest.approx([1.0, 10 / v**0.5, 1.0], rel=1e-3)
    assert ratios[1] > 4


SQUARES = [
    *[(name, {}) for name, one in RULES.items() if one.second_moment and not one.is_matrix],
    ("adamw", {"amsgrad": True}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
    ("radam", {"decoupled_weight_decay": True}),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "constants"), SQUARES)
def test_the_ratio_is_by_the_mean_square_that_the_rule_names(name, constants, engine):
    parameters = weights()
    optimizer = Optimizer(parameters, name, lr=1e-3, engine=engine, weight_decay=0.0, **constants)
    descend(optimizer, parameters, 3)
    optimizer.measure = True
    gradients = [(p.detach() * (i + 1)).sin() + 0.1 for i, p in enumerate(parameters)]
    descend(optimizer, parameters, 1)
    one, found = RULES[name], optimizer.last.gradient_ratios.tolist()
    complete = one.complete(constants)
    for p, g, ratio in zip(parameters, gradients, found, strict=True):
        numbers = {**one.numbers(4, one.begin(complete), complete, 1e-3), "maximum": torch.maximum}
        state = {s.name: optimizer.state[p][s.key] for s in one.states(complete)}
        square = eval(one.second_moment, {}, {**numbers, **state})
        assert ratio == pytest.approx((g * g / square).mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_second_moment_there_is_no_such_ratio(engine):
    parameters = weights(torch.float32)
    optimizer = Optimizer(parameters, "momentum", lr=1e-3, engine=engine)
    optimizer.measure = True
    descend(optimizer, parameters, 1)
    assert all(r != r for r in optimizer.last.gradient_ratios.tolist())
