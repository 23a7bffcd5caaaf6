"""Symptoms are seen in figures alone: where they are there, and not where all is well."""

import math
import random
from itertools import pairwise

import pytest

from thalweg.records.step_figures import StepFigures
from thalweg.watch.causes import CAUSES
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import LIKELY_LENGTH, QUARTER
from thalweg.watch.symptoms import SYMPTOMS
from thalweg.watch.symptoms.oscillating import oscillating
from thalweg.watch.symptoms.overfitting import overfitting
from thalweg.watch.symptoms.spiky import OVER_MEDIAN, spiky
from thalweg.watch.symptoms.stagnant import stagnant
from thalweg.watch.window import Validated, Window


def seen(losses, look, norms=None, rate=lambda step: 0.1, total=None):
    """Push steps, and give what a symptom's function sees after each."""
    window = Window()
    window.total = total
    found = []
    for step, loss in enumerate(losses, 1):
        window.push(StepFigures(step, loss, rate(step), 1.0 if norms is None else norms[step - 1]))
        symptom = look(window)
        if symptom is not None:
            found.append(symptom)
    return found


def noisy(count, level, spread, seed):
    generator = random.Random(seed)
    return [level(step) * math.exp(generator.gauss(0, spread)) for step in range(count)]


FALLS = {
    "to nothing": lambda step: 2.3 * math.exp(-step / 200),
    "to a floor, where it stands": lambda step: 0.4 + 2 * math.exp(-step / 100),
    "slowly": lambda step: 2.3 - step / 2000,
    "late, after a plateau of 90 steps": lambda step: 2.3 if step < 90 else 2.3 * math.exp(-(step - 90) / 100),
}


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("shape", FALLS)
def test_a_loss_that_falls_shows_nothing(shape, spread):
    slow = {"slowly": [stagnant], "late, after a plateau of 90 steps": [stagnant]}.get(
        shape, []
    )  # a question, no finding
    for seed in range(10):
        losses = noisy(1000, FALLS[shape], spread, seed)
        norms = noisy(1000, lambda _: 1.0, 0.3, seed)
        for look in set(SYMPTOMS) - set(slow):
            assert [each for each in seen(losses, look, norms) if each.severity != "note"] == [], look


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
def test_a_loss_that_stands_where_it_began_is_stagnant(spread):
    for seed in range(10):
        found = seen(noisy(400, lambda _: 2.3, spread, seed), stagnant)
        assert found
        assert found[0].step <= 160
        assert found[0].name == "stagnant"


def test_in_a_long_run_a_loss_must_have_stood_for_a_twentieth_of_it():
    found = seen(noisy(3000, lambda _: 2.3, 0.02, 0), stagnant, total=40_000)
    assert found[0].step >= 2000


def test_steps_that_could_go_far_further_are_seen_where_the_rate_is_at_its_height():
    for at_height in (True, False):
        window = Window()
        for step in range(1, 97):
            rate = 0.1 if step < 50 or at_height else 0.001
            window.push(StepFigures(step, 2.3 - step / 200, rate, 1.0))
            if step in (80, 95):
                window.lengths.append((step, 100.0))
        assert (stagnant(window) is not None) == at_height


@pytest.mark.parametrize(
    ("multiples", "total", "starts", "seen"),
    [
        ((16, 16, 16), 300, 2.3, True),
        ((16, 4, 4), 300, 2.3, False),  # usual at a good rate
        ((16, 16, 16), 10_000, 2.3, False),  # there is time
        ((64, 256, 256), 10_000, 2.3, False),
        ((64, 256, 256), 5_000, 2.3, True),
        ((64, 256, 256), 300, 0.9, False),  # it has learnt before: fine-tuning
    ],
)
def test_steps_too_short_are_told_by_the_next_batch_and_by_how_much_time_there_is(multiples, total, starts, seen):
    window = Window()
    window.total = total
    for step in range(1, 98):
        window.push(StepFigures(step, starts - step / 500, 0.1, 1.0))
    window.lengths.extend(zip((64, 80, 96), map(float, multiples), strict=True))
    window.fixed_answers.append(2.3)
    assert (stagnant(window) is not None) == seen


@pytest.mark.parametrize(
    ("multiples", "total", "loss", "can_try", "lowered_at", "severity"),
    [
        ((4, 8, 8), 300, 2.0, True, -1, "note"),
        ((4, 8, 8), 300, 0.3, True, -1, None),  # nearly all is learnt
        ((4, 8, 8), 2_000, 2.0, True, -1, None),  # the first steps are too small a part of the run
        ((4, 8, 8), 300, 2.0, False, -1, None),
        ((4, 8, 8), 300, 2.0, False, 20, None),  # a rate that was lowered is not raised by so little
        ((0.5, 0.5, 1), 300, 2.0, True, -1, "note"),
        ((0.5, 0.5, 1), 300, 1.0, True, -1, None),  # much is learnt
        ((0.5, 0.5, 1), 300, 2.0, False, -1, None),
        ((0.5, 0.5, 1), 2_000, 2.0, False, 20, "warning"),
        ((0.5, 0.5, 1), 300, 2.0, False, 70, None),  # one of them was at the rate before
        ((1, 1, 1), 300, 2.0, True, 20, None),
    ],
)
def test_few_tries_are_enough_where_rates_can_be_tried_or_the_rate_was_lowered(
    multiples, total, loss, can_try, lowered_at, severity
):
    window = Window()
    window.total, window.tries_rates, window.lowered_at = total, can_try, lowered_at
    for step in range(1, 98):
        window.push(StepFigures(step, loss if step > 16 else 2.3, 0.1, 1.0))
    window.lengths.extend(zip((64, 80, 96), map(float, multiples), strict=True))
    found = stagnant(window)
    found = None if found is None or LIKELY_LENGTH not in found.evidence else found
    assert (None if found is None else found.severity) == severity


@pytest.mark.parametrize("kind", ["loss", "gradient norm"])
def test_a_jump_is_a_spike_and_the_third_a_warning(kind):
    usual = noisy(600, lambda _: 1.0, 0.1, 0)
    jumps = [9.0 if step in (199, 299, 399) else value for step, value in enumerate(usual)]
    losses, norms = (jumps, usual) if kind == "loss" else (usual, jumps)
    found = seen(losses, spiky, norms)
    assert [(each.step, each.severity) for each in found] == [(200, "note"), (300, "note"), (400, "warning")]
    assert f"the {kind} jumped to 9" in found[0].text


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tailed_losses_hardly_ever_spike(seed):
    generator = random.Random(seed)
    losses = [generator.gauss(0, 1) ** 2 for _ in range(2000)]
    found = seen(losses, spiky, norms=losses[::-1])
    looks = [each for each in found if OVER_MEDIAN in each.evidence]  # at single examples, which is measured, not said
    assert len(found) - len(looks) <= 12
    assert len(looks) <= 16 + 16 * math.log(2000 / 256) + 1


def test_a_loss_that_jumps_again_and_again_is_looked_at_in_the_first_steps_and_later():
    losses = [9.0 if step % 9 == 5 else value for step, value in enumerate(noisy(400, lambda _: 1.0, 0.1, 0))]
    found = seen(losses, spiky)
    assert found[0].step == 6
    assert all(each.severity == "note" and each.evidence["loss"]["value"] == 9.0 for each in found)
    assert max(two.step - one.step for one, two in pairwise(found)) <= 48


def window_of(tries, start=2.3, left=2.0, steps=97, examples=32, total=300):
    """A window at a step after which whole and quartered steps were tried on the next batch."""
    window = Window()
    window.total = total
    for step in range(1, steps + 1):
        loss = start + (left - start) * min(1.0, step / 32) if step > 1 else start
        window.push(StepFigures(step, loss, 0.1, 1.0, examples=examples))
    for number, pair in enumerate(tries):
        window.lengths.append((steps - 1 - 16 * (len(tries) - 1 - number), 0.5))
        window.parts.append((window.lengths[-1][0], *pair))
    return window


@pytest.mark.parametrize(
    ("whole", "quarter", "count", "is_seen"),
    [
        (0.01, -0.02, 6, True),
        (0.01, -0.02, 5, False),
        (-0.08, -0.02, 6, False),  # the slope goes on
        (-0.02, -0.02, 6, False),  # the bottom is between: a brisk rate
        (0.01, 0.0, 6, False),  # nothing is learnt
    ],
)
def test_steps_too_long_are_told_by_a_quarter_of_them_that_helps_the_next_batch(whole, quarter, count, is_seen):
    tries = [(whole + 0.001 * (-1) ** k, quarter + 0.001 * (-1) ** k) for k in range(count)]
    found = stagnant(window_of(tries))
    assert (found is not None and QUARTER in found.evidence) == is_seen
    early = stagnant(window_of(tries, total=5000))  # the beginning of a long run says little
    assert early is None or QUARTER not in early.evidence


@pytest.mark.parametrize(("examples", "steps", "is_seen"), [(32, 112, True), (1, 112, False), (1, 208, True)])
def test_batches_of_few_examples_must_stand_for_longer(examples, steps, is_seen):
    assert (stagnant(window_of([], left=2.3, steps=steps, examples=examples)) is not None) == is_seen


def test_a_fall_that_noise_hides_is_seen_over_more_steps():
    generator = random.Random(0)
    falling = [6.0 - step / 200 + generator.expovariate(1) for step in range(640)]
    standing = [2.3 + generator.expovariate(1) for step in range(640)]
    late = [[each for each in seen(losses, stagnant) if each.step > 288] for losses in (falling, standing)]
    assert late[0] == []
    assert late[1]


@pytest.mark.parametrize(
    ("validations", "training", "is_seen"),
    [
        ([2.35, 2.4, 2.42, 2.45, 2.5], 2.0, True),
        ([2.35, 2.4, 2.42, 2.45, 2.5], 2.28, False),  # training learns nothing either: a plateau
        ([2.35, 1.9, 2.0, 1.95, 1.97], 1.8, False),
    ],
)
def test_training_below_one_fixed_answer_with_validation_never_below_it_carries_nothing_over(
    validations, training, is_seen
):
    window = Window()
    window.step, window.start, window.smoothed = 500, 2.4, training
    window.fixed_answers.append(2.3)
    for number, loss in enumerate(validations, 1):
        window.validations.append(Validated(100 * number, loss, training if number > 2 else 2.3))
    assert (overfitting(window) is not None) == is_seen
    if is_seen:
        found = CAUSES["nothing-to-learn"].question(overfitting(window), window, Probe())
        assert "says nothing about others" in found.cause


def test_a_loss_that_swings_from_step_to_step_oscillates_and_noise_does_not():
    swings = [2.0 + (-1) ** step * 0.5 for step in range(200)]
    assert seen(swings, oscillating)[0].step <= 64
    assert seen([2.0 + random.Random(step).gauss(0, 0.5) for step in range(200)], oscillating) == []
    falling = [math.exp(-step / 50) * (1 + (-1) ** step * 0.3) for step in range(200)]
    assert seen(falling, oscillating) == []


@pytest.mark.parametrize(("late", "training", "is_seen"), [(1.5, 0.1, True), (1.02, 0.1, False), (1.5, 0.9, False)])
def test_validation_that_gets_worse_while_training_gets_better_is_overfitting(late, training, is_seen):
    window = Window()
    window.step = 900
    losses = [2.0, 1.4, 1.2, 1.0, *(1 + k * (late - 1) / 2 for k in range(1, 6))]
    trainings = [2.0, 1.4, 1.1, 0.5, 0.4, 0.3, training, training, training]
    for number, pair in enumerate(zip(losses, trainings, strict=True), 1):
        window.validations.append(Validated(100 * number, *pair))
    assert (overfitting(window) is not None) == is_seen


def test_no_symptom_is_seen_in_nothing():
    assert [look(Window()) for look in SYMPTOMS] == [None] * len(SYMPTOMS)
