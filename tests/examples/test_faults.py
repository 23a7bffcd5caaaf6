import math
from collections import defaultdict

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.errors import ArgumentError
from thalweg.examples import faults
from thalweg.examples.faults import networks, planting, sources
from thalweg.examples.faults.bases import BASES, RULES, SPARSE

CANDIDATES, HEALTHY = faults.candidates(), [each for each in faults.programs() if not each.causes]
PLANTED = {
    *("learning-rate-too-high", "missing-warm-up", "exploding-gradient", "loss-overflow", "bad-data"),
    *("learning-rate-too-low", "vanishing-gradient", "dead-units", "saturated-units", "no-gradient"),
    *("schedule-ended-early", "weight-decay-too-high", "nothing-to-learn", "bad-batch", "unstable-norm"),
    *("stale-second-moment", "batch-too-small", "low-precision", "overfitting"),
}


def one(cause, strength, network=""):
    """Give a candidate that a fault is planted in."""
    return next(e for e in CANDIDATES if e.name.endswith(f"{cause}/{strength}") and network in e.name)


def trained(program, steps):
    """Train a program in a loop of one's own; gives its losses."""
    loop, losses = program.loop(), []
    for number, batch in enumerate(loop.batches()):
        if number == steps:
            break
        loss = loop.loss(batch)
        loss.backward()
        loop.optimizer.step()
        loop.schedule.step()
        loop.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_every_program_has_a_name_of_its_own_by_which_it_is_found():
    names = [each.name for each in (*CANDIDATES, *HEALTHY)]
    assert len({*names}) == len(names)
    assert all(faults.find(name).name == name for name in names[::40])


def test_an_unknown_program_is_refused_with_the_nearest_name():
    with pytest.raises(
        ArgumentError, match=r"no program 'digits/mlp/adamw/helthy'. Did you mean 'digits/mlp/adamw/healthy'"
    ):
        faults.find("digits/mlp/adamw/helthy")


def test_each_cause_does_harm_in_three_kinds_of_network_two_of_them_in_each_half():
    networks_of = defaultdict(lambda: defaultdict(set))
    for each in faults.programs():
        if each.causes:
            networks_of[each.planted][each.half].add(each.network)
    assert set(networks_of) == PLANTED
    for cause, halves in networks_of.items():
        assert len(set().union(*halves.values())) >= 3, cause
        assert all(len(halves[half]) >= 2 for half in ("development", "held out")), cause


def test_the_halves_share_neither_a_source_nor_a_network():
    for what in ("source", "network"):
        one_half, other = (
            {getattr(each, what) for each in (*CANDIDATES, *HEALTHY) if each.half == half}
            for half in ("development", "held out")
        )
        assert not one_half & other


def test_there_are_a_hundred_healthy_programs_with_all_traps_in_both_halves():
    assert len(HEALTHY) >= 100
    for trap in faults.TRAPS:
        assert {BASES[name].half for name in trap.bases} == {"development", "held out"}, trap.kind


def test_all_rules_take_part():
    assert {each.recipe.rule for each in CANDIDATES} == {*RULES} == {each.recipe.rule for each in HEALTHY}


def test_a_healthy_program_is_its_own_twin_and_a_twin_has_no_cause():
    assert HEALTHY[0].twin is HEALTHY[0]
    assert not HEALTHY[0].planted
    for each in CANDIDATES:
        assert each.planted in each.causes
        assert not each.twin.causes
        assert each.twin.recipe != each.recipe


@pytest.mark.parametrize("base", [*BASES.values(), *SPARSE.values()], ids=lambda base: base.name)
def test_examples_fit_the_network_and_none_is_both_trained_on_and_held_out(base):
    examples = base.data()
    assert 0 < len(examples.x) == len(examples.y) <= sources.TRAINED
    assert 0 < len(examples.held_x) == len(examples.held_y) <= sources.HELD
    if base.source != "characters":  # whose rows may repeat a phrase
        seen = {row.numpy().tobytes() for row in examples.x.flatten(1)}
        both = sum(row.numpy().tobytes() in seen for row in examples.held_x.flatten(1))
        assert both <= 0.05 * len(examples.held_x)
    loss = base.loss(base.make()(examples.x[:8]), examples.y[:8])
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("name", [each.name for each in CANDIDATES if each.name.startswith("waves/deep")][::4])
def test_the_same_seed_gives_the_same_losses_and_another_one_others(name):
    program = faults.find(name)
    first, again, other = (trained(each, 3) for each in (program, program, program.with_seed(1)))
    assert first == again or any(map(math.isnan, first))
    assert first != other


def test_the_callers_random_numbers_stay():
    before = torch.random.get_rng_state()
    trained(faults.find("waves/deep/adamw/healthy"), 2)
    next(e for e in HEALTHY if e.name.endswith("trap/low-rank") and e.source == "waves").loop()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_same_program_is_trained_by_tw_train():
    program = faults.find("waves/deep/momentum/healthy")
    run = tw.train(program.task(), program.plan(), progress=False, device="cpu")
    assert run.summary["steps"] == program.recipe.steps
    assert run.metrics["loss"] == pytest.approx(faults.program.judged(program.recipe, run.model), rel=1e-4)
    assert run.metrics["loss"] < 0.5


def test_a_rate_far_too_high_ends_above_the_twin():
    program = one("learning-rate-too-high", "far", "waves/deep")
    assert not trained(program, 60)[-1] < 2 * trained(program.twin, 60)[-1]


def test_harm_is_more_than_twice_the_spread():
    assert faults.does_harm({"loss": 1.0, "twin": 0.5, "spread": 0.2})
    assert not faults.does_harm({"loss": 1.0, "twin": 0.5, "spread": 0.3})
    assert faults.does_harm({"loss": None, "twin": 0.5, "spread": 0.3})
    assert not faults.does_harm({"loss": 1.0, "twin": None, "spread": None})


def test_what_is_kept_was_measured_and_is_a_candidate():
    known = {each.name for each in CANDIDATES}
    assert {*faults.gaps()} <= known
    kept = [each for each in faults.programs() if each.causes]
    assert all(faults.does_harm(faults.gaps()[each.name]) for each in kept)


# What the faults do


def test_rows_with_nan_are_hidden_in_a_dataset():
    program = one("bad-data", "nan", "waves")
    rows = program.recipe.data().x
    assert int(torch.isnan(rows).any(1).sum()) == 3
    assert isinstance(program.task().data, torch.utils.data.Dataset)
    assert torch.isfinite(program.twin.recipe.data().x).all()
    assert torch.isfinite(sources.waves().x).all()


def test_shuffled_targets_are_the_same_ones():
    x, y, *_ = one("nothing-to-learn", "shuffled", "waves").recipe.data()
    assert torch.equal(x, sources.waves().x)
    assert not torch.equal(y, sources.waves().y)
    assert torch.equal(y.sort(0).values, sources.waves().y.sort(0).values)


def test_units_that_are_off_give_nothing_on_any_example():
    model = one("dead-units", "all", "digits/mlp").recipe.model()
    first = model[1](model[0](sources.digits().x))
    assert not first.any()


def test_most_units_are_off():
    model = one("dead-units", "most", "digits/mlp").recipe.model()
    alive = (model[1](model[0](sources.digits().x)) > 0).any(0).float().mean()
    assert 0 < alive < 0.15


def test_saturated_units_are_at_their_bounds():
    model = one("saturated-units", "weights", "waves").recipe.model()
    outputs = model[:4](sources.waves().x).abs()
    assert (outputs > 0.99).float().mean() > 0.8


@pytest.mark.parametrize(
    ("cause", "low", "high"), [("vanishing-gradient", 0.0, 1e-3), ("exploding-gradient", 1e3, math.inf)]
)
def test_gradients_vanish_or_explode_over_depth(cause, low, high):
    strength = {"vanishing-gradient": "usual-start", "exploding-gradient": "deep"}[cause]
    program = one(cause, strength, "waves")
    torch.manual_seed(0)
    for recipe, faulty in ((program.recipe, True), (program.twin.recipe, False)):
        examples, model = recipe.data(), recipe.model()
        recipe.loss(model(examples.x), examples.y).backward()
        first, *_, last = (float(p.grad.norm()) for p in networks.matrices(model))
        size = first if cause == "exploding-gradient" else first / last
        assert (low <= size <= high) == faulty


def test_what_no_gradient_reaches():
    frozen = one("no-gradient", "frozen", "digits/mlp").recipe.model()
    assert [p.requires_grad for p in frozen.parameters()] == [False] * 5 + [True]
    program = one("no-gradient", "detached", "digits/mlp")
    model = program.recipe.model()
    program.recipe.loss(model(sources.digits().x), sources.digits().y).backward()
    assert [p.grad is not None for p in model.parameters()] == [False] * 4 + [True] * 2
    loop = one("no-gradient", "left-out").loop()
    assert len(loop.optimizer.param_groups[0]["params"]) == 2


def test_a_schedule_that_ends_early_is_at_zero_from_there_on():
    program = one("schedule-ended-early", "tenth")
    factors = [program.recipe.schedule.factor(step) for step in range(program.recipe.steps)]
    assert sum(factor > 0 for factor in factors) == program.recipe.steps // 10
    assert all(program.twin.recipe.schedule.factor(step) > 0 for step in range(program.recipe.steps))


def test_overflow_is_born_of_finite_numbers():
    for program in (one("loss-overflow", "standardised", "waves"), one("loss-overflow", "probability", "digits/mlp")):
        examples, model = program.recipe.data(), program.recipe.model()
        assert torch.isfinite(examples.x).all()
        output = model(examples.x)
        far = 30 * output if "probability" in program.name else output
        assert not torch.isfinite(program.recipe.loss(far, examples.y))
        healthy = program.twin.recipe
        assert torch.isfinite(healthy.loss(healthy.model()(examples.x), examples.y))


def test_by_hand_is_what_pytorch_gives_where_it_is_finite():
    scores, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    assert torch.allclose(planting.by_hand(scores, labels), planting.stable(scores, labels))


def test_float16_is_the_format_of_weights_and_state_and_the_loss_is_float32():
    loop = one("low-precision", "float16", "digits/mlp").loop()
    batch = next(loop.batches())
    loss = loop.loss(batch)
    loss.backward()
    loop.optimizer.step()
    assert loss.dtype == torch.float32
    assert {p.dtype for p in loop.model.parameters()} == {torch.float16}


def test_a_shift_enlarges_the_gradient_in_mid_run():
    program = one("stale-second-moment", "shift", "waves")
    y, steps = program.recipe.data().y, program.recipe.steps * program.recipe.batch_size
    assert not program.recipe.shuffle
    assert y[: steps // 2].std() < 0.01 * y[int(0.7 * steps) : steps].std()
    assert program.recipe.constants["beta2"] > program.twin.recipe.constants["beta2"]


def test_the_frozen_trunk_and_corrections_of_low_rank_train_a_part():
    for kind in ("frozen-trunk", "low-rank"):
        program = next(e for e in HEALTHY if e.name.endswith(f"trap/{kind}") and e.source == "waves")
        model = program.recipe.model()
        trained_, all_ = (
            sum(p.numel() for p in model.parameters() if p.requires_grad or whole) for whole in (False, True)
        )
        assert 0 < trained_ < 0.7 * all_


def test_a_correction_of_low_rank_begins_as_the_layer_itself():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.equal(networks.LowRank(layer)(x), layer(x))


def test_the_input_of_a_normalisation_is_next_to_nothing():
    torch.manual_seed(0)
    for recipe, small in (
        (one("unstable-norm", "small-weights", "waves").recipe, True),
        (faults.find("waves/deep/adam/healthy").recipe, False),
    ):
        before = recipe.model()[0](sources.waves().x)
        assert (before.std() < 0.01) == small
