"""Steppers are measured only where they take the same steps, and a missing one is left out."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import step

BENCH = Path(step.__file__).parent


@pytest.mark.parametrize("name", ["torch", "thalweg"])
def test_a_peer_comes_as_far_down_its_gradients_as_adamw_written_out(name):
    generator = torch.Generator().manual_seed(0)
    starts, gradients = ([torch.randn(s, generator=generator) for s in [(7, 5), (5,)]] for _ in range(2))
    stepper = importlib.import_module(f"peers.steps.{step.PEERS[name]}").make(starts)
    for _ in range(3):
        stepper.prepare(gradients)
        stepper.step()
    # The same gradient each time: both averages, freed of their bias, are the gradient and its square.
    length = torch.cat([g.flatten() for g in gradients]).norm()
    for w, start, g in zip(stepper.weights(), starts, gradients, strict=True):
        clipped, expected = g / length, start
        for _ in range(3):
            expected = expected * (1 - 1e-5) - 1e-3 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(w, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [(0.9, -0.01), (1.0, 0.0)], ids=["shorter", "no decay"])
def test_a_peer_that_takes_other_steps_is_refused(wrong):
    step.check({"torch": (1.0, -0.01), "other": (1.001, -0.0101)})
    with pytest.raises(RuntimeError, match="other takes other steps"):
        step.check({"torch": (1.0, -0.01), "other": wrong})


def test_a_peer_that_is_not_there_says_so():
    command = [sys.executable, str(BENCH / "stepper.py"), "nobody", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"missing": "no package peers.steps.nobody"}


def test_every_peer_has_its_file():
    files = {path.stem for path in (BENCH / "peers" / "steps").glob("*.py")}
    assert files == {*step.PEERS.values(), "__init__", "sequence"}
