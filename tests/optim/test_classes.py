import inspect

import pytest
import torch

from thalweg import optim
from thalweg.errors import RuleError


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_arguments_have_torchs_names_in_torchs_order(name):
    ours = [p.name for p in inspect.signature(getattr(optim, name)).parameters.values() if p.name != "options"]
    theirs = list(inspect.signature(getattr(torch.optim, name)).parameters)
    assert ours == [n for n in theirs if n in ours]


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
        ({"dampening": 0.1}, "no dampening here"),
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
