"""The survey at the end of a `fit`: that it changes nothing, keeps to its share, and fails no run."""

import json

import numpy as np
import pytest
import torch
from small import blobs, classes, network, plan, weights
from torch import nn

import thalweg as tw
from thalweg import cli
from thalweg.descent import brief_survey as brief
from thalweg.errors import Interrupted

TASK = """
import torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw

def task() -> tw.Task:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=draw)
    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return tw.Task(model=model, loss=F.cross_entropy, data=(x, x[:, :3].argmax(1)))
"""


@pytest.fixture
def unhurried(monkeypatch):
    """So much time that the machine's load decides nothing."""
    monkeypatch.setattr(brief, "SHARE", 1e4)


def dropping():
    return network(nn.BatchNorm1d(12), nn.Dropout(0.3))


def test_a_run_and_the_process_are_the_same_bit_for_bit_with_it_and_without(unhurried):
    runs, states = [], []
    for survey in (True, False):
        torch.manual_seed(3)
        runs.append(tw.fit(classes(model=dropping), steps=30, effort=1, fixed={"batch_size": 16}, survey=survey))
        states.append(torch.get_rng_state())
    with_it, without = runs
    assert torch.equal(weights(with_it.model), weights(without.model))
    for one, other in zip(with_it.model.buffers(), without.model.buffers(), strict=True):
        assert torch.equal(one, other)
    assert np.array_equal(with_it.history["loss"], without.history["loss"], equal_nan=True)
    assert with_it.metrics == without.metrics
    assert torch.equal(*states)
    assert with_it.model.training is without.model.training is False
    assert without.survey is None
    assert with_it.survey is not None


def test_its_figures_are_those_of_a_survey_of_all_where_it_sees_all(unhurried):
    run = tw.train(classes(), plan(steps=60), survey=True)
    found, whole = run.survey, tw.survey(run, slices=False)
    assert found.examples == found.total == whole.total
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert found.eigenvalues[0] == pytest.approx(whole.eigenvalues[0], rel=0.02)
    assert found.kind == whole.kind
    assert not found.complete
    assert any("brief survey" in note for note in found.notes)


def test_as_many_examples_are_looked_at_as_the_share_of_the_trainings_gradients_pays_for(monkeypatch):
    monkeypatch.setattr(brief, "LEAST_SECONDS", -1.0)
    run = tw.train(classes(data=blobs(900), validation=None, metrics={}), plan(steps=400, batch_size=32))
    looked = brief._examples(run)
    assert looked == max(brief.FEWEST_EXAMPLES, int(0.06 * 400 * 32 / brief.COST))
    assert looked * brief.COST <= max(brief.FEWEST_EXAMPLES * brief.COST, 0.06 * 400 * 32)
    assert brief._largest_part(run) == 32


def test_in_a_training_too_short_for_it_there_is_none_and_one_sentence_says_so(monkeypatch):
    said = []
    run = tw.fit(classes(), steps=3, effort=1, fixed={"batch_size": 16}, say=said.append)
    assert run.survey is None
    assert sum("too short for a survey" in text for text in said) == 1
    monkeypatch.setattr(brief, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(brief, "SHARE", 1e-9)
    assert tw.train(classes(), plan(), survey=True).survey is None


def test_what_goes_wrong_is_said_once_and_the_run_stands(unhurried):
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            Counting.calls += 1
            return self.inner(x) * (1 + Counting.calls / 1e6)

    said = []
    run = tw.train(classes(model=Counting), plan(), survey=True, say=said.append)
    assert run.summary["status"] == "finished"
    assert run.survey is None
    assert [text for text in said if "There is no survey" in text and "differs between two calls" in text]
    assert sum("survey" in text for text in said) == 1


def test_interrupted_in_it_the_run_is_finished_and_kept_with_its_report(unhurried, tmp_path, monkeypatch):
    def stop(*given, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(brief, "find_place", stop)
    whole = tw.train(classes(), plan())
    with pytest.raises(Interrupted, match="only the survey is missing") as stopped:
        tw.train(classes(), plan(), survey=True, out=tmp_path / "run")
    assert torch.equal(weights(stopped.value.run.model), weights(whole.model))
    opened = tw.Run.open(tmp_path / "run", classes())
    assert opened.summary["status"] == "finished"
    assert opened.survey is None
    assert (tmp_path / "run" / "report.html").exists()


def test_the_command_surveys_a_fit_unless_told_not_to(unhurried, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK)
    few = ["mine.py", "--steps", "20", "--quiet", "--out"]
    assert cli.main(["fit", *few, "with", "--effort", "1"]) == 0
    found = tw.Survey.load("with/survey.json")
    assert found.kind
    assert tw.Run.open("with").survey.to_json() == found.to_json()
    assert "Where it ended" in (tmp_path / "with" / "report.html").read_text()
    assert cli.main(["fit", *few, "without", "--effort", "1", "--no-survey"]) == 0
    assert not (tmp_path / "without" / "survey.json").exists()
    assert cli.main(["train", *few, "trained"]) == 0
    assert not (tmp_path / "trained" / "survey.json").exists()
    assert cli.main(["train", *few, "surveyed", "--survey"]) == 0
    assert json.loads((tmp_path / "surveyed" / "survey.json").read_text())["parameters"] == 67
    capsys.readouterr()
