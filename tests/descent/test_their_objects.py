"""What the user's own code carries from step to step: a resumed run has it again, a rehearsal leaves no trace of itself."""

import array
import copy
import csv
import dataclasses
import functools
import io
import multiprocessing
import multiprocessing.heap
import queue
import random
import threading
import weakref
from collections import Counter, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, plan, started, walk, weights
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import Interrupted

TEMPERATURE = {"value": 1.0}
CALLS = 0


@pytest.fixture(autouse=True)
def shared_memory_of_its_own(monkeypatch):
    """`multiprocessing` keeps what it shared until the process ends, and searches share no work where anything is shared."""
    monkeypatch.setattr(multiprocessing.heap.BufferWrapper, "_heap", multiprocessing.heap.Heap())


class Counting(nn.Module):
    """Counts its steps in a plain attribute, averages in a tensor that is no buffer, and lets its dropout fade."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.calls, self.running, self.recent = 0, torch.zeros(8), deque(maxlen=3)

    def forward(self, x):
        hidden = self.layer(x).tanh()
        self.calls += 1
        self.drop.p = 0.5 / self.calls
        self.running = 0.9 * self.running + 0.1 * hidden.detach().mean(0)
        self.recent.append(hidden.detach().mean())
        self.late = getattr(self, "late", 0) + len(self.recent)
        return self.head(self.drop(hidden) - self.running * sum(self.recent)) * (1 + self.late / 100)


class Extra(nn.Linear):
    """Keeps a number where no attribute shows it."""

    def __init__(self):
        super().__init__(4, 3)
        self.__dict__["hidden"] = type("Box", (), {"__slots__": ("n",), "__module__": "torch.box"})()
        self.__dict__["hidden"].n = 0

    def get_extra_state(self):
        return {"n": self.hidden.n}

    def set_extra_state(self, state):
        self.hidden.n = state["n"]

    def forward(self, x):
        self.hidden.n += 1
        return super().forward(x) / self.hidden.n


class Unfreezing(nn.Module):
    """Freezes its first layer in the middle of training."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 12:
            self.layer.requires_grad_(False)
        return self.head(self.layer(x).tanh())


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, output, target):
        self.calls += self.training
        return F.cross_entropy(output, target) * (1 + 1 / (1 + self.calls))


class Noisy:
    """An object that is called, with random generators of its own."""

    factor = 1.0

    def __init__(self):
        self.numpy, self.old = np.random.default_rng(1), np.random.RandomState(2)
        self.python, self.torch = random.Random(3), torch.Generator().manual_seed(4)

    def __call__(self, output, target):
        Noisy.factor *= 0.99
        drawn = (
            self.numpy.random() + self.old.rand() + self.python.random() + float(torch.rand(1, generator=self.torch))
        )
        return F.cross_entropy(output, target) * (drawn + Noisy.factor)

    def method(self, output, target):
        return self(output, target)


def closure():
    steps, seen, teacher = 0, [], nn.Linear(4, 3, bias=False)
    nn.init.zeros_(teacher.weight)

    def loss(scale, model, batch):
        nonlocal steps
        steps += 1
        seen.append((steps, 0.5**steps))
        TEMPERATURE["value"] *= 0.95
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), model.parameters(), strict=False):
                mine.data.lerp_(its, 0.1)
        output = model(batch[0])
        near = F.mse_loss(output, teacher(batch[0]).detach())
        return F.cross_entropy(output, batch[1]) * (scale + seen[-1][1] + TEMPERATURE["value"]) + near

    return functools.partial(functools.partial(loss), 1.0)


def counting_globally(output, target):
    global CALLS
    CALLS += 1
    counting_globally.calls = getattr(counting_globally, "calls", 0) + 1
    return F.cross_entropy(output, target) / (1 + CALLS + counting_globally.calls)


class Adversary(nn.Module):
    """Has an optimiser of its own, which alone holds what it moves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)

    def forward(self, x):
        output, scale = self.layer(x), self.optimizer.param_groups[0]["params"][0]
        if self.training:
            scale.grad = output.detach().mean(0)
            self.optimizer.step()
        return output * scale.detach()


def with_gradient_hook():
    """A layer whose weight's gradient shrinks with every call of a hook."""
    layer, calls = linear(), []

    def hook(gradient):
        calls.append(1)
        return gradient / len(calls)

    layer.weight.register_hook(hook)
    return layer


def with_accumulation_hook():
    """The same by the other kind of hook."""
    layer, calls = linear(), []

    def hook(weight):
        calls.append(1)
        weight.grad /= len(calls)

    layer.weight.register_post_accumulate_grad_hook(hook)
    return layer


class Late:
    """Makes at its first call what it works with: a teacher, a copy of the model as it is then, and what moves that."""

    def __init__(self):
        self.teacher, self.kept, self.first = None, {}, []

    def __call__(self, model, batch):
        if self.teacher is None:
            self.teacher = copy.deepcopy(model)
            self.optimizer = torch.optim.SGD(self.teacher.parameters(), lr=0.1, momentum=0.9)
            self.kept["generator"] = torch.Generator().manual_seed(3)
        apart = zip(model.parameters(), self.teacher.parameters(), strict=True)
        distance = sum((mine - its.detach()).square().sum() for mine, its in apart)
        self.first.append(float(distance.detach()))
        if model.training:
            for mine, its in zip(model.parameters(), self.teacher.parameters(), strict=True):
                its.grad = (its - mine).detach()
            self.optimizer.step()
            self.optimizer.zero_grad()
        with torch.no_grad():
            aim = self.teacher(batch[0]) + torch.rand(1, generator=self.kept["generator"])
        output = model(batch[0])
        return F.cross_entropy(output, batch[1]) + distance + F.mse_loss(output, aim)


def late_closure():
    step = None

    def late(model, batch):
        nonlocal step
        if step is None:
            step = Late()
        return step(model, batch)

    return late


class Momentum(nn.Module):
    """Has a frozen encoder that follows the trained one in the forward pass, and normalises another weight there."""

    def __init__(self):
        super().__init__()
        self.encoder, self.follower, self.aims = nn.Linear(4, 5), nn.Linear(4, 5).requires_grad_(False), nn.Linear(5, 3)

    def forward(self, x):
        if self.training:
            for its, mine in zip(self.follower.parameters(), self.encoder.parameters(), strict=True):
                its.data.mul_(0.9).add_(mine.data, alpha=0.1)
            with torch.no_grad():
                self.aims.weight.copy_(F.normalize(self.aims.weight, dim=1))
        return self.aims(self.encoder(x) - self.follower(x))


class OfPythonsLibrary(nn.Module):
    """Carries values of Python's own library, and a size, that are no containers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.factor, self.part, self.day = Decimal(1), Fraction(1), date(2000, 1, 1)
        self.bytes, self.array, self.shared = bytearray(2), array.array("d", [1.0]), multiprocessing.Value("i", 0)
        self.local, self.queue, self.by_module = threading.local(), queue.Queue(), weakref.WeakKeyDictionary()
        self.size = torch.Size([1])

    def forward(self, x):
        if self.training:
            self.factor *= Decimal("0.99")
            self.part *= Fraction(63, 64)
            self.day += timedelta(days=1)
            self.bytes[1] += 1
            self.array[0] *= 0.99
            self.shared.value += 1
            self.local.calls = getattr(self.local, "calls", 0) + 1
            self.queue.put(1)
            self.by_module[self.layer] = self.by_module.get(self.layer, 0) + 1
            self.size = torch.Size([self.size[0] + 1])
        counts = self.day.day + self.bytes[1] + self.shared.value + getattr(self.local, "calls", 0) + self.queue.qsize()
        scale = 1 + (counts + self.by_module.get(self.layer, 0) + self.size[0]) / 500
        return self.layer(x) * scale * float(self.factor) * float(self.part) * self.array[0]


Seen = namedtuple("Seen", "example label loss")


class Phase(Enum):
    FIRST = 1
    LAST = 2


class Remembering:
    """A step that keeps named tuples in a replay memory, bounded deques by class, counts of counts, and phases."""

    def __init__(self):
        self.memory, self.by_class, self.counts = deque(maxlen=20), {}, defaultdict(Counter)
        self.phases, self.between = [Phase.FIRST], torch.eye(4).to_sparse()

    def __call__(self, model, batch):
        x, y = batch
        output = model(torch.sparse.mm(self.between, x.T).T)
        loss = F.cross_entropy(output, y)
        if model.training:
            for example, label in zip(x[:3], y[:3].tolist(), strict=True):
                self.memory.append(Seen(example.clone(), label, float(loss.detach())))
                self.by_class.setdefault(label, deque(maxlen=2)).append(self.memory[-1].loss)
                self.counts[label][len(self.memory) % 3] += 1
            self.phases.append(Phase.LAST if self.phases[-1].value == 1 else Phase.FIRST)
            self.between = self.between * 1.01
        again = sum(F.cross_entropy(model(seen.example), torch.tensor(seen.label)) for seen in self.memory)
        scale = sum(sum(losses) for losses in self.by_class.values()) + self.counts[0][1] + self.phases[-1].value
        return loss + again * scale / 20


class OfLibraries(nn.Module):
    """Carries distributions that move or are replaced, and things of Python's that have a place or an end."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.moving = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        self.replaced = torch.distributions.Categorical(logits=torch.zeros(3))
        self.now, self.part = datetime(2000, 1, 1, tzinfo=UTC), slice(0, 1)
        self.text, self.view, self.means = io.StringIO(), memoryview(bytearray(1)), np.empty((1, 2), dtype=object)
        self.means[0, 0], self.means[0, 1] = [], 0

    def forward(self, x):
        output = self.layer(x)
        if self.training:
            self.moving.loc.lerp_(output.detach().mean(0), 0.1)
            drawn = F.one_hot(self.replaced.sample(), 3)
            self.replaced = torch.distributions.Categorical(logits=self.replaced.logits + 0.1 * drawn)
            self.now += timedelta(hours=7)
            self.part = slice(0, 1 + self.part.stop % 3)
            self.text.write(".")
            self.view[0] += 1
            self.means[0, 0].append(float(output.detach().mean()))
            self.means[0, 1] += 1
        output = output * (1 + sum(self.means[0, 0][-2:]) + self.means[0, 1] / 50)
        counts = self.now.hour + self.part.stop + self.text.tell() + self.view[0]
        return (output + self.replaced.probs) * (1 + counts / 100) + self.moving.log_prob(output)


class Discriminator:
    """A step with a second network that it trains itself, and whose gradients add up over three steps."""

    def __init__(self):
        torch.manual_seed(0)
        self.network, self.calls = nn.Linear(3, 1), 0
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.5)

    def __call__(self, model, batch):
        output = model(batch[0])
        if model.training:
            with torch.enable_grad():
                F.softplus(self.network(output.detach())).mean().backward()
            self.calls += 1
            if self.calls % 3 == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
        judged = F.linear(output, self.network.weight.detach(), self.network.bias.detach())
        return F.cross_entropy(output, batch[1]) + F.softplus(-judged).mean()


class LateBuffer(nn.Module):
    """Registers a buffer in its first call, and gives others new tensors, of the batch's size, in every call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("fade", torch.ones(()))
        self.register_buffer("last", None)

    def forward(self, x):
        if not hasattr(self.layer, "mean"):
            self.layer.register_buffer("mean", x.detach().mean(0))
        if self.training:
            self.layer.mean.lerp_(x.detach().mean(0), 0.1)
        self.fade = self.fade * 0.99
        self.last = x.detach() * self.fade
        return self.layer(x - self.layer.mean + self.last) * self.fade


class Scripted(nn.Module):
    """Is compiled by TorchScript, attributes included: of a list or a dict it gives Python a copy each time."""

    seen: list[float]
    last: dict[str, float]

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.mean, self.ring = nn.Linear(4, 3), 0, torch.zeros(3), torch.zeros(4)
        self.seen, self.last = [], {}

    def forward(self, x):
        output = self.layer(x)
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * output.detach().mean(0)
        self.ring[self.calls % 4] = float(x.mean())
        self.seen.append(float(x.mean()))
        self.last[str(self.calls % 3)] = float(output.mean())
        total = 0.01 * len(self.seen) + self.calls / 50 + float(self.ring.sum())
        for value in self.last.values():
            total += 0.1 * value
        return output * (1 + total) - self.mean


def scripted():
    return torch.jit.script(Scripted())


def normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def linear():
    return nn.Linear(4, 3, bias=False)


def kinds():
    return {
        "model": lambda: tw.Task(Counting, F.cross_entropy, blobs()),
        "model, validated": lambda: tw.Task(Counting, F.cross_entropy, blobs(), blobs(30, seed=1)),
        "extra state": lambda: tw.Task(Extra, F.cross_entropy, blobs()),
        "frozen in the middle": lambda: tw.Task(Unfreezing, F.cross_entropy, blobs()),
        "loss module": lambda: tw.Task(linear, Loss(), blobs()),
        "loss object": lambda: tw.Task(linear, Noisy(), blobs()),
        "bound method": lambda: tw.Task(linear, Noisy().method, blobs()),
        "closure in partials": lambda: tw.Task(linear, step=closure(), data=blobs(), validation=blobs(30, seed=1)),
        "global": lambda: tw.Task(linear, counting_globally, blobs()),
        "optimiser of the model": lambda: tw.Task(Adversary, F.cross_entropy, blobs()),
        "hook of a weight": lambda: tw.Task(with_gradient_hook, F.cross_entropy, blobs()),
        "hook after a gradient": lambda: tw.Task(with_accumulation_hook, F.cross_entropy, blobs()),
        "weights that the forward pass moves": lambda: tw.Task(Momentum, F.cross_entropy, blobs()),
        "values of Python's library": lambda: tw.Task(OfPythonsLibrary, F.cross_entropy, blobs(), blobs(30, seed=1)),
        "buffers made by calls": lambda: tw.Task(LateBuffer, F.cross_entropy, blobs(90), blobs(30, seed=1)),
        "scripted": lambda: tw.Task(lambda: torch.jit.script(normed()), F.cross_entropy, blobs(), blobs(30, seed=1)),
        "scripted, with attributes": lambda: tw.Task(scripted, F.cross_entropy, blobs(), blobs(30, seed=1)),
        "scripted within": lambda: tw.Task(
            lambda: nn.Sequential(scripted(), nn.Linear(3, 3)), F.cross_entropy, blobs(), blobs(30, seed=1)
        ),
        "made at the first call": lambda: tw.Task(normed, step=Late(), data=blobs(), validation=blobs(30, seed=1)),
        "replay memory": lambda: tw.Task(linear, step=Remembering(), data=blobs()),
        "values of libraries": lambda: tw.Task(OfLibraries, F.cross_entropy, blobs(), blobs(30, seed=1)),
        "gradients that add up": lambda: tw.Task(
            linear, step=Discriminator(), data=blobs(), validation=blobs(30, seed=1)
        ),
        "captured at the first call": lambda: tw.Task(normed, step=late_closure(), data=blobs()),
    }


def fresh(kind):
    """Give the task as a new process would have it."""
    global CALLS
    CALLS, Noisy.factor, TEMPERATURE["value"] = 0, 1.0, 1.0
    counting_globally.__dict__.clear()
    return kinds()[kind]()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", kinds())
def test_a_resumed_run_goes_on_with_what_the_users_code_carried(kind, tmp_path):
    made = plan(steps=24, watch=False)
    whole = tw.train(fresh(kind), made, progress=False)

    def stop(model, figures):
        if figures.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        tw.train(fresh(kind), made, out=tmp_path / "run", progress=False, on_step=stop)
    resumed = tw.resume(tmp_path / "run", fresh(kind), progress=False)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert np.array_equal(whole.history["loss"], resumed.history["loss"], equal_nan=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", kinds())
def test_a_rollback_puts_back_what_the_users_code_carried(kind):
    descent, recorder = started(fresh(kind), plan(steps=24, watch=False, snapshot_every=5))
    walk(descent, recorder, 19)
    assert descent.snapshot["loop"]["step"] == 15
    first = weights(descent.model)
    descent.load_state_dict(descent.snapshot, rollback=True)
    recorder.supersede(descent.step)
    walk(descent, recorder, 19)
    assert torch.equal(first, weights(descent.model))


def test_what_is_made_at_the_first_call_is_made_in_the_run_that_uses_it():
    step = Late()
    task = tw.Task(normed, step=step, data=blobs(), validation=blobs(30, seed=1))
    tw.check(task)
    tw.tune(task, steps=5, effort=2, fixed={"batch_size": 16}, progress=False)
    assert (step.teacher, step.kept, step.first, hasattr(step, "optimizer")) == (None, {}, [], False)
    tw.train(task, plan(steps=5, seed=1), progress=False)
    assert step.first[0] == 0  # the teacher is a copy of this run's model, not of one that was rehearsed with
    assert step.first[1] > 0


class Recurrent(nn.Module):
    """Computes with a list of its own parameters, as PyTorch's recurrent modules do."""

    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(1, 5, batch_first=True), nn.Linear(5, 3)
        self.groups = {"head": [self.head.weight]}

    def forward(self, x):
        return self.cells(x.unsqueeze(-1))[0][:, -1] @ self.groups["head"][0].T + self.head.bias


class Bounded(nn.Module):
    """Has weights that are shortened wherever they are looked up, in validation too."""

    def __init__(self):
        super().__init__()
        self.table, self.aims = nn.Embedding(40, 5, max_norm=0.5), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        with torch.no_grad():
            self.aims.weight.copy_(F.normalize(self.aims.weight, dim=1))
        return self.aims(self.table(((x + 4) * 5).long().clamp(0, 39)).mean(1))


def test_weights_that_a_validation_moves_are_put_back():
    task, made = classes(model=Bounded), {"steps": 12, "keep": "last", "weight_decay": 0.1}
    assert open_task(task).moving == {"table.weight", "aims.weight"}
    seldom, often = (tw.train(task, plan(**made, validate_every=every), progress=False) for every in (12, 2))
    assert torch.equal(weights(seldom.model), weights(often.model))
    assert open_task(classes(model=linear)).moving == set()


def test_modules_that_list_their_parameters_train_after_a_validation_and_a_resume_as_before(tmp_path):
    task, made = classes(model=Recurrent), {"steps": 12, "keep": "last", "digest_every": 1}
    whole = tw.train(task, plan(**made, validate_every=12), progress=False)
    often = tw.train(task, plan(**made, validate_every=2), progress=False)
    assert torch.equal(weights(whole.model), weights(often.model))

    def stop(model, figures):
        if figures.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        tw.train(task, plan(**made, validate_every=2), out=tmp_path / "run", progress=False, on_step=stop)
    resumed = tw.resume(tmp_path / "run", task, progress=False)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert resumed.model.cells._flat_weights[0] is resumed.model.cells.weight_ih_l0


@pytest.mark.parametrize("kind", ["loss object", "closure in partials", "global", "captured at the first call"])
def test_opening_checking_and_searching_leave_no_trace_in_the_users_objects(kind):
    whole = tw.train(fresh(kind), plan(steps=5), progress=False)
    task = fresh(kind)
    tw.check(task)
    made = tw.tune(task, steps=5, effort=2, fixed={"batch_size": 16}, progress=False)
    assert made.steps == 5
    assert torch.equal(weights(whole.model), weights(tw.train(task, plan(steps=5), progress=False).model))


def test_callbacks_go_on_where_they_were_and_no_rollback_undoes_what_they_saw(tmp_path):
    class Patience:
        def __init__(self):
            self.seen = []

        def __call__(self, model, figures):
            self.seen.append(figures.step)
            if len(self.seen) == 9:
                raise KeyboardInterrupt

    task = tw.Task(linear, F.cross_entropy, blobs())
    with pytest.raises(Interrupted):
        tw.train(task, plan(learning_rate=0.3), out=tmp_path / "run", progress=False, on_step=Patience())
    later = Patience()
    tw.resume(tmp_path / "run", task, progress=False, on_step=later)
    assert later.seen == list(range(1, 31))


def test_a_callback_of_a_resumed_run_may_look_at_what_a_step_counts(tmp_path):
    def stop(model, figures):
        if figures.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        tw.train(fresh("global"), plan(), out=tmp_path / "run", progress=False, on_step=stop)
    seen, task = [], fresh("global")
    tw.resume(tmp_path / "run", task, progress=False, on_step=lambda model, figures: seen.append(CALLS))
    assert seen == list(range(6, 31))


def test_what_cannot_be_kept_is_named_before_the_run():
    noise = (random.random() for _ in iter(int, 1))

    class Attribute(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.cycle = iter([1.0] * 10_000)

        def forward(self, x):
            return super().forward(x) * next(self.cycle)

    def loss(output, target):
        return F.cross_entropy(output, target) + 0 * next(noise)

    class Factor(float):
        pass

    class Names(set):
        pass

    class Changing(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.factor, self.names, self.sent = Factor(1), Names(), queue.SimpleQueue()

        def forward(self, x):
            self.factor = Factor(self.factor * 0.99)
            self.names.add(len(self.names))
            return super().forward(x) * self.factor

    notes = open_task(tw.Task(Changing, F.cross_entropy, blobs())).notes
    assert [
        any(f"`model.{name}` is a {kind}" in note for note in notes)
        for name, kind in (("factor", "Factor"), ("names", "Names"), ("sent", "SimpleQueue"))
    ] == [True] * 3

    unlabelled, rows = iter(DataLoader(TensorDataset(blobs()[0]), batch_size=8)), csv.reader(["1"] * 100)
    Remembered, memory = dataclasses.make_dataclass("Remembered", ["loss"]), []

    def step(model, batch):
        more, weight = next(unlabelled)[0], float(next(rows)[0])
        loss = F.cross_entropy(model(batch[0]), batch[1]) + weight * model(more).square().mean()
        memory.append(Remembered(loss.item()))
        return loss

    notes = open_task(tw.Task(linear, step=step, data=blobs())).notes
    assert any("`step:unlabelled` is an iterator of a DataLoader, whose place cannot be read" in note for note in notes)
    assert any("`step:rows` is a reader, whose place cannot be read" in note for note in notes)
    assert any("`step:memory` is a container in which objects of your own come and go" in note for note in notes)

    notes = open_task(tw.Task(Attribute, loss, blobs())).notes
    assert any("`model.cycle` is a list_iterator, whose place cannot be read" in note for note in notes)
    assert any("`loss:noise` is a generator" in note for note in notes)


class Link:
    def __init__(self, value, before=None):
        self.value, self.before = value, before
        self.depth = 1 if before is None else before.depth + 1


class Relinking(nn.Linear):
    """Lets its objects hang together in another way from call to call, and its loss go by them."""

    def __init__(self, kind):
        super().__init__(4, 3)
        self.kind, self.calls, self.factors = kind, 0, [1.0, 1.1]
        self.head = self.best = self.sign = None
        self.low, self.high, self.active, self.kept = Link(1.0), Link(1.1), None, {"a": Link(0.0)}

    def forward(self, x):
        return super().forward(x) * getattr(self, self.kind)()

    def count(self):
        self.calls += self.training
        return self.calls

    def grows(self):
        if self.training:
            self.head = Link(1 + 0.01 * self.count(), self.head)
        return (
            1
            if self.head is None
            else sum(link.value for link in links(self.head)) / self.head.depth + self.head.depth / 50
        )

    def grows_late(self):
        if self.training and self.count() > 8:
            self.head = Link(1 + 0.01 * self.calls, self.head)
        return 1 if self.head is None else self.head.value * (1 + self.head.depth / 50)

    def switches(self):
        self.active = (self.low, self.high)[self.count() > 8]
        return self.active.value

    def keeps_the_best(self):
        if self.training:
            self.head = Link(1 + (self.count() * 7 % 10) / 10)
            self.best = self.head if self.best is None or self.head.value > self.best.value else self.best
        return 1 if self.best is None else self.best.value

    def another_function(self):
        self.sign = abs_of if self.count() <= 8 else half_of
        return self.sign(1.0)

    def goes(self):
        if self.training and self.count() > 8:
            self.low = None
        return 1 if self.low is None else 1.5

    def in_tuples(self):
        if self.training:
            self.head = (Link(1 + 0.01 * self.count()), self.head)
        return 1 if self.head is None else self.head[0].value

    def other_keys(self):
        if self.training:
            self.kept = {str(self.count()): Link(self.calls / 10)}
        (link,) = self.kept.values()
        return 1 + link.value


def abs_of(x):
    return abs(x)


def half_of(x):
    return x / 2


def links(link):
    while link is not None:
        yield link
        link = link.before


RELINKING = ("grows", "grows_late", "switches", "keeps_the_best", "another_function", "goes", "in_tuples", "other_keys")


@pytest.mark.parametrize("kind", RELINKING)
def test_objects_that_hang_together_in_another_way_as_the_run_goes_on_are_named_and_nobody_looking_on_changes_them(
    kind,
):
    task = tw.Task(lambda: Relinking(kind), F.cross_entropy, blobs())
    wanted = plan(steps=24, learning_rate=0.1)  # at a lower rate the watch would raise it
    looked_on = tw.train(task, wanted.replace(validate_every=3, snapshot_every=5), progress=False)
    alone = tw.train(task, wanted.replace(validate_every=24, snapshot_every=0, watch=False), progress=False)
    assert np.array_equal(looked_on.history["loss"], alone.history["loss"], equal_nan=True)
    said = [*looked_on.summary["notes"], *(event.message for event in looked_on.events)]
    assert any("as the run goes on, which no checkpoint holds" in text for text in said)
    assert sum("as the run goes on" in text for text in said) <= 3
    assert looked_on.summary["exact"] is False


@pytest.mark.parametrize("kind", RELINKING)
def test_what_hung_together_otherwise_when_a_run_was_stopped_is_put_back_or_leaves_the_resumed_one_not_exact(
    kind, tmp_path
):
    def stop(model, figures):
        if figures.step == 13:
            raise KeyboardInterrupt

    task, wanted = (
        tw.Task(lambda: Relinking(kind), F.cross_entropy, blobs()),
        plan(steps=20, watch=False, snapshot_every=4),
    )
    whole = tw.train(task, wanted, progress=False)
    with pytest.raises(Interrupted):
        tw.train(task, wanted, out=tmp_path / "run", progress=False, on_step=stop)
    run = tw.resume(tmp_path / "run", task, progress=False)
    assert run.summary["exact"] is False or torch.equal(weights(run.model), weights(whole.model))


class Hardest(Sampler):
    """Draws what had a large loss more often."""

    def __init__(self, losses):
        self.losses, self.generator = losses, torch.Generator().manual_seed(1)

    def __len__(self):
        return 60

    def __iter__(self):
        return (int(torch.multinomial(self.losses, 1, generator=self.generator)) for _ in range(60))


def test_an_order_that_goes_by_what_the_steps_change_is_named_before_the_run():
    x, y = blobs(60)
    losses, data = torch.ones(60), TensorDataset(x, y, torch.arange(60))

    def step(model, batch):
        each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        losses[batch[2]] = each.detach()
        return each.mean()

    def note(loader):
        problem = open_task(tw.Task(linear, step=step, data=loader))
        assert losses.tolist() == [1.0] * 60
        return problem.is_exact, [text for text in problem.notes if "changes in the steps" in text]

    exact, found = note(DataLoader(data, 10, sampler=Hardest(losses)))
    assert not exact
    assert found[0].startswith("`step:losses` changes in the steps, and `data` may go by it")
    assert note(DataLoader(data, 10, sampler=Hardest(torch.ones(60)))) == (True, [])


def test_a_data_set_that_counts_what_is_read_is_named_and_left_as_it_was():
    class Counted(torch.utils.data.Dataset):
        def __init__(self):
            self.reads, self.cache = 0, {}

        def __len__(self):
            return 20

        def __getitem__(self, index):
            self.reads += 1
            return self.cache.setdefault(index, torch.ones(4) * self.reads), index % 3

    data = Counted()
    notes = open_task(tw.Task(linear, F.cross_entropy, data)).notes
    assert "`data.reads` changes as examples are read, and no checkpoint holds it" in " ".join(notes)
    assert (data.reads, data.cache) == (0, {})


def test_a_loaders_own_collation_that_counts_is_named_and_left_as_it_was():
    class Fading:
        noise = 1.0

        def __call__(self, examples):
            self.noise *= 0.99
            x, y = (torch.stack(part) for part in zip(*examples, strict=True))
            return x + self.noise, y

    collate = Fading()
    loader = DataLoader(TensorDataset(*blobs()), batch_size=16, collate_fn=collate)
    notes = open_task(tw.Task(linear, F.cross_entropy, loader)).notes
    assert "`data.collate_fn.noise` changes as examples are read" in " ".join(notes)
    assert collate.noise == 1.0
    notes = open_task(tw.Task(linear, F.cross_entropy, list(zip(*blobs(), strict=True)), collate_fn=Fading())).notes
    assert "as examples are read" not in " ".join(notes)


def test_a_buffer_that_a_validation_replaces_is_put_back():
    made = {"steps": 12, "keep": "last"}
    seldom, often = (
        tw.train(classes(model=LateBuffer), plan(**made, validate_every=n), progress=False) for n in (12, 2)
    )
    assert torch.equal(weights(seldom.model), weights(often.model))


def test_a_rollback_to_the_first_step_lets_a_model_make_its_buffers_anew():
    made = tw.Plan(rule="momentum", learning_rate=30.0, batch_size=16, steps=60)
    run = tw.train(classes(model=LateBuffer), made, progress=False)
    assert any(event.kind == "rollback" and "to step 0" in event.message for event in run.events)


def test_a_plain_task_is_told_nothing():
    assert open_task(tw.Task(linear, F.cross_entropy, blobs())).notes == ()
    descent, recorder = started(tw.Task(linear, nn.CrossEntropyLoss(), blobs()), plan(steps=5))
    walk(descent, recorder)
    assert descent.state_dict()["objects"] == {}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["model, validated", "extra state", "scripted, with attributes"])
def test_an_opened_model_has_what_the_trained_one_carries(kind, tmp_path):
    run = tw.train(fresh(kind), plan(steps=12), out=tmp_path / "run", progress=False)
    opened = tw.Run.open(tmp_path / "run", fresh(kind))
    x = blobs(5)[0]
    assert torch.equal(opened.model(x), run.model(x))


def test_the_weights_that_are_kept_go_with_what_the_model_carried_into_their_validation(tmp_path):
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(4, 3), torch.zeros(3)

        def forward(self, x):
            output = self.layer(x) + 0.5 * self.last
            self.last = output.detach().mean(0)
            return output

    task = tw.Task(Remembering, F.cross_entropy, blobs(), blobs(30, seed=1))
    run = tw.train(task, plan(steps=12), out=tmp_path / "run", progress=False)
    assert tw.evaluate(run) == run.metrics
    assert tw.evaluate(tmp_path / "run", task=task) == run.metrics


def test_a_file_that_is_read_goes_on_where_it_was(tmp_path):
    (tmp_path / "scales").write_text("".join(f"{i % 7}\n" for i in range(100)))

    def train(file, **options):
        def step(model, batch):
            scale = float(file.readline()) if model.training else 1.0
            return F.cross_entropy(model(batch[0]) * scale, batch[1])

        task = tw.Task(linear, step=step, data=blobs(), validation=blobs(30, seed=1))
        if "run" in options:
            return tw.resume(options["run"], task, progress=False)
        return tw.train(task, plan(steps=20), progress=False, **options)

    def stop(model, figures):
        if figures.step == 12:
            raise KeyboardInterrupt

    with open(tmp_path / "scales") as one, open(tmp_path / "scales") as two, open(tmp_path / "scales") as three:
        whole = train(one)
        with pytest.raises(Interrupted):
            train(two, out=tmp_path / "run", on_step=stop)
        resumed = train(three, run=tmp_path / "run")
    assert whole.summary["exact"]
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_what_was_given_up_when_a_run_went_on_leaves_it_not_exact(tmp_path):
    class Link:
        def __init__(self, before):
            self.before, self.depth = before, 1 if before is None else before.depth + 1

    class Chain(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.last = None

        def forward(self, x):
            if self.training:
                self.last = Link(self.last)
            return super().forward(x) * (1 + (self.last.depth if self.last else 0) / 100)

    def stop(model, figures):
        if figures.step == 7:
            raise KeyboardInterrupt

    task = tw.Task(Chain, F.cross_entropy, blobs())
    with pytest.raises(Interrupted):
        tw.train(task, plan(steps=12, watch=False), out=tmp_path / "run", progress=False, on_step=stop)
    run = tw.resume(tmp_path / "run", task, progress=False)
    assert any("could not be put back" in event.message for event in run.events)
    assert run.summary["exact"] is False


def test_an_object_that_is_gone_is_named_when_the_run_goes_on(tmp_path):
    def stop(model, figures):
        if figures.step == 4:
            raise KeyboardInterrupt

    def counting(box):
        def loss(output, target):
            box["steps"] = box.get("steps", 0) + 1
            return F.cross_entropy(output, target)

        return loss

    with pytest.raises(Interrupted):
        tw.train(tw.Task(linear, counting({}), blobs()), plan(), out=tmp_path / "run", progress=False, on_step=stop)
    with pytest.warns(UserWarning, match="has changed|could not be put back"):
        run = tw.resume(tmp_path / "run", tw.Task(linear, F.cross_entropy, blobs()), progress=False)
    assert any("`loss:box` held could not be put back" in event.message for event in run.events)
