"""`check`: the right finding on faulty tasks, and none on healthy ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine, make_moons
from torch import nn

import thalweg as tw
from thalweg import examples
from thalweg.landscape.initial_figures import Fit, InitialFigures, Repeats, Scale
from thalweg.watch.findings import findings_after_training, findings_before_training
from thalweg.watch.finished import FinishedHistory

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


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


FOUR = drawn(300, 4)  # four numbers, of which the first says it all
SIDE = (FOUR[:, 0] > 0).astype(np.int64)
BINARY = column(SIDE)
LINE = 2 * FOUR[:, :1] + 1
COIN = np.random.default_rng(1).integers(0, 2, 300)
MOONS, MOON = make_moons(300, noise=0.1, random_state=0)
RARE = (np.random.default_rng(2).uniform(size=2_000) < 0.02).astype(np.int64)


def small(inputs=4, outputs=2, *last, act=nn.ReLU):
    return lambda: nn.Sequential(nn.Linear(inputs, 16), act(), nn.Linear(16, outputs), *last)


def binary(model, x=FOUR, y=BINARY):
    return task(model, x, y, nn.BCEWithLogitsLoss())


def line(model, x=FOUR, y=LINE, loss=None):
    return task(model, x, y, loss or nn.MSELoss())


def zero_score():
    model = small(4, 1)()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def normed():
    return nn.Sequential(nn.BatchNorm1d(4, eps=1e-12), *small()())


class Restored(nn.Module):
    """Undoes the standardising of its targets itself."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(10, 1)()

    def forward(self, x):
        return 152 + 77 * self.inner(x)


def progress(scale=1.0, at=0.0):
    return column(scale * standard(PROGRESS) + at)


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
    "a linear classifier of few inputs": lambda: task(lambda: nn.Linear(4, 2), FOUR, SIDE),
    "a linear classifier of moons": lambda: task(lambda: nn.Linear(2, 2), MOONS, MOON),
    "a linear classifier of noise": lambda: task(lambda: nn.Linear(4, 2), FOUR, COIN),
    "a linear score of noise": lambda: binary(lambda: nn.Linear(4, 1), y=column(COIN)),
    "a linear regression": lambda: line(lambda: nn.Linear(4, 1)),
    "one weight": lambda: line(lambda: nn.Linear(1, 1), FOUR[:, :1], LINE + 3 * drawn(300, 1, seed=3)),
    "a score": lambda: binary(small(4, 1)),
    "a score that starts at zero": lambda: binary(zero_score),
    "a score of hidden tanh": lambda: binary(small(4, 1, act=nn.Tanh)),
    "a score of three rows": lambda: binary(small(4, 1), FOUR[:3], BINARY[:3]),
    "a score of twenty thousand": lambda: binary(small(4, 1), drawn(20_000, 4), column(drawn(20_000, 4)[:, 0] > 0)),
    "many scores": lambda: task(mlp(), y=np.eye(10, dtype=np.float32)[DIGITS], loss=nn.BCEWithLogitsLoss()),
    "a probability": lambda: task(small(4, 1, nn.Sigmoid()), FOUR, BINARY, nn.BCELoss()),
    "log-probabilities": lambda: task(small(4, 2, nn.LogSoftmax(1)), FOUR, SIDE, nn.NLLLoss()),
    "a sigmoid for targets in its range": lambda: line(small(4, 1, nn.Sigmoid()), y=BINARY),
    "a tanh for targets in its range": lambda: line(small(4, 1, nn.Tanh()), y=np.sin(LINE)),
    "an exponential for positive targets": lambda: line(small(4, 1, nn.Softplus()), y=LINE**2),
    "an autoencoder with a narrow middle": lambda: task(
        lambda: nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 64), nn.Sigmoid()), y=None, loss=F.mse_loss
    ),
    "an autoencoder of tanh": lambda: task(mlp(64, 64, nn.ReLU, nn.Tanh()), 2 * PIXELS - 1, None, F.mse_loss),
    "one small filter": lambda: task(
        lambda: nn.Conv2d(1, 1, 3, padding=1),
        PIXELS.reshape(-1, 1, 8, 8),
        PIXELS.reshape(-1, 1, 8, 8)[::-1].copy(),
        F.mse_loss,
    ),
    "targets in the tens": lambda: line(mlp(10, 1), standard(BODIES), progress(9, 22)),
    "small targets": lambda: line(mlp(10, 1), standard(BODIES), progress(0.02)),
    "targets that the model scales itself": lambda: line(Restored, standard(BODIES), column(PROGRESS)),
    "tiny inputs that the model scales itself": lambda: task(normed, FOUR * 1e-3, SIDE),
    "one-hot rows": lambda: task(mlp(300, 2), np.eye(300, dtype=np.float32), SIDE),
    "one in fifty": lambda: task(mlp(4, 2), drawn(2_000, 4) + 2 * column(RARE), RARE),
    "one in fifty, weighted": lambda: task(
        mlp(4, 2), drawn(2_000, 4) + 2 * column(RARE), RARE, nn.CrossEntropyLoss(torch.tensor([1.0, 49.0]))
    ),
    "smoothed labels": lambda: task(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a small table whose rows repeat": lambda: task(
        small(), FOUR[:200] > 0, SIDE[:200], validation=(FOUR[200:] > 0, SIDE[200:])
    ),
    "validation of other rows": lambda: task(
        x=PIXELS[:1500], y=DIGITS[:1500], validation=(PIXELS[1500:], DIGITS[1500:])
    ),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_task_raises_no_alarm(case, seed):
    assert [str(found) for found in tw.check(HEALTHY[case](), seed=seed) if found.severity != "note"] == []


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["digits", "letters"])
def test_the_examples_are_clean(name, seed):
    assert [str(found) for found in tw.check(examples.load(name), seed=seed)] == []


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
    "softmax before cross-entropy": (
        lambda: task(mlp(64, 10, nn.ReLU, nn.Softmax(1))),
        "softmax twice",
        "warning",
    ),
    "the same, sorted by class": (
        lambda: task(mlp(64, 10, nn.ReLU, nn.Softmax(1)), PIXELS[SORTED], DIGITS[SORTED]),
        "softmax twice",
        "warning",
    ),
    "units that are all off": (lambda: task(dead), "output ignores input", "critical"),
    "inputs that are all alike": (lambda: task(x=PIXELS * 0 + 1), "output ignores input", "critical"),
    "labels that are all alike": (lambda: task(y=DIGITS * 0), "targets all alike", "warning"),
    "a few labels that are all alike": (
        lambda: task(x=PIXELS[:50], y=DIGITS[:50] * 0),
        "targets all alike",
        "warning",
    ),
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
    "scores where log-probabilities are due": (
        lambda: task(small(), FOUR, SIDE, nn.NLLLoss()),
        "no log-probabilities",
        "critical",
    ),
    "probabilities where their logarithms are due": (
        lambda: task(small(4, 2, nn.Softmax(1)), FOUR, SIDE, F.nll_loss),
        "no log-probabilities",
        "critical",
    ),
    "sigmoid before its own loss": (lambda: binary(small(4, 1, nn.Sigmoid())), "squashed scores", "warning"),
    "sigmoid before its own loss, one in ten": (
        lambda: task(mlp(64, 1, nn.ReLU, nn.Sigmoid()), y=column(DIGITS == 3), loss=F.binary_cross_entropy_with_logits),
        "squashed scores",
        "warning",
    ),
    "tanh before cross-entropy": (
        lambda: task(mlp(64, 10, nn.ReLU, nn.Tanh())),
        "squashed scores",
        "warning",
    ),
    "sigmoid and targets beyond": (
        lambda: line(small(4, 1, nn.Sigmoid()), y=10 * LINE),
        "targets out of reach",
        "warning",
    ),
    "tanh and standardised targets": (
        lambda: line(small(10, 1, nn.Tanh()), standard(BODIES), progress(), nn.L1Loss()),
        "targets out of reach",
        "warning",
    ),
    "ReLU and targets of either sign": (
        lambda: line(small(10, 1, nn.ReLU()), standard(BODIES), progress(), lambda o, t: ((o - t) ** 2).mean()),
        "targets out of reach",
        "warning",
    ),
    "diabetes as it is": (
        lambda: line(small(10, 1), BODIES.astype(np.float32), column(PROGRESS)),
        "large targets",
        "warning",
    ),
    "whole numbers as targets": (
        lambda: line(small(10, 1), standard(BODIES), PROGRESS.astype(np.int64)[:, None]),
        "large targets",
        "warning",
    ),
    "targets far away": (lambda: line(small(4, 1), y=20 + 0.1 * LINE), "targets far from zero", "warning"),
    "targets of thousandths": (lambda: line(small(4, 1), y=1e-3 * LINE), "small targets", "warning"),
    "tiny inputs": (lambda: task(small(), FOUR * 1e-3, SIDE), "tiny inputs", "warning"),
    "validation from the training rows": (
        lambda: task(validation=(PIXELS[:50], DIGITS[:50])),
        "validation repeats training",
        "warning",
    ),
    "one validation row from training": (
        lambda: task(x=PIXELS[:1501], y=DIGITS[:1501], validation=(PIXELS[1500:], DIGITS[1500:])),
        "validation repeats training",
        "note",
    ),
    "pictures far from zero": (
        lambda: task(convolution, PIXELS.reshape(-1, 1, 8, 8) + 20),
        "inputs far from zero",
        "warning",
    ),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", FAULTY)
def test_a_fault_is_found_and_says_what_to_do(case, seed):
    make, symptom, severity = FAULTY[case]
    found = {diagnosis.symptom: diagnosis for diagnosis in tw.check(make(), seed=seed)}
    assert symptom in found
    assert found[symptom].severity == severity
    assert found[symptom].cure.action
    figures = [figure for figure in found[symptom].evidence.values() if isinstance(figure, dict)]
    assert {"value", "threshold"} <= set(figures[0])
    assert symptom not in found[symptom].evidence


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
    assert findings_before_training(InitialFigures(loss=2.3)) == []


SLOW = Fit(started=2.3, reached=2.29, goal=2.1, ample=1.5, constant=2.2, examples=32, steps=100, rate=0.03)


def test_a_batch_that_cannot_be_fitted_is_told_with_what_it_is_compared_with():
    found = findings_before_training(InitialFigures(loss=2.3, fit=SLOW))[0]
    assert found.symptom == "one batch cannot be fitted"
    assert "from 2.3 to 2.29" in found.cause
    assert "one fixed answer for all gives 2.2" in found.cause
    assert found.evidence == {"loss after 100 steps": {"value": 2.29, "threshold": 2.1}}


def test_what_follows_from_a_known_cause_is_no_finding_of_its_own():
    found = findings_before_training(
        InitialFigures(loss=2.3, fit=SLOW, scale={"inputs": Scale(0.0, 1e-3, -2e-3, 2e-3)})
    )
    assert [f.symptom for f in found] == ["tiny inputs"]
    assert found[0].consequences == ("one batch cannot be fitted",)


def test_a_cure_names_the_numbers_to_standardise_by():
    found = tw.check(FAULTY["diabetes as it is"][0]())
    assert [f.symptom for f in found if f.severity != "note"] == ["large targets"]
    assert "mean 152 and standard deviation 77" in found[0].cause
    assert "77.1 * output + 152" in found[0].cure.action


@pytest.mark.parametrize(
    ("repeats", "severity"),
    [
        (Repeats(50, 100, 0.0, ((3, 7),)), "warning"),
        (Repeats(2, 100, 0.0, ((3, 7),)), "note"),
        (Repeats(11, 100, 0.1, ((3, 7),)), None),  # rows of this table repeat anyway
        (Repeats(30, 100, 0.1, ((3, 7),)), "warning"),
        (Repeats(90, 100, 0.9, ((3, 7),)), "note"),
        (Repeats(0, 100, 0.0, ()), None),
    ],
)
def test_more_twins_than_training_rows_have_among_themselves_are_a_leak(repeats, severity):
    found = findings_before_training(InitialFigures(loss=1.0, repeats=repeats))
    assert [f.severity for f in found] == ([severity] if severity else [])
    assert all("3 (training 7)" in f.cause and f.examples == (7,) for f in found)


def history(losses, validation, **more):
    """A finished run with these validation losses, evenly spaced, and this course of the training loss."""
    steps = np.arange(1.0, len(losses) + 1)
    row = np.full(len(losses), np.nan)
    row[np.linspace(0, len(losses) - 1, len(validation)).round().astype(int)] = validation
    columns = {
        "step": steps,
        "loss": np.array(losses),
        "learning_rate": np.full(len(losses), 1e-3),
        "validation/loss": row,
    }
    figures = {
        "initial": {"loss": validation[0]},
        "final": {"loss": validation[-1]},
        "validated": True,
        "plan": tw.Plan(),
    }
    return FinishedHistory(columns, steps=len(losses), **{**figures, **more})


def fall(count=200, to=0.1):
    return np.geomspace(2.0, to, count)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (history(fall(), [2.0, 1.0, 0.6, 0.5, 0.4, 0.3]), []),
        (history(fall(), [2.0, 0.8, 0.5, 0.7, 0.9, 1.0]), ["overfitting"]),
        (history(fall()[::-1], [2.0, 0.8, 0.5, 0.7, 0.9, 1.0]), ["learning-rate-too-high"]),
        (history(fall(), [2.0, 1.99, 1.98, 1.97, 1.96, 1.95]), ["learning-rate-too-low"]),
        (history(fall(), [2.0, 2.0, 2.01, 2.0, 2.01, 2.0]), ["nothing-learnt"]),
        (history(fall(), [2.0, 2.1, 2.4, 2.5, 2.6, 2.7]), ["nothing-learnt"]),
        (history(fall(), [2.0, 1.0, 0.6, 0.5, 0.4, 0.3], summary={"idle_parameters": ["spare"]}), ["unused-parameter"]),
        (history(fall(), [2.0, 0.8, 0.5, 0.7, 0.9, 1.0], status="running"), []),
    ],
)
def test_a_finished_history_is_asked_too(seen, names):
    assert [found.name for found in findings_after_training(seen)] == names


def test_without_a_plan_what_needs_none_is_found_all_the_same():
    assert [f.name for f in findings_after_training(history(fall(), [2.0, 0.8, 0.5, 0.7, 0.9, 1.0], plan=None))] == [
        "overfitting"
    ]


def test_what_was_found_before_training_is_not_found_again_after_it():
    run = tw.train(task(Unused), tw.Plan(learning_rate=3e-3), epochs=1)
    assert [found.name for found in tw.diagnose(run)].count("unused-parameter") == 1
    checked = tw.fit(task(Unused), epochs=1, effort=1)
    assert [found.name for found in tw.diagnose(checked)].count("unused-parameter") == 1


def test_what_an_older_run_found_before_training_without_a_name_is_not_found_again():
    run = tw.fit(task(Unused), epochs=1, effort=1)
    unnamed = tuple(replace(found, name="") for found in run.diagnoses)
    assert len(tw.diagnose(replace(run, diagnoses=unnamed))) == len(tw.diagnose(run))
