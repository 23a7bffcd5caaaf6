import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.descent.problem import pose
from thalweg.errors import PlanError
from thalweg.see.run_text import describe_cost
from thalweg.tuning.estimate import Cost, cost

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
PROBLEM = pose(tw.Task(model=lambda: nn.Linear(5, 3), loss=F.cross_entropy, data=(X, X[:, :3].argmax(1))))


def test_the_cost_is_steps_times_trainings():
    found = cost(PROBLEM, epochs=4, fixed={"batch_size": 30}, effort="quick")
    assert found[:3] == (12, 30, 2.0)
    assert found.seconds > 0


@pytest.mark.parametrize("fixed", [{"rule": "prodigy"}, {"learning_rate": 0.01}])
def test_where_no_rate_is_searched_the_cost_is_one_training(fixed):
    assert cost(PROBLEM, epochs=4, fixed={"batch_size": 30, **fixed}, effort="thorough").trainings == 1.0


def test_a_budget_of_seconds_is_the_cost():
    assert cost(PROBLEM, seconds=2.0, effort=4, fixed={"batch_size": 30}).seconds == 2.0


def test_it_is_said_in_a_sentence():
    told = describe_cost(Cost(1200, None, 4.0, 130.0))
    assert (
        told
        == "1,200 steps of all examples; with the search 4 trainings' worth: about 2 min 10 s, validation not counted"
    )


def test_it_refuses_what_tune_refuses():
    with pytest.raises(PlanError, match="no knob"):
        cost(PROBLEM, epochs=1, fixed={"lr": 1})
    with pytest.raises(PlanError, match="No budget"):
        cost(PROBLEM)
