import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import DataError
from thalweg.sampling.holdout import (
    at_random,
    by_class,
    by_group,
    by_time,
    class_codes,
    group_codes,
    time_codes,
    usual_share,
)

codes = st.lists(st.integers(0, 6), min_size=2, max_size=120).map(
    lambda c: torch.tensor(c).unique(return_inverse=True)[1]
)


def is_a_part(positions, count):
    ordered = positions.tolist()
    return ordered == sorted(set(ordered)) and all(0 <= p < count for p in ordered)


@given(codes, st.floats(0.05, 0.5), st.integers(0, 99))
def test_each_class_gives_its_share_to_less_than_one_example_and_keeps_one(codes, share, seed):
    wanted = max(1, round(share * len(codes)))
    held = by_class(codes, wanted, seed)
    assert is_a_part(held, len(codes))
    assert len(held) <= wanted
    sizes, numbers = torch.bincount(codes), torch.bincount(codes[held], minlength=int(codes.max()) + 1)
    assert (numbers < sizes).all()
    assert (numbers <= sizes * wanted / len(codes) + 1).all()
    assert (numbers >= torch.minimum((sizes * wanted / len(codes)).floor(), sizes - 1)).all()
    if sizes.min() > 1:
        assert len(held) == wanted or (numbers == sizes - 1).any()


def test_a_rare_class_of_one_stays_in_training_and_equal_classes_are_held_out_alike():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2])
    held = by_class(labels, 20, seed=3)
    assert torch.bincount(labels[held], minlength=3).tolist() == [10, 10, 0]


@given(codes, st.floats(0.05, 0.5), st.integers(0, 99))
def test_a_group_is_never_on_both_sides(codes, share, seed):
    held = by_group(codes, max(1, round(share * len(codes))), seed)
    assert is_a_part(held, len(codes))
    others = torch.tensor([p for p in range(len(codes)) if p not in set(held.tolist())])
    assert len(others)
    assert not set(codes[held].tolist()) & set(codes[others].tolist())


def test_groups_come_as_near_to_the_share_as_they_can_and_one_group_cannot_be_split():
    small = torch.arange(100) // 2
    assert len(by_group(small, 20, seed=0)) == 20
    assert len(by_group(torch.tensor([0] * 60 + [1] * 40), 20, seed=0)) == 40
    assert len(by_group(torch.zeros(10, dtype=torch.int64), 2, seed=0)) == 0


@given(codes, st.floats(0.05, 0.5))
def test_the_last_stretch_of_time_is_held_out_and_nothing_of_one_time_is_on_both_sides(codes, share):
    held = by_time(codes, max(1, round(share * len(codes))))
    assert is_a_part(held, len(codes))
    others = torch.tensor([p for p in range(len(codes)) if p not in set(held.tolist())])
    if len(codes.unique()) == 1:
        assert not len(held)
    else:
        assert codes[others].max() < codes[held].min()


def test_a_split_is_a_function_of_the_seed():
    assert torch.equal(at_random(100, 20, 1), at_random(100, 20, 1))
    assert not torch.equal(at_random(100, 20, 1), at_random(100, 20, 2))
    labels = torch.arange(100) % 5
    assert not torch.equal(by_class(labels, 20, 1), by_class(labels, 20, 2))
    assert not torch.equal(by_group(labels, 20, 1), by_group(labels, 20, 4))


def test_a_fifth_but_at_most_ten_thousand_is_usual():
    assert usual_share(1_000) == 0.2
    assert round(usual_share(1_000_000) * 1_000_000) == 10_000
    assert usual_share(3) == 0.0


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (torch.arange(40) % 4, 4),
        (torch.arange(40)[:, None] % 4, 4),
        (torch.arange(40) % 2 == 0, 2),
        ((torch.arange(40) % 2).float(), 2),
        (torch.eye(4)[torch.arange(40) % 4], 4),
        (torch.rand(40), None),
        (torch.arange(40), None),
        (torch.zeros(40, 3, 3, dtype=torch.int64), None),
        ((torch.rand(40, 5) < 0.5).float(), None),
    ],
)
def test_classes_are_told_from_numbers(target, classes):
    codes = class_codes(target)
    assert (None if codes is None else len(codes.unique())) == classes


days = pd.date_range("2024-01-01", periods=6, tz="Europe/Berlin")


@pytest.mark.parametrize(
    "times",
    [
        [3, 1, 2, 0, 5, 4],
        np.array([3.0, 1.0, 2.0, 0.0, 5.0, 4.0]),
        torch.tensor([3, 1, 2, 0, 5, 4]),
        np.datetime64("2024-01-01") + np.array([3, 1, 2, 0, 5, 4]),
        pd.Series(days)[[3, 1, 2, 0, 5, 4]],
        [str(day) for day in days[[3, 1, 2, 0, 5, 4]]],
    ],
)
def test_times_of_any_kind_are_ordered(times):
    assert time_codes(times, 6, "series").tolist() == [3, 1, 2, 0, 5, 4]


@pytest.mark.parametrize(
    "groups", [["a", "b", "a"], np.array(["a", "b", "a"]), pd.Series(["a", "b", "a"]).astype("category")]
)
def test_groups_of_any_kind_are_coded(groups):
    assert group_codes(groups, 3, "groups").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("codes", "values", "message"),
    [
        (
            group_codes,
            "patient",
            "`groups` is 'patient'. Give one value per example: an array, a list or a frame's column.",
        ),
        (group_codes, 7, "`groups` is a int. Give one value per example"),
        (group_codes, [1, 2], "`groups` has 2 values, but the data have 3 examples: give one for each."),
        (group_codes, [1.0, float("nan"), 2.0], "`groups` has no value in row 1. Give one for every example."),
        (group_codes, [[1], [2], [3]], "`groups` holds values that cannot be compared"),
        (group_codes, np.zeros((3, 2)), "`groups` has the shape (3, 2). Give one value per example."),
        (
            time_codes,
            np.array(["2024-01-01", "NaT", "2024-01-02"], dtype="datetime64[D]"),
            "`groups` has no value in row 1.",
        ),
        (time_codes, [1, "a", 2], "`groups` holds values that have no order"),
    ],
)
def test_values_that_do_not_fit_are_refused(codes, values, message):
    with pytest.raises(DataError) as error:
        codes(values, 3, "groups")
    assert str(error.value).startswith(message)
