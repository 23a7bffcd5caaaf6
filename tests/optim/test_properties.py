"""What no rule and no engine may depend on: the loss's unit, how weights are cut into tensors, their order, their layout.

Every rule of the table is taken as it is found there. Gradients are drawn beforehand and do not follow the weights, so that two
descents see the same ones.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.optim import Optimizer
from thalweg.rules import RULES
from thalweg.rules.plain_form import PlainForm
from thalweg.testing.rules import variants

ENGINES = ["cpu", "tensors"]
CASES = [
    pytest.param(rule, constants, id=f"{rule.name}-{i}")
    for rule in RULES.values()
    for i, constants in enumerate(variants(rule))
]
every_rule = pytest.mark.parametrize(("rule", "constants"), CASES)
on_both_engines = pytest.mark.parametrize("engine", ENGINES)

SHAPES = st.lists(st.sampled_from([(), (1,), (5,), (17,), (2, 3), (4, 3), (3, 2, 2)]), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
STEPS = 4


def few(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def drawn(shapes, seed, dtype=torch.float64, steps=STEPS):
    """Weights, and for each step a gradient for each of them."""
    generator = torch.Generator().manual_seed(seed)
    make = [
        [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes] for _ in range(1 + steps)
    ]
    return make[0], make[1:]


def optimizer_of(rule, constants, params, engine, **options):
    rate = 0.01 if rule.learning_rate is None else rule.learning_rate
    return Optimizer(params, rule, **{"lr": rate, **constants, "engine": engine, **options})


def descended(rule, constants, weights, gradients, engine, **options):
    """Give the weights after a step for each of the gradients; those given are left alone."""
    weights = [w.clone() for w in weights]
    optimizer = optimizer_of(rule, constants, weights, engine, **options)
    for step in gradients:
        for w, g in zip(weights, step, strict=True):
            w.grad = g.clone()
        optimizer.step()
    return weights


def near(rule):
    """How near two descents of the same numbers in another arrangement are: sums over all weights are rounded otherwise."""
    return {"rtol": 1e-8, "atol": 1e-10} if rule.sums else {"rtol": 1e-13, "atol": 1e-14}


def assert_same(rule, a, b):
    """Bit for bit, but for sums over all weights and for products of matrices, which are rounded as their memory lies."""
    if rule.sums is None and not rule.is_matrix:
        assert torch.equal(a, b)
    else:
        torch.testing.assert_close(a, b, **near(rule))


def reach(rule, constants, scale, w=0.0):
    """Weights after each of some steps of the plain form under gradients times `scale`, eps (if any) scaled alike."""
    shape = (3, 4) if rule.is_matrix else ()
    draws = np.random.default_rng(3).standard_normal((6, *shape))
    named = scaled(rule, constants, scale)
    plain_form = PlainForm(rule, w + np.zeros(shape), lr=1.0, constants=named)
    return np.array([plain_form.step(scale * g) for g in draws])


def scaled(rule, constants, scale):
    """Constants in the unit of a gradient that is so much larger."""
    unit = {"eps": 1, "initial_accumulator_value": 2}
    return {
        n: v * scale ** unit[n] if n in unit and not (rule.is_matrix and rule.rest is None) else v
        for n, v in constants.items()
    }


def kind(rule, constants):
    """Tell how a rule's steps grow with its gradients: "not", "alike" or "neither"."""
    once, more = reach(rule, constants, 1.0), reach(rule, constants, 8.0)
    return "not" if np.array_equal(once, more) else "alike" if np.array_equal(8.0 * once, more) else "neither"


KINDS = {
    "not": "adafactor adagrad adam adamax adamw lion muon nadam prodigy rmsprop schedule_free_adamw",
    "alike": "gradient_descent momentum nesterov schedule_free_sgd",
    "neither": "adadelta radam",  # its eps has two units; its first steps are momentum's
}


@pytest.mark.parametrize(("name", "wanted"), [(name, k) for k, names in KINDS.items() for name in names.split()])
def test_which_rules_steps_grow_with_the_loss_is_known(name, wanted):
    for constants in variants(RULES[name]):
        assert kind(RULES[name], constants) == wanted


@on_both_engines
@every_rule
@few(3)
@given(seed=SEEDS, power=st.integers(-9, 9), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_unit_of_the_loss_changes_no_bit_of_a_step_but_its_length_where_that_grows_with_it(
    rule, constants, engine, seed, power, dtype
):
    grows = kind(rule, constants)
    if grows == "neither":
        return
    weights, gradients = drawn([(4, 3), (2, 5)], seed, dtype)
    scale = 2.0**power  # so that nothing is rounded otherwise
    if grows == "alike":
        weights = [torch.zeros_like(w) for w in weights]
    once = descended(rule, constants, weights, gradients, engine)
    larger = [[scale * g for g in step] for step in gradients]
    more = descended(rule, scaled(rule, constants, scale), weights, larger, engine)
    for a, b in zip(once, more, strict=True):
        a = a * scale if grows == "alike" else a
        assert torch.allclose(a, b, rtol=1e-5) if rule.is_matrix else torch.equal(a, b)
        assert not torch.equal(a, torch.zeros_like(a))


@on_both_engines
@every_rule
@few(3)
@given(shapes=SHAPES, seed=SEEDS, data=st.data())
def test_the_order_of_tensors_changes_nothing(rule, constants, engine, shapes, seed, data):
    weights, gradients = drawn(shapes, seed)
    order = data.draw(st.permutations(range(len(shapes))))
    straight = descended(rule, constants, weights, gradients, engine)
    shuffled = descended(
        rule, constants, [weights[i] for i in order], [[step[i] for i in order] for step in gradients], engine
    )
    for place, i in enumerate(order):
        assert_same(rule, straight[i], shuffled[place])


@on_both_engines
@every_rule
@few(3)
@given(shapes=SHAPES, seed=SEEDS, data=st.data())
def test_the_order_of_groups_changes_nothing(rule, constants, engine, shapes, seed, data):
    weights, gradients = drawn(shapes, seed)
    rates = [data.draw(st.sampled_from([1e-3, 1e-2])) for _ in shapes]
    decays = [data.draw(st.sampled_from([0.0, 0.1])) for _ in shapes]

    def ends(order):
        mine = [w.clone() for w in weights]
        groups = [{"params": [mine[i]], "lr": rates[i], "weight_decay": decays[i]} for i in order]
        optimizer = optimizer_of(rule, constants, groups, engine, clip_norm=100.0)
        for step in gradients:
            for w, g in zip(mine, step, strict=True):
                w.grad = g.clone()
            optimizer.step()
        return mine

    for a, b in zip(ends(range(len(shapes))), ends([*reversed(range(len(shapes)))]), strict=True):
        assert_same(rule, a, b)


@on_both_engines
@pytest.mark.parametrize(("rule", "constants"), [case for case in CASES if not case.values[0].is_matrix])
@few(3)
@given(size=st.integers(2, 300), seed=SEEDS, data=st.data())
def test_two_halves_of_a_tensor_move_as_the_whole(rule, constants, engine, size, seed, data):
    (whole,), gradients = drawn([(size,)], seed)
    cut = data.draw(st.integers(1, size - 1))
    options = {"weight_decay": 0.1, "clip_norm": 0.5, **({"ema": 0.9} if rule.average is None else {})}
    (once,) = descended(rule, constants, [whole], gradients, engine, **options)
    parts = [[g[:cut], g[cut:]] for (g,) in gradients]
    halves = descended(rule, constants, [whole[:cut], whole[cut:]], parts, engine, **options)
    torch.testing.assert_close(torch.cat(halves), once, **near(rule))


@on_both_engines
@every_rule
@few(3)
@given(shapes=SHAPES, seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_without_slope_and_decay_nothing_moves(rule, constants, engine, shapes, seed, dtype):
    weights, gradients = drawn(shapes, seed, dtype)
    still = [[torch.zeros_like(g) for g in step] for step in gradients]
    ends = descended(rule, constants, weights, still, engine, weight_decay=0.0)
    assert all(map(torch.equal, ends, weights))
    moved = descended(rule, constants, weights, gradients[:1], engine, weight_decay=0.0)
    assert not any(map(torch.equal, moved, weights))


@on_both_engines
@every_rule
@few(3)
@given(
    seed=SEEDS,
    place=st.integers(0, 11),
    huge=st.sampled_from([1e30, -3.4e38]),
    everywhere=st.booleans(),
)
def test_one_huge_gradient_is_clipped_and_nothing_overflows(rule, constants, engine, seed, place, huge, everywhere):
    weights, gradients = drawn([(4, 3), (5,)], seed, torch.float32)
    for g in gradients[1]:
        g.view(-1)[slice(None) if everywhere else place % g.numel()] = huge
    mine = [w.clone() for w in weights]
    optimizer = optimizer_of(rule, constants, mine, engine, clip_norm=1.0)
    for step in gradients:
        for w, g in zip(mine, step, strict=True):
            w.grad = g.clone()
        optimizer.step()
        assert not optimizer.last.skipped
        held = [v for entry in optimizer.state.values() for v in entry.values()]
        assert all(bool(t.isfinite().all()) for t in [*mine, *held])
        exact = math.hypot(*(x for g in step for x in g.double().flatten().tolist()))
        assert optimizer.last.gradient_norm == pytest.approx(exact, rel=1e-5)
        assert optimizer.last.clip_scale == pytest.approx(min(1.0, 1.0 / exact), rel=1e-4)


@on_both_engines
@every_rule
@few(3)
@given(seed=SEEDS, denormal=st.sampled_from(["weights", "gradients", "both"]))
def test_denormal_numbers_are_numbers(rule, constants, engine, seed, denormal):
    weights, gradients = drawn([(4, 3), (2, 2)], seed, torch.float32)
    if denormal != "gradients":
        weights = [w * 1e-40 for w in weights]
    if denormal != "weights":
        gradients = [[g.sign() * (g.abs() + 1) * 1e-40 for g in step] for step in gradients]
    ends = descended(rule, constants, weights, gradients, engine)
    assert all(bool(w.isfinite().all()) for w in ends)
    if rule.sums is None:  # sums of squares and products of such numbers vanish
        wide = descended(
            rule, constants, [w.double() for w in weights], [[g.double() for g in s] for s in gradients], engine
        )
        for a, b in zip(ends, wide, strict=True):
            assert (a.double() - b).abs().max() <= 0.02 * b.abs().max()


@on_both_engines
@every_rule
@few(3)
@given(
    shapes=SHAPES,
    seed=SEEDS,
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_one_element_that_is_not_finite_leaves_every_bit(rule, constants, engine, shapes, seed, bad, dtype, data):
    weights, gradients = drawn(shapes, seed, dtype)
    averaged = {"ema": 0.9} if rule.average is None else {}
    optimizer = optimizer_of(rule, constants, weights, engine, clip_norm=1.0, on_nonfinite="skip", **averaged)
    before = data.draw(st.integers(0, 2))
    for step in gradients[: before + 1]:
        for w, g in zip(weights, step, strict=True):
            w.grad = g.clone()
        if step is not gradients[before]:
            optimizer.step()
    which = data.draw(st.integers(0, len(shapes) - 1))
    spoilt = weights[which].grad.view(-1)
    spoilt[data.draw(st.integers(0, spoilt.numel() - 1))] = bad
    held = copy.deepcopy([weights, [*optimizer.state.values()]])
    optimizer.step()
    assert optimizer.last.skipped
    assert optimizer.last.nonfinite == 1
    assert same(held, [weights, [*optimizer.state.values()]])
    weights[which].grad = gradients[before][which].clone()
    optimizer.step()
    assert not optimizer.last.skipped
    assert not same(held[0], weights)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b))


@on_both_engines
@every_rule
@few(3)
@given(shapes=SHAPES, seed=SEEDS, empty=st.sampled_from([(0,), (3, 0), (0, 2, 2)]), data=st.data())
def test_empty_tensors_are_no_weight(rule, constants, engine, shapes, seed, empty, data):
    weights, gradients = drawn(shapes, seed)
    options = {"clip_norm": 1.0, **({"ema": 0.9} if rule.average is None else {})}
    without = descended(rule, constants, weights, gradients, engine, **options)
    place = data.draw(st.integers(0, len(shapes)))
    nothing = torch.zeros(empty, dtype=torch.float64)

    def among(tensors):
        return [*tensors[:place], nothing, *tensors[place:]]

    ends = descended(rule, constants, among(weights), [among(step) for step in gradients], engine, **options)
    assert ends.pop(place).shape == nothing.shape
    for a, b in zip(ends, without, strict=True):
        assert_same(rule, a, b)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "with holes": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "backwards": lambda t: t.flip(0).contiguous().flip(0),
    "a slice": lambda t: torch.cat([t, t])[: len(t)],
    "permuted": lambda t: t.reshape(2, 3, 2, 1).permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).reshape(t.shape),
}


@on_both_engines
@every_rule
@few(3)
@given(
    seed=SEEDS,
    of_weights=st.sampled_from(sorted(LAYOUTS)),
    of_gradients=st.sampled_from(sorted([*LAYOUTS, "one for all"])),
)
def test_how_tensors_lie_in_memory_changes_nothing(rule, constants, engine, seed, of_weights, of_gradients):
    weights, gradients = drawn([(4, 3), (2, 6)], seed)
    if of_gradients == "one for all":
        gradients = [[g[:1, :1].expand(g.shape) for g in step] for step in gradients]
        lying = gradients
    else:
        lying = [[LAYOUTS[of_gradients](g) for g in step] for step in gradients]
    options = {"weight_decay": 0.1, **({"ema": 0.9} if rule.average is None else {})}
    straight = descended(rule, constants, weights, gradients, engine, **options)
    mine = [LAYOUTS[of_weights](w) for w in weights]
    optimizer = optimizer_of(rule, constants, mine, engine, **options)
    for step in lying:
        for w, g in zip(mine, step, strict=True):
            w.grad = g
        optimizer.step()
    for a, b in zip(straight, mine, strict=True):
        torch.testing.assert_close(a, b, **near(rule))


@on_both_engines
@every_rule
@few(3)
@given(seed=SEEDS, matrix=st.booleans(), decay=st.sampled_from([0.0, 0.1]))
def test_every_engine_gives_what_the_plain_form_gives(rule, constants, engine, seed, matrix, decay):
    weights, gradients = drawn([(3, 4) if matrix else (5,)], seed)
    if rule.is_matrix and constants != rule.constants:
        return  # `half` rounds on tensors only
    own = constants if matrix or rule.rest is None else {}
    plain_form = PlainForm(rule, weights[0].numpy().copy(), lr=0.01, weight_decay=decay, constants=own)
    mine = [weights[0].clone()]
    optimizer = optimizer_of(rule, constants, mine, engine, lr=0.01, weight_decay=decay)
    for (g,) in gradients:
        mine[0].grad = g.clone()
        optimizer.step()
        plain_form.step(g.numpy())
        np.testing.assert_allclose(mine[0].numpy(), plain_form.w, rtol=1e-9, atol=1e-11)
