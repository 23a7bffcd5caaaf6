"""Targets of all data in memory are held to what the loss takes; what the loss mends or masks itself passes."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import DataError

N, LATE = 100, 70  # row LATE is in no first batch
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=generator)
FLAGS = (X[:, :1] > 0).float()
WRONG = FLAGS.clone()
WRONG[LATE] = 255
bce = F.binary_cross_entropy_with_logits


def focal(output, target, below=2):
    loss = bce(output, target, reduction="none")
    return (loss * (1 - (-loss.abs()).exp()) * (target < below)).mean()


def line() -> nn.Module:
    return nn.Linear(4, 1)


def task(y: Any = WRONG, loss: Any = bce, **more: Any) -> tw.Task:
    return tw.Task(**{"model": line, "loss": loss, "data": (X, y), **more})


REFUSED: dict[str, tuple[tw.Task, str]] = {
    "a function": (task(), "row 70 "),
    "a module": (task(loss=nn.BCEWithLogitsLoss()), "row 70 "),
    "a partial": (task(loss=functools.partial(bce, pos_weight=torch.tensor(2.0))), "row 70 "),
    "a lambda": (task(loss=lambda o, t: bce(o, t.double().float())), "row 70 "),
    "a mean of ones own": (task(loss=lambda o, t: bce(o, t, reduction="none").mean()), "row 70 "),
    "a focal loss": (task(loss=lambda o, t: focal(o, t, 1000)), "row 70 "),
    "flat targets": (task(WRONG[:, 0], loss=lambda o, t: bce(o.squeeze(1), t)), "row 70 "),
    "whole numbers": (task(WRONG.long()), "row 70 "),
    "a mapping": (task(data={"input": X, "label": WRONG}), "row 70 "),
    "a step": (task(loss=None, step=lambda m, b: bce(m(b[0]), b[1])), "row 70 "),
    "probabilities": (task(loss=lambda o, t: F.binary_cross_entropy(o.sigmoid(), t)), "row 70 "),
    "validation": (task(FLAGS, validation=(X, WRONG)), "row 70 of `validation` "),
    "an autoencoder's inputs": (
        tw.Task(
            model=lambda: nn.Linear(4, 4), loss=bce, data=X.abs().clamp(0, 1) * (1 + (torch.arange(N) == LATE))[:, None]
        ),
        "row 70 ",
    ),
    "the first batch of a Dataset": (
        task(data=TensorDataset(X, FLAGS * 255), collate_fn=torch.utils.data.default_collate),
        "",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_target_outside_the_losss_range_is_found_in_any_row(case):
    faulty, row = REFUSED[case]
    with pytest.raises(DataError, match=rf"^The target is .* in {row}.*probabilities from 0 to 1") as raised:
        open_task(faulty, "cpu")
    assert "\n" not in str(raised.value)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(zip(X, 2 * FLAGS - 1, strict=True)))


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream(), 16), DataLoader(TensorDataset(X, 2 * FLAGS - 1), 16)])
def test_of_what_is_not_in_memory_the_first_batch_is_looked_at(data):
    with pytest.raises(DataError, match=r"^The target is -1 in row .* Give \(y \+ 1\) / 2\.$"):
        open_task(task(data=data), "cpu")


@pytest.mark.parametrize(
    "mended",
    [
        task(loss=lambda o, t: bce(o, (t > 0).float())),
        task(loss=lambda o, t: bce(o, t.clamp(0, 1))),
        task(loss=lambda o, t: bce(o[t < 2], t[t < 2])),
        task(loss=lambda o, t: bce(o, t, weight=(t < 2).float())),
        task(loss=focal),
        task(loss=lambda o, t: bce(o, t, reduction="none")[t < 2].mean()),
        task(torch.where(WRONG > 1, -1.0, WRONG), lambda o, t: (bce(o, t, reduction="none") * (t >= 0)).sum() / len(t)),
        task(loss=lambda o, t: bce(o / 255, t / 255)),
        task(loss=None, step=lambda m, b: bce(m(b[0]), b[1].clamp(0, 1))),
        task(loss=F.mse_loss),
    ],
)
def test_what_the_loss_mends_or_masks_itself_passes(mended):
    open_task(mended, "cpu")


def test_labels_that_occur_in_later_rows_only_decide_with_all_rows():
    signs = torch.where(torch.arange(N)[:, None] < LATE, FLAGS, -1.0)  # the first batch alone would be refused
    problem = open_task(task(signs, loss=F.soft_margin_loss), "cpu")
    assert any("Leave these rows out unless they are to count for nothing." in note for note in problem.notes)
    with pytest.raises(DataError, match=r"Give 2 \* y - 1"):
        open_task(task(FLAGS, loss=F.soft_margin_loss), "cpu")


def test_labels_beyond_the_outputs_are_found_in_any_row_under_a_loss_of_ones_own():
    labels = torch.arange(N) % 3
    labels[LATE] = 7
    for loss in (lambda o, t: F.cross_entropy(o, t), functools.partial(F.cross_entropy, label_smoothing=0.1)):
        with pytest.raises(DataError, match=r"^The target is 7 in row 70, but the model has 3 outputs"):
            open_task(task(labels, loss, model=lambda: nn.Linear(4, 3)), "cpu")
    kept = task(labels, lambda o, t: F.cross_entropy(o, t, ignore_index=7), model=lambda: nn.Linear(4, 3))
    open_task(kept, "cpu")


def test_odd_targets_are_a_warning_of_check_and_a_note_of_the_run():
    several = torch.ones(N, 3)
    odd = task(several, F.cross_entropy, model=lambda: nn.Linear(4, 3))
    found = [d for d in tw.check(odd) if d.symptom == "targets of another kind"]
    assert [d.severity for d in found] == ["warning"]
    assert "which sum to 1" in str(found[0])
    run = tw.train(odd, tw.Plan(), steps=1)
    assert any("binary_cross_entropy_with_logits for several classes" in note for note in run.summary["notes"])


def test_check_looks_at_examples_all_over_a_data_set():
    rare = torch.zeros(1000, 1)
    rare[500:] = 2.0
    data = TensorDataset(torch.randn(1000, 4, generator=generator), rare)
    faulty = task(data=data, collate_fn=torch.utils.data.default_collate)
    (found,) = [d for d in tw.check(faulty) if d.symptom == "targets outside the loss's range"]
    assert found.severity == "critical"
    assert "of a sample (targets run from 0 to 2)" in str(found)


@pytest.mark.parametrize(
    ("mended", "loss"),
    [
        (FLAGS + 1 - 1, bce),
        ((2 * FLAGS - 1 + 1) / 2, bce),
        (255 * FLAGS / 255, bce),
        (2 * FLAGS - 1, F.soft_margin_loss),
        (2 * FLAGS - 1, nn.HingeEmbeddingLoss()),
    ],
)
def test_the_advice_works_when_followed(mended, loss):
    run = tw.train(task(mended, loss), tw.Plan(), steps=2)
    assert not [note for note in run.summary["notes"] if "target" in note]


def test_losses_of_single_examples_that_torch_func_traces_pass_unseen():
    def step(model, batch):
        weights = dict(model.named_parameters())

        def loss(x, y):
            return bce(torch.func.functional_call(model, weights, (x[None],)), y[None])

        return torch.vmap(loss)(*batch).mean()

    open_task(task(FLAGS, loss=None, step=step), "cpu")
