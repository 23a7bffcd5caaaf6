"""Memory by batch size: measured in a process that may die, told from other errors, and never beyond what was given."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import thalweg as tw
from thalweg.descent import memory_use
from thalweg.descent.memory_use import Room
from thalweg.descent.problem import open_task
from thalweg.tuning import memory
from thalweg.tuning.memory import FITS, HANGS, MEMORY, OTHER, Memory, Trial, measure_memory

CPU = torch.device("cpu")
PLAN = tw.Plan(learning_rate=1e-2)


class Keeps(nn.Module):
    """Keeps 200 kB an example for the backward pass; `beyond`: called with batches of more than 32."""

    def __init__(self, beyond: Any = None) -> None:
        super().__init__()
        self.scores = nn.Linear(4, 2)
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 32 and self.beyond is not None:
            self.beyond()
        kept = (x[:, :1].expand(-1, 50_000) * self.scores.weight[0, 0]).tanh()
        return self.scores(x) + kept.mean(1, keepdim=True)


def task(beyond: Any = None, **parts: Any) -> tw.Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator)
    usual: dict[str, Any] = {
        "model": lambda: Keeps(beyond),
        "loss": F.cross_entropy,
        "data": (x, (x.sum(1) > 0).long()),
    }
    return tw.Task(**{**usual, **parts})


def measured(made: tw.Task, sizes: tuple[int, ...] = (8, 32, 128), limit: int | None = None) -> Memory:
    return measure_memory(open_task(made), PLAN, list(sizes), limit, seconds=60)


def outcomes(found: Memory) -> dict[int, str]:
    return {trial.batch_size: trial.outcome for trial in found.trials}


def test_the_line_has_the_slope_of_what_is_kept() -> None:
    found = measured(task())
    assert outcomes(found) == dict.fromkeys((8, 32, 128), FITS)
    assert found.parts["activations"][1] == pytest.approx(200e3, rel=0.1)
    assert 300e3 < found.per_example < 2000e3  # at the peak, gradients are there too
    assert found.fixed < 100e6
    assert found.how == "measured in child processes"


def test_what_a_size_is_expected_to_need_is_no_less_than_was_measured() -> None:
    found = measured(task())
    held = sum(fixed for name, (fixed, _) in found.parts.items() if name != "workspace")
    for trial in found.trials:
        assert found.needed(trial.batch_size) >= held + trial.bytes


def test_weights_gradients_state_and_copies_are_counted() -> None:
    model = nn.Linear(4, 2)
    size = sum(p.nbytes for p in model.parameters())
    parts = measured(task(model=lambda: nn.Linear(4, 2))).parts
    assert parts["weights"][0] == parts["gradients"][0] == size
    assert 2 * size <= parts["optimiser state"][0] <= 2 * size + 64  # Adam's two moments, and the count of steps
    assert parts["copies to go back to"][0] == size + parts["optimiser state"][0]  # a snapshot; there is no validation


def test_a_limit_that_is_given_holds_however_much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_in_use", lambda _: 10**9)
    found = measured(task(), limit=10**9 + 75_000_000)
    assert found.fits(32)
    assert not found.fits(128)
    assert found.room is not None
    assert found.room.what == "what the limit given leaves"


def test_a_size_that_is_sure_to_need_too_much_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_in_use", lambda _: 10**9)
    found = measured(task(), limit=10**9 + 75_000_000)
    assert 128 not in outcomes(found)


def test_a_child_that_is_killed_has_run_out_of_memory(capfd: pytest.CaptureFixture[str]) -> None:
    parent = os.getpid()

    def die() -> None:
        assert os.getpid() != parent
        print("about to die")
        os.kill(os.getpid(), signal.SIGKILL)

    found = measured(task(die))
    assert outcomes(found) == {8: FITS, 32: FITS, 128: MEMORY}
    assert found.fits(64)
    assert not found.fits(128)
    assert not found.fits(1000)
    assert capfd.readouterr().out == ""


def test_a_child_that_allocates_without_end_dies_of_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda _: Room(700_000_000, "what is free in this test"))
    parent, held = os.getpid(), list[Tensor]()

    def devour() -> None:
        assert os.getpid() != parent
        for _ in range(100):
            held.append(torch.ones(25_000_000))

    found = measured(task(devour))
    assert outcomes(found) == {8: FITS, 32: FITS, 128: MEMORY}
    assert not held


def test_an_error_of_another_kind_is_no_ceiling() -> None:
    def refuse() -> None:
        raise RuntimeError("shapes differ")

    found = measured(task(refuse), (8, 64, 32))
    assert outcomes(found) == {8: FITS, 64: OTHER, 32: FITS}
    assert "shapes differ" in found.failing[64]
    assert found.fits(128)


def test_batch_normalisation_that_cannot_take_one_example_says_nothing_of_memory() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    found = measured(task(model=model), (1, 4, 16))
    assert outcomes(found) == {1: OTHER, 4: FITS, 16: FITS}
    assert "more than 1 value per channel" in found.failing[1]
    assert found.fits(64)


def test_a_child_that_crashes_says_nothing_of_memory() -> None:
    found = measured(task(lambda: ctypes.string_at(0)), (8, 64))
    assert outcomes(found) == {8: FITS, 64: OTHER}
    assert found.failing == {64: "the process died of SIGSEGV"}


def test_a_child_that_hangs_is_ended_and_no_further_one_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHILD_SECONDS", 0.5)
    parent = os.getpid()

    def hang() -> None:
        assert os.getpid() != parent
        threading.Event().wait()

    found = measured(task(hang), (8, 64, 256))
    assert outcomes(found) == {8: FITS, 64: HANGS}
    assert found.fits(64)


def test_no_child_is_left() -> None:
    measured(task())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_nothing_of_this_process_is_changed() -> None:
    model = nn.Linear(4, 2)
    made, threads = task(model=model), torch.get_num_threads()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    measured(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.weight.grad is None
    assert torch.get_num_threads() == threads
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_it_is_measured_where_nobody_may_wait_for_children() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert outcomes(measured(task(), (8,))) == {8: FITS}
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_it_is_measured_beside_other_threads() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert outcomes(measured(task(), (8,))) == {8: FITS}
    finally:
        done.set()
        other.join()


class Sequences(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of several lengths, most of them short; notes who reads."""

    def __init__(self) -> None:
        self.readers = set[int]()

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.readers.add(os.getpid())
        return torch.ones(500 if index % 10 == 9 else 5, 4), torch.tensor(index % 2)


def padded(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True), torch.stack([y for _, y in examples])


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scores = nn.Linear(4, 100), nn.Linear(100, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.first(x).tanh().mean(1))


def test_the_longest_examples_are_those_measured_and_only_this_process_reads_them() -> None:
    data = Sequences()
    found = measured(task(model=Last, data=data, collate_fn=padded), (8, 32, 64))
    assert found.per_example > 500 * 100 * 4
    assert data.readers == {os.getpid()}


def test_validation_counts_with_its_own_large_batches() -> None:
    x = torch.randn(1024, 4)
    found = measured(task(validation=(x, (x.sum(1) > 0).long())), (8,))
    assert found.validation > 180e6, found.trials  # a batch of 1,024 of 200 kB each
    assert found.holds_validation
    assert not found._replace(budget=100e6).holds_validation


def test_a_validation_batch_that_memory_does_not_hold_says_nothing_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda _: Room(200_000_000, "what is free in this test"))
    x = torch.randn(1024, 4)
    found = measured(task(validation=(x, (x.sum(1) > 0).long())), (8,))
    assert outcomes(found) == {8: FITS}
    assert not found.holds_validation
    assert found.fits(8)


def test_without_a_fork_the_backward_pass_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "can_fork", lambda device: False)
    found = measured(task(lambda: pytest.fail("a large batch was tried here")))
    assert not found.trials
    assert "counted" in found.how
    assert found.per_example == pytest.approx(memory.COUNTED_FACTOR * 200e3, rel=0.1)


def test_far_from_the_limit_it_is_only_counted_where_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = open_task(task())
    assert not measure_memory(problem, PLAN, [8, 16], seconds=60, only_if_close=True).trials
    monkeypatch.setattr(memory, "room", lambda _: Room(60_000_000, "what is free in this test"))
    assert measure_memory(problem, PLAN, [8, 16], seconds=60, only_if_close=True).trials


def test_a_model_too_large_to_be_tried_at_all_fits_nowhere() -> None:
    found = Memory(9e9, 1e6, 0.0, {}, (Trial(8, MEMORY),), Room(10**9, "what is free"), 0.8e9, "measured")
    assert not found.fits(1)


# Room


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FREE = {"proc/meminfo": "MemTotal:  99 kB\nMemAvailable:    8000000 kB\n"}


def test_room_is_what_the_machine_has_free(tmp_path: Path) -> None:
    assert memory_use.room(CPU, system(tmp_path, FREE)) == Room(8_192_000_000, "what is free on this machine")


def test_a_control_group_of_the_second_version_limits_it_less_what_it_can_give_back(tmp_path: Path) -> None:
    files = {
        **FREE,
        "proc/self/cgroup": "0::/system/mine\n",
        "sys/fs/cgroup/system/mine/memory.max": "max\n",
        "sys/fs/cgroup/system/mine/memory.current": "5\n",
        "sys/fs/cgroup/system/memory.max": "1000000\n",
        "sys/fs/cgroup/system/memory.current": "700000\n",
        "sys/fs/cgroup/system/memory.stat": "anon 1\ninactive_file 100000\n",
    }
    assert memory_use.room(CPU, system(tmp_path, files)) == Room(400_000, "what the control group leaves")


def test_a_control_group_of_the_first_version_limits_it(tmp_path: Path) -> None:
    files = {
        **FREE,
        "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "900000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "950000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert memory_use.room(CPU, system(tmp_path, files)) == Room(0, "what the control group leaves")


def test_the_process_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {memory_use.resource.RLIMIT_DATA: 5_000_000}
    monkeypatch.setattr(memory_use.resource, "getrlimit", lambda which: (limits.get(which, -1), -1))
    files = {**FREE, "proc/self/status": "VmSize:  3000 kB\nVmData:  1000 kB\n"}
    found = memory_use.room(CPU, system(tmp_path, files))
    assert found == Room(3_976_000, "what the process's limit (ulimit) leaves")


@pytest.mark.parametrize("text", ["", "MemAvailable: many kB\n", "nonsense"])
def test_a_system_that_does_not_tell_sets_no_limit(tmp_path: Path, text: str) -> None:
    assert memory_use.room(CPU, system(tmp_path, {"proc/meminfo": text})) is None


def test_memory_in_use_grows_with_what_is_written() -> None:
    before = memory_use.memory_in_use(CPU)["the process"]
    held = torch.ones(25_000_000)
    assert memory_use.memory_in_use(CPU)["the process"] - before > 0.9 * held.nbytes
