import math

from hypothesis import given
from hypothesis import strategies as st

from thalweg.records.step_figures import StepFigures
from thalweg.watch.window import LENGTH, SMOOTHING, START_LOSSES, Window

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=50))
def test_the_smoothed_loss_is_the_debiased_average(losses):
    window = Window()
    for loss in losses:
        window._add(loss)
    shares = [SMOOTHING ** (len(losses) - 1 - k) for k in range(len(losses))]
    wanted = sum(s * loss for s, loss in zip(shares, losses, strict=True)) / sum(shares)
    assert math.isclose(window.smoothed, wanted, rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(
        window.start, sum(losses[:START_LOSSES]) / len(losses[:START_LOSSES]), rel_tol=1e-9, abs_tol=1e-6
    )
    assert list(window.losses) == losses


def test_what_is_no_number_stays_out():
    window = Window()
    for step, (loss, norm, skipped) in enumerate(
        [(2.0, 1.0, False), (math.nan, math.nan, True), (math.inf, 3.0, True)]
    ):
        window.push(StepFigures(step, loss, 0.1, norm, skipped=skipped))
    assert list(window.losses) == [2.0]
    assert list(window.gradient_norms) == [1.0]
    assert window.smoothed == 2.0


def test_a_single_outlier_is_left_out_and_the_second_in_a_row_is_included():
    window = Window()
    for step in range(20):
        window.push(StepFigures(step, 1.0 + step % 2, 0.1, 1.0, skipped=False))
    window.push(StepFigures(20, 50.0, 0.1, 1.0, skipped=False))
    assert max(window.losses) == 2.0
    window.push(StepFigures(21, 60.0, 0.1, 1.0, skipped=False))
    assert max(window.losses) == 60.0


def test_it_forgets():
    window = Window()
    for step in range(LENGTH + 10):
        window.push(StepFigures(step, float(step), 0.1, 1.0, skipped=False))
    assert len(window.losses) == LENGTH
    assert window.losses[0] == 10.0


def test_losses_as_large_as_floats_go_are_counted():
    window = Window()
    for step in range(1, 200):
        window.push(StepFigures(step, 1e300 * (1 + step % 3), 0.1, 1e300))
    mean, deviation = window.mean_and_deviation()
    assert mean > 0
    assert deviation > 0
