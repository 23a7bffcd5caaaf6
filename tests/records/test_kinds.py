import math

import pytest

from thalweg.records import kinds


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        (kinds.text, ["", "a"], [None, b"a", 1]),
        (kinds.flag, [True, False], [0, 1, None, "true"]),
        (kinds.whole, [0, -3, 2**63 - 1], [True, 1.0, 2**63, "1"]),
        (kinds.count, [0, 3], [-1, True, None]),
        (kinds.number, [0, -1, 0.5, math.inf, math.nan, 10**300], [True, "1", None, 10**400, []]),
        (kinds.optional(kinds.text), [None, "a"], [1]),
        (kinds.listing(kinds.count), [[], [1, 2]], [None, (1,), [1, "a"], "ab"]),
        (kinds.table(kinds.number), [{}, {"a": 1}], [None, [], {"a": "b"}, {1: 1}]),
        (kinds.record({"a": kinds.count}, ("a",)), [{"a": 1}], [{}, {"b": 1}, {"a": -1}]),
        (kinds.record({"a": kinds.count}), [{}, {"a": 1, "b": "other"}], [{"a": -1}, [], None, {1: 1}]),
    ],
)
def test_a_kind_tells_what_is_of_it(kind, fits, does_not):
    assert all(map(kind, fits))
    assert not any(map(kind, does_not))


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match="`b` is missing"):
        kinds.check({"a": 1}, {"a": kinds.count}, ("a", "b"))
    with pytest.raises(TypeError, match="`a` is 'x'"):
        kinds.check({"a": "x"}, {"a": kinds.count})
    with pytest.raises(TypeError, match=r"\[\] is no table"):
        kinds.check([], {})
