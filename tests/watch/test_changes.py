"""What cures change: factors on the plan's knobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.records.diagnosis import Cure
from thalweg.watch.changes import Changes

CURES = st.builds(
    Cure,
    st.just(""),
    rate_factor=st.floats(0.01, 10),
    clip_norm=st.none() | st.floats(0.01, 10),
    decay_factor=st.floats(0, 1),
    warmup=st.integers(0, 50),
    anneal=st.floats(0, 1),
)


def test_what_is_not_changed_leaves_the_scheduled_rate():
    assert Changes().rate(7, 0.03, 0.1) == 0.03
    assert not Changes().moves_rate


def test_a_warm_up_rises_in_a_line_and_ends_at_the_scheduled_rate():
    changes = Changes().with_cure(Cure("", warmup=4), 10, 100)
    assert [changes.rate(step, 0.1, 0.1) for step in (9, 10, 11, 12, 13, 50)] == pytest.approx(
        [0.1, 0.025, 0.05, 0.075, 0.1, 0.1]
    )


def test_annealing_comes_down_to_zero_at_the_end_and_never_lowers_the_rate():
    changes = Changes().with_cure(Cure("", anneal=0.5), 60, 100)
    assert [changes.rate(step, 0.0, 0.1) for step in (60, 80, 100, 120)] == pytest.approx([0.05, 0.025, 0.0, 0.0])
    assert changes.rate(80, 0.09, 0.1) == 0.09


@given(st.lists(CURES, max_size=5), st.integers(0, 120))
def test_what_is_written_is_read_and_clipping_never_gets_weaker(cures, step):
    changes = Changes()
    for number, cure in enumerate(cures):
        after = changes.with_cure(cure, 10 * number, 100)
        assert after.clip_norm is None or changes.clip_norm is None or after.clip_norm <= changes.clip_norm
        changes = after
    read = Changes.from_dict(changes.to_dict())
    assert read == changes
    assert read.rate(step, 0.05, 0.1) == changes.rate(step, 0.05, 0.1) >= 0


def test_those_of_an_earlier_version_are_read():
    assert Changes.from_dict({"rate_factor": 0.5, "clip_norm": None}) == Changes(rate_factor=0.5)
