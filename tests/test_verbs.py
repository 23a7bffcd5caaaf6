import math
import os
import random
import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import thalweg as tw
from thalweg.records.run_folder import PLAN

N = 36
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=generator).numpy()
Y = X[:, :3].argmax(1)


def classifier():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(3, 4), nn.Linear(4, 3, bias=False)
        self.o.weight = self.e.weight

    def forward(self, x):
        return self.o(self.e(x))


class Loss(nn.Module):
    """As Hugging Face's models do: the loss comes out of the model."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)

    def forward(self, inputs=None, labels=None):
        return type("Output", (), {"loss": F.cross_entropy(self.l(inputs), labels)})


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.w).abs()


class Items(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index], Y[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Items()[index] for index in range(N))


class Endless(IterableDataset):
    def __iter__(self):
        index = 0
        while True:
            yield Items()[index % N]
            index += 1


def half_frozen():
    model = classifier()
    model[0].requires_grad_(False)
    return model


def tensors():
    return TensorDataset(torch.tensor(X), torch.tensor(Y))


def ragged():
    rows = [torch.randint(0, 5, (n % 4 + 1,), generator=generator) for n in range(N)]
    return rows, Y.tolist()


def pad(rows):
    return nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True), torch.tensor([y for _, y in rows])


def weighted_step(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1]), torch.tensor(float(len(batch[1])))


REGRESSION = {"model": lambda: nn.Linear(6, 1), "loss": nn.MSELoss(), "data": (X, X[:, :1])}
BRINGS = {
    "float64 arrays": {"data": (X.astype(np.float64), Y)},
    "a frame and a series": {"data": (pd.DataFrame(X, columns=list("abcdef")), pd.Series(Y, index=range(50, 50 + N)))},
    "object columns": {"data": (X.astype(object), Y.astype(object))},
    "big-endian, read-only, reversed": {
        "data": (X.astype(">f8")[::-1], np.frombuffer(Y.astype("i8").tobytes(), "i8")[::-1])
    },
    "int32 labels": {"data": (X, Y.astype(np.int32))},
    "bytes as labels": {"data": (X, Y.astype(np.uint8))},
    "flags under binary cross-entropy": {**REGRESSION, "loss": nn.BCEWithLogitsLoss(), "data": (X, Y[:, None] > 0)},
    "pictures as bytes": {"data": ((X * 50).clip(0, 255).astype(np.uint8), Y)},
    "soft labels": {"data": (X, np.eye(3)[Y])},
    "several inputs": {"model": Two, "data": (X, X[:, :2], Y)},
    "nested inputs": {"model": Two, "data": ((X, X[:, :2]), Y)},
    "named inputs": {"model": Two, "data": ({"a": X, "b": X[:, :2]}, Y)},
    "a mapping": {"model": Two, "data": {"a": X, "b": X[:, :2], "label": Y}},
    "mappings as examples": {
        "model": Two,
        "data": [{"a": x, "b": x[:2], "label": y} for x, y in zip(X, Y, strict=True)],
    },
    "one tensor": {"model": lambda: nn.Linear(6, 6), "loss": F.mse_loss, "data": torch.tensor(X)},
    "a tensor data set": {"data": tensors()},
    "a data set": {"data": Items()},
    "pairs in a list": {"data": list(zip(X, Y, strict=True))},
    "lists of lists": {"data": (X.tolist(), Y.tolist())},
    "a stream": {"data": Stream()},
    "an endless stream": {"data": Endless()},
    "ragged rows": {"model": lambda: nn.EmbeddingBag(5, 3), "data": ragged(), "collate_fn": pad},
    "a loader": {"data": DataLoader(tensors(), batch_size=10, shuffle=True)},
    "a loader with workers": {"data": DataLoader(Items(), batch_size=10, num_workers=1)},
    "a loader with a sampler": {"data": DataLoader(tensors(), 10, sampler=WeightedRandomSampler(torch.ones(N), N))},
    "a loader with a batch sampler": {
        "data": DataLoader(tensors(), batch_sampler=BatchSampler(RandomSampler(Y), 10, True))
    },
    "a loader that drops": {"data": DataLoader(tensors(), batch_size=10, drop_last=True)},
    "a loader larger than the data": {"data": DataLoader(tensors(), batch_size=64)},
    "a loader over a stream": {"data": DataLoader(Stream(), batch_size=10)},
    "a step of one's own": {
        "model": Loss,
        "loss": None,
        "step": lambda m, b: m(**b).loss,
        "data": {"inputs": X, "labels": Y},
    },
    "a weighted step": {"loss": None, "step": weighted_step, "data": (X, Y)},
    "a module": {"model": classifier(), "data": (X, Y)},
    "twenty rows": {"data": (X[:20], Y[:20])},
    "one row": {"data": (X[:1], Y[:1])},
    "tied weights": {"model": Tied, "data": (Y, Y)},
    "frozen weights": {"model": half_frozen, "data": (X, Y)},
    "double precision": {"model": lambda: classifier().double(), "data": (X, Y)},
    "half precision": {"model": lambda: classifier().half(), "data": (X, Y)},
    "complex weights": {"model": Spectrum, "data": (X, Y)},
    "lazy layers": {"model": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)), "data": (X, Y)},
    "sampling weights": {"data": (X, Y), "weights": pd.Series(np.ones(N))},
    "batch normalisation": {
        "model": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        "data": (X, Y),
    },
}


def task(**parts):
    return tw.Task(**{"model": classifier, "loss": F.cross_entropy, **parts})


@pytest.mark.parametrize("kind", BRINGS)
def test_what_people_bring_trains_as_they_bring_it(kind, tmp_path):
    with warnings.catch_warnings():
        if kind == "lazy layers":
            warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
        run = tw.train(task(**BRINGS[kind]), tw.Plan(learning_rate=1e-2), steps=8, out=tmp_path / "run")
    assert run.summary["status"] == "finished"
    assert np.isfinite(run.metrics["loss"])
    assert run.metrics["loss"] < run.summary["start"]["loss"]


@pytest.mark.parametrize(
    "kind", ["float64 arrays", "a stream", "a loader with a sampler", "twenty rows", "a step of one's own"]
)
def test_what_people_bring_is_tuned_too(kind):
    run = tw.fit(task(**BRINGS[kind]), steps=20, effort=2)
    assert run.metrics["loss"] < run.summary["start"]["loss"]


@pytest.mark.parametrize(
    "knobs",
    [
        {"batch_size": None},
        {"batch_size": 1},
        {"batch_size": N},
        {"batch_size": 7, "drop_last": True},
        {"batch_size": 7, "replacement": True},
        {"batch_size": 7, "accumulate": 3},
        {"batch_size": None, "accumulate": 5},
        {"ema": 0.5},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"shuffle": False},
        {"watch": False, "snapshot_every": 0},
    ],
)
def test_every_way_of_drawing_and_stepping_descends(knobs):
    made = task(data=(X, Y), validation=(X[:17], Y[:17]))
    run = tw.train(made, tw.Plan(**{"learning_rate": 1e-2, "batch_size": 8, **knobs}), steps=20)
    assert run.metrics["loss"] < run.summary["start"]["loss"]


class Streaming:
    def reset(self):
        self.right = self.seen = 0

    def update(self, outputs, targets):
        self.right += (outputs.argmax(1) == targets).sum()
        self.seen += len(targets)

    def compute(self):
        return self.right / self.seen


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, x):
        x -= 1.0
        return self.inner(x)


@pytest.mark.parametrize("batch_size", [8, None])
def test_a_model_that_works_in_place_spoils_nobodys_data(batch_size):
    x, y = X.copy(), Y.copy()
    run = tw.train(task(model=InPlace, data=(x, y), validation=(x, y)), tw.Plan(batch_size=batch_size), steps=3)
    assert (x == X).all()
    moved = torch.tensor(X)
    assert run.metrics["loss"] == pytest.approx(F.cross_entropy(run.model(moved), torch.tensor(Y)).item(), rel=1e-5)


class Graph(nn.Module):
    """Keeps a sparse adjacency and a buffer that was expanded."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()
        self.register_buffer("adjacency", torch.eye(6).to_sparse())
        self.register_buffer("scale", torch.ones(1).expand(6))

    def forward(self, x):
        return self.inner((self.adjacency @ x.T).T * self.scale)


def test_sparse_and_expanded_buffers_are_kept(tmp_path):
    made = task(model=Graph, data=(X, Y), validation=(X, Y))
    run = tw.train(made, tw.Plan(batch_size=8, digest_every=2, snapshot_every=2), steps=6, out=tmp_path / "r")
    again = tw.Run.open(tmp_path / "r", made).model
    assert torch.equal(again(torch.tensor(X)), run.model(torch.tensor(X)))


def test_validation_of_another_dtype_is_cast_too():
    x = (X * 20).clip(0, 255).round()
    one = task(data=(x, Y), validation=(x.astype(np.uint8), Y))
    other = task(data=(x, Y), validation=(x, Y))
    first, second = (tw.train(made, tw.Plan(batch_size=8), steps=3) for made in (one, other))
    assert first.metrics == second.metrics


def test_metrics_get_outputs_that_numpy_knows_in_half_precision():
    def figure(outputs, targets):
        return float((outputs.numpy().argmax(1) == targets.numpy()).mean())

    made = task(data=(X, Y), validation=(X, Y), metrics={"accuracy": figure})
    assert 0 <= tw.train(made, tw.Plan(batch_size=8, precision="bfloat16"), steps=3).metrics["accuracy"] <= 1


def test_sampling_weights_in_a_series_count_by_place_not_by_label():
    weights = pd.Series(np.arange(N) == 7, index=np.arange(N)[::-1] + 5).astype(float)
    seen = []

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            seen.append(x.clone()) if self.training else None
            return self.inner(x)

    tw.train(task(model=Sees, data=(X, Y), weights=weights), tw.Plan(batch_size=4, shuffle=True), steps=3)
    assert all(torch.equal(x, torch.tensor(X[7]).expand(4, 6)) for x in seen[-3:])


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        if not hasattr(self, "inner"):
            self.inner = classifier()
        return self.inner(x)


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = classifier()
        self.register_buffer("queue", torch.zeros(1, 6))

    def forward(self, x):
        self.queue = torch.cat([self.queue, x.detach()[:6]])
        return self.layer(x)


def quietly(make):
    """Make what PyTorch warns of. A thread that compiles kernels meanwhile puts the filters back that it has found itself."""
    for thread in threading.enumerate():
        if thread.name == "thalweg-compiler":
            thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        self.lock = threading.Lock()


class Centres(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(3))

    def forward(self, output, target):
        return F.cross_entropy(output + self.centres, target)


class Widths(nn.Module):
    """Gives outputs as wide as the longest row of the batch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.EmbeddingBag(5, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x.clamp(0, 4).long()) if self.training else torch.zeros(len(x), 3 + len(x) % 7)


class Refuses:
    def reset(self):
        pass

    def update(self, outputs, targets):
        raise ZeroDivisionError

    def compute(self):
        return 0.0


class Forever(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], Y[0]


@pytest.mark.parametrize(
    ("parts", "error", "told"),
    [
        ({"model": Late}, tw.TaskError, r"makes parameters in its first forward pass \(inner"),
        ({"model": Growing}, tw.TaskError, r"gives the buffer `queue` another shape, \(7, 6\) instead of \(1, 6\)"),
        ({"model": Locked()}, tw.TaskError, r"cannot be copied"),
        (
            {"model": quietly(lambda: torch.jit.script(classifier()))},
            tw.TaskError,
            r"TorchScript module, which cannot be copied",
        ),
        (
            {"data": (quietly(lambda: torch.quantize_per_tensor(torch.tensor(X), 0.1, 0, torch.qint8)), Y)},
            tw.DataError,
            r"quantised",
        ),
        (
            {"data": (quietly(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), Y)},
            tw.DataError,
            r"nested tensor",
        ),
        ({"loss": Centres()}, tw.TaskError, r"`loss` has parameters of its own \(centres\)"),
        ({"model": lambda: nn.Linear(6, 3, device="meta")}, tw.TaskError, r"weights without values"),
        ({"validation": (X, Y), "metrics": {1: len}}, tw.TaskError, r"A metric is called 1"),
        (
            {"validation": (X, Y), "metrics": {"m": Refuses()}},
            tw.TaskError,
            r"Metric 'm' failed on outputs .*ZeroDivision",
        ),
        ({"validation": (X, Y), "metrics": {"m": lambda o, t: torch.tensor(1j)}}, tw.TaskError, r"Metric 'm' gave"),
        ({"weights": ["a"] * N}, tw.DataError, r"`weights` holds"),
        ({"data": (np.ma.masked_less(X, -1.0), Y)}, tw.DataError, r"NaN or infinity in .* rows"),
        ({"data": (X * np.nan, Y)}, tw.DataError, r"NaN or infinity in 36 of 36 rows"),
        ({"data": (X.astype(np.float64) * 1e60, Y)}, tw.DataError, r"scale what is too large"),
    ],
)
def test_what_cannot_be_a_task_is_told(parts, error, told):
    with pytest.raises(error, match=told):
        tw.train(task(**{"data": (X, Y), **parts}), tw.Plan(batch_size=8), steps=3)


def test_a_validation_stream_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr("thalweg.descent.validation.MOST_BATCHES", 5)
    with pytest.raises(tw.DataError, match="has given 5 batches and does not end"):
        tw.train(task(data=(X, Y), validation=Forever()), tw.Plan(batch_size=8), steps=3)


def test_a_knob_that_the_loader_has_decided_otherwise_is_refused():
    loader = DataLoader(tensors(), batch_size=10, shuffle=True)
    with pytest.raises(tw.PlanError, match="`batch_size` is 8 in the plan, but the DataLoader has decided on 10"):
        tw.train(task(data=loader), tw.Plan(batch_size=8), steps=3)
    with pytest.raises(tw.PlanError, match="`shuffle` is False"):
        tw.fit(task(data=loader), steps=3, fixed={"shuffle": False})
    assert tw.train(task(data=loader), tw.Plan(), steps=3).plan.batch_size == 10


def test_extra_state_that_no_checkpoint_can_hold_is_named():
    class Keeps(nn.Linear):
        def get_extra_state(self):
            return {"n": object()}

        def set_extra_state(self, state):
            pass

    run = tw.train(task(model=lambda: Keeps(6, 3), data=(X, Y)), tw.Plan(batch_size=8), steps=2)
    assert any("`model._extra_state` is" in note for note in run.summary["notes"])


@pytest.mark.parametrize("seed", ["a", None, 1.5, -1, True])
def test_a_seed_that_is_none_is_refused(seed):
    for verb in (tw.check, lambda t, **o: tw.fit(t, steps=2, **o), lambda t, **o: tw.tune(t, steps=2, **o)):
        with pytest.raises(tw.PlanError, match="`seed` is"):
            verb(task(data=(X, Y)), seed=seed)


def test_a_seed_may_be_numpys():
    run = tw.fit(task(data=(X, Y)), steps=3, effort=1, seed=np.int64(4))
    assert run.plan.seed == 4
    assert type(run.plan.seed) is int


def test_metrics_of_every_kind_agree():
    metrics = {
        "streaming": Streaming(),
        "tensor": lambda o, t: (o.argmax(1) == t).float().mean(),
        "number": lambda o, t: float((o.argmax(1) == t).float().mean()),
        "array": lambda o, t: np.mean(o.numpy().argmax(1) == t.numpy()),
    }
    made = task(data=(X, Y), validation=(X[:17], Y[:17]), metrics=metrics, select="tensor", mode="max")
    run = tw.train(made, tw.Plan(batch_size=8), steps=6)
    assert len({round(run.metrics[name], 6) for name in metrics}) == 1


def test_a_metric_that_gives_nothing_is_named():
    made = task(data=(X, Y), validation=(X, Y), metrics={"f1": lambda o, t: None})
    with pytest.raises(tw.TaskError, match=r"Metric 'f1' gave nothing, but it must give one number\."):
        tw.train(made, tw.Plan(batch_size=8), steps=2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: tw.fit(classifier(), steps=3),
            r"`task` is a Sequential\. Give a thalweg\.Task\(model=…, loss=…, data=…\)\.",
        ),
        (lambda: tw.check((X, Y)), r"`task` is a tuple\. Give a thalweg\.Task"),
        (
            lambda: tw.train(task(data=(X, Y)), {"learning_rate": 1}, steps=3),
            r"`plan` is a dict\. Give a thalweg\.Plan, such as",
        ),
        (lambda: tw.train(task(data=(X, Y)), tw.Plan()), r"No budget is known\. Give epochs=, steps= or seconds=\."),
        (lambda: tw.tune(task(data=(X, Y))), r"No budget is known\. Give epochs=, steps= or seconds=\."),
        (lambda: tw.fit(task(data=(X, Y)), steps=3, epochs=2), r"Give one budget, not several: epochs=2, steps=3\."),
        (lambda: tw.fit(task(data=(X, Y)), steps=2.5), r"`steps` is 2\.5, but it is a whole number\."),
        (lambda: tw.fit(task(data=(X, Y)), steps=True), r"`steps` is True"),
        (
            lambda: tw.fit(task(data=Stream()), epochs=2),
            r"stream of unknown length, so epochs say nothing\. Give steps= or",
        ),
        (lambda: tw.fit(task(data=(X, Y)), steps=3, effort="thoroug"), r"none of .*Did you mean 'thorough'\?"),
        (lambda: tw.fit(task(data=(X, Y)), steps=3, fixed={"lr": 1}), r"`fixed` has 'lr', which is no knob of a plan"),
        (
            lambda: tw.fit(task(data=(X, Y)), steps=3, fixed={"batch_size": 99}),
            r"`batch_size` is 99, but the data have 36 exam",
        ),
        (lambda: tw.fit(task(data=(X, Y)), steps=3, fixed={"rule": "adm"}), r"Did you mean 'adam'"),
        (lambda: tw.check(task(data=(X, Y)), device="tpu9"), r"The device 'tpu9' cannot be used here"),
    ],
)
def test_a_verb_says_what_it_cannot_do(call, told):
    with pytest.raises(tw.ThalwegError, match=told):
        call()


def test_a_verb_leaves_the_process_as_found():
    def found():
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(np.random.get_state()),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            threading.active_count(),
            list(warnings.filters),
        )

    module, x = classifier(), X.copy()
    before, weights = found(), [p.detach().clone() for p in module.parameters()]
    made = task(model=module, data=(x, Y))
    with torch.no_grad():
        run = tw.fit(made, steps=12, effort=2)
        assert not torch.is_grad_enabled()
    tw.check(made)
    assert found() == before
    assert np.array_equal(x, X)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(module.parameters(), weights, strict=True))
    assert module.training
    assert not run.model.training


def test_the_same_seed_gives_the_same_run_whatever_the_global_state():
    made = task(data=(X, Y))
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        runs.append(tw.train(made, tw.Plan(batch_size=8), steps=6, seed=5))
    other = tw.train(made, tw.Plan(batch_size=8), steps=6, seed=6)
    losses = [run.history["loss"][1:].tolist() for run in (*runs, other)]
    assert losses[0] == losses[1] != losses[2]
    assert other.plan.seed == 6


def test_the_searched_plan_trained_from_scratch_is_the_run_that_fit_gave(tmp_path):
    made = task(data=(X, Y))
    run = tw.fit(made, steps=20, effort=2, out=tmp_path / "fit")
    again = tw.train(made, tw.Plan.load(tmp_path / "fit" / PLAN))
    for one, other in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fit_refuses_a_folder_with_a_run_before_it_searches(tmp_path):
    made = task(data=(X, Y))
    tw.train(made, tw.Plan(batch_size=8), steps=2, out=tmp_path / "run")
    said = []
    with pytest.raises(
        tw.RunError, match=r"already holds a run\. Resume it \(thalweg resume .*\), or give a new folder\."
    ):
        tw.fit(made, steps=2, out=tmp_path / "run", say=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("parts", "error", "told"),
    [
        ({"weights": np.ones(N - 1)}, tw.DataError, r"`weights` has the shape"),
        ({"weights": np.zeros(N)}, tw.DataError, r"`weights` are all zero"),
        ({}, tw.RunError, r"holds other things \(thesis\.tex\)"),
    ],
)
def test_fit_refuses_what_cannot_be_before_it_searches(parts, error, told, tmp_path):
    (tmp_path / "thesis.tex").touch()
    said = []
    with pytest.raises(error, match=told):
        tw.fit(task(data=(X, Y), **parts), steps=2, out=tmp_path / "run" if parts else tmp_path, say=said.append)
    assert said == []


def normal():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


@pytest.mark.parametrize("rows", [33, 65])
def test_a_single_example_that_is_left_over_is_left_out_under_batch_normalisation(rows):
    x, y = np.tile(X, (3, 1))[:rows], np.tile(Y, 3)[:rows]
    run = tw.fit(task(model=normal, data=(x, y)), epochs=3, effort=2, fixed={"holdout": 0})
    assert run.plan.drop_last == (rows % run.plan.batch_size == 1)
    run = tw.train(task(model=normal, data=(x, y)), tw.Plan(batch_size=16), epochs=2)
    assert run.plan.drop_last
    assert run.plan.why("drop_last").source == "derived"
    assert "batch normalisation" in run.plan.why("drop_last").reason


def test_a_single_example_that_was_decided_on_is_refused_before_the_first_step():
    x, y = np.tile(X, (2, 1))[:33], np.tile(Y, 2)[:33]
    loader = DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=16)
    with pytest.raises(tw.DataError, match=r"last batch is a single one, .*Set drop_last=True in the DataLoader"):
        tw.train(task(model=normal, data=loader), tw.Plan(), epochs=2)
    for parts, plan in (
        ({"data": (x, y)}, tw.Plan(batch_size=1)),
        ({"data": (x, y)}, tw.Plan(batch_size=7, accumulate=3, drop_last=True)),
    ):
        with pytest.raises(tw.PlanError, match="batch normalisation cannot take"):
            tw.train(task(model=normal, **parts), plan, epochs=2)


def test_a_convolution_takes_a_single_example_that_is_left_over():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 3)
    )
    run = tw.train(
        task(model=model, data=(np.tile(X, (2, 1))[:33], np.tile(Y, 2)[:33])), tw.Plan(batch_size=16), epochs=2
    )
    assert not run.plan.drop_last


def test_data_and_models_made_in_inference_mode_train():
    with torch.inference_mode():
        x, y, model = torch.tensor(X) + 0, torch.tensor(Y) + 0, classifier()
        run = tw.train(task(model=model, data=(x, y)), tw.Plan(batch_size=8), steps=5)
    assert len(run.history["loss"]) == 6
    assert tw.train(task(data=(x, y)), tw.Plan(batch_size=8), steps=5).summary["status"] == "finished"


def test_fit_says_what_check_finds_and_what_it_will_cost():
    said = []
    tw.fit(task(data=(X * 0, Y)), steps=5, effort=1, say=said.append)
    assert any(line.startswith("critical: output ignores input") for line in said)
    assert any("steps of" in line for line in said)


def test_tune_leaves_the_plan_of_a_run_alone(tmp_path):
    made = task(data=(X, Y))
    tw.train(made, tw.Plan(batch_size=8), steps=2, out=tmp_path / "run")
    for out in (tmp_path / "run", tmp_path / "run" / "plan.toml"):
        with pytest.raises(tw.RunError, match="is the plan of the run in"):
            tw.tune(made, steps=10, effort=1, out=out)


def test_fit_refuses_knobs_before_it_looks(tmp_path):
    said = []
    for options in ({"fixed": {"batch_size": -1}}, {"fixed": {"lr": 1}}, {"effort": "fast"}, {"fixed": {"steps": 3}}):
        with pytest.raises(tw.PlanError):
            tw.fit(task(data=(X, Y)), steps=2, say=said.append, **options)
    assert said == []
    with pytest.raises(tw.PlanError, match=r"It is a constant of the rule: constants\.beta2"):
        tw.Plan().replace(beta2=0.9)


def test_a_search_that_is_interrupted_says_that_nothing_was_trained(monkeypatch):
    from thalweg.tuning.candidates import Candidates

    def stop(self, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(Candidates, "score", stop)
    with pytest.raises(KeyboardInterrupt, match="while the plan was searched: nothing is trained yet"):
        tw.fit(task(data=(X, Y)), steps=20)


def test_a_column_that_is_not_there_is_asked_for_by_its_nearest_name():
    run = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=2)
    with pytest.raises(KeyError, match=r"no column 'los'\. Did you mean 'loss'"):
        run.history["los"]
    assert "los" not in run.history


def test_tune_writes_its_plan_where_it_is_told(tmp_path):
    made = task(data=(X, Y))
    plan = tw.tune(made, steps=10, effort=1, out=tmp_path / "a" / "plan.toml")
    assert tw.Plan.load(tmp_path / "a" / "plan.toml") == plan
    plan = tw.tune(made, steps=10, effort=1, out=tmp_path / "b")
    assert tw.Plan.load(tmp_path / "b" / PLAN) == plan


def test_a_finished_run_is_opened_and_not_trained_again(tmp_path):
    made, plan = task(data=(X, Y)), tw.Plan(batch_size=8, steps=5)
    first = tw.train(made, plan, out=tmp_path / "run")
    told = []

    class Listens:
        def __getattr__(self, name):
            return lambda *a: told.append(name)

    again = tw.train(made, plan, out=tmp_path / "run", progress=Listens())
    assert "step" not in told
    assert again.metrics == first.metrics


def test_a_budget_of_seconds_is_kept_about(tmp_path):
    run = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), seconds=0.5)
    assert run.plan.why("steps").source == "measured"
    assert run.plan.steps > 1
    assert run.summary["steps"] == run.plan.steps


class Centre(nn.Module):
    """A loss that remembers: the mean of the outputs so far, which it subtracts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, output, target):
        self.centre.mul_(0.9).add_(output.detach().mean(0), alpha=0.1)
        return F.cross_entropy(self.drop(output) - self.centre, target)


def test_a_loss_that_remembers_is_each_runs_own_and_goes_on_where_it_was(tmp_path, monkeypatch):
    loss = Centre()
    made = task(loss=loss, data=(X, Y), validation=(X, Y))
    plan = tw.Plan(batch_size=8, learning_rate=1e-2, steps=30, snapshot_every=5, digest_every=1)
    first, second = (tw.train(made, plan) for _ in range(2))
    tw.check(made)
    assert not loss.centre.any()
    assert loss.training
    assert first.history["loss"].tolist()[1:] == second.history["loss"].tolist()[1:]
    often = tw.train(made, plan.replace(validate_every=1))
    assert often.history["loss"].tolist()[1:] == first.history["loss"].tolist()[1:]

    class Stops:
        def __getattr__(self, name):
            return lambda *a: None

        def step(self, figures):
            if figures.step == 17:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tw.train(made, plan, out=tmp_path / "r", progress=Stops())
    again = tw.resume(tmp_path / "r", made)
    assert again.history["loss"].tolist()[1:] == first.history["loss"].tolist()[1:]


def test_a_model_with_tensors_made_from_its_weights_is_looked_at_too():
    def model():
        return nn.Sequential(nn.Linear(6, 8), quietly(lambda: nn.utils.weight_norm(nn.Linear(8, 3))))

    assert tw.check(task(model=model, data=(X, Y))) is not None
    assert tw.fit(task(model=model, data=(X, Y)), steps=5, effort=2).summary["status"] == "finished"


def test_ignored_targets_do_not_count():
    x = torch.randn(3000, 6, generator=generator)
    y = torch.where(torch.arange(3000) < 1500, -100, (x.sum(1) > 0).long())
    made = task(data=(X, Y), validation=(x, y))
    run = tw.train(made, tw.Plan(batch_size=8, keep="last"), steps=5)
    assert run.metrics["loss"] == pytest.approx(F.cross_entropy(run.model(x), y).item(), rel=1e-5)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]))
    run = tw.train(task(loss=weighted, data=(X, Y), validation=(x, y)), tw.Plan(batch_size=8, keep="last"), steps=5)
    assert run.metrics["loss"] == pytest.approx(weighted(run.model(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]))])
def test_parts_of_a_batch_weigh_by_the_targets_that_count(loss):
    y = np.where(np.arange(N) % 4 < 2, -100, Y)
    plan = tw.Plan(rule="gradient_descent", batch_size=12, learning_rate=0.1, shuffle=False)
    whole = tw.train(task(loss=loss, data=(X, y)), plan, steps=9)
    parts = tw.train(task(loss=loss, data=(X, y)), plan.replace(accumulate=6), steps=9)
    np.testing.assert_allclose(parts.history["loss"][1:], whole.history["loss"][1:], rtol=1e-5)


def test_a_float32_run_is_one_inside_of_somebodys_autocast():
    outside = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=5)
    assert inside.history["loss"].tolist()[1:] == outside.history["loss"].tolist()[1:]


def test_single_examples_of_a_loader_count_as_one():
    loader = DataLoader(tensors(), batch_size=None)
    run = tw.train(task(data=loader, loss=lambda o, t: F.cross_entropy(o[None], t[None])), tw.Plan(), steps=3)
    assert run.history["examples"].tolist()[1:] == [1, 1, 1]


def ends(number, words):
    """Give a function for `say=` that sends this process a signal once it is told of a stage."""

    def say(text):
        if words in text:
            os.kill(os.getpid(), number)

    return say


SEARCH = {"steps": 40, "effort": 2, "seed": 3, "fixed": {"weight_decay": 0.01, "schedule": "cosine"}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["batch size", "40 steps of", "learning rate"])
def test_a_fit_stopped_in_its_search_goes_on_from_its_folder(number, stage, tmp_path):
    made, out = task(data=(X, Y), validation=(X, Y)), tmp_path / "run"
    with pytest.raises(
        tw.Interrupted, match=r"what was found is kept; go on with: thalweg\.resume\('.*run', task\)$"
    ) as told:
        tw.fit(made, **SEARCH, out=out, say=ends(number, stage))
    assert (told.value.exit_status, told.value.run) == (128 + number, None)
    with pytest.raises(tw.RunError, match=r"has not begun: its plan was still searched\. `thalweg resume"):
        tw.diagnose(out)
    with pytest.raises(tw.PlanError, match="no 'nonsense'"):
        tw.resume(out, made, changes={"nonsense": 3})
    with pytest.raises(tw.PlanError, match="Resume it without a change, or fit in another folder"):
        tw.resume(out, made, changes={"clip_norm": 3.0})
    resumed, whole = tw.resume(out, made), tw.fit(made, **SEARCH)
    assert resumed.plan.seed == 3
    assert resumed.plan.schedule == whole.plan.schedule
    if resumed.plan.batch_size == whole.plan.batch_size:  # which is measured
        assert resumed.plan.learning_rate == whole.plan.learning_rate
        assert resumed.metrics == whole.metrics
    assert (out / "report.html").exists()


def test_a_fit_that_searches_nothing_has_no_study(tmp_path):
    tw.fit(task(data=(X, Y)), steps=40, effort=1, out=tmp_path / "b")
    tw.fit(task(data=(X, Y)), steps=40, effort=2, fixed={"learning_rate": 0.1}, out=tmp_path / "c")
    assert not list(tmp_path.glob("*/study*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_short_run_of_the_search_stops_the_search(number, tmp_path):
    said = []

    def loss(output, target):
        if any("learning rate" in line for line in said):
            said.clear()
            os.kill(os.getpid(), number)
        return F.cross_entropy(output, target)

    with pytest.raises(tw.Interrupted, match="while the plan was searched: what was found is kept") as told:
        tw.fit(task(loss=loss, data=(X, Y)), **SEARCH, out=tmp_path / "run", say=said.append)
    assert told.value.exit_status == 128 + number
    assert (tmp_path / "run" / "request.json").exists()


def stopped_search(out, made=None):
    with pytest.raises(tw.Interrupted):
        tw.fit(made or task(data=(X, Y)), **SEARCH, out=out, say=ends(signal.SIGTERM, "learning rate"))


def test_the_folder_of_a_stopped_search_serves_the_same_call_and_others(tmp_path):
    made = task(data=(X, Y))
    stopped_search(tmp_path / "a")
    assert tw.fit(made, **SEARCH, out=tmp_path / "a").plan.seed == 3
    stopped_search(tmp_path / "b")
    assert tw.fit(made, steps=5, effort=1, out=tmp_path / "b").plan.steps == 5
    stopped_search(tmp_path / "c")
    tw.train(made, tw.Plan(batch_size=8), steps=4, out=tmp_path / "c")
    assert tw.resume(tmp_path / "c", made).plan.steps == 4
    assert not (tmp_path / "c" / "request.json").exists()


def test_a_stopped_search_is_resumed_where_its_task_and_request_can_be_read(tmp_path):
    stopped_search(tmp_path / "a")
    with pytest.raises(tw.RunError, match="does not say how to make its task"):
        tw.resume(tmp_path / "a")
    with pytest.raises(tw.TaskError, match="The device 'tpu9' cannot be used"):
        tw.resume(tmp_path / "a", task(data=(X, Y)), device="tpu9")
    (tmp_path / "a" / "request.json").write_text('{"epochs": 3')
    with pytest.raises(tw.RunError, match=r"request\.json cannot be read .* Start again in another folder"):
        tw.resume(tmp_path / "a", task(data=(X, Y)))


def test_one_fit_at_a_time_writes_to_a_folder(tmp_path):
    told = []

    def again(text):
        with pytest.raises(tw.RunError, match="Another process is writing to"):
            tw.fit(task(data=(X, Y)), steps=20, out=tmp_path / "run")
        told.append(text)

    tw.fit(task(data=(X, Y)), steps=20, effort=2, out=tmp_path / "run", say=again)
    assert told


def test_a_stop_outside_of_training_is_said(monkeypatch):
    made = task(data=(X, Y))
    with pytest.raises(tw.Interrupted, match=r"searched: nothing is trained yet; start again\. --effort 1"):
        tw.fit(made, steps=24, effort=2, say=ends(signal.SIGINT, "batch size"))
    with pytest.raises(tw.Interrupted, match=r"searched: nothing is trained yet; start again"):
        tw.tune(made, steps=40, effort=2, say=ends(signal.SIGTERM, "learning rate"))

    def stop(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr("thalweg.descent.problem.open_task", stop)
    with pytest.raises(tw.Interrupted, match="before the first step: nothing has changed"):
        tw.train(made, tw.Plan(batch_size=8), steps=3)


@pytest.mark.parametrize(
    "options",
    [
        {"progress": 3},
        {"progress": print},
        {"say": "loud"},
        {"on_step": "print"},
        {"on_validation": {}},
        {"out": 3},
        {"seed": -1},
        {"steps": "many"},
        {"steps": None},
        {"fixed": [1]},
        {"effort": "none"},
    ],
)
def test_every_argument_is_checked_before_the_task_is_opened(options, monkeypatch):
    monkeypatch.setattr("thalweg.descent.problem.open_task", lambda *a: pytest.fail("opened"))
    made, stated = task(data=(X, Y)), {"steps": 3, **options}
    with pytest.raises(tw.ThalwegError, match=r"`|budget|cannot be a run's folder"):
        tw.fit(made, **stated)
    if not options.keys() & {"on_step", "on_validation"}:
        with pytest.raises(tw.ThalwegError):
            tw.tune(made, **stated)
    if not options.keys() & {"fixed", "effort", "say"}:
        with pytest.raises(tw.ThalwegError):
            tw.train(made, tw.Plan(batch_size=8), **stated)
    if not options.keys() & {"fixed", "effort", "steps", "seed", "out"}:
        with pytest.raises(tw.ThalwegError):
            tw.resume("nowhere", made, **options)


def test_train_refuses_a_folder_before_the_task_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.descent.problem.open_task", lambda *a: pytest.fail("opened"))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(tw.RunError, match=r"holds other things \(thesis\.tex\)"):
        tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=3, out=tmp_path)
    with pytest.raises(tw.RunError, match="cannot be written"):
        tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=3, out=tmp_path / "thesis.tex" / "run")


def test_verbs_take_a_run_or_its_folder_alike(tmp_path):
    made = task(data=(X, Y), validation=(X, Y))
    run = tw.train(made, tw.Plan(batch_size=8), steps=6, out=tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    for given in (run, tmp_path / "run", str(tmp_path / "run")):
        assert tw.diagnose(given) == tw.diagnose(run)
        assert tw.report(given).name == "report.html"
        assert tw.report(given, str(tmp_path / "other.html")).exists()
        assert tw.resume(given, made).metrics == run.metrics
    assert tw.resume(run).metrics == run.metrics  # which knows its task
    in_memory = tw.train(made, tw.Plan(batch_size=8), steps=6)
    with pytest.raises(tw.RunError, match="is in memory and has no folder to continue from"):
        tw.resume(in_memory)
    for verb in (tw.diagnose, tw.report, tw.resume):
        with pytest.raises(tw.RunError, match="cannot be a run's folder"):
            verb(3)


NO_PATHS = [None, 3, b"run", "", object(), [1], "a\0b"]


@pytest.mark.parametrize("value", NO_PATHS)
def test_what_is_no_path_is_refused_wherever_a_path_is_taken(value, tmp_path):
    run = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=2)
    refusals = [(tw.diagnose, tw.RunError), (tw.Run.open, tw.RunError), (tw.Plan.load, tw.PlanError)]
    refusals += [(run.plan.save, tw.PlanError)]
    if value is not None:  # of which None is the default
        refusals += [(lambda path: tw.report(run, path), tw.RunError)]
        refusals += [(lambda path: tw.tune(run.task, steps=2, effort=1, out=path), tw.RunError)]
    for take, error in refusals:
        with pytest.raises(error, match=r"cannot be .*Give a path, such as"):
            take(value)


def test_a_file_where_a_run_is_wanted_is_said_to_be_one(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("x = 1\n")
    for verb in (tw.diagnose, tw.report, tw.resume, tw.evaluate, tw.Run.open):
        with pytest.raises(tw.RunError, match=r"mine\.py is not the folder of a run: it is a file"):
            verb(script)


@pytest.mark.parametrize("name", ["mine.py", "data.csv", "notes"])
def test_a_report_does_not_overwrite_a_file_of_another_kind(name, tmp_path):
    run = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=2)
    (tmp_path / name).write_text("mine")
    with pytest.raises(tw.RunError, match="no HTML file: it is not overwritten"):
        tw.report(run, tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"
    assert tw.report(run, tmp_path / "r.html") == tw.report(run, tmp_path / "r.html")
    (tmp_path / "index.html").write_text("<title>mine</title>")
    with pytest.raises(tw.RunError, match="no report of thalweg's: it is not overwritten"):
        tw.report(run, tmp_path / "index.html")
    for place in (".", "..", str(tmp_path), "/"):
        with pytest.raises(tw.RunError, match=r"is a folder\. Give the file to write, such as .*report\.html"):
            tw.report(run, place)


def test_a_report_takes_no_name_of_a_runs_files(tmp_path):
    folder = tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=2, out=tmp_path / "run").folder
    for name in (
        "task.toml",
        "request.json",
        "history.sqlite-wal",
        "checkpoints/best/loss.safetensors",
        "plan.toml",
        ".x",
    ):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        with pytest.raises(
            tw.RunError, match=r"in a run's folder, where a report's name ends in \.html|not overwritten"
        ):
            tw.report(folder, folder / name)
        assert before == ((folder / name).read_bytes() if (folder / name).exists() else None)
    assert tw.report(folder, folder / "second.html").exists()
    (folder / "report.html").write_text("<p>mine</p>")
    tw.report(folder)
    assert (folder / "report.html.set-aside").read_text() == "<p>mine</p>"


def test_tune_overwrites_plans_only(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    with pytest.raises(tw.RunError, match="is there already and no plan: it is not overwritten"):
        tw.tune(task(data=(X, Y)), steps=2, effort=1, out=tmp_path / "pyproject.toml")
    assert "mine" in (tmp_path / "pyproject.toml").read_text()


def test_a_plan_that_cannot_be_saved_says_so(tmp_path):
    with pytest.raises(tw.PlanError, match="cannot be written: it is a folder"):
        tw.Plan().save(tmp_path)
    with pytest.raises(tw.PlanError, match="cannot be written: No such file"):
        tw.Plan().save(tmp_path / "nowhere" / "plan.toml")


@pytest.mark.parametrize("value", ["mine.py", 3, nn.Linear(1, 1), tw.Plan()])
def test_a_run_is_opened_with_a_task_and_nothing_else(value, tmp_path):
    tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=2, out=tmp_path / "run")
    with pytest.raises(tw.TaskError, match=r"`task` is a .*Give a thalweg\.Task"):
        tw.Run.open(tmp_path / "run", value)


def test_a_report_that_cannot_be_written_does_not_lose_the_run(tmp_path, monkeypatch):
    def refuse(*rest):
        raise tw.RunError("no space")

    monkeypatch.setattr("thalweg.see.report.write_report", refuse)
    with pytest.raises(tw.RunError, match="no space") as told:
        tw.train(task(data=(X, Y)), tw.Plan(batch_size=8), steps=6, out=tmp_path / "run")
    assert told.value.run.summary["status"] == "finished"


def test_what_is_said_and_the_progress_show_in_one_place(capsys):
    made = task(data=(X, Y), validation=(X, Y))
    tw.fit(made, steps=40, effort=2)
    assert capsys.readouterr().out == ""
    tw.fit(made, steps=40, effort=2, progress=True)
    shown = capsys.readouterr().out
    assert "learning rate 0.0226 by muon, cooled down after" in shown
    assert "step 40 of 40: loss" in shown

    class Own:
        def __init__(self):
            self.told = []

        def __getattr__(self, name):
            return lambda *given: self.told.append((name, given))

    own, said = Own(), []
    tw.fit(made, steps=40, effort=2, progress=own)
    assert ("event", "stage") in [(name, given[1]) for name, given in own.told if name == "event"]
    assert [name for name, _ in own.told].count("step") == 26  # the search has taken the first 14
    own.told.clear()
    tw.tune(made, steps=20, effort=2, progress=own, say=said.append)
    assert own.told == []
    assert said


def test_records_show_themselves_briefly(tmp_path):
    made = task(
        data=(X, Y), validation=(X * 1e6, Y), metrics={"accuracy": lambda o, t: (o.argmax(1) == t).float().mean()}
    )
    run = tw.fit(made, steps=30, effort=2, out=tmp_path / "run")
    wild_plan = tw.Plan(rule="gradient_descent", learning_rate=1e9, batch_size=8, snapshot_every=0)
    with pytest.raises(tw.DivergedError) as wild:
        tw.train(task(**REGRESSION), wild_plan, steps=40)
    shown = [run, made, run.plan, run.history, run.plan.evidence, tw.Run.open(run.folder), wild.value.run]
    shown += [*run.events, *wild.value.run.events, *wild.value.run.diagnoses, *run.plan.evidence.values()]
    for record in shown:
        limit = 6000 if isinstance(record, dict) and "loss" not in record else 420
        assert len(repr(record)) < limit, repr(record)
        assert "nan" not in repr(record)
        assert "array(" not in repr(record)
        assert "tensor(" not in repr(record)
    assert repr(run).startswith("<Run 'task': finished, 30 steps, loss ")
    data = "data (36, 6) and (36), validation (36, 6) and (36)"
    assert repr(made) == f"<Task 'task': model classifier, loss cross_entropy, {data}, metrics accuracy>"
    assert "batch size" in repr(run.plan)


def token_step(model, batch):
    """A mean over the labels that are no padding, as of tokens, with how many these are and the share that is right."""
    output, kept = model(batch[0]), batch[1] != 2
    loss = F.cross_entropy(output[kept], batch[1][kept])
    return loss, kept.sum(), {"right": (output[kept].argmax(1) == batch[1][kept]).float().mean()}


def by_hand(model):
    output, kept = model(torch.tensor(X)), torch.tensor(Y) != 2
    loss = F.cross_entropy(output[kept], torch.tensor(Y)[kept]).item()
    right = (output[kept].argmax(1) == torch.tensor(Y)[kept]).float().mean().item()
    return {"loss": loss, "right": right, "perplexity": math.exp(loss)}


@pytest.mark.parametrize("where", ["step", "evaluate", "a loss beside evaluate"])
@pytest.mark.parametrize("size", [36, 7])
def test_a_step_of_ones_own_has_metrics_that_are_averaged_by_its_weights(where, size):
    loader = DataLoader(
        TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_sampler=BatchSampler(range(N), size, False)
    )
    parts = {
        "step": {"loss": None, "step": token_step},
        "evaluate": {"loss": None, "step": lambda m, b: token_step(m, b)[0], "evaluate": token_step},
        "a loss beside evaluate": {"evaluate": token_step},
    }[where]
    metrics = {} if where.startswith("a loss") else {"perplexity": lambda figures: math.exp(figures["loss"])}
    made = task(data=(X, Y), validation=loader, metrics=metrics, **parts)
    run = tw.train(made, tw.Plan(batch_size=8), steps=5)
    expected = by_hand(run.model)
    assert run.metrics == pytest.approx({n: v for n, v in expected.items() if n != "perplexity" or metrics}, rel=1e-5)
    assert len(run.history["validation/right"]) == 6
    assert tw.evaluate(run, (X, Y)) == pytest.approx(run.metrics, rel=1e-5)


def test_a_figure_of_ones_own_decides_where_it_is_selected():
    metrics = {"right": lambda figures: figures["right"]}
    made = task(data=(X, Y), validation=(X, Y), loss=None, step=token_step, metrics=metrics, select="right", mode="max")
    run = tw.train(made, tw.Plan(batch_size=8, validate_every=1), steps=12)
    assert run.metrics["right"] == np.nanmax(run.history["validation/right"])


def test_a_batch_without_weight_counts_for_nothing_and_an_unknown_weight_by_its_examples():
    def evaluate(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss, None if batch[1][0] != 1 else 0.0, {"examples": len(batch[1])}

    batches = [(torch.zeros(4, 6), torch.zeros(4).long()), (torch.zeros(9, 6), torch.ones(9).long())]
    made = task(data=(X, Y), validation=DataLoader(batches, batch_size=None), evaluate=evaluate)
    run = tw.train(made, tw.Plan(batch_size=8), steps=1)
    assert run.metrics["examples"] == 4


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"metrics": {"f1": Streaming()}}, r"Metric 'f1' is given outputs and targets, which needs `loss`"),
        (
            {"metrics": {"f1": lambda outputs, targets: 0.0}},
            r"Metric 'f1' failed on the figures loss, right \(without `loss`, a metric is a function of the averaged figures\)",
        ),
        ({"metrics": {"f1": lambda f: f["wrong"]}}, r"Metric 'f1' failed on the figures loss, right .*KeyError"),
        ({"evaluate": lambda m, b: (m(b[0]).sum(), 1.0, 3.0)}, r"`evaluate` returned 3\.0 as the third of"),
        ({"evaluate": lambda m, b: (m(b[0]).sum(), 1.0, {"loss": 1})}, r"'loss' is taken and '/' separates columns"),
        ({"evaluate": lambda m, b: (m(b[0]).sum(), 1.0, {"a": "b"})}, r"Metric 'a' gave a str, but it must give one"),
        ({"evaluate": lambda m, b: {"loss": m(b[0]).sum()}}, r"`evaluate` returned a dict\. Return its loss, with"),
    ],
)
def test_figures_that_do_not_fit_are_told(parts, told):
    with pytest.raises(tw.TaskError, match=told):
        tw.train(
            task(data=(X, Y), validation=(X, Y), loss=None, step=token_step, **parts), tw.Plan(batch_size=8), steps=2
        )
