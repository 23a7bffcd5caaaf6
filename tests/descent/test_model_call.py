"""How inputs reach the model is told where forward takes something else, and the advice works."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import TaskError

N = 40
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=generator)
Y = torch.arange(N) % 3


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)


class One(Own):
    def forward(self, x):
        return self.layer(x)


class Two(Own):
    def forward(self, x, mask):
        return self.layer(x * mask)


class Named(Own):
    def forward(self, *, ids, mask=None):
        return self.layer(ids)


class Mapped(Own):
    def forward(self, batch):
        return self.layer(batch["x"])


class Paired(Own):
    def forward(self, pair):
        return self.layer(pair[0] + pair[1])


# model, data -> what is told, data mended as it says
CASES = {
    "a tuple for one tensor": (
        One,
        ((X, X), Y),
        r"Several inputs are passed one by one, model\(x1, x2\), but forward takes \(x\)\. Put them into one tensor",
        (X + X, Y),
    ),
    "a tuple for one tuple": (
        Paired,
        ((X, X), Y),
        r"but forward takes \(pair\)\. .* for forward to take the tuple as one, give a tuple of one: \(\(x1, x2\),\)\.$",
        (((X, X),), Y),
    ),
    "three parts for one tensor": (One, (X, X, Y), r"model\(x1, x2\), .* of \(x, y, name\), say, the last", (X, Y)),
    "one tensor for two": (
        Two,
        (X, Y),
        r"The inputs are passed as one, model\(x\), but forward takes \(x, mask\)\. Give a tuple of .*: \(\(x, mask\), y\)\.$",
        ((X, X), Y),
    ),
    "one tensor for a name": (
        Named,
        (X, Y),
        r"model\(x\), but forward takes \(\*, ids, mask=None\)\. Give a mapping: \{'ids': \.\.\.\}\.$",
        ({"ids": X}, Y),
    ),
    "a mapping of other names": (
        Named,
        ({"x": X}, Y),
        r"A mapping is passed by name, model\(x=\.\.\.\), but forward takes .* Name the keys as its arguments",
        ({"ids": X}, Y),
    ),
    "a mapping with more than that": (
        Named,
        {"ids": X, "length": Y, "label": Y},
        r"model\(ids=\.\.\., length=\.\.\.\), but .*leave others out\.$",
        {"ids": X, "label": Y},
    ),
    "a mapping with less than that": (
        Two,
        ({"x": X}, Y),
        r"A mapping is passed by name, model\(x=\.\.\.\), but forward takes \(x, mask\)",
        ({"x": X, "mask": X}, Y),
    ),
    "a mapping for one mapping": (
        Mapped,
        ({"x": X}, Y),
        r"for forward to take the mapping as one, give a tuple of one: \(\{\.\.\.\},\)\.$",
        (({"x": X},), Y),
    ),
    "a list for a tuple": (
        Two,
        DataLoader(
            [([x, x], y) for x, y in zip(X, Y, strict=True)], 20, collate_fn=lambda rows: ([X[:20], X[:20]], Y[:20])
        ),
        r"passed as one, model\(list\), but forward takes \(x, mask\)\. Give a tuple of inputs",
        ((X, X), Y),
    ),
    "a list for one tensor": (
        One,
        DataLoader([([x], y) for x, y in zip(X, Y, strict=True)], 20, collate_fn=lambda rows: ([X[:20]], Y[:20])),
        r"model\(list\): a list reaches forward as one object\. Give a tuple of tensors for several arguments, or a mapping",
        ((X,), Y),
    ),
    "too much for a Sequential": (
        lambda: nn.Sequential(nn.Linear(4, 3)),
        (X, X, Y),
        r"forward takes \(input\)",
        (X, Y),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_how_inputs_reach_the_model_is_told_and_the_advice_works(case):
    model, data, told, mended = CASES[case]
    with pytest.raises(TaskError, match=told) as raised:
        open_task(tw.Task(model=model, loss=F.cross_entropy, data=data), "cpu")
    assert "\n" not in str(raised.value)
    assert "Compare these shapes" not in str(raised.value)
    run = tw.train(tw.Task(model=model, loss=F.cross_entropy, data=mended), tw.Plan(), steps=2)
    assert run.summary["steps"] == 2


def test_a_type_error_within_forward_is_not_taken_for_a_wrong_call():
    class Mistaken(Own):
        def forward(self, x):
            return self.layer(x) + None

    with pytest.raises(TaskError, match=r"TypeError: unsupported operand .* \(test_model_call\.py, line \d+\)\.$"):
        open_task(tw.Task(model=Mistaken, loss=F.cross_entropy, data=(X, Y)), "cpu")
