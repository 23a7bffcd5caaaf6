"""Rules against published optimisers: two hundred steps that those took once, kept in `golden` (how: `golden/make.py`).

A rule that is not there (yet) is left out; golden files of further packages are found by themselves.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bowl import Bowl, joined, rates

from thalweg.optim import Optimizer
from thalweg.rules import RULES

FOLDER = Path(__file__).parent / "golden"
ULP = 2.0**-23
ENGINES = ("cpu", "tensors")


def found():
    for path in sorted(FOLDER.glob("*.json")):
        file = json.loads(path.read_text("utf-8"))
        for case in file["cases"]:
            yield {"file": path.stem, "steps": file["steps"], **case}


EVERY = list(found())
THERE = [case for case in EVERY if case["rule"] in RULES]
CASES = [pytest.param(case, id=f"{case['file']}-{case['case']}") for case in THERE]


class Walk:
    """A rule on the way that a case's reference took."""

    def __init__(self, case, engine, dtype=torch.float64):
        self.bowl = Bowl(case["shapes"], case["away"], case["steep"])
        self.dtype, self.rates = dtype, rates(case["rates"], case["lr"])
        self.weights = [torch.tensor(w, dtype=dtype) for w in self.bowl.split(self.bowl.start)]
        options = {"weight_decay": 0.0, **case["options"]}
        self.optimizer = Optimizer(self.weights, case["rule"], lr=case["lr"], engine=engine, **options)

    def step(self, gradient, step):
        for w, g in zip(self.weights, self.bowl.split(gradient), strict=True):
            w.grad = torch.tensor(g, dtype=self.dtype)
        self.optimizer.param_groups[0]["lr"] = self.rates[step - 1]
        self.optimizer.step()

    def flat(self):
        return joined(w.numpy() for w in self.weights)


def kept(case, what="w"):
    with np.load(FOLDER / f"{case['file']}.npz", allow_pickle=False) as arrays:
        return dict(zip(case["steps"], arrays[f"{case['case']}.{what}"], strict=True))


def has(case, what):
    with np.load(FOLDER / f"{case['file']}.npz", allow_pickle=False) as arrays:
        return f"{case['case']}.{what}" in arrays


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_two_hundred_steps_are_the_references(case, engine):
    walk, expected = Walk(case, engine), kept(case)
    averages = kept(case, "x") if has(case, "x") else {}
    found = dict(zip(case["steps"], case.get("d", []), strict=False))
    for step in range(1, max(expected) + 1):
        walk.step(walk.bowl.gradient(walk.flat(), step), step)
        near = {"rtol": case["within"], "atol": case["within"]}
        if step in expected:
            np.testing.assert_allclose(walk.flat(), expected[step], **near, err_msg=f"step {step}")
        if step in averages:
            with walk.optimizer.averaged():
                np.testing.assert_allclose(walk.flat(), averages[step], **near, err_msg=f"average at step {step}")
        if step in found:
            assert walk.optimizer.state[walk.weights[0]]["d"].item() == pytest.approx(found[step], rel=case["within"])
