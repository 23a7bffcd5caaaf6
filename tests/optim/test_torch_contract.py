"""What other programs may rely on in PyTorch's own optimisers, asked of the classes here: one table of classes, one contract."""

import copy
import inspect
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.optim.groups import FLAGS

CLASSES = [kind for kind in map(vars(optim).get, optim.__all__) if isinstance(kind, type)]
CLASSES = [kind for kind in CLASSES if issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
SHARED = [kind for kind in CLASSES if hasattr(torch.optim, kind.__name__)]
every_shared_class = pytest.mark.parametrize("kind", SHARED, ids=lambda kind: kind.__name__)

OWN_DEFAULTS = {
    "Adafactor": {"eps": (torch.finfo(torch.float32).eps, 1e-3)},  # PyTorch writes None, which is the dtype's own
    "Muon": {"adjust_lr_fn": "match_rms_adamw"},  # PyTorch's None is the author's own length of a step
}
"""Where a default of ours is another one."""

STATE_FROM_THE_START = {"Adagrad"}
"""PyTorch's classes that have state before the first step."""


def theirs(kind):
    return getattr(torch.optim, kind.__name__)


def parameters(count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(4, 3, generator=generator, dtype=dtype)) for _ in range(count)]


def step(optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.step()


def torch_defaults(kind):
    """PyTorch's defaults that its class takes as arguments: `AdamW` writes one more into its groups."""
    taken = inspect.signature(theirs(kind)).parameters
    return {name: value for name, value in theirs(kind)(parameters()).defaults.items() if name in taken}


# Defaults


@every_shared_class
def test_torchs_defaults_are_ours_and_are_taken(kind):
    ours, own = kind(parameters(), **torch_defaults(kind)), OWN_DEFAULTS.get(kind.__name__, {})
    assert {**ours.defaults, **own} == kind(parameters()).defaults
    saved = kind(parameters()).state_dict()["param_groups"][0]
    for name, value in theirs(kind)(parameters()).state_dict()["param_groups"][0].items():
        assert saved[name] == own.get(name, value)


@every_shared_class
def test_groups_of_torchs_class_are_taken_as_they_are_and_the_descent_is_torchs(kind):
    other = theirs(kind)(parameters(), lr=0.01)
    copied = [{**group, "params": parameters()} for group in other.param_groups]
    ours = kind(copied, lr=0.01, **({"half": True} if kind is optim.Muon else {}))  # PyTorch's is in sixteen bits
    for seed in range(3):
        step(ours, seed)
        step(other, seed)
    for a, b in zip(ours.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # PyTorch's NAdam has a product in float32


def test_a_group_that_names_its_rule_may_have_torchs_defaults_of_that_rule_too():
    for name, rule in (("Adam", "adam"), ("Adagrad", "adagrad"), ("RMSprop", "rmsprop")):
        group = {**getattr(torch.optim, name)(parameters()).defaults, "params": parameters(), "rule": rule}
        optimizer = optim.AdamW([{"params": parameters()}, group])
        step(optimizer)
        loaded(optimizer)
    with pytest.raises(RuleError, match="adam has no constant 'decoupled_weight_decay'"):
        optim.AdamW([{"params": parameters(), "rule": "adam", "decoupled_weight_decay": True}])


OTHER_STEPS = [
    (optim.Adam, {"decoupled_weight_decay": True}, r"`decoupled_weight_decay` of adam is always False.*Take AdamW"),
    (optim.AdamW, {"decoupled_weight_decay": False}, r"`decoupled_weight_decay` of adamw is always True.*Take Adam\."),
    (optim.Momentum, {"nesterov": True}, r"`nesterov` of momentum is always False.*Take Nesterov"),
    (optim.GradientDescent, {"momentum": 0.9}, r"`momentum` of gradient_descent is always 0, not 0\.9"),
    (optim.RMSprop, {"capturable": True}, "`capturable` cannot be True here"),
    (optim.SGD, {"differentiable": True}, "`differentiable` cannot be True here"),
]


@pytest.mark.parametrize(("kind", "options", "words"), OTHER_STEPS, ids=str)
def test_what_would_make_another_step_is_refused_by_name_as_an_argument_and_in_a_group(kind, options, words):
    with pytest.raises(RuleError, match=words):
        kind(parameters(), **options)
    optimizer = kind(parameters())
    with pytest.raises(RuleError, match=words):
        optimizer.add_param_group({"params": parameters(), **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.Lion])
@pytest.mark.parametrize("mixed", [(torch.tensor(0.9), 0.99), (0.9, torch.tensor(0.99))], ids=["first", "second"])
def test_betas_of_numbers_and_tensors_are_refused_as_in_torch(kind, mixed):
    if kind in SHARED:
        with pytest.raises(ValueError, match="betas must be either both floats or both Tensors"):
            theirs(kind)(parameters(), betas=mixed)
    with pytest.raises(RuleError, match=r"`betas` is .*, but it must be all numbers or all tensors"):
        kind(parameters(), betas=mixed)
    with pytest.raises(RuleError, match="must be all numbers or all tensors"):
        kind([{"params": parameters(), "betas": mixed}])
    step(kind(parameters(), betas=(torch.tensor(0.9), torch.tensor(0.99))))


WORDS = [
    ("learning_rate", "lr"),
    ("step_size", "lr"),
    ("wd", "weight_decay"),
    ("epsilon", "eps"),
    ("b2", "beta2"),
    ("momentum", "beta1"),
    ("max_grad_norm", "clip_norm"),
    ("ema_decay", "ema"),
]


@pytest.mark.parametrize(("given", "right"), WORDS)
def test_another_word_for_an_option_is_answered_with_the_right_one(given, right):
    with pytest.raises(RuleError, match=rf"adamw has no constant '{given}'.*Did you mean '{right}'\?"):
        optim.AdamW(parameters(), **{given: 0.1})


@pytest.mark.parametrize(("kind", "given", "right"), [
    (optim.SGD, "learning_rate", "lr"),
    (optim.SGD, "beta", "momentum"),
    (optim.RMSprop, "rho", "alpha"),
    (optim.Adadelta, "alpha", "rho"),
    (optim.Momentum, "beta1", "momentum"),
    (optim.GradientDescent, "learning_rate", "lr"),
])  # fmt: skip
def test_it_is_the_word_that_this_class_has(kind, given, right):
    with pytest.raises(RuleError, match=rf"Did you mean '{right}'\?"):
        kind(parameters(), **{given: 0.1})


@pytest.mark.parametrize(("given", "right"), [("learning_rate", "lr"), ("wd", "weight_decay"), ("epsilon", "eps")])
@pytest.mark.parametrize("kind", [optim.Adam, optim.RMSprop])
def test_in_a_group_too_where_it_would_do_nothing(kind, given, right):
    with pytest.raises(RuleError, match=rf"names '{given}', which is no option here\. Did you mean '{right}'\?"):
        kind([{"params": parameters(), given: 0.1}])


@pytest.mark.parametrize("name", ["momentum", "rho", "lr_mult", "name", "layer_decay"])
def test_what_another_class_or_program_puts_into_groups_stays_there(name):
    assert optim.AdamW([{"params": parameters(), name: 0.1}]).param_groups[0][name] == 0.1


# Keys of groups and state


def through_a_file(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file))
    return optimizer


def loaded(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


def loaded_into_another(optimizer):
    other = type(optimizer)([*map(nn.Parameter, parameters())])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def loaded_from_torchs(optimizer):
    if type(optimizer) in SHARED:
        other = theirs(type(optimizer))(parameters())
        step(other)
        optimizer.load_state_dict(other.state_dict())
    return optimizer


WAYS = [
    loaded,
    loaded_into_another,
    through_a_file,
    loaded_from_torchs,
    copy.deepcopy,
    lambda o: pickle.loads(pickle.dumps(o)),
]


@pytest.mark.parametrize("schedules", [False, True], ids=["", "with a schedule"])
@every_class
def test_the_keys_of_groups_and_saved_groups_stay_what_they_are(kind, schedules):
    optimizer = kind(parameters(), lr=0.01)
    if schedules:
        lr_scheduler.StepLR(optimizer, 1)
    step(optimizer)
    keys, saved = {*optimizer.param_groups[0]}, copy.deepcopy(optimizer.state_dict()["param_groups"])
    for way in [way for way in [*WAYS, *WAYS] if way is not loaded_from_torchs or not schedules]:
        optimizer = way(optimizer)
        assert {*optimizer.param_groups[0]} == keys, way
        assert {*optimizer.state_dict()["param_groups"][0]} == {*saved[0]}
        step(optimizer)
    optimizer.add_param_group({"params": parameters()})
    assert {*optimizer.param_groups[1]} == keys - {"initial_lr"}
    assert FLAGS.keys() <= keys


@every_class
def test_a_state_that_is_saved_and_loaded_is_saved_again_as_the_same(kind):
    optimizer = kind(parameters(), lr=0.01)
    step(optimizer)
    first = copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        loaded(optimizer)
        again = optimizer.state_dict()
        assert again["param_groups"] == first["param_groups"]
        assert [*again["state"]] == [*first["state"]]
        for n, entry in first["state"].items():
            assert {*entry} == {*again["state"][n]}
            assert all(torch.equal(value, again["state"][n][key]) for key, value in entry.items())


@every_shared_class
def test_flags_saved_by_torch_do_not_change_how_this_optimiser_steps(kind):
    optimizer, saved = kind(parameters()), theirs(kind)(parameters()).state_dict()
    saved["param_groups"][0] |= {"foreach": True, "fused": True, "capturable": True}
    optimizer.load_state_dict(saved)
    assert {name: optimizer.param_groups[0][name] for name in FLAGS} == FLAGS


OPTIONS = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("with_gradient", [0, 1, 2])
@every_shared_class
def test_there_is_state_for_the_same_parameters_under_the_same_keys_as_torchs(kind, with_gradient, engine):
    for options in OPTIONS if kind is optim.SGD else [{}]:
        found = []
        for home, more in ((optim, {"engine": engine}), (torch.optim, {})):
            given = parameters()
            optimizer = getattr(home, kind.__name__)(given, **options, **more)
            for p in given[:with_gradient]:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.step()
            skipped = kind.__name__ in STATE_FROM_THE_START
            states = [optimizer.state.get(p) for p in given[: with_gradient if skipped else None]]
            found.append([None if s is None else {k: (v.dtype, v.shape) for k, v in s.items()} for s in states])
            saved = optimizer.state_dict()["state"]
            assert saved == {} or skipped or with_gradient
        if kind is optim.NAdam:  # mu_product: float32 there, float64 here
            for state in found[0] + found[1]:
                (state or {}).pop("mu_product", None)
        assert found[0] == found[1]


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
def test_plain_descent_takes_up_momentum_later_and_lays_it_down_again(engine):
    ends = []
    for home, more in ((optim, {"engine": engine}), (torch.optim, {})):
        given = parameters()
        optimizer = home.SGD(given, lr=0.1, **more)
        for seed, momentum in enumerate([0.0, 0.0, 0.5, 0.5, 0.0, 0.5, 0.0]):
            optimizer.param_groups[0]["momentum"] = momentum
            step(optimizer, seed)
        ends.append([*given, *(value for entry in optimizer.state.values() for value in entry.values())])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# Attributes, hooks, words


@every_shared_class
def test_all_that_torchs_instance_has_is_here(kind):
    inner = {"_init_group", "share_memory"}  # how torch's classes work inside
    assert [n for n in dir(theirs(kind)(parameters())) if not hasattr(kind(parameters()), n) and n not in inner] == []


@every_class
def test_the_profiler_names_steps_as_it_names_torchs(kind):
    optimizer = kind(parameters())
    with torch.profiler.profile() as profile:
        step(optimizer)
        optimizer.zero_grad()
    names = {event.name for event in profile.events() if event.name.startswith("Optimizer.")}
    assert names == {f"Optimizer.{what}#{kind.__name__}.{what}" for what in ("step", "zero_grad")}


@every_class
def test_hooks_of_all_kinds_are_called_as_torchs_calls_them(kind):
    logs = []
    for one in (kind, torch.optim.SGD):
        optimizer, log = one(parameters()), []
        optimizer.register_step_pre_hook(lambda o, a, k, log=log: log.append(("before", len(a), len(k))))
        optimizer.register_step_post_hook(lambda o, a, k, log=log: log.append(("after", len(a), len(k))))
        optimizer.register_state_dict_pre_hook(lambda o, log=log: log.append("saving"))
        optimizer.register_state_dict_post_hook(lambda o, s, log=log: log.append("saved"))
        optimizer.register_load_state_dict_pre_hook(lambda o, s, log=log: log.append("loading"))
        optimizer.register_load_state_dict_post_hook(lambda o, log=log: log.append("loaded"))
        step(optimizer)
        optimizer.step(lambda: 1.0)
        loaded(optimizer)
        logs.append(log)
    assert logs[0] == logs[1]


@every_class
def test_a_schedule_finds_the_step_that_it_wraps_and_warns_where_none_was_taken(kind):
    optimizer = kind(parameters(), lr=0.5)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert optimizer.step._wrapped_by_lr_sched
    with pytest.warns(UserWarning, match="Detected call of `lr_scheduler.step"):
        schedule.step()
    step(optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.125


@every_class
def test_what_is_printed_begins_with_the_class_and_has_every_option(kind):
    text = repr(kind(parameters()))
    assert re.match(rf"{kind.__name__} ", text)
    shown = re.findall(r"^    (\w+): ", text, re.MULTILINE)
    assert shown == sorted({*kind(parameters()).param_groups[0]} - {"params"})


REFUSED = [
    lambda o: o.add_param_group(3),
    lambda o: o.add_param_group({"params": {nn.Parameter(torch.ones(1))}}),
    lambda o: o.add_param_group({"params": [3]}),
    lambda o: o.add_param_group({"params": o.param_groups[0]["params"]}),
    lambda o: o.load_state_dict({"state": {}, "param_groups": []}),
    lambda o: o.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]}),
]


@pytest.mark.parametrize("call", REFUSED, ids=range(len(REFUSED)))
@every_class
def test_what_torch_refuses_of_groups_and_states_is_refused_with_its_error(kind, call):
    with pytest.raises((TypeError, ValueError)) as expected:
        call(torch.optim.SGD(parameters()))
    optimizer = kind(parameters())
    with pytest.raises(type(expected.value)):
        call(optimizer)
    assert len(optimizer.param_groups) == 1
