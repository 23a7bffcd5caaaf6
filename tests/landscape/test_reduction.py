"""How a batch's loss is made of its examples' losses: found for losses of any kind, and exact on batches it was not found on."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from thalweg.landscape.reduction import Reduction, compare_parts, loss_option, measure_reduction, unwrap

generator = torch.Generator().manual_seed(0)
SCORES = torch.randn(32, 5, generator=generator)
LABELS = torch.randint(0, 5, (32,), generator=generator)
NUMBERS = torch.randn(32, 5, generator=generator)
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.5, 2.0, 0.1])


def over_present(output, target):
    present = ~torch.isnan(target)
    return F.mse_loss(output[present], target[present])


def over_rated(output, target):
    rated = target != 0
    return ((output - target).square() * rated).sum() / rated.sum()


def over_rises(output, target):
    """A mean over targets that a condition chooses."""
    return (output - target)[target > 0].square().mean()


def over_rises_if_any(output, target):
    return ((output - target).square() * (target > 0)).sum() / (target > 0).sum().clamp(min=1)


def below(bound):
    return lambda output, target: ((output - target).square() * (target < bound)).sum() / (target < bound).sum()


def over_all(output, target):
    return torch.where(torch.isnan(target), 0.0, (output - target.nan_to_num()).square()).mean()


def contrastive(output, target):
    output, target = F.normalize(output, dim=1), F.normalize(target, dim=1)
    return F.cross_entropy(10 * output @ target.T, torch.arange(len(output)))


def noisy(output, target):
    return F.mse_loss(output + torch.randn_like(output), target)


def sequence_mean(output, target):
    """Each example's mean over its targets, then the mean over examples."""
    return torch.stack([F.cross_entropy(o, t, ignore_index=-1) for o, t in zip(output, target, strict=True)]).mean()


def over_positives(output, target):
    """A detector's loss, which is zero, or negative, for labels that are neither 0 nor 1."""
    each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return (each * target + 0.5 * each * (1 - target)).sum() / target.sum().clamp(min=1)


def dice(output, target):
    return 1 - 2 * (output.sigmoid() * target).sum() / (output.sigmoid().sum() + target.sum())


def over_mean_target(output, target):
    return F.l1_loss(output, target) / target.abs().mean()


RARELY_HIGH = SCORES.repeat(2, 1)[:, :1], torch.cat([NUMBERS[:, :1].clamp(max=1), 2 * torch.ones(32, 1)])
FLAGS = (NUMBERS > 0).float()

CASES = {
    "a class loss": (F.cross_entropy, SCORES, LABELS, "targets", -100),
    "its module with another ignored label": (nn.CrossEntropyLoss(ignore_index=3), SCORES, LABELS, "targets", 3),
    "a partial": (functools.partial(F.cross_entropy, ignore_index=0), SCORES, LABELS, "targets", 0),
    "a partial of a partial": (functools.partial(functools.partial(F.nll_loss), ignore_index=1), SCORES, LABELS, "targets", 1),
    "a lambda": (lambda o, t: F.cross_entropy(o, t, ignore_index=0), SCORES, LABELS, "targets", 0),
    "a lambda with -1": (lambda o, t: F.cross_entropy(o, t, ignore_index=-1), SCORES, LABELS, "targets", -1),
    "class weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), SCORES, LABELS, "targets", -100),
    "probabilities": (F.cross_entropy, SCORES, NUMBERS.softmax(1), "examples", None),
    "class weights and smoothing": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1), SCORES, LABELS, "targets", -100
    ),
    "a squared error": (F.mse_loss, SCORES, NUMBERS, "examples", None),
    "its sum": (nn.MSELoss(reduction="sum"), SCORES, NUMBERS, "sum", None),
    "a sum over classes": (nn.CrossEntropyLoss(reduction="sum"), SCORES, LABELS, "sum", None),
    "a sum over classes, without one": (nn.CrossEntropyLoss(reduction="sum", ignore_index=0), SCORES, LABELS % 2, "sum", None),
    "the same, behind a function": (
        lambda o, t: F.cross_entropy(o, t, ignore_index=0, reduction="sum"), SCORES, LABELS % 2, "sum", None
    ),
    "a sum over pixels, mean over examples": (lambda o, t: (o - t).square().sum(1).mean(), SCORES, NUMBERS, "examples", None),
    "missing targets": (over_present, SCORES, NUMBERS, "targets", math.nan),
    "zero is missing": (over_rated, SCORES, NUMBERS, "targets", 0),
    "targets that a condition chooses": (over_rises, SCORES[:, :1], NUMBERS[:, :1], "batch", None),
    "targets that a condition chooses, or none": (over_rises_if_any, SCORES[:, :1], NUMBERS[:, :1], "batch", None),
    "targets below a bound that few exceed": (below(1.8), RARELY_HIGH[0], RARELY_HIGH[1], "batch", None),
    "targets below a bound that none exceeds": (below(50), SCORES[:, :1], NUMBERS[:, :1], "batch", None),
    "targets above a bound": (lambda o, t: (o - t)[t > -50].abs().mean(), SCORES[:, :1], NUMBERS[:, :1], "batch", None),
    "outputs below a bound": (
        lambda o, t: ((o - t).square() * (o < 50)).sum() / (o < 50).sum(), SCORES[:, :1], NUMBERS[:, :1], "batch", None
    ),
    "classes that are not negative": (
        lambda o, t: F.cross_entropy(o, t.clamp(min=0), reduction="none")[t >= 0].mean(), SCORES, LABELS, "batch", None
    ),
    "a mean of which a bound makes losses zero": (
        lambda o, t: ((o - t).square() * (t < 50)).mean(), SCORES[:, :1], NUMBERS[:, :1], "examples", None
    ),
    "huber": (F.smooth_l1_loss, SCORES, NUMBERS, "examples", None),
    "a bounded loss": (lambda o, t: (o - t).tanh().square().mean(), SCORES, NUMBERS, "examples", None),
    "cosine": (lambda o, t: (1 - F.cosine_similarity(o, t)).mean(), SCORES, NUMBERS, "examples", None),
    "poisson": (lambda o, t: F.poisson_nll_loss(o, t.abs().round()), SCORES, NUMBERS, "examples", None),
    "a quantile": (lambda o, t: torch.maximum(0.9 * (t - o), -0.1 * (t - o)).mean(), SCORES, NUMBERS, "examples", None),
    "triplets": (lambda o, t: F.triplet_margin_loss(o, t, t.flip(1)), SCORES, NUMBERS, "examples", None),
    "a sum over targets that a condition chooses": (
        lambda o, t: ((o - t).square() * (t > 0)).sum(), SCORES[:, :1], NUMBERS[:, :1], "sum", None
    ),
    "a mean of losses of which some are zero": (
        lambda o, t: (1 - o * t.sign()).relu().mean(), SCORES[:, :1], NUMBERS[:, :1], "examples", None
    ),
    "missing targets count": (over_all, SCORES, NUMBERS, "examples", None),
    "a contrastive loss": (contrastive, SCORES, NUMBERS, "batch", None),
    "the root of a mean": (lambda o, t: F.mse_loss(o, t).sqrt(), SCORES, NUMBERS, "batch", None),
    "a sum over the positives": (over_positives, SCORES[:, 0], FLAGS[:, 0], "batch", None),
    "dice of the whole batch": (dice, SCORES, FLAGS, "batch", None),
    "dice and cross-entropy": (
        lambda o, t: dice(o, t) + F.binary_cross_entropy_with_logits(o, t), SCORES, FLAGS, "batch", None
    ),
    "an error relative to the batch": (over_mean_target, SCORES, NUMBERS, "batch", None),
    "a loss that draws": (noisy, SCORES, NUMBERS, "unknown", None),
    "one example": (F.l1_loss, SCORES[:1], NUMBERS[:1], "unknown", None),
    "outputs in a tuple": (lambda o, t: F.mse_loss(o[0], t) + o[1].square().mean(), (SCORES, SCORES), NUMBERS, "examples", None),
    "time steps": (
        functools.partial(F.cross_entropy, ignore_index=-1),
        SCORES.reshape(8, 4, 5).transpose(1, 2),
        LABELS.reshape(8, 4),
        "targets",
        -1,
    ),
    "sequences of one weight each": (sequence_mean, SCORES.reshape(8, 4, 5), LABELS.reshape(8, 4), "examples", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_reduction_of_a_loss_is_found(case):
    loss, output, target, kind, ignored = CASES[case]
    rows = output[0] if isinstance(output, tuple) else output
    found = measure_reduction(loss, output, target, len(rows))
    assert found.kind == kind
    assert found.ignored == ignored or (found.ignored is not None and math.isnan(found.ignored) and math.isnan(ignored))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["a lambda", "a partial", "class weights", "missing targets", "a squared error"]),
)
def test_parts_of_any_batch_make_up_the_whole(seed, case):
    loss, *_ = CASES[case]
    found = measure_reduction(loss, *CASES[case][1:3], 32)
    draw = torch.Generator().manual_seed(seed)
    output = torch.randn(12, 5, generator=draw)
    target = torch.randint(0, 5, (12,), generator=draw)
    if case in ("missing targets", "a squared error"):
        target = torch.randn(12, 5, generator=draw)
        if case == "missing targets":
            target[torch.rand(12, 5, generator=draw) < 0.3] = math.nan
            target[::4, 0] = 1.0  # every part keeps some
    cut = int(torch.randint(1, 12, (), generator=draw))
    parts = [
        (float(loss(output[s], target[s])), found.weight(target[s], len(target[s])))
        for s in (slice(cut), slice(cut, 12))
    ]
    counted = [(value, weight) for value, weight in parts if weight]
    if counted:
        average = sum(v * w for v, w in counted) / sum(w for _, w in counted)
        assert average == pytest.approx(float(loss(output, target)), rel=1e-4)


def test_a_batch_whose_targets_are_nearly_all_ignored_keeps_what_its_loss_says():
    target = torch.full((32,), -100)
    target[7] = 1
    assert measure_reduction(F.cross_entropy, SCORES, target, 32) == Reduction("targets", -100)


def test_outputs_in_half_precision_are_compared_in_single():
    assert measure_reduction(F.mse_loss, SCORES.bfloat16(), NUMBERS, 32).kind == "examples"


def test_rows_that_are_no_examples_count_instead_of_them():
    assert measure_reduction(F.mse_loss, SCORES, NUMBERS, 8).weight(NUMBERS[:3], 1) == 15.0


@pytest.mark.parametrize("weights", [LABELS.float(), LABELS > 1, LABELS])
def test_a_part_of_the_target_that_weighs_the_others_is_found(weights):
    def weighed(output, target):
        return (F.cross_entropy(output, target[0], reduction="none") * target[1]).sum() / target[1].sum()

    found = measure_reduction(weighed, SCORES, (LABELS, weights), 32)
    assert found.part == 1
    assert found.weight((LABELS[:9], weights[:9]), 9) == weights[:9].sum()


def test_weights_of_a_plain_mean_do_not_weigh_parts():
    target = LABELS, torch.rand(32, generator=torch.Generator().manual_seed(0))
    plain = measure_reduction(
        lambda o, t: (F.cross_entropy(o, t[0], reduction="none") * t[1]).mean(), SCORES, target, 32
    )
    assert plain == Reduction()
    assert measure_reduction(lambda o, t: F.cross_entropy(o, t[0]), SCORES, target, 32) == Reduction()


def test_equal_losses_do_not_tell_what_they_weigh():
    same = torch.zeros(32, 5)
    assert measure_reduction(over_rated, same, torch.ones(32, 5), 32).kind == "unknown"
    assert measure_reduction(nn.CrossEntropyLoss(ignore_index=1), same, LABELS, 32) == Reduction("targets", 1)


def test_the_reduction_of_a_step_follows_from_losses_alone():
    assert compare_parts([2.0, 2.0], [1.0, 3.0], [None, None], [2, 2]).kind == "examples"
    assert compare_parts([4.0, 4.0], [1.0, 3.0], [None, None], [3, 5]).kind == "sum"
    assert compare_parts([2.5, 2.5], [1.0, 3.0], [1.0, 3.0], [3, 5]).kind == "weighted"
    assert compare_parts([2.0, 2.0], [1.0, 3.0], [3.0, 5.0], [3, 5]).kind == "batch"
    assert compare_parts([2.0, 2.0], [1.0, 3.0], [1.0, 3.0], [3, 5]).kind == "misweighted"
    assert compare_parts([2.0, 2.1], [1.0, 3.0], [None, None], [2, 2]).kind == "unknown"
    assert (
        compare_parts([3.0, 3.0], [0.0, 3.0], [None, None], [3, 5]).kind == "unknown"
    )  # a mean of the second part, or a sum
    assert compare_parts([math.nan, math.nan], [1.0, 3.0], [None, None], [2, 2]).kind == "unknown"


def test_options_of_a_loss_are_read_through_partials():
    loss = functools.partial(F.cross_entropy, ignore_index=2)
    assert unwrap(loss) == (F.cross_entropy, {"ignore_index": 2})
    assert loss_option(loss, "ignore_index") == 2
    assert loss_option(nn.CrossEntropyLoss(), "ignore_index") == -100
    assert loss_option(F.mse_loss, "ignore_index", "none") == "none"
