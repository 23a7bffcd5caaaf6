"""Charts are well-formed at any data, and say what they show without colours or pointers."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.see.charts import Mark, Series, Stretch, chart

X = np.arange(10.0)


def parsed(text):
    return ElementTree.fromstring(text)  # every element closed, every attribute quoted


def coordinates(path):
    first, *rest = re.findall(r"-?\d+", path.replace("h0", ""))
    return first, rest


@settings(max_examples=50)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=60),
    st.booleans(),
    st.booleans(),
)
def test_any_values_give_a_well_formed_chart_within_its_frame(values, smooth, dots):
    y = np.array(values, np.float64)
    text = chart("t", [Series("s", np.arange(float(len(y))), y, smooth=smooth, dots=dots)])
    if not np.isfinite(y).any():
        assert text == ""
        return
    for path in parsed(text).iter("path"):
        if path.get("class") == "line":
            steps = np.array(re.findall(r"-?\d+", path.get("d")), int).reshape(-1, 2)
            assert (np.cumsum(steps, 0) >= 0).all()
            assert (np.cumsum(steps, 0) <= 10_000).all()


def test_names_are_escaped_everywhere():
    bad = "<i>&\"'"
    text = chart(
        bad, [Series(bad, X, X)], note=bad, x_name=bad, marks=[Mark(3, "rollback", bad)], stretches=[Stretch(1, 2, bad)]
    )
    assert "<i>" not in text
    assert json.loads(parsed(text).find("script").text)["lines"][0]["name"] == bad


def test_marks_outside_the_axis_are_left_out_and_crowds_are_joined():
    marks = [Mark(-5, "resume", "before"), *[Mark(5 + k / 10_000, "nonfinite", f"m{k}") for k in range(50)]]
    text = chart("t", [Series("s", X, X)], marks=marks)
    assert "before" not in text
    assert text.count('class="mark') == 1
    assert "m0 (and 49 more)" in text


def test_a_point_alone_is_drawn_as_a_dot():
    figure = parsed(chart("t", [Series("s", np.array([5.0]), np.array([2.0]))]))
    assert [p.get("class") for p in figure.iter("path")] == ["grid", "dots"]


def test_a_screen_reader_hears_where_the_lines_begin_and_end():
    assert 'aria-label="Loss: training from 2 to 0.25"' in chart(
        "Loss", [Series("training", X, np.linspace(2, 0.25, 10))]
    )


def test_the_axis_says_where_it_is_logarithmic():
    wide = chart("t", [Series("s", X, 10.0**-X)])
    assert "logarithmic" in wide
    assert "logarithmic" not in chart("t", [Series("s", X, X + 10)])


def test_shares_are_labelled_in_percent():
    assert ">40 %</span>" in chart("t", [Series("s", X, X / 10)], share=True)


@pytest.mark.parametrize("count", [0, 3])
def test_values_that_are_not_finite_stand_at_the_top_with_their_number(count):
    y = X.copy()
    y[:count] = np.inf
    text = chart("t", [Series("s", X, y)])
    assert text.count('class="lost"') == count
    assert ("</b> 3 not finite" in text) == (count > 0)


def test_a_rate_axis_is_logarithmic_with_round_numbers():
    rates = np.array([1e-4, 1e-3, 1e-2])
    text = chart("t", [Series("s", rates, X[:3])], log_x=True)
    assert ">0.001</span>" in text
    assert json.loads(parsed(text).find("script").text)["log"] is True
