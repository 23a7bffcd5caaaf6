"""A parameter group may go by a rule of its own: it moves, is saved and is scheduled as in an optimiser of that rule."""

import copy
import io

import pytest
import torch

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.optim import Optimizer

ENGINES = ["cpu", "tensors"]
SHAPES = [(6, 4), (5, 3), (4,), (40_000,)]


def starts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def mixed(w, **options):
    """Muon, with a head by AdamW, a vector by Lion and a last one by momentum."""
    groups = [
        {"params": w[:1]},
        {"params": w[1:2], "rule": "adamw", "lr": 3e-3, "betas": (0.9, 0.95)},
        {"params": w[2:3], "rule": "lion", "beta2": 0.9},
        {"params": w[3:], "rule": "momentum", "weight_decay": 0.2},
    ]
    return Optimizer(groups, "muon", lr=0.02, weight_decay=0.1, **options)


def apart(w, engine="auto"):
    """The same by an optimiser for each rule."""
    return [
        Optimizer(w[:1], "muon", lr=0.02, weight_decay=0.1, engine=engine),
        Optimizer(w[1:2], "adamw", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, engine=engine),
        Optimizer(w[2:3], "lion", lr=0.02, betas=(0.9, 0.9), weight_decay=0.1, engine=engine),
        Optimizer(w[3:], "momentum", lr=0.02, weight_decay=0.2, engine=engine),
    ]


def take_steps(weights, *steppers, steps=5):
    for _ in range(steps):
        for i, w in enumerate(weights):
            w.grad = torch.sin((i + 1) * w) + 0.1
        for one in steppers:
            one.step()


def same(a, b):
    return all(torch.equal(w, v) for w, v in zip(a, b, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_group_moves_as_under_an_optimiser_of_its_rule(engine):
    a, b = starts(), starts()
    take_steps(a, mixed(a, engine=engine))
    take_steps(b, *apart(b, engine))
    assert same(a, b)


def test_the_norm_that_clips_and_the_average_are_of_all_groups_together():
    a, b = starts(), starts()
    optimizer, others = mixed(a, clip_norm=1.0, ema=0.9), apart(b)
    for one in others:
        one.ema = 0.9
    for _ in range(3):
        take_steps(a, optimizer, steps=1)
        take_steps(b, steps=1)
        torch.nn.utils.clip_grad_norm_(b, 1.0)
        for one in others:
            one.step()
    with optimizer.averaged() as averages:
        assert len(averages) == 4
        mine = [p.clone() for p in a]
    theirs = [one.state[p]["ema"] for one, p in zip(others, b, strict=True)]
    for w, v in zip([*a, *mine], [*b, *theirs], strict=True):
        torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-14)


def test_constants_and_their_defaults_are_the_rules_and_the_rest_is_the_optimisers():
    groups = mixed(starts(), maximize=True).param_groups
    assert (groups[1]["betas"], groups[1]["eps"], groups[1]["amsgrad"]) == ((0.9, 0.95), 1e-8, False)
    assert (groups[2]["betas"], groups[3]["momentum"]) == ((0.9, 0.9), 0.9)
    assert [g["lr"] for g in groups] == [0.02, 3e-3, 0.02, 0.02]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.1, 0.1, 0.2]
    assert all(g["maximize"] for g in groups)


def test_a_group_that_names_no_rule_is_as_it_is_without_others_that_do():
    plain = Optimizer(starts()[:1], "muon", lr=0.02).param_groups[0]
    beside = mixed(starts()).param_groups[0]
    assert list(beside) == list(plain)
    assert "rule" not in beside
    assert [*optim.AdamW([torch.zeros(1)]).param_groups[0]][:2] == ["params", "lr"]


def test_a_group_may_be_added_later():
    a, b = starts(), starts()
    optimizer, others = Optimizer(a[:1], "muon", lr=0.02, weight_decay=0.1), apart(b)
    optimizer.add_param_group({"params": a[1:2], "rule": "adamw", "lr": 3e-3, "betas": (0.9, 0.95)})
    take_steps(a[:2], optimizer)
    take_steps(b[:2], *others[:2])
    assert same(a[:2], b[:2])


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_saved_and_loaded_it_goes_on_bit_for_bit_also_in_an_optimiser_whose_groups_named_none(engine):
    a = starts()
    optimizer = mixed(a, engine=engine)
    take_steps(a, optimizer)
    b = [w.clone() for w in a]
    other = Optimizer([{"params": [w]} for w in b], "muon", lr=0.5, engine=engine)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [g.get("rule") for g in other.param_groups] == [None, "adamw", "lion", "momentum"]
    take_steps(a, optimizer)
    take_steps(b, other)
    assert same(a, b)


def test_a_copy_goes_on_by_the_same_rules():
    a = starts()
    optimizer = mixed(a)
    take_steps(a, optimizer)
    other = copy.deepcopy(optimizer)
    b = [p for g in other.param_groups for p in g["params"]]
    take_steps(a, optimizer)
    take_steps(b, other)
    assert same(a, b)


def test_a_saved_group_gets_its_own_rules_defaults_where_some_are_missing():
    a = starts()
    optimizer = mixed(a)
    saved = optimizer.state_dict()
    del saved["param_groups"][2]["betas"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[2]["betas"] == (0.9, 0.99)


def test_a_saved_group_of_a_rule_that_nobody_has_is_refused_and_nothing_changes():
    a = starts()
    optimizer = mixed(a)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 7.0
    saved["param_groups"][1]["rule"] = "adamww"
    with pytest.raises(RuleError, match="Did you mean 'adamw'"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.02


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)


def cyclic(optimizer):
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.001, 0.1, step_size_up=3)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)


@pytest.mark.parametrize("schedule", [one_cycle, cyclic, cosine])
@pytest.mark.parametrize(
    ("own", "named"), [("AdamW", "momentum"), ("AdamW", "muon"), ("Momentum", "adamw"), ("SGD", "lion")]
)
def test_torchs_schedules_drive_the_rates_of_all_groups(own, named, schedule):
    """Those that cycle a momentum cycle the optimiser's own; a group of another rule keeps what it alone has."""
    a, b = starts()[:2], starts()[:2]
    options = {"momentum": 0.9} if own == "SGD" else {}
    kind = getattr(optim, own)
    together = kind([{"params": a[:1]}, {"params": a[1:], "rule": named}], lr=0.01, weight_decay=0.0, **options)
    ours, alone = schedule(together), kind(b[:1], lr=0.01, weight_decay=0.0, **options)
    theirs, other = schedule(alone), Optimizer(b[1:], named, lr=0.01, weight_decay=0.0)
    for _ in range(10):
        other.param_groups[0]["lr"] = alone.param_groups[0]["lr"]
        take_steps(a, together, steps=1)
        take_steps(b, alone, other, steps=1)
        ours.step()
        theirs.step()
    assert same(a, b)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"rule": "adamww"}, "no update rule 'adamww'.*Did you mean 'adamw'"),
        ({"rule": 3}, "`rule` is 3, but it must be the name of an update rule"),
        ({"rule": optim.AdamW([torch.zeros(1)]).rule}, "must be the name of an update rule"),
        (
            {"rule": "adamw", "momentum": 0.9},
            "goes by the rule 'adamw'. adamw has no constant 'momentum'; its constants are",
        ),
        ({"rule": "adamw", "alpha": 0.9}, "adamw has no constant 'alpha'"),
        ({"rule": "momentum", "beta1": 0.9}, "momentum has no constant 'beta1'"),
        ({"rule": "adamw", "betas": (0.9, 1.5)}, r"beta2 of adamw must be a number in \[0, 1\)"),
        ({"rule": "adamw", "betass": (0.9, 0.9)}, "Did you mean 'betas'"),
        ({"rules": "adamw"}, "Did you mean 'rule'"),
        ({"rule": "adamw", "lr": -1.0}, "`lr` is -1.0"),
    ],
)
def test_an_unknown_rule_and_another_rules_constants_are_refused_and_the_group_not_added(group, message):
    optimizer = Optimizer([torch.zeros(2, 2)], "muon", lr=0.02)
    with pytest.raises(RuleError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(3, 3)], **group})
    assert len(optimizer.param_groups) == 1


def test_groups_may_be_made_of_those_of_an_earlier_optimiser():
    a = starts()
    before = mixed(a).param_groups
    again = Optimizer(before, "muon", lr=0.02)
    assert [g.get("rule") for g in again.param_groups] == [None, "adamw", "lion", "momentum"]


def test_a_rule_that_averages_has_no_place_in_a_group_beside_an_average():
    with pytest.raises(RuleError, match="averages the weights itself"):
        optim.AdamW([{"params": [torch.zeros(1)], "rule": "schedule_free_sgd"}], ema=0.9)


def test_the_average_of_a_group_that_keeps_one_is_shown_beside_the_weights_of_others():
    w, v = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    optimizer = optim.AdamW([{"params": [w]}, {"params": [v], "rule": "schedule_free_sgd", "lr": 0.1}], lr=0.1)
    take_steps([w, v], optimizer)
    trained = [w.clone(), v.clone()]
    with optimizer.averaged():
        assert torch.equal(w, trained[0])
        assert not torch.equal(v, trained[1])
    assert same([w, v], trained)


def test_complex_matrices_are_refused_by_a_rule_of_real_ones():
    with pytest.raises(RuleError, match="parameter 0 is complex, and muon moves real matrices only"):
        Optimizer([torch.zeros(2, 2, dtype=torch.complex64)], "muon", lr=0.1)
    with pytest.raises(RuleError, match="adafactor moves real matrices only"):
        Optimizer([torch.zeros(2, dtype=torch.complex64)], "adafactor", lr=0.1)
    Optimizer([torch.zeros(2, dtype=torch.complex64)], "muon", lr=0.1)
