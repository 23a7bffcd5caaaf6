import copy
import random
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from thalweg.errors import DataError
from thalweg.sampling import Batches, count_examples, iterate_once, open_source
from thalweg.sampling.batches import hold

N = 23
X = torch.arange(N, dtype=torch.float32)[:, None]


class Noisy(Dataset):
    """Augments with all three generators."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index] + torch.rand(1), random.random(), np.random.rand()


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(N):
            yield X[index] + torch.rand(1)


class Sized(Stream):
    def __len__(self):
        return N


class Endless(IterableDataset):
    def __iter__(self):
        index = 0
        while True:
            yield X[index % N] + torch.rand(1)
            index += 1


class Remembering:
    """A loader that keeps its own place, in the manner of torchdata's StatefulDataLoader."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < N:
            self.place += 1
            yield X[self.place - 1 : self.place]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Loading(IterableDataset):
    """A stream whose passes begin anew, but for the one after its place was loaded: from there, also where that is its end."""

    def __init__(self):
        self.place, self.loaded = 0, False

    def __iter__(self):
        self.place, self.loaded = self.place if self.loaded else 0, False
        while self.place < N - 3:  # no whole number of steps
            self.place += 1
            yield X[self.place - 1]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place, self.loaded = state["place"], True


KINDS: dict[str, Any] = {
    "tensors": lambda: (X, X),
    "items": Noisy,
    "loader": lambda: DataLoader(Noisy(), batch_size=5, shuffle=True),
    "loader with a sampler": lambda: DataLoader(Noisy(), batch_size=5, sampler=WeightedRandomSampler(torch.ones(N), N)),
    "loader with a batch sampler": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(SequentialSampler(range(N)), 5, False)
    ),
    "stream": Stream,
    "stream that knows its length": Sized,
    "endless stream": Endless,
    "loader over a stream": lambda: DataLoader(Stream(), batch_size=5),
    "loader that keeps its place": Remembering,
    "stream that is given its place": Loading,
}


def batches(kind: str, **options: Any) -> Batches:
    return Batches(open_source(KINDS[kind]()), 5, seed=options.pop("seed", 3), **options)


def flat(drawn: Any) -> list[float]:
    values: list[float] = []
    for part in drawn.parts:
        leaves = part if isinstance(part, tuple | list) else [part]
        values += [float(v) for leaf in leaves for v in torch.as_tensor(leaf).double().flatten()]
    return [*values, *map(float, drawn.sizes)]


def draw(made: Batches, count: int) -> list[list[float]]:
    return [flat(made.draw()) for _ in range(count)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_at_any_position_gives_the_uninterrupted_sequence(kind, accumulate):
    steps = 13
    whole = draw(batches(kind, accumulate=accumulate), steps)
    made = batches(kind, accumulate=accumulate)
    for position in range(steps):
        state = made.state_dict()
        resumed = batches(kind, accumulate=accumulate)
        resumed.load_state_dict(state)
        assert draw(resumed, steps - position) == whole[position:], position
        made.load_state_dict(state)  # a loader that is shared was moved on
        made.draw()


@pytest.mark.parametrize("kind", ["loader that keeps its place", "stream that is given its place"])
def test_going_back_to_the_beginning_gives_the_first_epoch_wherever_a_rehearsal_left_the_loader(kind):
    made = batches(kind)
    hold(made.source, 5, 8)
    beginning = made.state_dict()
    whole = draw(made, 6)
    made.load_state_dict(beginning)
    assert draw(made, 6) == whole
    resumed = batches(kind)
    resumed.load_state_dict(beginning)
    assert draw(resumed, 6) == whole


@pytest.mark.parametrize("kind", ["items", "loader"])
def test_loader_workers_change_nothing(kind):
    plain = draw(batches(kind), 12)
    with_workers = batches(kind, workers=2)
    assert draw(with_workers, 12) == plain
    with_workers.close()
    resumed = batches(kind, workers=2)
    resumed.load_state_dict({"epoch": 1, "within": 2})
    assert draw(resumed, 5) == plain[7:]
    resumed.close()


def test_a_stream_with_workers_resumes_to_the_same_sequence():
    whole = draw(batches("endless stream", workers=2), 8)
    resumed = batches("endless stream", workers=2)
    resumed.load_state_dict({"epoch": 0, "within": 4})
    assert draw(resumed, 4) == whole[4:]
    resumed.close()


def test_workers_that_persist_resume_to_the_same_sequence_and_serve_their_owner_afterwards():
    def loader():
        sampler = WeightedRandomSampler(torch.ones(N), N)
        return DataLoader(Noisy(), batch_size=12, sampler=sampler, num_workers=1, persistent_workers=True)

    own = loader()
    made = Batches(open_source(own), None, seed=0)
    whole = draw(made, 6)
    assert (made.epoch, made.within) == (2, 2)  # that the third epoch has ended shows when it is asked for more
    resumed = Batches(open_source(loader()), None, seed=0)
    resumed.load_state_dict({"epoch": 1, "within": 1})
    assert draw(resumed, 3) == whole[3:]
    made.close(), resumed.close()
    assert len(list(own)) == 2
    own._iterator._shutdown_workers()


def test_an_item_is_augmented_as_a_function_of_seed_epoch_and_index():
    made, other = batches("items", shuffle=False), batches("items")
    seen: list[dict[int, list[float]]] = []
    for one in (made, other):
        found: dict[int, list[float]] = {}
        for _ in range(5):
            drawn = one.draw()
            for row, index in enumerate(drawn.indices.tolist()):
                found[index] = [float(leaf[row]) for leaf in drawn.parts[0]]
        seen.append(found)
    assert seen[0] == seen[1]
    assert draw(made, 1) != draw(batches("items", shuffle=False), 1)  # the next epoch draws anew


@given(st.integers(1, 23), st.integers(1, 4), st.booleans(), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_example_once(size, accumulate, drop_last, seed, shuffle):
    made = Batches(
        open_source((X, X)), size, seed=seed, accumulate=min(accumulate, size), drop_last=drop_last, shuffle=shuffle
    )
    rows: list[float] = []
    for _ in range(made.steps_per_epoch or 0):
        drawn = made.draw()
        assert sum(drawn.sizes) == sum(len(part[0]) for part in drawn.parts) <= size
        assert max(drawn.sizes) <= made.micro_batch_size
        rows += [float(value) for part in drawn.parts for value in part[0]]
    assert (made.epoch, made.within) == (1, 0)
    assert len(set(rows)) == len(rows) == (N // size * size if drop_last else N)


@given(st.integers(1, 23), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_a_position_is_two_integers(size, steps):
    made = Batches(open_source((X, X)), size, seed=0)
    for _ in range(steps):
        made.draw()
    assert made.state_dict() == {"epoch": steps // made.steps_per_epoch, "within": steps % made.steps_per_epoch}


def test_cutting_a_step_into_more_parts_keeps_its_examples():
    for kind in ("tensors", "items"):
        whole, cut = batches(kind), batches(kind)
        whole.draw(), cut.draw()
        place = cut.epoch, cut.within
        cut.draw()
        cut.split(4, place)
        one, parts = whole.draw(), cut.draw()
        assert torch.equal(one.indices, parts.indices)
        assert len(parts.parts) == 3  # 5 examples in micro-batches of 2
        assert torch.equal(torch.cat([part[0] for part in parts.parts]), one.parts[0][0])


def test_the_whole_data_set_is_one_batch_that_may_be_worked_on_in_place():
    data = (X, X.clone())
    made = Batches(open_source(data), None, seed=0)
    drawn = made.draw()
    assert made.is_full_batch
    assert made.steps_per_epoch == 1
    drawn.parts[0][0].zero_()
    assert torch.equal(data[0], data[1])
    for batch, _ in iterate_once(made.source, 7):
        batch[0].zero_()
    assert torch.equal(data[0], data[1])


def test_with_replacement_or_weights_the_whole_is_still_drawn():
    drawn = Batches(open_source((X, X)), None, seed=0, replacement=True).draw()
    assert len(drawn.indices) == N > len(set(drawn.indices.tolist()))
    weights = torch.zeros(N)
    weights[7] = 2.0
    assert set(Batches(open_source((X, X)), 5, seed=0, weights=weights).draw().indices.tolist()) == {7}


def test_an_endless_stream_knows_no_epoch():
    made = batches("endless stream")
    assert made.steps_per_epoch is None
    draw(made, 30)
    assert (made.epoch, made.within) == (0, 30)


def test_a_loader_of_the_person_is_told_the_epoch():
    class Told(WeightedRandomSampler):
        epochs: list[int] = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    made = Batches(open_source(DataLoader(Noisy(), batch_size=12, sampler=Told(torch.ones(N), N))), None, seed=0)
    draw(made, 6)
    assert Told.epochs == [0, 1, 2]


@pytest.mark.parametrize("replacement", [False, True])
def test_a_batch_larger_than_the_data_is_refused(replacement):
    with pytest.raises(
        DataError, match=r"The batch size is 99, but the data have 23 examples\. Give at most 23, or None"
    ):
        Batches(open_source((X, X)), 99, seed=0, replacement=replacement)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (torch.ones(3), r"`weights` has the shape \(3,\), but the data have 23 examples: give one weight for each\."),
        (
            torch.ones(N).index_fill(0, torch.tensor(4), -1),
            r"`weights` is -1\.0 in row 4\. Weights are finite and not neg",
        ),
        (torch.ones(N).index_fill(0, torch.tensor(4), torch.nan), r"`weights` is nan in row 4"),
        (torch.zeros(N), r"`weights` are all zero, so no example can be drawn"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, told):
    with pytest.raises(DataError, match=told):
        Batches(open_source((X, X)), 5, seed=0, weights=weights)


def test_weights_for_a_stream_are_refused():
    with pytest.raises(DataError, match="which a stream has not"):
        batches("stream", weights=torch.ones(N))


def test_a_stream_that_runs_dry_after_one_pass_is_refused():
    class Once:
        def __init__(self):
            self.rows = iter([X[:2], X[2:4]])

        def __iter__(self):
            return self.rows

    made = Batches(open_source(Once()), 2, seed=0)
    draw(made, 2)
    with pytest.raises(DataError, match=r"The data stream gave no batch in epoch 2\. It must start again each time"):
        made.draw()


@pytest.mark.parametrize("kind", ["tensors", "items", "stream", "loader over a stream"])
def test_going_through_once_shows_all_in_their_own_order(kind):
    rows: list[int] = []
    for batch, size in iterate_once(open_source(KINDS[kind]()), 5):
        first = batch[0] if isinstance(batch, tuple | list) else batch
        assert len(first) == size
        rows += [int(value) for value in first]
    assert rows == list(range(N))


class Half(IterableDataset):
    """Says it is half as long as it is, or twice."""

    def __init__(self, says):
        self.says = says

    def __len__(self):
        return self.says

    def __iter__(self):
        yield from (X[index] for index in range(N))


@pytest.mark.parametrize("says", [5, N, 60])
@pytest.mark.parametrize("wrapped", ["itself", "loader", "two workers"])
def test_a_stream_is_read_to_its_end_whatever_its_len_says(says, wrapped):
    data = Half(says)
    if wrapped != "itself":
        data = DataLoader(data, batch_size=4, num_workers=2 if wrapped == "two workers" else 0)
    made = Batches(open_source(data), 4, seed=0)
    seen = []
    while made.epoch == 0:
        drawn = made.draw()
        if made.epoch == 0:
            seen += drawn.parts[0].flatten().tolist()
    made.close()
    assert sorted(seen) == sorted(X.flatten().tolist() * (2 if wrapped == "two workers" else 1))


@pytest.mark.parametrize(("says", "gave"), [(8, "more than 2"), (60, r"6"), (N, None)])
def test_a_len_that_is_not_so_is_told_once_and_not_again_by_a_run_that_goes_on(says, gave):
    made = Batches(open_source(Half(says)), 4, seed=0)
    notes = []
    for _ in range(20):
        made.draw()
        notes += [made.length_note] if made.length_note else []
        made.length_note = None
    assert len(notes) == (gave is not None)
    if gave:
        assert f"`data` gave {gave} steps in its first epoch, but its len() says" in notes[0]
    resumed = Batches(open_source(Half(says)), 4, seed=0)
    resumed.load_state_dict({"epoch": 1, "within": 3})
    for _ in range(12):
        resumed.draw()
    assert resumed.length_note is None


@pytest.mark.parametrize("says", [5, 60])
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 12, 13])
def test_a_stream_of_another_length_than_it_says_resumes_at_any_position(says, steps):
    made, resumed = (Batches(open_source(Half(says)), 4, seed=0) for _ in range(2))
    for _ in range(steps):
        made.draw()
    resumed.load_state_dict(made.state_dict())
    for _ in range(8):
        assert made.draw().parts[0].tolist() == resumed.draw().parts[0].tolist()


def test_asking_a_loader_for_its_length_makes_it_warn_of_nothing(recwarn):
    made = Batches(open_source(DataLoader(Half(5), batch_size=4)), None, seed=0)
    for _ in range(8):
        made.draw()
    assert not [w for w in recwarn if "IterableDataset" in str(w.message)]


def test_a_stream_cut_here_drops_its_last_batch_where_asked_to():
    made = Batches(open_source(Stream()), 11, seed=0, drop_last=True)
    assert [len(made.draw().parts[0]) for _ in range(4)] == [11, 11, 11, 11]


LOADERS = {
    "in order": DataLoader(list(range(N)), batch_size=5),
    "without the last": DataLoader(list(range(N)), batch_size=5, drop_last=True),
    "shuffled": DataLoader(list(range(N)), batch_size=5, shuffle=True),
    "a batch sampler": DataLoader(list(range(N)), batch_sampler=BatchSampler(SequentialSampler(range(N)), 4, True)),
    "a batch sampler that shuffles": DataLoader(
        list(range(N)), batch_sampler=BatchSampler(RandomSampler(range(N)), 4, True)
    ),
    "a batch sampler of a part": DataLoader(
        list(range(N)), batch_sampler=BatchSampler(SubsetRandomSampler(range(7)), 4, False)
    ),
    "a sampler of other data": DataLoader(list(range(N)), batch_size=4, sampler=SequentialSampler(range(9))),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_one_pass_gives_the_batches_that_the_loader_gives(kind):
    loader = LOADERS[kind]
    ours = [(batch, size) for batch, size in iterate_once(open_source(loader), 100)]
    theirs = list(loader)
    assert [len(batch) for batch, _ in ours] == [size for _, size in ours] == [len(batch) for batch in theirs]
    shown = {int(index) for batch, _ in ours for index in batch}
    assert len(shown) == sum(map(len, theirs))
    if "shuffle" not in kind and "part" not in kind:
        assert [batch.tolist() for batch, _ in ours] == [batch.tolist() for batch in theirs]
    else:
        assert shown <= ({*range(7)} if "part" in kind else {*range(N)})
    again = [batch.tolist() for batch, _ in iterate_once(open_source(loader), 100)]
    assert again == [batch.tolist() for batch, _ in ours]


def test_examples_of_a_loader_can_be_gone_through_in_other_batches_in_their_order():
    whole = list(iterate_once(open_source(LOADERS["shuffled"]), 100, own=False))
    assert [batch.tolist() for batch, _ in whole] == [list(range(N))]


def test_a_loader_that_gives_no_batch_is_refused():
    with pytest.raises(
        DataError, match=r"`data` gives no batch: its loader drops what is smaller than 40, and there are 23"
    ):
        open_source(DataLoader(list(range(N)), batch_size=40, drop_last=True))


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(8, 3), torch.zeros(8)), 8),
        ((torch.zeros(30), torch.zeros(4), torch.zeros(4)), 4),  # pieces laid end to end, their offsets, targets
        ((torch.zeros(8, 3), torch.zeros(24)), 8),  # the targets of all time steps in one row
        ((torch.zeros(5, 3), torch.tensor(1.0)), 1),
        ((pack_sequence([torch.zeros(4, 2), torch.zeros(1, 2)]), torch.zeros(2)), 2),
        ({"x": torch.zeros(6, 2), "y": torch.zeros(6)}, 6),
        ("nothing", 1),
    ],
)
def test_examples_of_a_batch_are_counted(batch, count):
    assert count_examples(batch) == count


def test_examples_put_together_without_a_loader_keep_their_tuples_lists_and_tables():
    Point = namedtuple("Point", "x y")
    items = [((torch.ones(2), [torch.ones(1)]), {"a": Point(1.0, 2.0)}, 3) for _ in range(4)]
    (batch, _), *_ = iterate_once(open_source(items), 4)
    inputs, table, _ = batch
    assert [type(part) for part in (batch, inputs, inputs[1], table, table["a"])] == [tuple, tuple, list, dict, Point]
    assert table["a"].x.shape == (4,)


class Epochs:
    """A stream that counts its epochs itself, each of another length, with random numbers of its own."""

    def __init__(self):
        self.epoch, self.rng, self.python = 0, np.random.RandomState(5), random.Random(6)

    def __iter__(self):
        self.epoch += 1
        for _ in range(3 + self.epoch):
            yield torch.tensor([[self.epoch + self.rng.rand() + self.python.random()]])


class EpochSampler(torch.utils.data.Sampler[int]):
    def __init__(self):
        self.rng, self.epoch = np.random.default_rng(7), 0

    def __iter__(self):
        self.epoch += 1
        yield from self.rng.permutation(N).tolist()[: 10 + self.epoch]


class SteppingEpochs(IterableDataset):
    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        yield from (torch.tensor([float(self.epoch * 100 + i)]) for i in range(12 + self.epoch))


class Permanent:
    """A loader with a state of its own, which goes on to other data in each epoch."""

    def __init__(self):
        self.place = self.epoch = 0

    def __iter__(self):
        while self.place < 7:
            self.place += 1
            yield torch.tensor([[self.epoch * 100.0 + self.place]])
        self.place, self.epoch = 0, self.epoch + 1

    def state_dict(self):
        return {"place": self.place, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.place, self.epoch = state["place"], state["epoch"]


class Shuffling(Permanent):
    """Where its place is the end of a pass, it begins that pass anew; only at the end it counts it, and gives others next."""

    def __iter__(self):
        self.place %= 7
        while self.place < 7:
            self.place += 1
            yield torch.tensor([[self.epoch * 100.0 + self.place]])
        self.place, self.epoch = 0, self.epoch + 1


class OfKnownLength(Shuffling):
    def __len__(self):
        return 7


class OfOtherLengths(Shuffling):
    def __iter__(self):
        length = 3 + self.epoch % 3
        self.place %= length
        while self.place < length:
            self.place += 1
            yield torch.tensor([[self.epoch * 100.0 + self.place]])
        self.place, self.epoch = 0, self.epoch + 1


CARRYING: dict[str, Any] = {
    "counts its epochs": Epochs,
    "own sampler": lambda: DataLoader(Noisy(), batch_size=5, sampler=EpochSampler()),
    "own batch sampler": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(EpochSampler(), 5, False)),
    "iterable data set": SteppingEpochs,
    "loader over an iterable data set": lambda: DataLoader(SteppingEpochs(), batch_size=5),
    "keeps its place": Permanent,
    "keeps its place, and begins anew at its end": Shuffling,
    "keeps its place, and has a length": OfKnownLength,
    "keeps its place, and has another length in each pass": OfOtherLengths,
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", CARRYING)
def test_a_stream_that_carries_state_from_epoch_to_epoch_resumes_exactly(kind, accumulate):
    def made():
        return Batches(open_source(CARRYING[kind]()), 5, seed=3, accumulate=accumulate)

    def drawn(of, count):
        return [(of.epoch, of.within, flat(of.draw())) for _ in range(count)]

    steps = 13
    whole, shared = drawn(made(), steps), made()
    for position in range(steps):
        state = copy.deepcopy(shared.state_dict())
        resumed = made()
        resumed.load_state_dict(state)
        assert drawn(resumed, steps - position) == whole[position:], position
        drawn(shared, 4)  # of what is undone, as by a rollback
        shared.load_state_dict(state)
        shared.draw()


@pytest.mark.parametrize("kind", [kind for kind in CARRYING if kind.startswith("keeps")])
def test_a_position_can_be_asked_for_when_the_pass_is_closed(kind):
    whole = draw(Batches(open_source(CARRYING[kind]()), 5, seed=3), 12)
    for position in range(1, 12):
        made = Batches(open_source(CARRYING[kind]()), 5, seed=3)
        assert draw(made, position) == whole[:position]
        made.close(goes_on=True)
        resumed = Batches(open_source(CARRYING[kind]()), 5, seed=3)
        resumed.load_state_dict(made.state_dict())
        resumed.load_state_dict(resumed.state_dict())
        assert draw(resumed, 12 - position) == whole[position:], position


def test_a_run_that_is_over_waits_for_no_further_batch():
    class Live(Permanent):
        def __iter__(self):
            yield from (batch for _, batch in zip(range(3), super().__iter__(), strict=False))
            pytest.fail("another batch was asked for")

    made = Batches(open_source(Live()), 5, seed=0)
    draw(made, 3)
    assert made.state_dict(is_over=True)["within"] == 3
    made.close()
    assert made.state_dict(is_over=True)["within"] == 3


def test_what_reading_ahead_raises_is_raised_where_it_is_drawn():
    class Failing(Permanent):
        def __iter__(self):
            for batch in super().__iter__():
                if self.place == 3:
                    raise OSError("the disk is gone")
                yield batch

    made = Batches(open_source(Failing()), 5, seed=0)
    draw(made, 2)
    assert "ended" in made.state_dict()
    with pytest.raises(DataError, match="the disk is gone"):
        made.draw()


@pytest.mark.parametrize("kind", CARRYING)
def test_reading_a_stream_for_something_else_leaves_what_it_carries(kind):
    source, other = open_source(CARRYING[kind]()), open_source(CARRYING[kind]())
    if not kind.startswith("keeps its place"):
        assert len(list(iterate_once(source, 5))) > 2
    assert draw(Batches(source, 5, seed=3), 9) == draw(Batches(other, 5, seed=3), 9)


@pytest.mark.parametrize("length", [0, 3])
def test_a_stream_that_became_shorter_is_named_and_not_read_for_ever(length):
    made = Batches(open_source(Shorter(length)), 1, seed=0)
    told = "gave 3 steps when epoch 1 was read again, but 5 of it were taken" if length else "gave no batch in epoch 1"
    with pytest.raises(DataError, match=told):
        made.load_state_dict({"epoch": 0, "within": 5})


class Shorter:
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        yield from [torch.zeros(1, 1)] * self.length


def test_a_loader_that_refuses_its_state_is_named():
    class Refusing(Remembering):
        def load_state_dict(self, state):
            raise KeyError("place")

    with pytest.raises(DataError, match="does not take the state that it gave"):
        Batches(open_source(Refusing()), 5, seed=0).load_state_dict(
            {"epoch": 0, "within": 1, "loader": {}, "begun": True}
        )


RNG = np.random.default_rng(11)


class OwnGenerators:
    """Draws from generators of its own, of its transform's and of its module's."""

    def __init__(self):
        self.numpy, self.old = np.random.default_rng(1), np.random.RandomState(2)
        self.python, self.transforms = random.Random(3), [self.add]
        self.torch = torch.Generator()

    def add(self, x):
        return x + RNG.random()

    def __len__(self):
        return N

    def __getitem__(self, index):
        x = torch.rand(1, generator=self.torch, dtype=torch.float64) + self.numpy.random() + self.old.rand()
        for transform in self.transforms:
            x = transform(x) + self.python.random()
        return x


@pytest.mark.parametrize("workers", [0, 2])
def test_random_generators_of_a_data_set_are_seeded_for_each_example(workers):
    whole = draw(Batches(open_source(OwnGenerators()), 5, seed=3), 9)
    resumed = Batches(open_source(OwnGenerators()), 5, seed=3, workers=workers)
    resumed.load_state_dict({"epoch": 0, "within": 4})
    assert draw(resumed, 5) == whole[4:]
    resumed.close()
    assert draw(Batches(open_source(OwnGenerators()), 5, seed=4), 9) != whole


@pytest.mark.parametrize("kind", ["tensors", "items"])
def test_batches_all_of_whose_examples_are_left_out_are_passed(kind):
    batches = Batches(open_source(KINDS[kind]()), 1, seed=0)
    batches.leave_out([2, 5, 7])
    drawn = [batches.draw().indices.tolist()[0] for _ in range(2 * (N - 3))]
    assert sorted(drawn[: N - 3]) == sorted(drawn[N - 3 :]) == sorted(set(range(N)) - {2, 5, 7})
    batches.leave_out(range(N))  # with nothing left they are drawn all the same
    assert len({batches.draw().indices.tolist()[0] for _ in range(N)}) == N
