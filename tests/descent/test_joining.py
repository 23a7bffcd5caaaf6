"""What a model gives reaches a metric over the whole set as it reaches the loss; what cannot be joined is refused at once."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import thalweg as tw
from thalweg.descent.metrics import join
from thalweg.descent.problem import open_task
from thalweg.errors import TaskError

generator = torch.Generator().manual_seed(0)
X = torch.randn(80, 4, generator=generator)
Y = torch.arange(80) % 3
Named = namedtuple("Named", "logits, count")


class Entries(dict):
    """A dict whose entries can be read as attributes."""

    __getattr__ = dict.__getitem__


@dataclass
class Record:
    logits: Any
    features: Any = None


@dataclass
class Output(OrderedDict):
    """A mapping and a dataclass in one, as the outputs of transformers are."""

    logits: Any = None
    loss: Any = None

    def __post_init__(self):
        super().__setitem__("logits", self.logits)

    def __setattr__(self, name, value):
        if name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self):
        return Output, (self.logits, self.loss)


class Model(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


def by_attribute(outputs, targets):
    return (outputs.logits.argmax(1) == targets).float().mean()


def task(wrap: Any, metric: Any = by_attribute, batch: int = 32, loss: Any = None) -> tw.Task:
    data = DataLoader([(x, int(y)) for x, y in zip(X, Y, strict=True)], batch)
    loss = loss or (lambda o, t: F.cross_entropy(o.logits, t))
    return tw.Task(model=lambda: Model(wrap), loss=loss, data=data, validation=data, metrics={"accuracy": metric})


WRAPS = {
    "a dataclass": Record,
    "a named tuple": lambda z: Named(z, 3),
    "a dict with attributes": lambda z: Entries(logits=z),
    "a mapping and a dataclass": Output,
}


@pytest.mark.parametrize("case", WRAPS)
def test_an_output_of_any_kind_keeps_it_in_metrics_and_predictions(case):
    run = tw.train(task(WRAPS[case]), tw.Plan(), steps=1, device="cpu")
    with torch.no_grad():
        scores = run.model.layer(X)
    assert run.metrics["accuracy"] == pytest.approx(float((scores.argmax(1) == Y).float().mean()))
    assert torch.equal(run.predict(X).logits, scores)


def test_entries_and_fields_of_a_mapping_that_is_a_dataclass_stay_the_same():
    joined = join([Output(torch.ones(2)), Output(torch.zeros(1))])
    assert joined["logits"] is joined.logits
    assert joined.logits.tolist() == [1.0, 1.0, 0.0]
    assert joined.loss is None


def normal(z):
    return torch.distributions.Normal(z[:, 0], 1.0)


def likelihood(outputs, targets):
    return -outputs.log_prob(targets.float()).mean()


class PerBatch:
    def reset(self):
        self.seen = []

    def update(self, outputs, targets):
        self.seen.append(float((outputs.mean - targets).abs().mean()))

    def compute(self):
        return sum(self.seen) / len(self.seen)


def packed(z):
    return nn.utils.rnn.pack_sequence([z[:, 0], z[:, 1]])


APART = {
    "a distribution": task(normal, lambda d, t: (d.mean - t).abs().mean(), loss=likelihood),
    "an object": task(lambda z: SimpleNamespace(logits=z)),
    "a packed sequence": task(packed, lambda o, t: o.data.mean(), loss=lambda o, t: o.data.square().mean()),
    "images of several sizes": task(
        lambda z: z[:, :, None].expand(-1, -1, len(z)),
        lambda o, t: o.mean(),
        loss=lambda o, t: F.cross_entropy(o[..., 0], t),
        batch=79,
    ),
}


@pytest.mark.parametrize("case", APART)
def test_outputs_that_cannot_be_joined_are_refused_at_once(case):
    with pytest.raises(TaskError, match=r"outputs of the validation batches cannot be joined .* see batch by batch\.$"):
        open_task(APART[case], "cpu")


def test_data_in_memory_may_come_in_several_batches_however_few_they_are():
    few = {"data": (X[:8], Y[:8]), "validation": (X[:8], Y[:8])}
    with pytest.raises(TaskError, match="a Normal is one object for a whole batch"):
        open_task(replace(APART["a distribution"], **few), "cpu")


def test_a_metric_that_sees_batch_by_batch_takes_them():
    run = tw.train(task(normal, PerBatch(), loss=likelihood), tw.Plan(), steps=1, device="cpu")
    assert run.metrics["accuracy"] > 0
