"""Each shape against its closed form and against torch.optim.lr_scheduler, where that has the same thing."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import thalweg.schedule as schedules
from thalweg.errors import ScheduleError
from thalweg.schedule import SHAPES
from thalweg.schedule.shapes import WARMUPS

TOTAL = 60


def factors(schedule, steps=TOTAL):
    return [schedule.factor(step) for step in range(steps)]


def from_torch(make, steps=TOTAL, **knobs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, **knobs)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-12)


class TestParityWithTorch:
    def test_linear_is_linear_lr_down_to_its_end(self):
        theirs = from_torch(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=TOTAL), TOTAL + 5)
        assert factors(schedules.linear(TOTAL, final=0.1), TOTAL + 5) == close(theirs)

    def test_linear_with_warm_up_is_a_lambda(self):
        def height(step):
            return (step + 1) / 11 if step < 10 else 1 - (step - 10) / (TOTAL - 10)

        assert factors(schedules.linear(TOTAL, 10)) == close(from_torch(lambda o: lr_scheduler.LambdaLR(o, height)))

    @pytest.mark.parametrize("final", [0.0, 0.2])
    def test_cosine_is_cosine_annealing_up_to_its_end(self, final):
        theirs = from_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=final), TOTAL + 1)
        assert factors(schedules.cosine(TOTAL, final=final), TOTAL + 1) == close(theirs)

    def test_unlike_torch_cosine_stays_at_its_end(self):
        theirs = from_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL), TOTAL + 20)
        assert theirs[-1] > 0.1
        assert schedules.cosine(TOTAL).factor(TOTAL + 19) == 0.0

    @pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
    def test_polynomial_is_polynomial_lr(self, power):
        theirs = from_torch(lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power), TOTAL + 5)
        assert factors(schedules.polynomial(TOTAL, power=power), TOTAL + 5) == close(theirs)

    def test_exponential_is_exponential_lr(self):
        theirs = from_torch(lambda o: lr_scheduler.ExponentialLR(o, 0.93))
        assert factors(schedules.exponential(gamma=0.93)) == close(theirs)

    def test_step_every_is_step_lr(self):
        theirs = from_torch(lambda o: lr_scheduler.StepLR(o, 7, 0.5))
        assert factors(schedules.step(every=7, gamma=0.5)) == close(theirs)

    def test_step_at_milestones_is_multi_step_lr(self):
        theirs = from_torch(lambda o: lr_scheduler.MultiStepLR(o, [5, 20, 20, 41], 0.3))
        assert factors(schedules.step(milestones=[5, 20, 20, 41], gamma=0.3)) == close(theirs)

    @pytest.mark.parametrize(("share", "total"), [(0.3, 60), (0.5, 40), (0.1, 100)])
    def test_one_cycle_is_one_cycle_lr(self, share, total):
        def make(optimizer):
            return lr_scheduler.OneCycleLR(optimizer, 1.0, total, pct_start=share, cycle_momentum=False)

        ours = schedules.one_cycle(total, rise=share)
        assert factors(ours, total - 1) == close(from_torch(make, total - 1))

    @pytest.mark.parametrize("growth", [1, 2, 3])
    def test_cosine_restarts_are_cosine_annealing_warm_restarts(self, growth):
        theirs = from_torch(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, growth, eta_min=0.1), 800)
        assert factors(schedules.cosine_restarts(period=3, growth=growth, final=0.1), 800) == close(theirs)


class TestClosedForms:
    def test_exponential_reaches_its_end(self):
        assert factors(schedules.exponential(4, final=0.0001), 5) == close([1, 0.1, 0.01, 0.001, 0.0001])

    def test_inverse_square_root_after_warm_up_is_that_of_the_step(self):
        ours = schedules.inverse_sqrt(warmup=16)
        assert [ours.factor(step) for step in (16, 64, 256, 1600)] == close([1, 0.5, 0.25, 0.1])

    def test_inverse_square_root_without_warm_up_starts_at_the_peak(self):
        assert factors(schedules.inverse_sqrt(), 4) == close([1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5])

    def test_inverse_time_is_one_over_the_step_from_half_at_its_timescale(self):
        assert [schedules.inverse_time(100).factor(step) for step in (0, 10, 30, 90)] == close([1, 0.5, 0.25, 0.1])
        in_steps = schedules.inverse_time(warmup=4, timescale=5)
        assert [in_steps.factor(step) for step in (1, 4, 9, 49)] == close([0.4, 1, 0.5, 0.1])

    def test_a_sum_of_inverse_time_grows_by_as_much_from_each_doubling_to_the_next(self):
        ours = schedules.inverse_time(timescale=1)
        sums = [sum(ours.factor(step) for step in range(2**k)) for k in range(8, 12)]
        assert [b - a for a, b in pairwise(sums)] == pytest.approx([math.log(2)] * 3, rel=5e-3)

    def test_milestones_as_shares_are_of_the_total(self):
        assert factors(schedules.step(8, milestones=[0.25, 0.5], gamma=0.5), 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]

    def test_milestones_count_from_the_first_step_but_every_from_the_end_of_warm_up(self):
        assert schedules.step(warmup=5, milestones=[8]).factor(7) == 1
        assert schedules.step(warmup=5, milestones=[8]).factor(8) == 0.1
        assert schedules.step(warmup=5, every=8).factor(12) == 1
        assert schedules.step(warmup=5, every=8).factor(13) == 0.1

    @pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
    def test_warm_up_stable_decay_has_three_stretches(self, shape, middle):
        ours = schedules.wsd(100, 10, decay=20, decay_shape=shape)
        assert ours.factor(9) == close(10 / 11)
        assert {ours.factor(step) for step in range(10, 81)} == {1.0}
        assert ours.factor(90) == close(middle)
        assert 0 < ours.factor(99) < 0.06
        assert ours.factor(100) == 0

    def test_one_cycle_peaks_at_the_last_step_of_its_rise_and_ends_at_the_last_step(self):
        ours = schedules.one_cycle(50, rise=20, start=0.1, final=0.01)
        heights = factors(ours, 50)
        assert heights[0] == close(0.1)
        assert heights.index(max(heights)) == 19
        assert heights[19] == 1
        assert heights[-1] == close(0.01)

    def test_restarts_fall_exactly_where_powers_add_up(self):
        for growth in (2, 3, 5, 10):
            ours, start = schedules.cosine_restarts(period=4, growth=growth), 0
            for cycle in range(8):
                assert ours.factor(start) == 1.0, (growth, cycle)
                start += 4 * growth**cycle
                assert start > 10**7 or ours.factor(start - 1) < 0.2

    @pytest.mark.parametrize(
        ("shape", "rise"),
        [
            ("linear", [0.25, 0.5, 0.75]),
            ("cosine", [0.5 - math.sqrt(0.5) / 2, 0.5, 0.5 + math.sqrt(0.5) / 2]),
            ("exponential", [0.01**0.75, 0.1, 0.01**0.25]),
        ],
    )
    @pytest.mark.parametrize("name", sorted(set(SHAPES) - {"sequence"}))
    def test_every_shape_takes_every_warm_up(self, name, shape, rise):
        ours = getattr(schedules, name)(total=23, warmup=3, warmup_shape=shape)
        top = ours.factor(3)
        assert top == close(0.04 if name == "one_cycle" else 1)
        assert factors(ours, 3) == close([top * height for height in rise])

    @pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "wsd", "one_cycle", "cosine_restarts"])
    def test_the_last_step_still_moves_and_the_end_is_the_final_factor(self, name):
        ours = getattr(schedules, name)(total=30, warmup=5, final=0.125)
        assert ours.factor(29) >= 0.125
        assert [ours.factor(step) for step in (30, 31, 10**6)] == [0.125] * 3

    @given(st.sampled_from(sorted(WARMUPS)), st.floats(0, 1))
    def test_warm_ups_rise_from_near_nothing_to_one(self, name, p):
        rise = WARMUPS[name]
        assert 0 <= rise(0) <= 0.01
        assert rise(1) == 1
        assert 0 <= rise(p) <= rise(min(p + 0.01, 1)) + 1e-15


class TestWhatDoesNotFit:
    @pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "exponential"])
    def test_an_open_length_is_asked_for_where_the_shape_needs_it(self, name):
        with pytest.raises(ScheduleError, match=r"give total=…"):
            getattr(schedules, name)().factor(0)

    @pytest.mark.parametrize("name", ["constant", "inverse_sqrt", "plateau"])
    def test_an_open_length_is_fine_elsewhere(self, name):
        assert getattr(schedules, name)().factor(0) == 1.0

    @pytest.mark.parametrize("milestones", [[20, 10], [3, 10]])
    def test_milestones_increase_and_lie_after_the_warm_up(self, milestones):
        with pytest.raises(ScheduleError, match="must increase"):
            schedules.step(total=100, warmup=5, milestones=milestones).resolve(10).factor(0)

    def test_a_decay_or_rise_longer_than_what_follows_the_warm_up_is_refused_before_the_first_step(self):
        with pytest.raises(ScheduleError, match="shorten `decay`"):
            schedules.wsd(warmup=0.9, decay=0.2).resolve(100)
        with pytest.raises(ScheduleError, match="shorten `rise`"):
            schedules.one_cycle(warmup=0.9, rise=0.3).resolve(100)
