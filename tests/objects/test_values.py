"""Values of the user's become entries of a checkpoint and back, of the same type and bits; what has no entry is refused."""

import array
import ctypes
import gzip
import io
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch

from thalweg.objects.standard_kinds import is_read_only_file
from thalweg.objects.values import NotPlainError, decode, encode, mark, note_class, put_into, random_state
from thalweg.records import tensor_sections
from thalweg.records.json_values import without_tuples

Pair = namedtuple("Pair", "a b")


class Phase(Enum):
    FIRST = 1
    LAST = 2


class Parts(Flag):
    HEAD = 1
    TAIL = 2


NAN = float("nan")
VALUES = [
    *(None, True, 3, 2**70, 0.1, float("-inf"), "text", b"\x00\xff", 1 + 2j),
    *([1, [2.5, None]], (1, "a"), {1, 2}, frozenset({3}), {"a": 1, 2: (3,), (4, 5): [6]}, Pair(1, [2])),
    *(deque([1, 2], maxlen=2), defaultdict(list, {"a": [1]}), OrderedDict(b=1, a=2), Counter("aab")),
    *(np.float32(0.1), np.arange(6).reshape(2, 3), np.array(2.5), np.array(["a", "bc"]), np.array([True])),
    *(
        Decimal("0.10"),
        Fraction(-(2**70), 3),
        date(2000, 1, 2),
        timedelta(-1, 2, 3),
        time(1, 2),
        datetime(2000, 1, 2, 3, 4, 5, 6),
        datetime(2000, 1, 2, 3, tzinfo=UTC),
        datetime(2000, 10, 29, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")),
        slice(1, None, -2),
    ),
    *(
        range(1, 9, 3),
        UUID(int=3),
        Path("a/b"),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cpu"),
        [Decimal(1), (Fraction(1),)],
    ),
    *(torch.arange(3.0), torch.tensor(True), torch.ones(2).bfloat16(), [torch.ones(2), {"a": torch.zeros(())}]),
]


NESTED = [
    [Pair(1, (Pair(2, torch.ones(2)),))],
    {"a": deque([1], maxlen=3), "b": deque()},
    {"a": Counter("aab"), "b": OrderedDict(b=1, a=2), "c": defaultdict(Counter, {1: Counter("a")})},
    [defaultdict(float, {1: 2.0}), defaultdict(None, {1: 2})],
    {Phase.LAST: [Phase.FIRST, Parts.HEAD | Parts.TAIL]},
    [torch.eye(3).to_sparse(), {"a": torch.eye(2).to_sparse()}],
    [torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (2,), check_invariants=True)],
]


def through_a_checkpoint(entry):
    parts = tensor_sections.split({"objects": {"x": without_tuples(entry)}})
    tensors = {f"{section}/{name}": t for section, found in parts.tensors.items() for name, t in found.items()}
    return tensor_sections.join(json.loads(json.dumps(parts.values)), tensors)["objects"]["x"]


def same(one, other):
    if isinstance(one, torch.Tensor) and one.layout is not torch.strided:
        return one.layout is other.layout and same(one.to_dense(), other.to_dense()) and one._nnz() == other._nnz()
    if isinstance(one, torch.Tensor | np.ndarray):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and bool((one == other).all())
        )
    if isinstance(one, dict):
        return type(one) is type(other) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple | deque):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}: {value!r:.20}")
def test_a_value_comes_back_from_a_checkpoint_as_it_was(value):
    assert same(decode(through_a_checkpoint(encode(value)), value), value)


@pytest.mark.parametrize("value", NESTED, ids=lambda value: f"{value!r:.40}")
def test_items_of_a_container_come_back_as_the_types_that_they_were(value):
    classes = {"Pair": Pair, "Phase": Phase, "Parts": Parts}
    entry = through_a_checkpoint(encode(value))
    assert same(decode(entry, None, classes), value)
    target = type(value)()
    assert put_into(target, entry, None, classes)
    assert same(target, value)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_csc", "sparse_coo"])
def test_a_sparse_tensor_has_an_entry_and_a_mark(layout):
    value = torch.eye(3, dtype=torch.float64).to_sparse(layout=getattr(torch, layout))
    before, entry = mark(value), through_a_checkpoint(encode(value))
    assert same(decode(entry), value)
    value.values().mul_(2) if layout != "sparse_coo" else value._values().mul_(2)
    assert mark(value) != before


def same_kinds(one, other):
    """Whether what tells a value's later behaviour is the same: the longest length, what is made of a missing key."""
    return getattr(one, "maxlen", None) == getattr(other, "maxlen", None) and getattr(
        one, "default_factory", None
    ) == getattr(other, "default_factory", None)


def test_a_bounded_deque_stays_bounded_and_a_missing_key_is_made_as_before():
    value = {"a": deque([1, 2], maxlen=2), "b": defaultdict(Counter), "c": deque()}
    found = decode(through_a_checkpoint(encode(value)))
    assert all(same_kinds(found[key], value[key]) for key in value)


def test_a_class_that_is_not_known_or_of_which_there_are_two_is_refused():
    entry, classes = encode([Pair(1, 2)]), {}
    with pytest.raises(NotPlainError, match="Pair"):
        decode(entry, None, classes)
    for kind in (Pair, namedtuple("Pair", "b a")):
        note_class(kind, classes)
    with pytest.raises(NotPlainError, match="Pair"):
        decode(entry, None, classes)
    with pytest.raises(NotPlainError, match="function of your own"):
        decode(encode([defaultdict(lambda: 3)]))
    assert decode(encode({"a": defaultdict(lambda: 3)}), {"a": defaultdict(lambda: 4)})["a"]["b"] == 4


@pytest.mark.parametrize(
    "value", [object(), [object()], iter([]), torch.ones(2).to_sparse().to("meta"), np.array([object()]), len]
)
def test_what_has_no_entry_is_refused(value):
    with pytest.raises(NotPlainError):
        encode(value)


def test_a_list_that_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(NotPlainError):
        encode(endless)
    assert mark(endless) == mark(endless)


GENERATORS = {
    "random": (lambda: random.Random(1), lambda g: g.random()),
    "RandomState": (lambda: np.random.RandomState(1), lambda g: g.randn()),
    "Generator": (lambda: np.random.default_rng(1), lambda g: g.random()),
    "Philox": (lambda: np.random.Generator(np.random.Philox(1)), lambda g: g.random()),
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: float(torch.rand(1, generator=g))),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_random_generator_goes_on_from_where_it_was(kind):
    make, drawn = GENERATORS[kind]
    one, other = make(), make()
    before = mark(one)
    drawn(one)
    assert mark(one) != before
    entry = through_a_checkpoint(encode(one))
    assert put_into(other, entry)
    assert drawn(one) == drawn(other)
    assert mark(other) == mark(one)
    assert random_state(one) is not None


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1, 2], lambda v: v.append(3)),
        ({"a": [1]}, lambda v: v["a"].append(2)),
        (deque([1]), lambda v: v.append(2)),
        ([torch.zeros(2)], lambda v: v[0].add_(1)),
        (torch.zeros(100, 3000), lambda v: v.data.add_(1)),
        (torch.zeros(100, 3000), lambda v: v[7, 8:9].fill_(1)),
        (np.zeros(1000), lambda v: v.__setitem__(5, 1)),
    ],
)
def test_a_change_shows_in_the_mark(value, change):
    before = mark(value)
    assert mark(value) == before
    change(value)
    assert mark(value) != before


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(b"abc"),
        lambda: array.array("i", [1, 2]),
        lambda: ctypes.c_long(3),
        lambda: (ctypes.c_double * 2)(1, 2),
    ],
)
def test_memory_takes_its_bytes_again_in_place_and_no_others(make):
    value, other = make(), make()
    entry = through_a_checkpoint(encode(value))
    before = mark(value)
    ctypes.memset(ctypes.addressof(value), 1, 1) if isinstance(value, ctypes.c_long | ctypes.Array) else value.append(7)
    assert mark(value) != before
    assert put_into(value, entry)
    assert bytes(value) == bytes(other)
    assert not isinstance(value, ctypes.c_long) or not put_into(value, encode(bytearray(3)))


@pytest.mark.parametrize(
    "value", [ctypes.c_void_p(1), ctypes.c_char_p(b"a"), ctypes.py_object(1), (ctypes.c_void_p * 2)()]
)
def test_addresses_are_no_memory_that_a_checkpoint_sets(value):
    with pytest.raises(NotPlainError):
        encode(value)
    assert not put_into(value, encode(bytearray(8)))


def test_an_end_of_a_slice_that_is_no_number_makes_it_no_constant():
    with pytest.raises(NotPlainError):
        encode(slice("a", "b"))


class Odd(tzinfo):
    def utcoffset(self, dt):
        return timedelta(hours=1)


def test_a_time_in_a_zone_of_the_users_own_is_no_constant():
    with pytest.raises(NotPlainError):
        encode(datetime(2000, 1, 1, tzinfo=Odd()))


@pytest.mark.parametrize("make", [io.StringIO, io.BytesIO])
def test_what_is_written_in_memory_and_the_place_in_it_come_back(make):
    text = (lambda t: t) if make is io.StringIO else str.encode
    value, other = make(), make()
    value.write(text("one\ntwo"))
    value.seek(4)
    entry = through_a_checkpoint(encode(value))
    before = mark(value)
    value.write(text("T"))
    assert mark(value) != before
    assert put_into(other, entry)
    assert (other.getvalue(), other.tell(), other.read()) == (text("one\ntwo"), 4, text("two"))
    assert decode(entry, value).read() == text("two")


@pytest.mark.parametrize("open_it", [open, gzip.open])
@pytest.mark.parametrize("mode", ["rt", "rb"])
def test_the_place_in_a_file_that_is_only_read_is_kept(open_it, mode, tmp_path):
    with open_it(tmp_path / "lines", "wb") as file:
        file.write(b"one\ntwo\nthree\n")
    with open_it(tmp_path / "lines", mode) as file:
        file.readline()
        before, entry = mark(file), encode(file)
        second = file.readline()
        assert mark(file) != before
        assert put_into(file, entry)
        assert file.readline() == second
    assert not is_read_only_file(file)
    with open(tmp_path / "written", "w") as file:
        assert not is_read_only_file(file)
