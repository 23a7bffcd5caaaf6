import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.errors import TaskError
from thalweg.landscape.objective import Objective
from thalweg.landscape.per_example import per_example_losses

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


def losses(loss, y=Y, model=None, **parts):
    task = tw.Task(model=lambda: nn.Linear(3, 2), loss=loss, data=(X, y), **parts)
    model = model or nn.Linear(3, 2)
    return per_example_losses(Objective(task), model, (X, y), 6), model


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), lambda o, t: 3 + F.cross_entropy(o, t)]
)
def test_they_are_those_of_batches_of_one(loss):
    found, model = losses(loss)
    wanted = [loss(model(x[None]), y[None]).item() for x, y in zip(X, Y, strict=True)]
    assert (found - found.mean()).tolist() == pytest.approx([one - sum(wanted) / 6 for one in wanted], abs=1e-5)


def test_elements_of_an_example_are_averaged():
    target = torch.rand(6, 2)
    found, model = losses(F.mse_loss, target)
    assert found.tolist() == pytest.approx((model(X) - target).square().mean(1).tolist())


def test_tokens_in_one_long_row_are_their_examples():
    class Tokens(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, :2], 2 * x[:, 1:]], 1)

    def step(model, batch):
        return F.cross_entropy(model(batch[0]).reshape(-1, 2), batch[1].repeat_interleave(2))

    task = tw.Task(model=Tokens, step=step, data=(X, Y))
    found = per_example_losses(Objective(task), Tokens(), (X, Y), 6)
    wanted = [step(Tokens(), (x[None], y[None])).item() for x, y in zip(X, Y, strict=True)]
    assert found.tolist() == pytest.approx(wanted)


def test_a_loss_of_ones_own_tells_nothing():
    assert losses(lambda output, target: (output[:, 0] - target).abs().mean())[0] is None


def test_the_tasks_own_function_is_asked_and_checked():
    found, _ = losses(F.cross_entropy, per_example_loss=lambda model, batch: batch[0][:, 0])
    assert found.tolist() == X[:, 0].tolist()
    with pytest.raises(TaskError, match=r"gave a tensor of shape \(\) for a batch of 6 examples"):
        losses(F.cross_entropy, per_example_loss=lambda model, batch: batch[0].mean())
