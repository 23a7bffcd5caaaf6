from collections import OrderedDict, UserDict, namedtuple
from io import BytesIO
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from thalweg.errors import DataError
from thalweg.sampling import ItemSource, StreamSource, TensorSource, open_source
from thalweg.sampling.sources import leaves, loader_knobs, tree_map

N = 10
X = np.arange(N * 3, dtype=np.float64).reshape(N, 3)
Y = np.arange(N) % 3
Pair = namedtuple("Pair", "x y")


class Items(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index], Y[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Items()[index] for index in range(N))


def pairs() -> TensorDataset:
    return TensorDataset(torch.tensor(X), torch.tensor(Y))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ((X, Y), TensorSource),
        (Pair(X, Y), TensorSource),
        (((X, X), Y), TensorSource),
        (({"a": X, "b": X}, Y), TensorSource),
        ({"a": X, "label": Y}, TensorSource),
        ((pd.DataFrame(X), pd.Series(Y)), TensorSource),
        (torch.tensor(X), TensorSource),
        (X, TensorSource),
        (pairs(), TensorSource),
        (Items(), ItemSource),
        (Subset(pairs(), range(4)), ItemSource),
        (random_split(pairs(), [7, 3])[0], ItemSource),
        (ConcatDataset([pairs(), pairs()]), ItemSource),
        ([(x, y) for x, y in zip(X, Y, strict=True)], ItemSource),
        ([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], ItemSource),
        (list(torch.tensor(X)), ItemSource),
        (Stream(), StreamSource),
        (DataLoader(Items(), batch_size=4), ItemSource),
        (DataLoader(Items(), batch_size=4, shuffle=True), ItemSource),
        (DataLoader(Items(), batch_size=4, sampler=WeightedRandomSampler(torch.ones(N), N)), StreamSource),
        (DataLoader(Items(), batch_size=4, sampler=RandomSampler(range(N), num_samples=5)), StreamSource),
        (DataLoader(Items(), batch_size=4, sampler=RandomSampler(range(N), replacement=True)), StreamSource),
        (DataLoader(Items(), batch_size=None), StreamSource),
        (DataLoader(Stream(), batch_size=4), StreamSource),
        (range(3), ItemSource),
    ],
)
def test_each_kind_of_data_is_recognised(data, kind):
    source = open_source(data)
    assert type(source) is kind


def test_only_what_is_exact_says_so():
    class Keeps(DataLoader):
        def state_dict(self): ...
        def load_state_dict(self, state): ...

    assert open_source((X, Y)).resume == "exact"
    assert open_source(DataLoader(Items(), shuffle=True)).resume == "exact"
    assert open_source(Keeps(Items())).resume == "state_dict"
    assert open_source(DataLoader(Stream())).resume == "fast-forward"


def test_slices_keep_the_nest():
    batch = open_source(Pair({"a": X, "b": (X, X)}, Y)).take(torch.tensor([2, 0]))
    assert type(batch) is Pair
    assert batch.x["b"][1].tolist() == [X[2].tolist(), X[0].tolist()]
    assert batch.y.tolist() == [2, 0]


def test_the_persons_arrays_are_not_changed_by_what_is_done_to_a_batch():
    x = X.astype(np.float32)
    before = x.copy()
    open_source((x, Y)).take(torch.arange(3))[0].zero_()
    assert np.array_equal(x, before)


def test_ragged_columns_go_through_collate_fn():
    rows = [torch.ones(n) for n in (1, 3, 2)]
    source = open_source((rows, [0, 1, 0]), collate_fn=lambda b: (nn.utils.rnn.pad_sequence([x for x, _ in b]), len(b)))
    padded, count = next(source.load(iter([[(0, 0), (0, 1)]]), 0, 0))
    assert padded.shape == (3, 2)
    assert count == 2


def test_frames_are_read_by_row_whatever_their_index():
    frame, labels = pd.DataFrame(X, index=range(50, 60)), pd.Series(Y, index=range(70, 80))
    source = open_source((frame, labels), collate_fn=list)
    assert next(source.load(iter([[(0, 4)]]), 0, 0))[0][1] == Y[4]


def test_collate_fn_reaches_a_stream():
    source = open_source(Stream(), collate_fn=len)
    assert list(source.open(0, 0, 4, 0)) == [4, 4, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_own_settings_serve_with_and_without_workers(workers):
    # What only workers can have must not stop a loader that is read without them.
    source = open_source(
        DataLoader(Items(), num_workers=2, prefetch_factor=3, timeout=30, multiprocessing_context="fork")
    )
    _, y = next(source.load(iter([[(0, 1), (0, 2)]]), 0, workers))
    assert y.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("loader", "knobs"),
    [
        (DataLoader(Items(), batch_size=4, shuffle=True), {"batch_size": 4, "shuffle": True, "drop_last": False}),
        (
            DataLoader(Items(), batch_size=4, drop_last=True, num_workers=2),
            {"batch_size": 4, "workers": 2, "shuffle": False},
        ),
        (DataLoader(Items(), batch_size=64), {"batch_size": N}),  # PyTorch gives the ten as one batch
        (DataLoader(Items(), batch_sampler=BatchSampler(SequentialSampler(range(N)), 3, False)), {"batch_size": 3}),
    ],
)
def test_a_loader_has_decided_knobs(loader, knobs):
    assert knobs.items() <= loader_knobs(loader).items()
    assert loader_knobs((X, Y)) == {}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ((X[:0], Y[:0]), r"`data` is empty: it has no example\."),
        ([], r"`data` is empty: it has no example\."),
        ((), r"`data` is empty: it has no array\. Give \(x, y\)\."),
        (
            (X, Y[:-1]),
            r"The parts of `data` have different lengths: shapes \[\(10, 3\), \(9,\)\]\. The first dimension counts",
        ),
        ({"a": X, "y": Y[:-1]}, r"The parts of `data` have different lengths"),
        ((x for x in X), r"`data` is an iterator, which can be gone through once only\. Give \(x, y\) arrays"),
        (zip(X, Y, strict=True), r"`data` is an iterator"),
        (lambda: X, r"`data` is a function\. Give \(x, y\) arrays"),
        (3, r"`data` is a int\. Give"),
        ("train.csv", r"`data` is the text 'train\.csv'\. Load what it names"),
        ([X, Y], r"`data` is a list of arrays, which would be read as a list of examples\. Give a tuple: \(x, y\)\."),
        (([[1, 2], [3]], [0, 1]), r"`data` has examples of different lengths\. Give `collate_fn`"),
        (([torch.ones(2), torch.ones(3)], [0, 1]), r"`data` has examples of different lengths\. Give `collate_fn`"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, told):
    with pytest.raises(DataError, match=told):
        open_source(data)


def test_the_place_of_bad_data_is_named():
    with pytest.raises(DataError, match=r"The parts of `validation` have different lengths"):
        open_source((X, Y[:-1]), name="validation")


def test_columns_for_collate_fn_must_be_equally_long():
    with pytest.raises(DataError, match=r"different lengths: \[3, 2\]\. Each example needs all of them\."):
        open_source(([1, 2, 3], [1, 2]), collate_fn=list)


def test_leaves_and_tree_map_walk_alike():
    nest = Pair({"a": torch.ones(1), "b": [torch.ones(2), (torch.ones(3),)]}, torch.ones(4))
    assert [len(leaf) for leaf in leaves(nest)] == [1, 2, 3, 4]
    mapped = tree_map(lambda leaf: leaf + 1, nest)
    assert type(mapped) is Pair
    assert [float(leaf.mean()) for leaf in leaves(mapped)] == [2.0] * 4


def test_mappings_and_dataclasses_keep_their_type():
    class Named(UserDict[str, Any]):
        pass

    fixed = MappingProxyType({"a": torch.ones(2)})
    ordered = OrderedDict(b=torch.ones(2), a=torch.zeros(2))
    doubled = [tree_map(lambda leaf: leaf * 2, nest) for nest in (Named(a=torch.ones(2)), ordered, fixed)]
    assert [type(nest) for nest in doubled] == [Named, OrderedDict, dict]
    assert list(doubled[1]) == ["b", "a"]
    assert all(nest["a"].tolist() in ([2, 2], [0, 0]) for nest in doubled)
    assert fixed["a"].tolist() == [1, 1]
    with BytesIO() as file:
        np.savez(file, x=np.ones((5, 2)), y=np.arange(5))
        archive = np.load(BytesIO(file.getvalue()))
    assert [len(open_source(archive)) for _ in range(2)] == [5, 5]
    source = open_source(Named(a=np.ones((5, 2)), y=np.arange(5)))
    assert type(source.take(slice(0, 2))) is Named
