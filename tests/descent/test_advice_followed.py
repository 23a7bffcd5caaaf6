"""Each message that says what to do is followed: the broken task is refused with it, and mended as it says, it trains."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import thalweg as tw

N = 40
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=generator)
Y = torch.arange(N) % 3
FLAT = X[:, 0].clone()
FLAGS = (FLAT > 0).float()
TOKENS = torch.arange(2 * N).reshape(N, 2) % 7
NAMES = np.array(["u", "v", "w", "u"] * 10)
TIME = torch.randn(N, 5, 4, generator=generator)
RAGGED = [(X[i, : 1 + i % 4], int(Y[i])) for i in range(N)]

Parts = dict[str, Any]
BASE: Parts = {"model": lambda: nn.Linear(4, 3), "loss": F.cross_entropy, "data": (X, Y)}
LINE: Parts = {"model": lambda: nn.Linear(4, 1)}


class Case(NamedTuple):
    broken: Mapping[str, Any]
    told: str
    mended: tuple[Mapping[str, Any], ...]  # each as the message says
    plan: Mapping[str, Any] = {}


def case(broken: Mapping[str, Any], told: str, *mended: Mapping[str, Any]) -> Case:
    return Case({**BASE, **broken}, told, tuple({**BASE, **broken, **parts} for parts in mended))


class Own(nn.Module):
    def __init__(self, change: Any = lambda self, x: x) -> None:
        super().__init__()
        self.layer, self.state, self.change = nn.Linear(4, 3), torch.zeros(3), change
        self.register_buffer("constant", torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self, self.layer(x))


def own(change: Any) -> Parts:
    return {"model": lambda: Own(change)}


def recurrent(detach: bool) -> Any:
    def change(self: Any, x: torch.Tensor) -> torch.Tensor:
        output = (x + self.state).tanh()
        self.state = output.detach()[:1] if detach else output[:1]
        return output

    return change


def in_place(self, x):
    y = x.sigmoid()
    y += 1
    return y


def pruned(self, x):
    self.layer.weight *= 0.5
    return self.layer.weight.sum() + x


def pruned_without_gradient(self, x):
    with torch.no_grad():
        self.layer.weight *= 0.5
    return self.layer.weight.sum() + x


class LateParameter(Own):
    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.zeros(3))
        return self.layer(x) + self.late


class LateBias(Own):
    def __init__(self):
        super().__init__()
        self.late = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.layer(x) + self.late


def step(run: Any) -> Parts:
    return {"loss": None, "step": run}


def backward(model, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def plain(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def padded(rows: list[Any]) -> Any:
    return nn.utils.rnn.pad_sequence([F.pad(x, (0, 4 - len(x))) for x, _ in rows], True), torch.tensor(
        [y for _, y in rows]
    )


class Stream:
    def __iter__(self):
        return iter([(X, Y)])


weight64 = torch.ones(3, dtype=torch.float64)
ANOTHER = nn.Linear(4, 3)
COLUMNS = FLAGS.reshape(-1, 1, 1).repeat(1, 2, 1)
bce = F.binary_cross_entropy_with_logits
CASES = {
    "parts of other lengths": case({"data": (X, Y[:-1])}, "have different lengths: shapes", {"data": (X[:-1], Y[:-1])}),
    "a list of arrays": case({"data": [X, Y]}, r"Give a tuple: \(x, y\)\.", {"data": (X, Y)}),
    "an iterator": case(
        {"data": iter([(X, Y)])},
        r"Give \(x, y\) arrays or tensors, a Dataset, an IterableDataset, or a DataLoader",
        {"data": (X, Y)},
        {"data": Stream()},
        {"data": DataLoader(list(zip(X, Y, strict=True)), 8)},
    ),
    "ragged examples": case({"data": RAGGED}, "give `collate_fn`, which pads or packs", {"collate_fn": padded}),
    "ragged rows": case(
        {"data": ([x.tolist() for x, _ in RAGGED], Y)},
        "Give `collate_fn`, which pads or packs",
        {"collate_fn": lambda rows: padded([(torch.tensor(x), int(y)) for x, y in rows])},
    ),
    "a sparse tensor": case(
        {"data": (X.to_sparse(), Y)}, r"Give \.to_dense\(\)", {"data": (X.to_sparse().to_dense(), Y)}
    ),
    "words as labels": case(
        {"data": (X, NAMES)}, r"pandas\.factorize\(y\)\[0\]", {"data": (X, pd.factorize(NAMES)[0])}
    ),
    "a mapping without a target": case(
        {"data": {"input": X, "kind": Y}}, "Call exactly one of them target or", {"data": {"input": X, "label": Y}}
    ),
    "weights of another length": case({"weights": [1.0]}, "give one weight for each", {"weights": [1.0] * N}),
    "weights below zero": case({"weights": [-1.0] * N}, "finite and not negative", {"weights": [1.0] * N}),
    "a column against a row": case(
        {**LINE, "loss": F.mse_loss, "data": (X, FLAT)},
        r"Give both the same shape \(y\[:, None\], or output\.squeeze\(1\)\)",
        {"data": (X, FLAT[:, None])},
        {"loss": lambda o, y: F.mse_loss(o.squeeze(1), y)},
    ),
    "a column against flags": case(
        {**LINE, "loss": bce, "data": (X, FLAGS)},
        r"Give both the same shape: y\[:, None\], or output\.squeeze\(1\)",
        {"data": (X, FLAGS[:, None])},
        {"loss": lambda o, y: bce(o.squeeze(1), y)},
    ),
    "a label beyond the outputs": case(
        {"data": (X, Y + 1)}, "Give the model 4 outputs", {"model": lambda: nn.Linear(4, 4)}, {"data": (X, Y)}
    ),
    "a label below zero": case({"data": (X, Y - 1)}, r"Number the classes from 0\.", {"data": (X, Y)}),
    "pixels that are not to count": case(
        {
            "model": lambda: nn.Conv2d(1, 3, 1),
            "data": (TIME[:, None], torch.where(TIME > 1, 255, 1)),
        },
        "ignore_index=255 leaves such targets out",
        {"loss": nn.CrossEntropyLoss(ignore_index=255)},
    ),
    "a column of labels": case(
        {"data": (X, Y[:, None])}, r"y\.squeeze\(1\), or y\[:, 0\]", {"data": (X, Y[:, None].squeeze(1))}
    ),
    "labels that are floats": case({"data": (X, Y.float())}, r": y\.long\(\)\.$", {"data": (X, Y.float().long())}),
    "a column of floats": case(
        {"data": (X, Y[:, None].float())},
        r": y\.long\(\)\.squeeze\(1\)\.$",
        {"data": (X, Y[:, None].float().long().squeeze(1))},
    ),
    "one-hot rows": case(
        {"loss": F.nll_loss, "data": (X, F.one_hot(Y))},
        r"Give y\.argmax\(1\), or use cross_entropy\.",
        {"data": (X, F.one_hot(Y).argmax(1))},
        {"loss": F.cross_entropy},
    ),
    "rows of several classes": case(
        {"loss": nn.MultiMarginLoss(), "data": (X, X[:, :3] > 0)},
        "use binary_cross_entropy_with_logits",
        {"loss": bce},
    ),
    "labels 1 and 2": case(
        {**LINE, "loss": bce, "data": (X, FLAGS[:, None] + 1)}, "Give y - 1", {"data": (X, FLAGS[:, None])}
    ),
    "class numbers under binary cross-entropy": case(
        {**LINE, "loss": bce, "data": (X, Y[:, None])},
        "For 3 classes use cross_entropy, with as many outputs, or scale them: y / 2",
        {**BASE, "data": (X, Y)},
        {"data": (X, Y[:, None] / 2)},
    ),
    "outputs that are no probabilities": case(
        {**LINE, "loss": nn.BCELoss(), "data": (X, FLAGS[:, None])},
        r"End the model with nn\.Sigmoid\(\), or use binary_cross_entropy_with_logits",
        {"model": lambda: nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())},
        {"loss": bce},
    ),
    "rates below zero": case(
        {**LINE, "loss": nn.PoissonNLLLoss(log_input=False), "data": (X, Y[:, None])},
        r"End the model with nn\.Softplus\(\), or set log_input=True",
        {"model": lambda: nn.Sequential(nn.Linear(4, 1), nn.Softplus())},
        {"loss": nn.PoissonNLLLoss(log_input=True)},
    ),
    "logarithms as probabilities": case(
        {
            "model": lambda: nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)),
            "loss": nn.KLDivLoss(reduction="batchmean"),
            "data": (X, X[:, :3].log_softmax(1)),
        },
        "Set log_target=True",
        {"loss": nn.KLDivLoss(reduction="batchmean", log_target=True)},
    ),
    "classes in the last dimension": case(
        {"data": (TIME, TIME.argmax(2) % 3)},
        r"Give loss=lambda output, y: F\.cross_entropy\(output\.transpose\(1, 2\), y\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output.transpose(1, 2), y)},
    ),
    "classes in the last dimension of pictures": case(
        {"data": (TIME[:, None], TIME[:, None].argmax(3) % 3)},
        r"Give loss=lambda output, y: F\.cross_entropy\(output\.movedim\(-1, 1\), y\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output.movedim(-1, 1), y)},
    ),
    "flat scores": case(
        {"model": lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 1)), "data": (TIME, TIME.argmax(2) % 3)},
        r"loss=lambda output, y: F\.cross_entropy\(output, y\.flatten\(\)\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output, y.flatten())},
    ),
    "scores of several positions": case(
        {"data": (TIME, Y)},
        r"such as output\[:, -1\], or a mean over positions",
        {"loss": lambda output, y: F.cross_entropy(output[:, -1], y)},
        {"loss": lambda output, y: F.cross_entropy(output.mean(1), y)},
    ),
    "class weights in double precision": case(
        {"loss": lambda o, y: F.cross_entropy(o, y, weight=weight64)},
        r"Give weight\.to\(torch\.float32\)\.$",
        {"loss": lambda o, y: F.cross_entropy(o, y, weight=weight64.to(torch.float32))},
        {"loss": nn.CrossEntropyLoss(weight=weight64)},
    ),
    "one loss per example": case(
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        r"Use reduction='mean', or call \.mean\(\)",
        {"loss": nn.CrossEntropyLoss(reduction="mean")},
        {"loss": lambda o, y: nn.CrossEntropyLoss(reduction="none")(o, y).mean()},
    ),
    "a number for a loss": case(
        {"loss": lambda o, y: F.cross_entropy(o, y).item()}, r"without \.item\(\)", {"loss": F.cross_entropy}
    ),
    "a loss cut off": case(
        {"loss": lambda o, y: F.cross_entropy(o.detach(), y)}, r"Look for \.detach\(\)", {"loss": F.cross_entropy}
    ),
    "a loss of one argument": case(
        {"loss": lambda o: o.mean()},
        r"called as loss\(output, target\)",
        {"loss": lambda output, target: output.mean()},
    ),
    "a frozen model": case(
        {"model": lambda: nn.Linear(4, 3).requires_grad_(False)},
        "Set requires_grad",
        {"model": lambda: nn.Linear(4, 3).requires_grad_(True)},
    ),
    "numbers beyond an embedding": case(
        {"model": lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 3)), "data": (TOKENS, Y)},
        "an embedding needs 7 rows",
        {"model": lambda: nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(4, 3))},
    ),
    "parameters made in the first forward pass": case(
        {"model": LateParameter},
        r"Make them in __init__, or use lazy layers",
        {"model": LateBias},
        {"model": lambda: nn.LazyLinear(3)},
    ),
    "a step without return": case(step(lambda m, b: None), r"End it with `return loss`", step(plain)),
    "a step that gives a mapping": case(
        step(lambda m, b: {"loss": plain(m, b).item()}),
        r"'loss' is a float.*without \.item\(\)",
        step(lambda m, b: {"loss": plain(m, b)}),
    ),
    "a step that gives a model's output": case(
        step(lambda m, b: SimpleNamespace(loss=plain(m, b))),
        r"Return its loss: outputs\.loss",
        step(lambda m, b: SimpleNamespace(loss=plain(m, b)).loss),
    ),
    "a step that gives scores too": case(
        step(lambda m, b: (plain(m, b), m(b[0]))), "Return the loss alone", step(lambda m, b: plain(m, b))
    ),
    "a step that gives several losses": case(
        step(lambda m, b: [plain(m, b), plain(m, b)]),
        "the sum of several losses",
        step(lambda m, b: sum([plain(m, b)] * 2)),
    ),
    "a step that calls backward": case(step(backward), "Return the loss alone", step(plain)),
    "a state that is kept": case(own(recurrent(False)), r"needs \.detach\(\)", own(recurrent(True))),
    "a change in place": case(own(in_place), r"write x = x \+ y instead", own(lambda self, x: x.sigmoid() + 1)),
    "a parameter changed in place": case(
        own(pruned),
        r"under torch\.no_grad\(\), or make a new tensor",
        own(pruned_without_gradient),
        own(lambda self, x: (self.layer.weight * 0.5).sum() + x),
    ),
    "numpy in forward": case(
        own(lambda self, x: x + torch.from_numpy(x.sum(1, keepdim=True).numpy())),
        r"Use PyTorch's functions instead of numpy's, or \.detach\(\)",
        own(lambda self, x: x + x.sum(1, keepdim=True)),
        own(lambda self, x: x + torch.from_numpy(x.sum(1, keepdim=True).detach().numpy())),
    ),
    "a constant of another dtype": case(
        own(lambda self, x: x @ torch.eye(3, dtype=torch.float64)),
        r"dtype=x\.dtype",
        own(lambda self, x: x @ torch.eye(3, dtype=x.dtype)),
    ),
    "a constant elsewhere": case(
        own(lambda self, x: x + torch.ones(3, device="meta")),
        r"torch\.zeros\(\.\.\., device=x\.device\), or register_buffer",
        own(lambda self, x: x + torch.ones(3, device=x.device)),
        own(lambda self, x: x @ self.constant),
    ),
    "flat outputs against a column": case(
        {"model": lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), "loss": bce, "data": (X, FLAGS[:, None])},
        r"Give both the same shape: y\.squeeze\(1\), or output\[:, None\]",
        {"data": (X, FLAGS)},
        {"loss": lambda o, y: bce(o[:, None], y)},
    ),
    "one more dimension of both": case(
        {"model": lambda: nn.Linear(4, 1), "loss": bce, "data": (TIME, (TIME[..., 0] > 0).float())},
        r"Give both the same shape: y\[\.\.\., None\], or output\.squeeze\(-1\)",
        {"data": (TIME, (TIME[..., 0] > 0).float()[..., None])},
        {"loss": lambda o, y: bce(o.squeeze(-1), y)},
    ),
    "shapes turned": case(
        {
            "model": lambda: nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (1, 2))),
            "loss": bce,
            "data": (X, FLAGS.reshape(-1, 1, 1).repeat(1, 2, 1)),
        },
        r"Give both the same shape: output\.reshape\(y\.shape\)",
        {"loss": lambda o, y: bce(o.reshape(y.shape), y)},
    ),
    "class numbers under a distance": case(
        {"loss": nn.MSELoss()}, "For class numbers use cross_entropy", {"loss": F.cross_entropy}
    ),
    "pictures a little beyond 0 and 1": case(
        {"model": lambda: nn.Linear(4, 4), "loss": bce, "data": X.sigmoid() * 1.1 - 0.05},
        r"Give y\.clamp\(0, 1\)\.$",
        {"data": (X.sigmoid() * 1.1 - 0.05).clamp(0, 1)},
    ),
    "a model that gives a pair": case(
        own(lambda self, x: (x, x)),
        r"loss=lambda output, y: loss\(output\[0\], y\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output[0], y)},
    ),
    "a model that gives a mapping": case(
        own(lambda self, x: {"scores": x}),
        r"loss\(output\['scores'\], y\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output["scores"], y)},
    ),
    "a model that gives an object": case(
        own(lambda self, x: SimpleNamespace(logits=x)),
        r"loss\(output\.logits, y\)\.$",
        {"loss": lambda output, y: F.cross_entropy(output.logits, y)},
    ),
    "a forward without return": case(
        own(lambda self, x: None), "End the model's forward with a return", own(lambda self, x: x)
    ),
    "an array as class weights": case(
        {"loss": lambda o, y: F.cross_entropy(o, y, weight=np.ones(3, np.float32))},
        r"Give tensors: torch\.as_tensor\(array\)",
        {"loss": lambda o, y: F.cross_entropy(o, y, weight=torch.as_tensor(np.ones(3, np.float32)))},
    ),
    "a variance below zero": case(
        {"loss": lambda o, y: F.gaussian_nll_loss(o[:, 0], y, o[:, 1]), "data": (X, FLAT)},
        r"F\.softplus\(v\), or v\.exp\(\)",
        {"loss": lambda o, y: F.gaussian_nll_loss(o[:, 0], y, F.softplus(o[:, 1]))},
        {"loss": lambda o, y: F.gaussian_nll_loss(o[:, 0], y, o[:, 1].exp())},
    ),
    "a step that uses another model": case(
        step(lambda m, b: plain(ANOTHER, b)),
        r"Use the model, or its output, that step\(model, batch\) is given",
        step(plain),
    ),
    "a loss of another model": case(
        {"loss": lambda o, y: F.cross_entropy(ANOTHER(X[: len(y)]), y)},
        r"the output that loss\(output, target\) is given",
        {"loss": F.cross_entropy},
    ),
    "a batch larger than the data": case({}, "Give at most 40", {})._replace(plan={"batch_size": 41}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_task_is_refused_and_trains_once_the_message_is_followed(name):
    broken, told, mended, plan = CASES[name]
    with pytest.raises(tw.ThalwegError, match=told) as raised:
        tw.train(tw.Task(**broken), tw.Plan(**plan), steps=2)
    assert "\n" not in str(raised.value)
    for parts in mended:
        assert tw.train(tw.Task(**parts), tw.Plan(), steps=2).summary["steps"] == 2


def test_weights_of_a_loss_that_are_cast_are_a_note_of_the_run():
    run = tw.train(tw.Task(**{**BASE, "loss": nn.CrossEntropyLoss(weight=weight64)}), tw.Plan(), steps=2)
    assert run.summary["notes"] == [
        "`weight` of CrossEntropyLoss is float64 and was cast to the model's torch.float32.",
    ]
