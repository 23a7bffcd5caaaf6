"""What losses take: targets with which they mean nothing are found, whoever calls them; what they take passes."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.errors import DataError
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import Misfit, misfits

N, K = 8, 3
generator = torch.Generator().manual_seed(0)
SCORES = torch.randn(N, K, generator=generator)
ONE = SCORES[:, :1]
LOGS = SCORES.log_softmax(1)
FLAGS = (torch.arange(N) % 2)[:, None].float()
LABELS = torch.arange(N) % K
ONE_HOT = F.one_hot(LABELS, K)


def found(loss: Any, output: Any, target: Any) -> list[Misfit]:
    with LossCalls() as noted:
        value = loss(output.detach().requires_grad_(), target)
    return [misfit for call in noted.settle(value) for misfit in misfits(call)]


class Wrapped(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, output: Any, target: Any) -> Any:
        return self.inner(output, target)


@pytest.mark.parametrize(
    "loss",
    [
        F.binary_cross_entropy_with_logits,
        nn.BCEWithLogitsLoss(),
        functools.partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(2.0)),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t),
        lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(1), t.squeeze(1)),
        Wrapped(nn.BCEWithLogitsLoss()),
    ],
)
@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        (FLAGS + 1, r"Give y - 1\.$"),
        (2 * FLAGS - 1, r"Give \(y \+ 1\) / 2\.$"),
        (255 * FLAGS, r"Give y / 255\.$"),
        (torch.linspace(0, 255, N).round()[:, None], r"Give y / 255\.$"),
        (LABELS[:, None].float(), r"For 3 classes use cross_entropy, with as many outputs, or scale them: y / 2\.$"),
        (SCORES[:, 1:2] * 3, r"Scale them into that range, or use a loss of distances such as mse_loss\.$"),
    ],
)
def test_targets_outside_a_probabilitys_range_are_found_however_the_loss_is_given(loss, target, remedy):
    (misfit,) = found(loss, ONE, target)
    assert misfit.certain
    with pytest.raises(AssertionError, match=remedy):
        raise AssertionError(misfit.message)
    assert (
        "binary_cross_entropy_with_logits takes probabilities from 0 to 1, and can fall without end" in misfit.message
    )
    assert misfit.rows[0] == int(((target < 0) | (target > 1)).flatten().nonzero()[0])


CERTAIN: dict[str, tuple[Any, torch.Tensor, torch.Tensor, str]] = {
    "labels of a hinge": (nn.HingeEmbeddingLoss(), ONE, FLAGS, r"is 0 in row 0 .* takes -1 and 1\. Give 2 \* y - 1\.$"),
    "labels of a soft margin": (
        F.soft_margin_loss,
        ONE,
        FLAGS,
        r"soft_margin_loss takes -1 and 1\. Give 2 \* y - 1\.$",
    ),
    "labels of a soft margin that are class numbers": (
        F.soft_margin_loss,
        ONE,
        FLAGS + 1,
        r"is 2 in row 1 .*Give 1 for",
    ),
    "labels of an embedding": (
        lambda o, t: F.cosine_embedding_loss(o, o.roll(1, 0), t),
        SCORES,
        FLAGS[:, 0],
        r"cosine_embedding_loss takes -1 and 1\. Give 2 \* y - 1\.$",
    ),
    "labels of a ranking": (
        lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t),
        SCORES,
        FLAGS[:, 0],
        r"margin_ranking_loss takes -1 and 1",
    ),
    "negative counts": (nn.PoissonNLLLoss(), ONE, FLAGS - 1, r"is -1 in row 0 .*takes counts, which are not negative"),
    "logarithms without log_target": (
        nn.KLDivLoss(reduction="batchmean"),
        LOGS,
        LOGS.roll(1, 0),
        r"kl_div takes probabilities\. Set log_target=True",
    ),
    "probabilities with log_target": (
        functools.partial(F.kl_div, log_target=True, reduction="batchmean"),
        LOGS,
        LOGS.exp(),
        r"kl_div with log_target takes logarithms of probabilities\. Set log_target=False",
    ),
    "cross-entropy with scores as targets": (
        F.cross_entropy,
        SCORES,
        SCORES.roll(1, 0),
        r"takes class numbers or prob",
    ),
    "flags of several labels": (nn.MultiLabelSoftMarginLoss(), SCORES, 2 * ONE_HOT.float() - 1, r"Give \(y \+ 1\) / 2"),
    "one-hot rows for lists of classes": (
        nn.MultiLabelMarginLoss(),
        SCORES,
        ONE_HOT,
        r"name a class twice in row 0, .*For rows of 0 and 1 use multilabel_soft_margin_loss\.$",
    ),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_targets_with_which_a_loss_means_nothing_are_found(case):
    loss, output, target, told = CERTAIN[case]
    certain = [misfit.message for misfit in found(loss, output, target) if misfit.certain]
    assert len(certain) == 1
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(certain[0])


ODD: dict[str, tuple[Any, torch.Tensor, torch.Tensor, str]] = {
    "rows of several classes": (
        F.cross_entropy,
        SCORES,
        torch.ones(N, K),
        r"are 3 in sum over the classes in row 0, but cross_entropy takes probabilities, which sum to 1\.",
    ),
    "counts instead of shares": (nn.CrossEntropyLoss(), SCORES, 7 * ONE_HOT.float(), r"are 7 in sum"),
    "a distribution that does not sum to 1": (
        nn.KLDivLoss(reduction="batchmean"),
        LOGS,
        torch.full((N, K), 0.2),
        r"do not sum to 1 over the classes, but kl_div takes probabilities\. Divide them by y\.sum",
    ),
    "scores for log-probabilities": (
        lambda o, t: F.kl_div(o, t, reduction="batchmean"),
        SCORES,
        LOGS.exp(),
        r"outputs are no log-probabilities.*nn\.LogSoftmax\(-1\)\.$",
    ),
    "labels of a margin with zeros": (
        F.soft_margin_loss,
        ONE,
        (LABELS - 1.0)[:, None],
        r"is 0 in row 1 .*Leave these rows out unless they are to count for nothing",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_targets_that_are_legal_but_odd_are_found_and_not_refused(case):
    loss, output, target, told = ODD[case]
    (misfit,) = found(loss, output, target)
    assert not misfit.certain
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(misfit.message)


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        (F.binary_cross_entropy_with_logits, ONE, FLAGS),
        (F.binary_cross_entropy_with_logits, ONE, FLAGS.half().float() * 1.0004),
        (F.binary_cross_entropy, ONE.sigmoid(), FLAGS),
        (nn.MultiLabelSoftMarginLoss(), SCORES, ONE_HOT.float()),
        (nn.MultiLabelMarginLoss(), SCORES, torch.tensor([[0, 2, -1]]).repeat(N, 1)),
        (nn.MultiLabelMarginLoss(), SCORES, torch.tensor([[1, -1, 1]]).repeat(N, 1)),
        (nn.HingeEmbeddingLoss(), ONE, 2 * FLAGS - 1),
        (F.soft_margin_loss, ONE, 2 * FLAGS - 1),
        (nn.PoissonNLLLoss(), ONE, FLAGS * 40),
        (nn.PoissonNLLLoss(log_input=False), ONE.exp(), FLAGS),
        (nn.KLDivLoss(reduction="batchmean"), LOGS, LOGS.exp()),
        (nn.KLDivLoss(reduction="batchmean", log_target=True), LOGS, LOGS),
        (F.cross_entropy, SCORES, LABELS),
        (F.cross_entropy, SCORES, ONE_HOT.float()),
        (F.cross_entropy, SCORES, ONE_HOT.float() * (LABELS > 0)[:, None]),  # rows of zeros are left out
        (functools.partial(F.cross_entropy, ignore_index=9), SCORES, torch.where(LABELS == 1, 9, LABELS)),
        (F.cross_entropy, SCORES, SCORES.softmax(1).half().float()),
        (nn.NLLLoss(), LOGS, LABELS),
        (nn.MultiMarginLoss(), SCORES, LABELS),
        (F.mse_loss, ONE, 255 * FLAGS),
    ],
)
def test_what_a_loss_takes_passes(loss, output, target):
    assert found(loss, output, target) == []


def test_targets_that_are_masked_are_none_of_the_losss():
    missing = torch.where(FLAGS > 0, FLAGS, -1.0)
    present = (missing >= 0).float()

    def masked(o, t):
        return (F.binary_cross_entropy_with_logits(o, t, reduction="none") * (t >= 0)).sum()

    assert found(masked, ONE, missing) == []
    assert (
        found(lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none")[FLAGS > 0].mean(), ONE, missing)
        == []
    )
    (misfit,) = found(lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").mean(), ONE, missing)
    assert misfit.certain
    (misfit,) = found(lambda o, t: (F.soft_margin_loss(o, t, reduction="none") * FLAGS).mean(), ONE, FLAGS + 1)
    assert "is 2 in row 1 " in misfit.message
    assert found(lambda o, t: F.binary_cross_entropy_with_logits(o, t, weight=present), ONE, missing) == []
    assert found(lambda o, t: F.binary_cross_entropy_with_logits(o[t >= 0], t[t >= 0]), ONE, missing) == []


FORMS: dict[str, tuple[Any, torch.Tensor, torch.Tensor, str]] = {
    "a label beyond the outputs, in a lambda": (
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
        SCORES,
        LABELS + 1,
        r"^The target is 3 in row 2, but the model has 3 outputs: labels run from 0 to 2\. Give the model 4 outputs or check",
    ),
    "a label below zero, in a partial": (
        functools.partial(F.nll_loss, reduction="sum"),
        LOGS,
        LABELS - 1,
        r"^The target is -1 in row 0, .* Number the classes from 0\. ignore_index=-1 leaves such targets out\.$",
    ),
    "a label of a margin": (nn.MultiMarginLoss(), SCORES, LABELS + 1, r"^The target is 3 in row 2"),
    "one-hot rows": (
        nn.NLLLoss(),
        LOGS,
        ONE_HOT,
        r"rows of one number per class, but nll_loss takes class numbers\. Give y\.arg",
    ),
    "one-hot rows of floats": (nn.NLLLoss(), LOGS, ONE_HOT.float(), r"Give y\.argmax\(1\), or use cross_entropy\.$"),
    "rows of several classes": (
        nn.MultiMarginLoss(),
        SCORES,
        torch.ones(N, K).long(),
        r"For several classes per example use binary_cross_entropy_with_logits\.$",
    ),
    "labels that are floats": (
        F.cross_entropy,
        SCORES,
        LABELS.float(),
        r"wants class numbers \(int64\).*: y\.long\(\)\.$",
    ),
    "a column of floats": (nn.NLLLoss(), LOGS, LABELS.float()[:, None], r": y\.long\(\)\.squeeze\(1\)\.$"),
    "scores that are no probabilities": (
        nn.BCELoss(),
        ONE,
        FLAGS,
        r"^The model's outputs run from .* takes probabilities from 0 to 1\. End the model with nn\.Sigmoid\(\), or use",
    ),
    "targets that are no probabilities": (
        nn.BCELoss(),
        ONE.sigmoid(),
        FLAGS + 1,
        r"^The target is 2 in row 1 .* Give y - 1",
    ),
    "rates below zero": (
        nn.PoissonNLLLoss(log_input=False),
        ONE,
        FLAGS,
        r"takes rates above zero\. End the model with nn\.Soft",
    ),
    "class weights in double precision": (
        functools.partial(F.cross_entropy, weight=torch.ones(K).double()),
        SCORES,
        LABELS,
        r"^`weight` of cross_entropy is float64, but the scores are float32\. Give weight\.to\(torch\.float32\)\.$",
    ),
    "class weights of another number of classes": (
        lambda o, t: F.nll_loss(o, t, torch.ones(K + 1)),
        LOGS,
        LABELS,
        r"^`weight` of nll_loss has 4 entries, but the model gives scores of 3 classes\.",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_what_a_loss_itself_refuses_is_told_in_better_words(case):
    loss, output, target, told = FORMS[case]
    with pytest.raises(DataError, match=told) as raised:
        found(loss, output, target)
    assert "\n" not in str(raised.value)


TIME = torch.randn(N, 5, K, generator=generator)


@pytest.mark.parametrize(
    ("output", "target", "told"),
    [
        (
            TIME,
            torch.zeros(N, 5).long(),
            r"in the last dimension; cross_entropy takes them in dimension 1\..*transpose\(1, 2\), y\)\.$",
        ),
        (torch.zeros(N, 4, 5, K), torch.zeros(N, 4, 5).long(), r"F\.cross_entropy\(output\.movedim\(-1, 1\), y\)\.$"),
        (
            TIME,
            LABELS,
            r"scores for several positions of each example.*one class per example.*output\[:, -1\], or a mean",
        ),
        (TIME.flatten(0, 1), torch.zeros(N, 5).long(), r"F\.cross_entropy\(output, y\.flatten\(\)\)\.$"),
        (TIME, torch.zeros(N, 5), r"transpose\(1, 2\)"),
    ],
)
def test_scores_whose_classes_lie_in_another_dimension_are_told_how_to_turn(output, target, told):
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)):
        with pytest.raises(DataError, match=told):
            found(loss, output, target)


def test_scores_for_pixels_and_positions_pass():
    assert found(F.cross_entropy, TIME.transpose(1, 2), torch.zeros(N, 5).long()) == []
    assert found(F.cross_entropy, TIME.flatten(0, 1), torch.zeros(N * 5).long()) == []
    assert found(F.cross_entropy, torch.zeros(N, K, 4, 5), torch.zeros(N, 4, 5).long()) == []
    assert found(F.cross_entropy, torch.zeros(K), torch.tensor(1)) == []


def test_what_is_traced_passes_unseen():
    model = nn.Linear(K, K)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    with LossCalls():
        gradients = torch.vmap(torch.func.grad(loss), (None, 0, 0))(weights, SCORES, LABELS)
        scripted = torch.compile(F.cross_entropy, backend="eager")(SCORES, LABELS)
    assert gradients["bias"].shape == (N, K)
    assert torch.equal(scripted, F.cross_entropy(SCORES, LABELS))
