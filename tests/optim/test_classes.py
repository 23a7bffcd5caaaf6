import copy
import inspect
import pickle
from typing import get_type_hints

import pytest
import torch

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.rules import RULES
from thalweg.rules.rule import Rule

TORCHS = [name for name in optim.__all__ if hasattr(torch.optim, name) and name != "Optimizer"]


def positional(kind):
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", TORCHS)
def test_arguments_have_torchs_names_in_torchs_order(name):
    ours, theirs = positional(getattr(optim, name)), positional(getattr(torch.optim, name))
    common = [n for n in theirs if n in ours]
    assert ours[: len(common)] == common
    assert common[:3] == theirs[:3]


# The step of float32 at 1 in the place of PyTorch's None, which means the step of the weights' dtype; steps as long as AdamW's.
OTHER_DEFAULTS = {"Adafactor": {"eps"}, "Muon": {"adjust_lr_fn"}}


@pytest.mark.parametrize("name", TORCHS)
def test_defaults_are_torchs(name):
    ours, theirs = (inspect.signature(getattr(home, name)).parameters for home in (optim, torch.optim))
    common = {n for n in theirs if n in ours}
    assert {n for n in common if ours[n].default != theirs[n].default} == OTHER_DEFAULTS.get(name, set())
    assert len(common) >= 5


def made(rule, **options):
    return getattr(optim, rule.optimizer)([torch.ones(2, 2, requires_grad=True)], **options)


def descended(optimizer, steps=2):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = p.detach().clone()
        optimizer.step()
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_every_rule_has_a_class_with_its_own_rate_and_constants_as_defaults(rule):
    optimizer = made(rule)
    assert (type(optimizer).__name__, optimizer.rule) == (rule.optimizer, rule)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (rule.learning_rate, rule.weight_decay)
    assert rule.from_group(group) == rule.constants
    plain = optim.Optimizer([torch.ones(2, 2, requires_grad=True)], rule, lr=rule.learning_rate)
    assert all(map(torch.equal, descended(optimizer), descended(plain)))


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_a_class_says_what_it_takes(rule):
    kind = getattr(optim, rule.optimizer)
    parameters = inspect.signature(kind).parameters
    assert get_type_hints(kind.__init__).keys() == {*parameters, "return"}
    assert rule.source in " ".join(kind.__doc__.split())
    for name in ("params", "lr", "weight_decay", *rule.group_defaults()):
        assert f"\n        {name}: " in kind.__doc__
        assert parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    common = inspect.signature(optim.Optimizer).parameters
    beside = {"ema", "cautious"} if rule.average else set()
    assert {n for n in common if n not in parameters} == {"rule", "constants", *beside}
    assert all(parameters[n].default == common[n].default for n in ("clip_norm", "on_nonfinite", "engine", "maximize"))


def test_sgd_takes_by_name_what_every_class_takes():
    sgd, adam = (inspect.signature(kind).parameters.values() for kind in (optim.SGD, optim.Adam))
    beside = [[p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD] for parameters in (sgd, adam)]
    assert beside[0] == beside[1]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", [*(rule.optimizer for rule in RULES.values()), "SGD"])
def test_a_copy_of_an_optimiser_goes_on_by_itself(name, copied):
    optimizer = getattr(optim, name)([torch.ones(2, 2, requires_grad=True)], lr=0.01, clip_norm=1.0)
    descended(optimizer)
    other = copied(optimizer)
    assert type(other) is type(optimizer)
    assert all(map(torch.equal, descended(optimizer), descended(other)))


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_what_a_class_does_not_know_is_refused_with_the_nearest_name(rule):
    name = next(iter(rule.group_defaults()), None)
    with pytest.raises(RuleError, match=f"Did you mean '{name}'" if name else "has no constant"):
        made(rule, **{f"{name or 'beta'}x": 1.0})


def test_constants_go_by_the_equations_names_too():
    assert made(RULES["adamw"], beta2=0.95).param_groups[0]["betas"] == (0.9, 0.95)


def test_a_third_partys_rule_needs_no_class():
    def uphill(w: float, g: float, *, lr: float = 0.5) -> float:
        """Half of everything."""
        return w - lr * g

    from thalweg.rules import rule

    one = rule(source="here")(uphill)
    assert isinstance(one, Rule)
    assert one.optimizer == "Uphill"
    (w,) = descended(optim.Optimizer([torch.ones(1, requires_grad=True)], one, lr=0.5), 1)
    assert w.item() == 0.5


def test_sgd_is_the_rule_that_its_groups_say_at_every_step():
    w = torch.zeros(1, dtype=torch.float64)
    optimizer = optim.SGD([w], lr=1.0)
    steps = []
    for momentum, nesterov in ((0.0, False), (0.5, False), (0.5, True)):
        optimizer.param_groups[0].update(momentum=momentum, nesterov=nesterov)
        before = w.clone()
        w.grad = torch.ones_like(w)
        optimizer.step()
        steps.append(float(before - w))
    assert steps == [1.0, 1.0, 1.0 + 0.5 * 1.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.9, "dampening": 1.1}, r"dampening .* in \[0, 1\]"),
        ({"momentum": 0.9, "nesterov": True, "dampening": 0.1}, "no dampening, not 0.9 and 0.1"),
        ({"nesterov": True}, "needs a momentum above 0"),
        ({"momentum": 1.0}, r"in \[0, 1\)"),
        ({"momentun": 0.9}, r"SGD has no option 'momentun'.*Did you mean 'momentum'"),
    ],
)
def test_sgd_refuses_what_it_does_not_have(options, message):
    with pytest.raises(RuleError, match=message):
        optim.SGD([torch.zeros(1)], **options)


def test_build_takes_plain_values_as_a_plan_holds_them():
    optimizer = optim.build("adam", [torch.zeros(1)], lr=0.1, constants={"betas": [0.8, 0.9]}, clip_norm=1.0, ema=0.9)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert (optimizer.clip_norm, optimizer.ema, optimizer.rule.name) == (1.0, 0.9, "adam")


def test_build_decays_nothing_unless_told():
    assert optim.build("adamw", [torch.zeros(1)], lr=0.1).param_groups[0]["weight_decay"] == 0.0
    assert optim.AdamW([torch.zeros(1)]).param_groups[0]["weight_decay"] == 0.01


def test_one_cycle_is_refused_by_plain_descent_as_torch_refuses_it():
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        torch.optim.lr_scheduler.OneCycleLR(optim.GradientDescent([torch.zeros(1)]), max_lr=1.0, total_steps=3)


def test_torchs_sgd_of_the_other_kind_is_not_loaded():
    w = torch.zeros(1)
    saved = torch.optim.SGD([w], lr=0.1, momentum=0.9).state_dict()
    with pytest.raises(RuleError, match=r"nesterov=False, which nesterov does not have"):
        optim.Nesterov([w]).load_state_dict(saved)
