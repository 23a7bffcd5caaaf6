"""A cause is one file: the table follows the folder, and a third party's is asked wherever ours are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thalweg.sampling import Draw
from thalweg.watch import causes
from thalweg.watch.cause import Cause
from thalweg.watch.causes.bad_batch import large_rows
from thalweg.watch.replay import Batch

CAUSE = '''
"""Is the loss tall?"""

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause, each_step


def is_tall(window):
    if window.step < 20:
        return None
    cause = "the loss is taller than a house."
    return Diagnosis("tall", cause, "warning", step=window.step, since=20, evidence={"loss": {"value": window.loss}})


def stayed_tall(history):
    yield Diagnosis("tall at the end", "The loss never came down.", "warning", step=history.steps)


tall_loss = Cause(
    name="tall-loss",
    meaning="the loss is tall",
    during=each_step(is_tall),
    after=stayed_tall,
    cure=lambda window, attempt: Cure("Halve the rate from here on.", rate_factor=0.5),
)
'''

TASK = """
import torch
from torch import nn
import thalweg as tw

x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
task = tw.Task(model=lambda: nn.Linear(4, 2), loss=nn.functional.cross_entropy, data=(x, y), validation=(x, y))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds a third party's package with a cause, installed as pip would leave it."""
    (tmp_path / "theirs.py").write_text(CAUSE)
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[thalweg.causes]\ntall-loss = theirs:tall_loss\n")
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "thalweg", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_third_partys_cause_fires_is_shown_recorded_reported_and_diagnosed(installed: Path) -> None:
    done = command(installed, "train", "task.py", "--steps", "60", "--out", "run")
    assert done.returncode == 0, done.stderr
    message = "Step 20: the loss is taller than a house."
    assert message in done.stdout  # progress, as it happens
    assert "step 20: The loss is taller than a house." in done.stdout.partition("What happened")[2]  # the summary
    report = (installed / "run" / "report.html").read_text()
    assert "taller than a house" in report
    assert "tall loss" in report  # the legend of the chart's marks
    found = command(installed, "diagnose", "run")
    assert found.returncode == 10
    assert "warning: step 20: tall: the loss is taller than a house." in found.stdout
    assert "tall at the end" in found.stdout

    script = """
import json, thalweg as tw
run = tw.Run.open("run")
print(json.dumps({
    "kinds": [event.kind for event in run.events],
    "names": [found.name for found in tw.diagnose(run)],
    "rates": run.history["learning_rate"][1:].tolist(),
}))
"""
    asked = subprocess.run(
        [sys.executable, "-c", script],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *(p for p in sys.path if p)])},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    seen = json.loads(asked.stdout)
    assert seen["kinds"].count("tall-loss") == 1  # one episode, not one event per step
    assert seen["names"].count("tall-loss") == 2  # during the run, and of its history
    assert seen["rates"][19] == pytest.approx(2 * seen["rates"][20])  # the cure takes effect from the next step on
    assert "cure" in seen["kinds"]


class Point:
    name = "broken"

    def __init__(self, value: object) -> None:
        self.value = value

    def load(self) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ImportError("no theirs"), "fails"),
        (3.0, "gives a float"),
        (Cause("bad-data", "our name, for something else"), "gives a cause named 'bad-data', of which there is one"),
    ],
)
def test_an_entry_point_that_gives_no_new_cause_is_left_out_with_a_warning(value, words, monkeypatch) -> None:
    monkeypatch.setattr(causes, "entry_points", lambda group: [Point(value)])
    causes.all_causes.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"entry point 'broken' of group thalweg.causes {words}.*left out"):
            assert causes.all_causes() == tuple(causes.CAUSES.values())
    finally:
        causes.all_causes.cache_clear()


def batch_of(*tensors):
    return Batch(Draw([tensors], [len(tensors[0])], None), 0, 0)


@pytest.mark.parametrize(("which", "factor"), [("inputs", 300.0), ("targets", 1e4)])
def test_rows_of_another_size_are_found_in_inputs_and_targets(which, factor) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 6, generator=generator), torch.randn(32, generator=generator)
    assert large_rows(batch_of(x, y)) == ([], 0.0)
    for row in (3, 17):
        (x if which == "inputs" else y)[row] = factor
    rows, times = large_rows(batch_of(x, y))
    assert rows == [3, 17]
    assert times > 100


def test_numbers_that_are_distributed_as_incomes_hold_no_bad_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(32, 4, generator=generator).mul(1.5).exp() for _ in range(200)]
    assert sum(bool(large_rows(batch_of(x))[0]) for x in drawn) <= 2


def test_numbers_that_are_not_finite_zeros_and_integers_have_no_size() -> None:
    for x in (torch.zeros(32, 4), torch.full((32, 4), torch.nan), torch.arange(32), torch.empty(32, 0)):
        assert large_rows(batch_of(x)) == ([], 0.0)


def test_names_are_those_of_the_files() -> None:
    folder = Path(causes.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    assert files == set(causes.CAUSES)
    assert all(isinstance(cause, Cause) and cause.name == name for name, cause in causes.CAUSES.items())
