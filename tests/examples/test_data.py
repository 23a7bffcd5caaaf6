import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import TaskError
from thalweg.examples import data


@given(count=st.integers(2, 300), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_a_split_is_a_partition_with_both_parts_filled(count, held_out, seed):
    train, validation = data.split(count, held_out, seed=seed)
    assert sorted([*train, *validation]) == list(range(count))
    assert min(len(train), len(validation)) >= 1
    assert abs(len(validation) - held_out * count) <= 1


def test_the_same_seed_gives_the_same_split_and_another_another():
    again = [data.split(1000, 0.2, seed=seed)[1] for seed in (0, 0, 1)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_a_split_leaves_the_global_random_state_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    data.split(100, 0.2)
    assert np.array_equal(np.random.get_state()[1], before)


@given(sizes=st.lists(st.integers(2, 60), min_size=1, max_size=6), held_out=st.floats(0.05, 0.95))
def test_each_label_is_held_out_in_the_same_proportion(sizes, held_out):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train, validation = data.split(len(labels), held_out, labels)
    for label, size in enumerate(sizes):
        held = int((labels[validation] == label).sum())
        assert abs(held - held_out * size) <= 1
        assert 1 <= held < size
        assert held + int((labels[train] == label).sum()) == size


@pytest.mark.parametrize("share", [0, 1, -0.1, 20, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(TaskError, match=r"held_out is .* between 0 and 1"):
        data.split(10, share)


def test_a_label_with_a_single_example_cannot_be_split():
    with pytest.raises(TaskError, match="label 7 has 1 of 3"):
        data.split(3, 0.5, [2, 2, 7])


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(TaskError, match=r'needs sklearn: pip install "thalweg\[examples\]"'):
        data.import_data_package("sklearn.datasets")
