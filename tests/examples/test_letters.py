import gzip
from importlib.resources import files

import example_claims as claims
import pytest
import torch

from thalweg.examples import letters, load


@pytest.fixture(scope="module")
def task():
    return load("letters")


def test_the_table_has_16_columns_and_26_letters(task):
    (x, y), (xv, yv) = claims.parts(task)
    assert (x.shape, xv.shape) == ((14933, 16), (3735, 16))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert set(y.tolist()) == set(yv.tolist()) == set(range(26))


def test_the_shipped_file_has_the_20_000_rows_of_the_source_and_1_332_of_them_repeat():
    lines = gzip.decompress(files("thalweg.examples").joinpath("letters.csv.gz").read_bytes()).decode("ascii").split()
    assert len(lines) == 20_000
    assert len(lines) - len(set(lines)) == 1_332
    assert sum(line.endswith(",A") for line in lines) == 789  # as the source's description counts them
    assert sum(line.endswith(",Z") for line in lines) == 734


def test_validation_holds_nothing_of_training(task):
    claims.holds_no_validation_row_in_training(task)


def test_each_letter_is_held_out_in_the_same_proportion(task):
    (_, y), (_, yv) = claims.parts(task)
    share = yv.bincount() / (y.bincount() + yv.bincount())
    assert float((share - 0.2).abs().max()) < 0.005


def test_columns_are_standardised_by_the_training_part_alone(task):
    (x, _), (xv, _) = claims.parts(task)
    assert float(x.double().mean(0).abs().max()) < 1e-5
    assert float((x.double().std(0, correction=0) - 1).abs().max()) < 1e-5
    assert float(xv.double().mean(0).abs().max()) > 1e-3  # had validation been looked at, this would be nearer to 0


def test_the_task_comes_out_the_same_each_time():
    claims.comes_out_the_same_each_time("letters")


def test_the_model_is_fresh_each_time_and_seeded_by_the_caller(task):
    claims.makes_another_model_each_time_from_the_callers_seed(task)


def test_the_loss_starts_near_the_constant_predictors(task):
    claims.starts_near_the_constant_predictor(task, within=0.1)


def test_the_model_can_fit_one_batch(task):
    claims.can_fit_one_batch(task, steps=40)


def test_accuracy_is_the_share_of_right_answers():
    assert letters.accuracy(torch.eye(26), torch.arange(26)) == 1.0
    assert letters.accuracy(torch.eye(26), (torch.arange(26) + 1) % 26) == 0.0
