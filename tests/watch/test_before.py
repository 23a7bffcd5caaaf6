"""`check`: the right finding on faulty tasks, and none on healthy ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import nn

import thalweg as tw
from thalweg import examples
from thalweg.landscape.start import Start
from thalweg.watch.before import ask

PIXELS, DIGITS = load_digits(return_X_y=True)
PIXELS = (PIXELS / 16).astype(np.float32)
SORTED = np.argsort(DIGITS)
BODIES, PROGRESS = load_diabetes(return_X_y=True)


def standard(table):
    return ((table - table.mean(0)) / (table.std(0) + 1e-9)).astype(np.float32)


def column(values):
    return values.astype(np.float32)[:, None]


def mlp(inputs=64, outputs=10, act=nn.ReLU, *last):
    return lambda: nn.Sequential(nn.Linear(inputs, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, outputs), *last)


def task(model=None, x=PIXELS, y=DIGITS, loss=F.cross_entropy, **more):
    return tw.Task(model=model or mlp(), loss=loss, data=x if y is None else (x, y), **more)


def table(load):
    values, kinds = load(return_X_y=True)
    return task(mlp(values.shape[1], len(set(kinds))), standard(values), kinds)


def convolution():
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 10)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """A branch that starts at zero, as many do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x):
        return self.o(x + self.b(torch.relu(self.a(x))))


def zero_head():
    model = mlp()()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


HEALTHY = {
    "digits": lambda: task(),
    "with tanh": lambda: task(mlp(64, 10, nn.Tanh)),
    "a linear classifier": lambda: task(lambda: nn.Linear(64, 10)),
    "a convolution with dropout": lambda: task(convolution, PIXELS.reshape(-1, 1, 8, 8)),
    "a residual branch that starts at zero": lambda: task(Residual),
    "a last layer that starts at zero": lambda: task(zero_head),
    "sorted by class": lambda: task(x=PIXELS[SORTED], y=DIGITS[SORTED]),
    "one class in ten": lambda: task(mlp(64, 2), y=(DIGITS == 3).astype(int)),
    "iris": lambda: table(load_iris),
    "wine": lambda: table(load_wine),
    "tumours": lambda: table(load_breast_cancer),
    "a regression": lambda: task(mlp(10, 1), standard(BODIES), column(standard(PROGRESS)), F.mse_loss),
    "another loss": lambda: task(mlp(10, 1), standard(BODIES), column(standard(PROGRESS)), nn.SmoothL1Loss()),
    "counts": lambda: task(mlp(10, 1), standard(BODIES), column(np.round(PROGRESS / 50)), nn.PoissonNLLLoss()),
    "an autoencoder": lambda: task(mlp(64, 64), y=None, loss=F.mse_loss),
    "two classes": lambda: task(mlp(64, 1), y=DIGITS[:, None] % 2 == 1, loss=F.binary_cross_entropy_with_logits),
    "an embedding": lambda: task(
        lambda: nn.Sequential(nn.Embedding(17, 8), nn.Flatten(), nn.Linear(512, 10)), (PIXELS * 16).astype(int)
    ),
    "twenty rows": lambda: task(x=PIXELS[:20], y=DIGITS[:20]),
    "one row": lambda: task(x=PIXELS[:1], y=DIGITS[:1]),
    "a step of one's own": lambda: task(loss=None, step=lambda m, b: F.cross_entropy(m(b[0]), b[1])),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_task_raises_no_alarm(case, seed):
    assert [str(found) for found in tw.check(HEALTHY[case](), seed=seed) if found.severity != "note"] == []


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_the_examples_raise_no_alarm(name):
    assert [str(found) for found in tw.check(examples.load(name)) if found.severity != "note"] == []


def dead():
    model = mlp()()
    nn.init.constant_(model[0].bias, -100.0)
    return model


def all_but_the_last_bias_frozen():
    model = mlp()().requires_grad_(False)
    model[-1].bias.requires_grad_(True)
    return model


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(64, 10), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def years():
    made = np.random.default_rng(0).integers(1990, 2020, (len(PIXELS), 1))
    return np.concatenate([standard(PIXELS), made], 1).astype(np.float32)


def shuffled():
    return np.random.default_rng(0).permutation(DIGITS)


def raw(load):
    values, kinds = load(return_X_y=True)
    return task(mlp(values.shape[1], len(set(kinds))), values.astype(np.float32), kinds)


def zero_loss(output, target):
    return F.cross_entropy(output, target) * 0


FAULTY = {
    "softmax before cross-entropy": (lambda: task(mlp(64, 10, nn.ReLU, nn.Softmax(1))), "softmax twice", "warning"),
    "the same, sorted by class": (
        lambda: task(mlp(64, 10, nn.ReLU, nn.Softmax(1)), PIXELS[SORTED], DIGITS[SORTED]),
        "softmax twice",
        "warning",
    ),
    "units that are all off": (lambda: task(dead), "output ignores input", "critical"),
    "inputs that are all alike": (lambda: task(x=PIXELS * 0 + 1), "output ignores input", "critical"),
    "labels that are all alike": (lambda: task(y=DIGITS * 0), "targets all alike", "warning"),
    "a few labels that are all alike": (lambda: task(x=PIXELS[:50], y=DIGITS[:50] * 0), "targets all alike", "warning"),
    "inputs and labels that are all alike": (
        lambda: task(x=PIXELS[:50] * 0, y=DIGITS[:50] * 0),
        "output ignores input",
        "critical",
    ),
    "labels that were shuffled": (lambda: task(y=shuffled()), "nothing carries over", "note"),
    "columns of unlike scale": (lambda: raw(load_wine), "columns of unlike scale", "warning"),
    "a column of years": (lambda: task(mlp(65), years()), "column far from zero", "warning"),
    "targets in the tens of thousands": (
        lambda: task(mlp(10, 1), standard(BODIES), column(PROGRESS * 1000), F.mse_loss),
        "large targets",
        "warning",
    ),
    "a net that is frozen up to its last bias": (
        lambda: task(all_but_the_last_bias_frozen),
        "one batch cannot be fitted",
        "warning",
    ),
    "bytes as they are": (lambda: task(x=(PIXELS * 255).astype(np.uint8)), "high start", "warning"),
    "a layer that is not used": (lambda: task(Unused), "parameter without gradient", "warning"),
    "a loss without slope": (lambda: task(loss=zero_loss), "no slope", "critical"),
    "pictures far from zero": (
        lambda: task(convolution, PIXELS.reshape(-1, 1, 8, 8) + 20),
        "inputs far from zero",
        "warning",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_fault_is_found_and_says_what_to_do(case):
    make, symptom, severity = FAULTY[case]
    found = {diagnosis.symptom: diagnosis for diagnosis in tw.check(make())}
    assert symptom in found
    assert found[symptom].severity == severity
    assert found[symptom].cure.action
    assert {"value", "threshold"} <= set(found[symptom].evidence[symptom])


def test_the_gravest_comes_first():
    order = [found.severity for found in tw.check(task(dead, x=PIXELS * 100))]
    assert order == sorted(order, key=["critical", "warning", "note"].index)


def test_a_parameter_without_gradient_is_named():
    found = next(found for found in tw.check(task(Unused)) if found.symptom == "parameter without gradient")
    assert "spare.weight, spare.bias" in found.cause
    assert found.evidence["parameters"] == ["spare.weight", "spare.bias"]


def test_check_leaves_the_model_as_it_was():
    model = mlp()()
    before = [p.detach().clone() for p in model.parameters()]
    tw.check(task(model))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_was_not_measured_is_not_judged():
    assert ask(Start(loss=2.3)) == []
