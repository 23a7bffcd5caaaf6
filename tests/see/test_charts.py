"""Charts are well-formed at any data, and say what they show without colours or pointers."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.see.axes import choose_axis
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


def test_each_axis_says_what_it_measures_and_where_it_is_logarithmic():
    wide = chart("Loss", [Series("s", X, 10.0**-X)])
    assert '<span class="y-name">loss, logarithmic</span>' in wide
    assert '<span class="x-name">step</span>' in wide
    narrow = chart("Loss", [Series("s", X + 1, X + 10)], x_name="rate", log_x=True, y_name="score")
    assert '<span class="y-name">score</span>' in narrow
    assert '<span class="x-name below">rate, logarithmic</span>' in narrow


def line_of(text):
    figure = parsed(text)
    d = next(p.get("d") for p in figure.iter("path") if p.get("class") == "line")
    return np.cumsum(np.array(re.findall(r"-?\d+", d), int).reshape(-1, 2), 0)[:, 1]


def test_the_smoothed_line_is_the_arithmetic_mean_on_a_logarithmic_axis_too():
    y = np.tile([1.0, 1e-4], 200)
    text = chart("t", [Series("s", np.arange(400.0), y, smooth=True)])
    position = 1 - np.median(line_of(text)) / 10_000
    up = choose_axis([y])
    assert up.log
    assert up.value(np.array([position]))[0] == pytest.approx(y.mean(), rel=0.05)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 0.1, 0.0, 0.01], "Values of exactly zero are drawn on the lower edge."),
        ([1.0, 0.1, 1e-40, 0.0], "Values below 1.78e-16 are drawn on the lower edge."),
        ([1.0, 0.1, 0.02, 0.01], None),
    ],
)
def test_values_below_a_logarithmic_axis_are_told(values, said):
    text = chart("t", [Series("s", X[:4], np.array(values))])
    assert "edge" not in text if said is None else said in text


def test_a_secondary_series_gets_room_within_reason_and_values_beyond_it_are_mentioned():
    main = Series("s", X, X + 1)
    near = chart("t", [main, Series("a", X, X + 200, secondary=True)])
    far = chart("t", [main, Series("a", X, np.full(10, 1e30), secondary=True)])
    assert "edge" not in near
    assert "are drawn on the upper edge" in far
    assert ">1e+06<" not in far


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


def labels(text, name):
    """The labels of one row below a chart, with their positions in percent."""
    return [
        (float(left), label)
        for left, label in re.findall(rf'<span class="{name}(?: minor)?" style="left:([\d.]+)%">([^<]*)<', text)
    ]


@pytest.mark.parametrize(("steps", "per_epoch"), [(135, 45), (10, 40), (100_000, 7)])
def test_steps_are_labelled_in_epochs_too_where_both_say_the_same(steps, per_epoch):
    x = np.linspace(0, steps, 30)
    text = chart("t", [Series("s", x, x)], steps_per_epoch=per_epoch)
    assert '<span class="x-name epoch">epoch</span>' in text
    (left, step), (epoch_left, epoch) = labels(text, "x")[-1], labels(text, "x epoch")[-1]
    number = {"k": 1e3}.get(step[-1], 1) * float(step.rstrip("k"))
    epochs = {"k": 1e3}.get(epoch[-1], 1) * float(epoch.rstrip("k"))
    assert number / left == pytest.approx(per_epoch * epochs / epoch_left, rel=1e-2)
    assert json.loads(parsed(text).find("script").text)["epoch"] == per_epoch


@pytest.mark.parametrize("per_epoch", [None, 1])
def test_there_are_no_epochs_where_they_are_unknown_or_the_steps_themselves(per_epoch):
    assert "epoch" not in chart("t", [Series("s", X, X)], steps_per_epoch=per_epoch)


def heights(text):
    """The heights of each line's points, from 0 at the bottom to 1."""
    lines = [p.get("d") for p in parsed(text).iter("path") if p.get("class") == "line"]
    return [1 - np.cumsum(np.array(re.findall(r"-?\d+", d), int).reshape(-1, 2), 0)[:, 1] / 10_000 for d in lines]


CLOSE = np.array([0.105, 0.103, 0.1, 0.107])


@pytest.mark.parametrize(
    ("coarse", "fine", "said"),
    [
        ([2.3, 2.3, 2.1, 0.4, 0.12, 1.5], CLOSE, "Below 0.1"),
        ([2e6, 2e3, 10.0, 1.0, 0.12, 9.0], CLOSE, "Below 0.1"),  # on a logarithmic axis
        ([0.1, 0.11, 0.4, 0.9, 0.94, 0.3], 1.05 - CLOSE, "Above 0.9"),  # more is better
        ([-2.3, 5.0, 9.0, 1.0, -1.0, 0.0], CLOSE - 2.5, "Below -2.3"),
    ],
)
def test_points_that_lie_close_together_are_told_apart_where_they_are_to_be_enlarged(coarse, fine, said):
    lines = [Series("80 steps", X[:6], np.array(coarse)), Series("225 steps", X[:4], fine)]
    plain, enlarged = (heights(chart("t", lines, enlarge=enlarge)) for enlarge in (False, True))
    assert np.ptp(plain[1]) < 0.2
    assert np.ptp(enlarged[1]) > 0.25
    assert (np.argsort(enlarged[0]) == np.argsort(plain[0])).all()
    text = chart("t", lines, enlarge=True)
    assert f"{said}" in text
    assert "the axis is enlarged" in text
    assert "enlarged" not in chart("t", lines)


def test_points_that_are_told_apart_anyway_leave_the_axis_as_it_is():
    lines = [
        Series("80 steps", X[:4], np.array([1.0, 0.5, 0.2, 0.4])),
        Series("225 steps", X[:2], np.array([0.3, 0.9])),
    ]
    assert chart("t", lines, enlarge=True) == chart("t", lines)


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1], [0.1, float("inf")], [float("nan")]])
def test_what_has_no_spread_is_not_enlarged(values):
    lines = [
        Series("80 steps", X[:4], np.array([1.0, 0.5, 0.2, 0.4])),
        Series("225 steps", X[: len(values)], np.array(values)),
    ]
    assert "axis is enlarged" not in chart("t", lines, enlarge=True)
