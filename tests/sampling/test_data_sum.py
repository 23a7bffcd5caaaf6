"""Sums of data: other data have another sum, the same data the same one, and random numbers are no other data."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from thalweg.sampling import data_sum
from thalweg.sampling.data_sum import DataSum, is_random, sum_data
from thalweg.sampling.sources import open_source


class Items(Dataset):
    def __init__(self, count=3000, noise=lambda: 0.0):
        self.x, self.y, self.noise, self.read = torch.arange(count, dtype=torch.float32), list(range(count)), noise, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.read.append(index)
        return {"x": self.x[index] + self.noise(), "more": (np.array([index, 1]), self.y[index], str(index))}


class Stream(IterableDataset):
    def __init__(self, noise=lambda: 0.0):
        self.noise = noise

    def __iter__(self):
        return ((torch.tensor(float(i)) + self.noise(), i) for i in range(1000))


def unseeded():
    return os.urandom(1)[0]


def test_every_value_of_arrays_counts_where_they_are_not_large(monkeypatch):
    x, y = torch.randn(1000, 7), torch.arange(1000)
    whole = sum_data(open_source((x, y)))
    assert (whole.count, whole.read) == (1000, 1000)
    assert sum_data(open_source((x.clone(), y))) == whole
    for row in (1, 517, 998):
        other = x.clone()
        other[row, 3] += 1e-6
        assert sum_data(open_source((other, y))).sum != whole.sum
    assert sum_data(open_source((x, y.flip(0)))).sum != whole.sum
    monkeypatch.setattr(data_sum, "MOST_BYTES", 3600)
    part = sum_data(open_source((x, y)))
    assert part.read == 100
    assert sum_data(open_source((x[:-1], y[:-1]))).sum != part.sum


def test_examples_are_read_from_all_over_a_data_set_and_the_same_ones_again(monkeypatch):
    items = Items()
    with monkeypatch.context() as patch:
        patch.setattr(data_sum.time, "monotonic", lambda: 0)
        found = sum_data(open_source(items))
    assert (found.count, found.read, found.drawn, found.unlike) == (3000, 1024, (), ())
    assert max(np.diff(sorted({0, *items.read, 2999}))) < 8
    clock = iter(range(10000))
    monkeypatch.setattr(data_sum.time, "monotonic", lambda: next(clock))
    short = sum_data(open_source(Items()))
    assert short.read == 9  # the clock ends it
    assert sum_data(open_source(Items()), short) == short  # and does not decide how many are read again
    assert sum_data(open_source(Items()), found) == found
    changed = Items()
    changed.y = [target + (target % 50 == 0) for target in changed.y]
    assert sum_data(open_source(changed), found).sum != found.sum


def test_parts_that_draw_random_numbers_are_told_from_those_that_are_fixed():
    drawing = Items(noise=lambda: torch.rand(()))
    found = sum_data(open_source(drawing))
    assert (found.drawn, found.unlike) == ((1,), ())  # the parts are key, value, key, array, number, text
    assert sum_data(open_source(drawing), found) == found
    assert not is_random(open_source(drawing), found)
    wider = sum_data(open_source(Items(noise=lambda: 2 * torch.rand(()))), found)
    assert wider.sum == found.sum
    assert wider.drawn_sum != found.drawn_sum
    wild = Items(noise=unseeded)
    found = sum_data(open_source(wild))
    assert (found.unlike, found.read) == ((1,), 8)
    assert sum_data(open_source(wild), found) == found
    rarely = sum_data(open_source(Items()))  # where it was not noticed at first, it is when sums differ
    assert is_random(open_source(wild), rarely)


@pytest.mark.parametrize(("noise", "parts"), [(lambda: 0.0, ((), ())), (unseeded, ((), (0,)))])
def test_the_first_batches_of_a_stream_count(noise, parts):
    found = sum_data(open_source(Stream(noise)))
    assert (found.count, found.read, (found.drawn, found.unlike)) == (None, 4, parts)
    assert sum_data(open_source(Stream(noise)), found) == found
    assert DataSum.from_dict(found.to_dict()) == found


def test_what_cannot_be_summed_is_said_and_ends_nothing():
    found = sum_data(open_source([(object(), 1)] * 5, collate_fn=list))
    assert found.failed.startswith("TypeError: an example holds a object, whose values are not known")
    assert (found.count, found.sum, found.is_count) == (5, "", False)
