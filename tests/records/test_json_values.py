import json
import math
import struct
from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.records.json_values import NotJsonError, decode, encode

KEYS = st.text(st.characters()) | st.sampled_from(["~int", "~float", "~dict", "~tensor", "a/b", ""]) | st.integers()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


def through_json(value):
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def bits(value):
    """Values with types and bits: True is not 1, -0.0 is not 0.0, a NaN is its 64 bits, order of keys counts."""
    if isinstance(value, float):
        return "float", struct.pack(">d", value)
    if isinstance(value, list):
        return "list", [bits(item) for item in value]
    if isinstance(value, dict):
        return "dict", [(bits(key), bits(item)) for key, item in value.items()]
    return type(value).__name__, value


@settings(max_examples=200)
@given(NESTED)
def test_every_plain_value_comes_back_with_its_type_and_bits(value):
    assert bits(through_json(value)) == bits(value)


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        2**53 + 1,
        -(2**64),
        pytest.param(10**5000, id="5001 digits"),
        -0.0,
        5e-324,
        1.7976931348623157e308,
        math.inf,
        -math.inf,
        math.nan,
    ]
    + [struct.unpack(">d", bytes.fromhex(text))[0] for text in ("fff8000000000000", "7ff8000000000abc")]
    + [
        {0: "a", "0": "b", -1: []},
        {"~dict": {}},
        {True: 1},
        pytest.param("\ud800", id="lone surrogate"),
        "\x00",
        [],
        {},
    ],
)
def test_hard_values_come_back(value):
    assert bits(through_json(value)) == bits(value)


def test_what_other_readers_would_lose_is_marked_and_the_rest_is_plain_json():
    assert encode({"a": [1, 0.5, None, True, "x"], "b": {"c": 2**53}}) == {
        "a": [1, 0.5, None, True, "x"],
        "b": {"c": 2**53},
    }
    assert encode([2**53 + 1, math.inf, {1: 2}]) == [{"~int": hex(2**53 + 1)}, {"~float": "inf"}, {"~dict": [[1, 2]]}]


def test_numpy_scalars_and_subclasses_come_back_as_plain_ones():
    class Level(IntEnum):
        HIGH = 3

    values = [np.float64(0.1), np.float32(0.5), np.int64(7), np.bool_(True), Level.HIGH, OrderedDict(a=1)]
    assert bits(through_json(values)) == bits([0.1, 0.5, 7, True, 3, {"a": 1}])


def circle():
    inner = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [0, (1, 2)]}, "a/1 is a tuple"),
        ({"a": {1.5: 0}}, "a has a key of type float"),
        ({"a": object()}, "a is of type object"),
        ({"a": b"x"}, "a is of type bytes"),
        ({"a": 1j}, "a is of type complex"),
        ({"a": np.ones(2)}, "a is of type ndarray"),
        ({"a": circle()}, "contains itself"),
    ],
)
def test_what_has_no_place_is_refused_by_its_place(value, said):
    with pytest.raises(NotJsonError, match=said):
        encode(value)


def test_an_unknown_mark_is_an_error_and_not_a_dict():
    with pytest.raises(KeyError):
        decode({"~unknown": 1})
