"""A run is a guest: it leaves the process, the module and the arrays as it found them."""

import copy
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from small import accuracy, blobs, classes, network, plan, same_bits, weights
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import thalweg as tw
from thalweg.descent.process_state import preserve_process_state


def state_of_the_process() -> list[Any]:
    numpy_state = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        signal.getsignal(signal.SIGINT),
        list(warnings.filters),
    ]


def noisy() -> tw.Task:
    return classes(model=lambda: network(nn.BatchNorm1d(12), nn.Dropout(0.3)))


def stream() -> DataLoader[Any]:
    """A loader of whole batches, whose size nothing says; opening it draws a seed for its workers."""
    x, y = blobs()
    batches = [(x[k : k + 16], y[k : k + 16]) for k in range(0, len(x), 16)]
    return DataLoader(batches, batch_size=None, sampler=RandomSampler(batches, replacement=True))  # pyright: ignore[reportArgumentType]


def resumed(task: tw.Task) -> None:
    """Stop a run in the middle of an epoch, and go on with it."""

    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == 8:
            raise KeyboardInterrupt

    with TemporaryDirectory() as folder:
        with suppress(KeyboardInterrupt):
            tw.train(task, tw.Plan(learning_rate=1e-2, steps=12), out=folder, on_step=stop)
        tw.resume(folder, task)


ACTS: dict[str, Callable[[], Any]] = {
    "train": lambda: tw.train(noisy(), plan(ema=0.9)),
    "train, threads set": lambda: tw.train(noisy(), plan(threads=2)),
    "train, seconds": lambda: tw.train(noisy(), tw.Plan(), seconds=0.02),
    "train, loader": lambda: tw.train(classes(data=DataLoader(TensorDataset(*blobs()), 16, shuffle=True)), plan()),
    "train, stream": lambda: tw.train(classes(data=stream()), tw.Plan(learning_rate=1e-2), steps=12),
    "tune, stream": lambda: tw.tune(classes(data=stream()), steps=24, effort=3),
    "resume, stream": lambda: resumed(classes(data=stream())),
    "check": lambda: tw.check(noisy()),
    "tune": lambda: tw.tune(noisy(), steps=20, effort=1),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_verb_leaves_the_process_as_it_found_it(name: str) -> None:
    torch.optim.SGD([torch.zeros(1)]).zero_grad()  # torch's first optimiser imports SymPy, which adds a warning filter
    torch.manual_seed(5)
    before = state_of_the_process()
    ACTS[name]()
    assert state_of_the_process() == before


def test_a_run_that_fails_leaves_the_process_as_it_found_it() -> None:
    before = state_of_the_process()
    with pytest.raises(tw.ThalwegError):
        tw.train(classes(data=(blobs()[0] * float("nan"), blobs()[1])), plan())
    x = torch.randn(64, 4)
    torch.manual_seed(5)
    before = state_of_the_process()
    with pytest.raises(tw.DivergedError):
        tw.train(
            tw.Task(model=lambda: nn.Linear(4, 1), loss=nn.MSELoss(), data=(x, x[:, :1])),
            plan(rule="gradient_descent", learning_rate=1e9, snapshot_every=0),
        )
    assert state_of_the_process() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_called_without_gradients_a_run_is_the_same(mode: Any) -> None:
    task, other = noisy(), noisy()
    alone = tw.train(task, plan())
    with mode():
        inside = tw.train(other, plan())
        assert not torch.is_grad_enabled()
    assert same_bits(inside.model, alone.model)


def test_what_the_person_drew_before_changes_nothing() -> None:
    alone = tw.train(noisy(), plan())
    torch.manual_seed(123)
    torch.rand(1000), np.random.rand(7), random.random()
    assert same_bits(tw.train(noisy(), plan()).model, alone.model)


@pytest.mark.parametrize("verb", ["train", "check", "evaluate"])
def test_a_verb_that_a_step_calls_leaves_the_random_numbers_of_that_step(verb: str) -> None:
    inner = tw.train(noisy(), plan())
    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: tw.train(noisy(), plan(steps=2)),
        "check": lambda: tw.check(noisy()),
        "evaluate": lambda: tw.evaluate(inner, blobs()),
    }
    count = [0]

    def stepping(calls_verb: bool) -> tw.Task:
        def step(model: nn.Module, batch: Any) -> torch.Tensor:
            count[0] += model.training
            if calls_verb and model.training and count[0] in (1, 12):
                calls[verb]()
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        return tw.Task(noisy().model, data=blobs(), step=step)

    alone = tw.train(stepping(False), plan())
    count[0] = 0
    assert same_bits(tw.train(stepping(True), plan()).model, alone.model)
    assert count[0] >= 12


def test_two_runs_in_two_threads_have_the_bits_they_have_alone() -> None:
    made = [plan(seed=seed, ema=0.9, steps=60) for seed in (0, 1, 2)]
    alone = [tw.train(noisy(), one) for one in made]
    together: dict[int, tw.Run] = {}
    walkers = [
        threading.Thread(target=lambda n=n: together.update({n: tw.train(noisy(), made[n])})) for n in range(len(made))
    ]
    torch.manual_seed(5)
    before = state_of_the_process()
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join()
    assert state_of_the_process() == before
    for number, run in enumerate(alone):
        assert same_bits(together[number].model, run.model)
        assert together[number].metrics == run.metrics


def test_threads_are_given_back_whoever_ends_first() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with preserve_process_state(3):
            entered.set()
            leave.wait()

    walker = threading.Thread(target=other)
    before = torch.get_num_threads()
    with preserve_process_state(2):
        walker.start()
        entered.wait()
    leave.set()
    walker.join()
    assert torch.get_num_threads() == before


def test_a_module_given_as_the_start_is_copied_with_its_modes() -> None:
    module = network(nn.BatchNorm1d(12), nn.Dropout(0.3))
    module[1].eval()  # frozen statistics, as in fine-tuning
    kept, modes = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    run = tw.train(classes(model=module), plan())
    assert all(torch.equal(kept[k], v) for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(run.model.state_dict()["1.running_mean"], kept["1.running_mean"])
    assert not torch.equal(weights(run.model), weights(module))


def test_a_module_given_as_the_start_varies_order_only_by_seed() -> None:
    module = network()
    starts = [tw.train(classes(model=module), plan(seed=seed)).summary["start"] for seed in (0, 1)]
    assert starts[0] == starts[1]


def test_arrays_are_not_changed_and_may_be_read_only() -> None:
    x, y = (part.numpy().copy() for part in blobs())
    x, kept = x.astype(np.float64), x.astype(np.float64)
    x.flags.writeable = y.flags.writeable = False
    run = tw.train(classes(data=(x, y), metrics={"accuracy": accuracy}), plan())
    assert np.array_equal(x, kept)
    assert run.metrics["loss"] < run.summary["start"]["loss"]


def test_a_shared_module_that_a_factory_returns_is_not_changed() -> None:
    shared = network()
    kept = copy.deepcopy(shared.state_dict())
    tw.train(classes(model=lambda: shared), plan())
    assert all(torch.equal(kept[k], v) for k, v in shared.state_dict().items())


def sends(number: int, at: int = 5) -> Callable[..., None]:
    def send(model: nn.Module, figures: Any) -> None:
        if figures.step == at:
            os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_which_carries_what_it_was(number: int, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(tw.Interrupted, match="Interrupted at step 5: it has no folder; what was trained is") as told:
        tw.train(classes(), plan(), on_step=sends(number))
    assert told.value.exit_status == status
    assert len(told.value.run.history["loss"]) == 6
    assert not told.value.run.model.training
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_with_what_there_is(number: int) -> None:
    def twice(model: nn.Module, figures: Any) -> None:
        if figures.step == 5:
            os.kill(os.getpid(), number)
            time.sleep(0)  # where Python looks for signals
            os.kill(os.getpid(), number)

    with pytest.raises(tw.Interrupted) as told:
        tw.train(classes(), plan(), on_step=twice)
    assert told.value.run.summary["steps"] == 5


def test_a_handler_of_somebody_else_stays_in_force() -> None:
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: received.append(n)) for number in numbers]
    try:
        for number in numbers:
            assert tw.train(classes(), plan(), on_step=sends(number)).summary["status"] == "finished"
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert received == list(numbers)


def test_a_handler_that_is_installed_within_stays() -> None:
    def handler(number: int, frame: Any) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    try:
        tw.train(classes(), plan(), on_step=lambda model, figures: signal.signal(signal.SIGTERM, handler))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_child_ends_as_it_would_without_a_run() -> None:
    ended: list[int] = []

    def fork(model: nn.Module, figures: Any) -> None:
        if figures.step == 3:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)
                os._exit(0)
            ended.append(os.waitpid(child, 0)[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a process with threads is forked
        tw.train(classes(), plan(), on_step=fork)
    assert [os.waitstatus_to_exitcode(status) for status in ended] == [-signal.SIGTERM]


@pytest.mark.parametrize(
    ("where", "ending"),
    [
        ("in memory", SystemExit(0)),
        ("in a folder", SystemExit(0)),
        ("in a folder", ValueError("the child's own")),
        ("in a folder", KeyboardInterrupt()),
        ("with workers", SystemExit(7)),
    ],
)
def test_a_forked_child_that_leaves_by_an_exception_leaves_the_run_alone(
    where: str, ending: Any, tmp_path: Any
) -> None:
    ended: list[int] = []

    def fork(model: nn.Module, figures: Any) -> None:
        if figures.step == 3:
            child = os.fork()
            if child == 0:
                raise ending
            ended.append(os.waitpid(child, 0)[1])

    task, test_process = classes(), os.getpid()
    if where == "with workers":
        task = classes(data=DataLoader(TensorDataset(*blobs()), 16, num_workers=1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process with threads is forked
            run = tw.train(
                task, plan(batch_size=16), out=None if where == "in memory" else tmp_path / "run", on_step=fork
            )
    except BaseException as error:
        if os.getpid() == test_process:
            raise
        os._exit(42 if error is ending else 1)
    assert [os.waitstatus_to_exitcode(status) for status in ended] == [42]
    assert run.summary["status"] == "finished"
    assert run.plan == (run if run.folder is None else tw.Run.open(run.folder)).plan
    assert len(run.history["loss"]) == run.summary["steps"] + 1


def test_what_diverged_carries_what_was_trained() -> None:
    x = torch.randn(64, 4)
    task = tw.Task(model=lambda: nn.Linear(4, 1), loss=nn.MSELoss(), data=(x, x[:, :1]))
    with pytest.raises(tw.DivergedError) as told:
        tw.train(task, plan(rule="gradient_descent", learning_rate=1e9, snapshot_every=0))
    assert told.value.run.summary["status"] == "diverged"
    assert tw.diagnose(told.value.run)


def test_a_thread_that_begins_meanwhile_has_the_number_of_threads_that_the_person_set() -> None:
    def seen() -> int:
        found = list[int]()
        walker = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        walker.start()
        walker.join()
        return found[0]

    before = seen()
    with preserve_process_state(before + 1):
        assert torch.get_num_threads() == before + 1
        assert seen() == before
    assert seen() == before


class Counting:
    """A streaming metric, and a loss, that counts what it is given; the first update runs `meanwhile`."""

    def __init__(self, meanwhile: Callable[[], Any] | None = None) -> None:
        self.meanwhile, self.rows, self.calls = meanwhile, 0, 0

    def reset(self) -> None:
        self.rows = 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.rows += len(targets)
        if self.meanwhile is not None:
            self.meanwhile()

    def compute(self) -> int:
        return self.rows

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets) * (1 + self.calls % 3)


def test_a_metric_with_a_state_is_each_runs_own() -> None:
    task, depth = classes(), list[int]()

    def another_run() -> None:
        if not depth:
            depth.append(1)
            nested.append(tw.train(task, plan(steps=2)))
            depth.pop()

    nested, metric = list[tw.Run](), Counting()
    task = classes(metrics={"rows": metric}, validation=blobs(50))
    metric.meanwhile = another_run
    run = tw.train(task, plan(steps=2))
    assert run.metrics["rows"] == nested[0].metrics["rows"] == 50


def test_a_loss_that_is_an_object_with_a_state_is_each_runs_own() -> None:
    loss = Counting()
    first, second = (tw.train(classes(loss=loss), plan(steps=5)) for _ in range(2))
    assert same_bits(first.model, second.model)
    assert loss.calls == 0


def test_runs_take_turns_with_a_metric_that_cannot_be_copied() -> None:
    class Uncopied(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()  # as a file or a connection, it cannot be copied

    made = classes(metrics={"rows": Uncopied()}, validation=DataLoader(TensorDataset(*blobs(60)), batch_size=2))
    runs: list[tw.Run] = []
    walkers = [
        threading.Thread(target=lambda: runs.append(tw.train(made, plan(steps=8, validate_every=2)))) for _ in range(3)
    ]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join()
    assert len(runs) == 3
    for run in runs:
        figures = run.history["validation/rows"]
        assert set(figures[~np.isnan(figures)]) == {60.0}


def test_a_metric_that_draws_random_numbers_gives_the_same_figures_and_changes_none_of_the_run() -> None:
    def bootstrap(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chosen = torch.randint(len(targets), (20,))
        return accuracy(outputs[chosen], targets[chosen])

    torch.manual_seed(1)
    first = tw.train(classes(metrics={"bootstrap": bootstrap}), plan(steps=6))
    torch.manual_seed(2)
    second = tw.train(classes(metrics={"bootstrap": bootstrap}), plan(steps=6))
    assert first.metrics == second.metrics
    assert same_bits(first.model, tw.train(classes(), plan(steps=6)).model)
