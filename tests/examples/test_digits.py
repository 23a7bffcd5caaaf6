import example_claims as claims
import pytest
import torch

from thalweg.errors import TaskError
from thalweg.examples import digits, load


@pytest.fixture(scope="module")
def task():
    return load("digits")


def test_images_are_rows_of_64_pixels_from_0_to_1(task):
    (x, y), (xv, yv) = claims.parts(task)
    assert (x.shape, xv.shape) == ((1438, 64), (359, 64))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert float(x.min()) == 0.0
    assert float(x.max()) == 1.0
    assert set(y.tolist()) == set(yv.tolist()) == set(range(10))


def test_each_digit_is_held_out_in_the_same_proportion(task):
    (_, y), (_, yv) = claims.parts(task)
    share = yv.bincount() / (y.bincount() + yv.bincount())
    assert float((share - 0.2).abs().max()) < 0.01


def test_validation_holds_nothing_of_training(task):
    claims.holds_no_validation_row_in_training(task)


def test_the_task_comes_out_the_same_each_time():
    claims.comes_out_the_same_each_time("digits")


def test_the_model_is_fresh_each_time_and_seeded_by_the_caller(task):
    claims.makes_another_model_each_time_from_the_callers_seed(task)


def test_the_loss_starts_near_the_constant_predictors(task):
    claims.starts_near_the_constant_predictor(task, within=0.1)


def test_the_model_can_fit_one_batch(task):
    claims.can_fit_one_batch(task, steps=40)


def test_accuracy_is_the_share_of_right_answers():
    scores = torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0], [5.0, 1.0]])
    assert digits.accuracy(scores, torch.tensor([1, 0, 0, 0])) == 0.75


def test_a_wrong_share_is_refused():
    with pytest.raises(TaskError, match="held_out is 20"):
        load("digits", held_out=20)
