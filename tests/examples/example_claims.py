"""What holds for every example's task, called by the test of each."""

import numpy as np
import torch

from thalweg import optim
from thalweg.examples import load


def parts(task):
    """Give (inputs, targets) of training and of validation as tensors."""
    return [tuple(torch.as_tensor(part) for part in pair) for pair in (task.data, task.validation)]


def model_of(task, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.make_model()


def holds_no_validation_row_in_training(task):
    (x, _), (held, _) = parts(task)
    seen = {row.tobytes() for row in x.flatten(1).numpy()}
    assert len(seen) == len(x), "training repeats rows"
    assert not any(row.tobytes() in seen for row in held.flatten(1).numpy())


def starts_near_the_constant_predictor(task, within):
    """The loss at the start exceeds the entropy of a uniform guess, or falls below it, by no more than a share."""
    (x, y), _ = parts(task)
    classes = int(y.max()) + 1
    with torch.no_grad():
        start = float(task.loss(model_of(task)(x[:256]), y[:256]))
    assert abs(start - np.log(classes)) < within * np.log(classes)


def can_fit_one_batch(task, steps, rate=0.01, count=16):
    (x, y), _ = parts(task)
    x, y, model = x[:count], y[:count], model_of(task).eval()  # without dropout: this batch, nothing else
    optimizer = optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    first = loss = task.loss(model(x), y)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first.item()


def makes_another_model_each_time_from_the_callers_seed(task):
    first, again, other = model_of(task, 0), model_of(task, 0), model_of(task, 1)
    assert first is not again
    flat = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def comes_out_the_same_each_time(name):
    for one, two in zip(parts(load(name)), parts(load(name)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
