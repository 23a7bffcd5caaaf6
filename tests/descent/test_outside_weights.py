"""What a loss depends on and nobody would train is refused, and its advice works; what need not be trained passes."""

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import TaskError

generator = torch.Generator().manual_seed(0)
X = torch.randn(8, 6, generator=generator)
Y = torch.arange(8) % 3
GIVEN = nn.Linear(6, 3)
CENTRES = nn.Parameter(torch.zeros(3, 3))
HEAD = nn.Linear(3, 3)
TEMPERATURE = torch.zeros((), requires_grad=True)
TEACHER = nn.Linear(6, 3)


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(6, 6), [nn.Linear(6, 6), nn.Linear(6, 3)]

    def forward(self, x):
        x = self.first(x)
        for layer in self.rest:
            x = layer(x.relu())
        return x


class Registered(Unregistered):
    def __init__(self):
        super().__init__()
        self.rest = nn.ModuleList(self.rest)


class TrainableBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(3, requires_grad=True))

    def forward(self, x):
        return self.layer(x) * self.scale


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.centres = nn.Linear(6, 3), nn.Parameter(torch.zeros(3, 3))

    def forward(self, x):
        return self.layer(x)


def task(model: Any = lambda: nn.Linear(6, 3), loss: Any = F.cross_entropy, **more: Any) -> tw.Task:
    return tw.Task(model=model, loss=None if "step" in more else loss, data=(X, Y), **more)


def penalised(output, target):
    return F.cross_entropy(output, target) + 0.1 * GIVEN.weight.square().sum()


def centre_loss(output, target):
    return F.cross_entropy(output, target) + (output - CENTRES[target]).square().mean()


UNTRAINED = {
    "layers in a plain list": (task(Unregistered), r"4 trainable tensors .* \(of shape .*\(3, 6\).*nn\.ModuleList"),
    "a buffer that wants a gradient": (task(TrainableBuffer), r"1 trainable tensors .*\(of shape \(3,\)\)"),
    "centres of a loss": (task(loss=centre_loss), r"\(of shape \(3, 3\)\), so nobody would train them"),
    "centres in a lambda": (task(loss=lambda o, t: centre_loss(o, t)), r"freeze them with requires_grad_\(False\)"),
    "a head in `step`": (task(step=lambda m, b: F.cross_entropy(HEAD(m(b[0])), b[1])), r"2 trainable tensors"),
    "a learnt temperature": (task(loss=lambda o, t: F.cross_entropy(o * TEMPERATURE.exp(), t)), r"of shape \(\)"),
    "a teacher with its gradient": (
        task(step=lambda m, b: F.mse_loss(m(b[0]), TEACHER(b[0]))),
        r"2 trainable tensors .* freeze them",
    ),
    "a penalty on the module that was given": (
        task(GIVEN, penalised),
        r"`model` \(weight\), but a copy of it is trained",
    ),
}


@pytest.mark.parametrize("case", UNTRAINED)
def test_what_nobody_would_train_is_refused(case):
    made, told = UNTRAINED[case]
    with pytest.raises(TaskError, match=told):
        open_task(made, "cpu")
    assert all(p.grad is None for p in (CENTRES, TEMPERATURE, *HEAD.parameters(), *TEACHER.parameters(), GIVEN.weight))


def penalty_of_its_own(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1]) + 0.1 * model.weight.square().sum()


def centred(model, batch):
    output = model(batch[0])
    return F.cross_entropy(output, batch[1]) + (output - model.centres[batch[1]]).square().mean()


def input_derivative(model, batch):
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().mean() + F.cross_entropy(model(x), batch[1])


def derivative_in_place(model, batch):
    x = batch[0].requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().mean() + F.cross_entropy(model(x), batch[1])


def distilled(model, batch):
    with torch.no_grad():
        target = TEACHER(batch[0])
    return F.mse_loss(model(batch[0]), target)


FROZEN = copy.deepcopy(TEACHER).requires_grad_(False)
TRAINED = {
    "layers in a module list": task(Registered),
    "a penalty on the model that step is given": task(GIVEN, step=penalty_of_its_own),
    "centres of the model": task(Centred, step=centred),
    "inputs of which derivatives are taken": task(step=input_derivative),
    "inputs that want gradients in place": task(step=derivative_in_place),
    "a teacher without gradient": task(step=distilled),
    "a frozen teacher": task(step=lambda m, b: F.mse_loss(m(b[0]), FROZEN(b[0]))),
    "tied weights": task(lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2, nn.Linear(6, 3))),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_is_trained_or_need_not_be_passes(case):
    open_task(TRAINED[case], "cpu")


def test_weights_that_only_the_backward_pass_shows_are_refused():
    head = nn.Linear(3, 3)

    def step(model, batch):
        output = torch.utils.checkpoint.checkpoint(head, model(batch[0]), use_reentrant=True)
        return F.cross_entropy(output, batch[1])

    with pytest.raises(
        TaskError, match=r"A gradient was written to step:head.weight, step:head.bias, which are no parameters"
    ):
        open_task(task(step=step), "cpu")
    assert head.weight.grad is None


def test_parameters_made_at_each_call_are_named():
    def step(model, batch):
        return F.cross_entropy(nn.Linear(3, 3)(model(batch[0])), batch[1])

    notes = open_task(task(step=step), "cpu").notes
    assert any("makes 2 parameters anew at each call (of shape (3, 3), (3,))" in note for note in notes)


def within(head):
    class Scaled:
        def __init__(self):
            self.parts = [{"head": head}]

        def loss(self, output, target, scale=1.0):
            return F.cross_entropy(self.parts[0]["head"](output) * scale, target)

    return Scaled().loss


def nested(head):
    def outer():
        def inner(output):
            return head(output)

        return inner

    return lambda output, target: F.cross_entropy(outer()(output), target)


@pytest.mark.parametrize(
    "loss",
    [
        within(nn.Linear(3, 3)),
        nested(nn.Linear(3, 3)),
        functools.partial(functools.partial(within(nn.Linear(3, 3)), scale=2.0)),
    ],
    ids=["a list of a bound method's object", "nested closures", "partial of a partial"],
)
def test_weights_deep_in_a_loss_are_refused(loss):
    with pytest.raises(TaskError, match="2 trainable tensors that are not among"):
        open_task(task(loss=loss), "cpu")
