"""Two tasks have the same fingerprint where they do the same, and where they differ it says in what."""

import functools
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.records.fingerprint import changes, fingerprint

FILE = """
import functools
import torch.nn.functional as F
from torch import nn
import thalweg as tw

SMOOTHING = 0.1
calls = 0

def penalty(output):
    return 0.01 * output.square().mean()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.inner(x)).relu()

class Ratio:
    def __init__(self, floor):
        self.floor = floor

    def __call__(self, outputs, targets):
        return self.floor

def loss(output, target, scale=1.0):
    global calls
    calls += 1
    return scale * F.cross_entropy(output, target, label_smoothing=SMOOTHING) + penalty(output)

def collate(rows):
    return [row for row in rows if row in {1, 2, 3}]

task = tw.Task(model=Net, loss=loss, data=([[1.0]], [1]), validation=([[1.0]], [1]), collate_fn=collate,
               metrics={"accuracy": Ratio(0.5), "share": functools.partial(F.mse_loss, reduction="sum")})
"""
EDITS = {
    "nothing": ("", "", []),
    "a comment and the layout": ("    calls += 1", "    calls += 1  # so far\n", []),
    "a counter": ("calls = 0", "calls = 7", []),
    "the loss": ("return scale", "return 2 * scale", ["`loss` has other code"]),
    "a constant that the loss uses": ("SMOOTHING = 0.1", "SMOOTHING = 0.2", ["`loss` has other code"]),
    "a function that the loss uses": ("0.01 * output", "0.02 * output", ["`loss` has other code"]),
    "a default": ("scale=1.0", "scale=3.0", ["`loss` has other code"]),
    "dropout": (
        "nn.Dropout(0.5)",
        "nn.Dropout(0.1)",
        [
            "`model` has other code",
            "class Net has other code",
            "model.drop was Dropout(p=0.5, inplace=False) and is Dropout(p=0.1, inplace=False)",
        ],
    ),
    "the forward pass": (".relu()", ".tanh()", ["`model` has other code", "class Net has other code"]),
    "the collation": ("{1, 2, 3}", "{1, 2, 4}", ["`collate_fn` has other code"]),
    "an object's settings": ("Ratio(0.5)", "Ratio(0.6)", ["metric 'accuracy' has other code"]),
    "a partial's settings": ('reduction="sum"', 'reduction="mean"', ["metric 'share' has other code"]),
    "a metric less": (', "share": functools.partial(F.mse_loss, reduction="sum")', "", ["metric 'share' is gone"]),
}


def loaded(folder, text, name="edited"):
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.task


def taken(task):
    return fingerprint(task, task.make_model())


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_said_and_what_does_the_same_is_not(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    old, new, told = EDITS[edit]
    assert old in FILE
    edited = loaded(tmp_path, FILE.replace(old, new), "other")
    assert changes(taken(loaded(tmp_path, FILE)), taken(edited)) == told


def test_modules_are_compared_by_their_settings():
    def made(**loss):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, **({"momentum": 0.2} if loss else {})))
        return taken(tw.Task(model=model, loss=nn.CrossEntropyLoss(**loss), data=([[1.0]], [1])))

    assert changes(made(), made()) == []
    told = changes(made(), made(label_smoothing=0.1))
    assert any("momentum=0.1" in line and "momentum=0.2" in line and line.startswith("model.1 was") for line in told)
    assert any(line.startswith("loss was CrossEntropyLoss(") and "label_smoothing=0.1" in line for line in told)
    assert len(told) == 2


def test_closures_and_lambdas_are_compared_by_what_they_hold():
    def made(p):
        return taken(
            tw.Task(model=lambda: nn.Dropout(0.1), loss=lambda o, t: p * F.mse_loss(o, t), data=([[1.0]], [1]))
        )

    assert changes(made(1.0), made(1.0)) == []
    assert changes(made(1.0), made(2.0)) == ["`loss` has other code"]
    one = taken(tw.Task(model=nn.Identity, loss=functools.partial(F.mse_loss), data=([[1.0]], [1])))
    assert changes(one, made(1.0)) != []


def test_another_python_compiles_otherwise_and_settings_stay_comparable():
    before = {"python": "3.10", "`loss`": "a", "model.1": "Dropout(p=0.5)"}
    now = {"python": "3.11", "`loss`": "b", "model.1": "Dropout(p=0.1)"}
    assert changes(before, now) == ["model.1 was Dropout(p=0.5) and is Dropout(p=0.1)"]
    assert changes({}, now) == changes(before, {}) == []


def test_a_large_model_is_kept_small_and_an_odd_one_is_unknown():
    model = nn.Sequential(*(nn.Dropout(0.5) for _ in range(600)))
    large = taken(tw.Task(model=model, loss=F.mse_loss, data=([[1.0]], [1])))
    assert len(large) < 10
    model[17].p = 0.1
    told = changes(large, taken(tw.Task(model=model, loss=F.mse_loss, data=([[1.0]], [1]))))
    assert told == ["the settings of the modules are others"]

    class Odd:
        @property
        def __dict__(self):
            raise ZeroDivisionError

        def __call__(self, *given): ...

    assert fingerprint(tw.Task(model=nn.Identity, loss=Odd(), data=([[1.0]], [1])), nn.Identity()) == {}


def test_another_process_takes_the_same_fingerprint(tmp_path):
    (tmp_path / "edited.py").write_text(FILE)
    code = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from edited import task
        from thalweg.records.fingerprint import fingerprint
        print(fingerprint(task, task.make_model()))
    """)
    shown = {
        subprocess.run(
            [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for environment in ({**os.environ, "PYTHONHASHSEED": str(seed)} for seed in (1, 2))
    }
    assert len(shown) == 1
    assert "`loss`" in shown.pop()
