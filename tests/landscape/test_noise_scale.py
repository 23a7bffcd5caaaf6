"""The gradient noise scale: exact where norms are exact, right on average, and honest about what it does not know."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.landscape.noise_scale import (
    GradientNorms,
    NoiseScale,
    NoiseScaleMeter,
    Stretch,
    noise_scales,
    of_part_and_whole,
    student_quantile,
)

GRADIENT, NOISE = 4.0, 300.0  # |G|^2 and S, so that the noise scale is 75 examples


def expected(small: float, big: float) -> GradientNorms:
    return GradientNorms(small, GRADIENT + NOISE / small, big, GRADIENT + NOISE / big)


def drawn(
    count: int, micro: int, parts: int, *, gradient: float = GRADIENT, seed: int = 0, width: int = 50
) -> NoiseScaleMeter:
    """Measure gradients of Gaussian noise around a mean of a known length, by the micro-batches of a step."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.full((width,), math.sqrt(gradient / width), dtype=torch.float64)
    meter = NoiseScaleMeter()
    for _ in range(count):
        noise = torch.randn(parts, width, generator=generator, dtype=torch.float64) * math.sqrt(NOISE / width / micro)
        parts_of_step = mean + noise
        norms = [float(g @ g) for g in parts_of_step]
        whole = parts_of_step.mean(0)
        meter.add(GradientNorms.of_micro_batches(norms, float(whole @ whole), micro * parts))
    return meter


@pytest.mark.parametrize(("small", "big"), [(1, 2), (8, 64), (16, 1000)])
def test_expected_norms_give_both_parts_exactly(small: float, big: float) -> None:
    norms = expected(small, big)
    assert norms.gradient == pytest.approx(GRADIENT)
    assert norms.noise == pytest.approx(NOISE)


def test_numerator_and_denominator_are_averaged_before_they_are_divided() -> None:
    meter = drawn(4000, 8, 4)
    found = meter.estimate()
    assert found.value == pytest.approx(75, rel=0.1)
    assert meter.gradient == pytest.approx(GRADIENT, rel=0.1)
    assert meter.noise == pytest.approx(NOISE, rel=0.02)
    assert found.is_known


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    tries = [drawn(40, 16, 4, seed=seed).estimate() for seed in range(300)]
    held = sum(found.low <= 75 <= found.high for found in tries) / len(tries)
    assert 0.85 < held < 0.96
    assert sum(found.is_known for found in tries) / len(tries) > 0.3  # else the interval would be of no use


def test_of_a_gradient_within_its_error_of_zero_only_a_bound_is_given() -> None:
    tries = [drawn(12, 8, 4, gradient=0.0, seed=seed).estimate() for seed in range(100)]
    bounded = [found for found in tries if found.is_known]
    assert len(bounded) < 15  # by chance
    unknown = next(found for found in tries if not found.is_known and found.low > 0)
    assert unknown.value == math.inf
    assert str(unknown).startswith("larger than ")


def test_the_bound_holds_as_often_as_it_says() -> None:
    tries = [drawn(8, 8, 4, gradient=0.3, seed=seed).estimate() for seed in range(300)]
    assert sum(found.low <= 1000 <= found.high for found in tries) > 0.85 * len(tries)


def test_without_noise_the_noise_scale_is_zero() -> None:
    meter = NoiseScaleMeter()
    for _ in range(6):
        meter.add(GradientNorms(8, 2.0, 32, 2.0))
    assert meter.estimate() == NoiseScale(0.0, 0.0, 0.0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_a_few_measurements_nothing_is_known(count: int) -> None:
    found = drawn(count, 8, 4).estimate()
    assert (found.low, found.high) == (0.0, math.inf)
    assert str(found) == "not known"


def test_negative_estimates_are_kept() -> None:
    meter = NoiseScaleMeter()
    for sign in (1, -1, 1, -1):
        meter.add(GradientNorms(8, 10.0, 32, 10.0 + sign))
    assert meter.noise == pytest.approx(0.0)


def test_what_is_not_finite_is_left_out() -> None:
    meter, clean = drawn(10, 8, 4), drawn(10, 8, 4)
    meter.add(GradientNorms(8, math.nan, 32, 1.0))
    meter.add(GradientNorms(8, 1.0, 32, math.inf))
    assert meter.estimate() == clean.estimate()


@pytest.mark.parametrize("sizes", [(8, 8), (32, 8), (0, 8), (-1, 8)])
def test_batches_in_the_wrong_order_are_refused(sizes: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be smaller"):
        NoiseScaleMeter().add(GradientNorms(sizes[0], 1.0, sizes[1], 1.0))


def test_one_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        GradientNorms.of_micro_batches([1.0], 1.0, 8)


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        NoiseScaleMeter(decay)


def test_a_decay_forgets_what_was_measured_long_ago() -> None:
    meter = NoiseScaleMeter(decay=0.8)
    for gradient in [100.0] * 50 + [GRADIENT] * 50:
        meter.add(GradientNorms(8, gradient + NOISE / 8, 32, gradient + NOISE / 32))
    assert meter.estimate().value == pytest.approx(75, rel=0.01)
    assert meter.count == pytest.approx(9.0, rel=0.01)  # (1 + decay) / (1 - decay)


def test_a_meter_goes_on_from_its_state() -> None:
    whole, first, second = NoiseScaleMeter(0.9), NoiseScaleMeter(0.9), NoiseScaleMeter(0.9)
    measurements = [expected(8, 32 + k) for k in range(10)]
    for norms in measurements:
        whole.add(norms)
    for norms in measurements[:4]:
        first.add(norms)
    second.load_state_dict(first.state_dict())
    for norms in measurements[4:]:
        second.add(norms)
    assert second.estimate() == whole.estimate()


@pytest.mark.parametrize(("freedom", "value"), [(3, 2.353), (4, 2.132), (5, 2.015), (10, 1.812), (30, 1.697)])
def test_quantiles_of_students_distribution(freedom: float, value: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(value, rel=0.01)


def steps_of_a_run(
    count: int, scale: float, *, batch: int = 64, every: int = 10, seed: int = 0, width: int = 50
) -> list[Stretch]:
    """Measure now and then, on a quarter of the batch, at a known noise scale."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.full((width,), math.sqrt(NOISE / scale / width), dtype=torch.float64)
    small = batch // 4
    found = torch.full((2, count), math.nan, dtype=torch.float64)
    for step in range(every - 1, count, every):
        noise = torch.randn(2, width, generator=generator, dtype=torch.float64) * math.sqrt(NOISE / width)
        part, rest = mean + noise[0] / math.sqrt(small), mean + noise[1] / math.sqrt(batch - small)
        whole = (small * part + (batch - small) * rest) / batch
        products = float(part @ part), float(part @ whole), float(whole @ whole)
        found[:, step] = torch.tensor(of_part_and_whole(*products, small, batch))
    return noise_scales(range(1, count + 1), *found.tolist())


def test_stretches_of_a_run_hold_the_true_scale_as_often_as_they_say() -> None:
    inside = total = 0
    for seed in range(12):
        for stretch in steps_of_a_run(1000, 100.0, seed=seed):
            inside, total = inside + (stretch.scale.low <= 100.0 <= stretch.scale.high), total + 1
    assert total == 120
    assert 0.8 < inside / total <= 1.0


def test_stretches_follow_one_another_and_tell_scales_apart() -> None:
    runs = [steps_of_a_run(1000, scale) for scale in (20.0, 320.0)]
    assert [(s.first, s.last) for s in runs[0]] == [(100 * k + 10, 100 * k + 100) for k in range(10)]
    mean = [sum(math.log(s.scale.low + 1) for s in run) for run in runs]
    assert mean[1] > mean[0]


def test_a_scale_far_beyond_the_batch_is_only_bounded() -> None:
    found = [s.scale for s in steps_of_a_run(400, 1e6)]
    assert all(not s.is_known or s.high > 1e3 for s in found)
    assert any(math.isinf(s.value) for s in found)


def test_steps_that_were_not_measured_are_passed_over() -> None:
    nan = math.nan
    (only,) = noise_scales(range(12), [GRADIENT, nan] * 6, [NOISE, NOISE] * 6)
    assert (only.first, only.last) == (0, 10)
    assert only.scale.value == pytest.approx(NOISE / GRADIENT)
    assert noise_scales(range(3), [GRADIENT] * 3, [NOISE] * 3) == []
    assert noise_scales([], [], []) == []


@pytest.mark.parametrize(("small", "whole"), [(1, 2), (8, 32), (3, 10)])
def test_part_and_whole_give_both_without_bias(small: int, whole: int) -> None:
    norms = expected(small, whole)
    # The expected product of the part and the whole is that of the whole with itself: the rest is independent of the part.
    assert of_part_and_whole(norms.small, norms.big, norms.big, small, whole) == pytest.approx((GRADIENT, NOISE))


def test_one_example_with_a_large_gradient_does_not_hide_the_mean() -> None:
    """Its square would stand in both norms; in the product of two parts it stands once."""
    mean, outlier, size = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1000.0]), 16
    part, rest = mean + outlier / 4, mean
    whole = (4 * part + 12 * rest) / size
    gradient, _ = of_part_and_whole(float(part @ part), float(part @ whole), float(whole @ whole), 4, size)
    assert gradient == pytest.approx(1.0, abs=1e-2)
