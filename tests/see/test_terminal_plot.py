import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg.schedule as schedules
from thalweg.errors import ThalwegError
from thalweg.see.terminal_plot import BRAILLE, plot, plot_schedule

BLANK = " "


def plane(text, bar="|"):
    return [line.split(bar, 1)[1] for line in text.split("\n") if bar in line]


def column(text, index, bar="|"):
    return "".join(line[index : index + 1] or BLANK for line in plane(text, bar))


def test_a_straight_line_is_drawn_from_corner_to_corner():
    lines = plane(plot(range(8), width=27, height=8, unicode=False))
    assert lines[0].strip() == lines[-1].strip() == "**"
    assert [line.index("*") for line in lines] == sorted((line.index("*") for line in lines), reverse=True)


def test_braille_dots_have_the_places_of_the_eight_bits():
    rising = plane(plot([0, 1], width=24, height=2, unicode=True), "│")
    assert ord(rising[1][0]) == BRAILLE + 0x40 + 0x80
    assert ord(rising[0].rstrip()[-1]) == BRAILLE + 0x01 + 0x08


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99_999), st.booleans(), st.booleans())
def test_a_spike_of_one_step_never_vanishes(where, up, unicode):
    quiet = np.zeros(100_000)
    quiet[where] = 1.0 if up else -1.0
    bars = "│" if unicode else "|"
    text = plot(quiet, height=9, unicode=unicode)
    assert any(len(column(text, i, bars).replace(BLANK, "")) == 9 for i in range(70))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60), st.integers(1, 90), st.integers(1, 20))
def test_whatever_comes_it_draws_within_its_size(values, width, height):
    for unicode in (False, True):
        lines = plot({"loss": values}, width=width, height=height, unicode=unicode).split("\n")
        assert max(map(len, lines[:-1]), default=0) <= max(width, 12 + len("-1.7976931348623157e+308") + 2)
        assert len(lines) <= max(height, 2) + 3


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=400))
def test_every_column_shows_its_lowest_and_highest_value(values):
    lines = plane(plot(values, width=30, height=10, unicode=False))
    low, high = min(values), max(values)
    columns = len(plot(values, width=30, height=10, unicode=False).split("\n")[-2].lstrip()) - 1
    drawn = {(r, c) for r, line in enumerate(lines) for c, mark in enumerate(line) if mark == "*"}
    for index, value in enumerate(values):
        share = 0.5 if low == high else (value - low) / (high - low)
        c = int(np.rint(index * ((columns - 1) / (len(values) - 1))))
        row = (1 - share) * 9
        assert any((r, c) in drawn for r in (int(np.floor(row + 1e-6)), int(np.ceil(row - 1e-6))))


def test_nan_leaves_a_gap_that_is_not_bridged():
    values = np.zeros(66)
    values[20:40] = np.nan
    line = next(text for text in plane(plot(values, width=72, height=3, unicode=False)) if "*" in text)
    gap = line.strip("*")
    assert gap
    assert set(gap) == {BLANK}
    assert 18 <= len(gap) <= 22


def test_an_infinite_value_is_counted_and_does_not_bend_the_axis():
    text = plot({"loss": [1.0, float("inf"), 2.0, -float("inf")]}, unicode=False)
    assert "* loss (2 infinite)" in text
    assert text.split("\n")[0].startswith("2 |")


def test_several_series_are_told_apart_without_colours():
    text = plot({"loss": [4, 3, 2, 1], "validation": [4.5, np.nan, np.nan, 1.5], "ema": [0, 0, 0, 0]}, unicode=False)
    assert text.split("\n")[-1].split() == ["*", "loss", "o", "validation", "x", "ema"]
    assert sum(line.count("o") for line in plane(text)) == 2
    assert "x" * 20 in text


@pytest.mark.parametrize("values", [[], [float("nan")] * 3, {}, {"loss": []}])
def test_nothing_to_draw_is_said(values):
    assert plot(values, title="loss") == "loss\n(no finite value to draw)"


@pytest.mark.parametrize(
    "values",
    [
        [3.0, 3.0],
        np.array([3, 3]),
        torch.tensor([3.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
        (3, 3),
        range(3, 4),
    ],
)
def test_anything_that_is_a_row_of_numbers_can_be_drawn(values):
    assert plot(values, unicode=False).split("\n")[0] == "3.15 |"


@pytest.mark.parametrize("values", [np.zeros((2, 2)), 3.0, ["a", "b"], [[1], [2, 3]]])
def test_anything_else_is_refused_by_name(values):
    with pytest.raises(ThalwegError, match="The series 'loss'"):
        plot({"loss": values})


def test_labels_have_as_many_digits_as_tell_them_apart():
    lines = plot([1.00001, 1.00002], height=2, unicode=False).split("\n")
    assert [line.split(" |")[0] for line in lines[:2]] == ["1.00002", "1.00001"]


def test_labels_are_numbers_as_people_write_them():
    lines = plot([1433.0, 32_998.4], height=2, unicode=False).split("\n")
    assert [line.split(" |")[0].strip() for line in lines[:2]] == ["32,998", "1,433"]


def test_a_range_that_overflows_is_drawn():
    lines = plane(plot([-1e308, 1e308], height=3, unicode=False))
    assert all("*" in line for line in lines)


def test_the_axis_says_where_the_ends_are():
    assert plot([1, 2], width=40, unicode=False, ends=(100, 12_000)).split("\n")[-1].split() == ["100", "12,000"]


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "|"), ("latin-1", "|"), ("utf-8", "│")])
def test_an_output_that_cannot_show_braille_gets_ascii(monkeypatch, encoding, bar):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    text = plot([1, 2])
    assert bar in text
    text.encode(encoding)


def test_an_output_without_an_encoding_gets_ascii(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert plot([1, 2]).isascii()


@given(st.lists(st.floats(allow_nan=True), max_size=20))
def test_there_are_no_control_characters(values):
    text = plot({"loss": values}, title="loss", unicode=True)
    assert text.replace("\n", "").isprintable()


class TestSchedules:
    def test_a_schedule_is_drawn_under_its_sentence(self):
        lines = plot_schedule(schedules.linear(2000, 100), peak=3e-3, unicode=False).split("\n")
        assert lines[0] == "linear to zero over 2,000 steps, the first 100 in linear warm-up"
        assert lines[1].lstrip().startswith("0.003 |")
        assert lines[-1].split() == ["0", "1,999"]

    def test_open_lengths_take_the_runs(self):
        assert plot_schedule(schedules.cosine(), total_steps=50, unicode=False).split("\n")[-1].split() == ["0", "49"]
        assert "1-sqrt" in plot_schedule(schedules.wsd("2 epochs"), steps_per_epoch=40)

    @pytest.mark.parametrize(
        "schedule", [schedules.constant(), schedules.plateau(), schedules.inverse_sqrt(), schedules.linear(1)]
    )
    def test_a_schedule_without_an_end_is_drawn_all_the_same(self, schedule):
        assert "*" in plot_schedule(schedule, unicode=False)

    def test_a_long_schedule_is_drawn_at_a_stride_up_to_its_last_step(self):
        assert plot_schedule(schedules.linear(10**7), unicode=False).split("\n")[-1].split() == ["0", "9,999,999"]
