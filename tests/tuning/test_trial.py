import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.descent.settle import settle
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.task import Source
from thalweg.tuning.trial import evaluate

FILE = """
import torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw

def task(count=90):
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    model = lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    data, held_out = (x[:count], y[:count]), (x[count:], y[count:])
    accuracy = lambda outputs, targets: (outputs.argmax(1) == targets).float().mean()
    return tw.Task(model, F.cross_entropy, data, held_out, metrics={"accuracy": accuracy})
"""
ELSEWHERE = "import pickle, sys; f, *a = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(f(*a)))"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return Source(file=str(tmp_path / "mine.py"), arguments={"count": 80})


def settled(problem, **knobs):
    return settle(problem, Plan(**{"batch_size": 16, "learning_rate": 1e-2, **knobs}), Request(steps=12))


def test_a_trial_gives_the_same_bits_in_another_process(source):
    problem = open_task(source.load())
    plan = settled(problem)
    call = pickle.dumps((evaluate, source, plan))
    there = subprocess.run([sys.executable, "-c", ELSEWHERE], input=call, capture_output=True, check=True).stdout
    here = evaluate(problem, plan)
    assert set(here) == {"loss", "accuracy"}
    assert pickle.loads(there) == here == evaluate(source, plan) == evaluate(source.load(), plan)


def test_a_trial_gives_what_training_gives(source):
    problem = open_task(source.load())
    plan = settled(problem, keep="last")
    assert evaluate(problem, plan) == tw.train(source.load(), plan).metrics


def test_a_trial_that_diverges_gives_no_figures():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    problem = open_task(tw.Task(model=lambda: nn.Linear(3, 1), loss=F.mse_loss, data=(x, x[:, :1])))
    plan = settled(problem, rule="gradient_descent", learning_rate=1e4, snapshot_every=0)
    assert evaluate(problem, plan) == {}
