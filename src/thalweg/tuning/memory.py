"""Memory that a step needs, by batch size: measured, never guessed, and never by trying it out in the person's own process.

A CPU that runs out of memory kills the process. So each batch size is tried in a child that may die: a fork, which has the task
by value, runs no file of the person's again, and reads nothing of theirs, as its batch is put together before. It is the first
that a system out of memory ends, and its own limit ends it sooner. On an accelerator the allocator tells, here. Where there is
no fork, what a small batch keeps for its backward pass is counted, and multiplied.

What is measured is a line, fixed bytes and bytes per example, after a step of the optimiser, and one validation batch.
"""

from __future__ import annotations

import ctypes
import json
import math
import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.descent.gradient import backward
from thalweg.descent.memory_use import Room, begin_peak, data_bytes, peak_bytes, resident_bytes, room
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import Descent
from thalweg.descent.timing import PLACEHOLDER_STEPS
from thalweg.descent.validation import LARGEST_BATCH, evaluating
from thalweg.records.plan import Plan
from thalweg.sampling import Draw, StreamSource, iterate_once
from thalweg.sampling.opening import FIRST_BATCH_SIZE, in_parts
from thalweg.sampling.sources import ItemSource, leaves, to_device
from thalweg.tuning.forked import can_fork, in_child

SHARE = 0.8  # of the memory that is free, which a run may take
MARGIN = 0.1  # by which more is expected than was measured
COUNTED_FACTOR = (
    4.0  # of what is kept for the backward pass, where nothing but that was counted; convolutions need as much
)
UNEVEN = 0.05  # of the most bytes that were measured: points farther from their line lie on none
FAR = 10.0  # times what was counted: where as much is free, nothing more need be measured
STEPS = 2  # that are taken at each size: the second one has the optimiser's state
SIZES = 3  # that are measured, each four times the one before
EXAMINED = 128  # examples whose sizes are compared, at most
EXAMINE_SECONDS = 0.2  # that this takes, about
CHILD_SECONDS = 10.0  # that a child is given beyond the time it should need

FITS, MEMORY, OTHER, HANGS = "fits", "memory ran out", "another error", "no answer"


class Trial(NamedTuple):
    """What a batch size came to: one of `FITS`, `MEMORY`, `OTHER` or `HANGS`, with the bytes it needed or the error."""

    batch_size: int
    outcome: str
    bytes: int = 0
    error: str = ""


class Memory(NamedTuple):
    """What a run needs: `fixed` bytes and `per_example`, and what the machine has.

    Arguments:
        fixed, per_example: the line, without margin.
        validation: bytes that a validation batch needs, weights and state included; infinite where memory ran out.
        parts: the line by component, name -> (fixed, per example).
        trials: what was tried.
        room: what limits it; None: not known.
        budget: bytes that a run may take; infinite where nothing limits it.
        how: how it was found, in a sentence's words.
    """

    fixed: float
    per_example: float
    validation: float
    parts: Mapping[str, tuple[float, float]]
    trials: tuple[Trial, ...]
    room: Room | None
    budget: float
    how: str

    def needed(self, batch_size: int) -> float:
        """Give the bytes that a run with batches of this size is expected to need at most, the margin included."""
        return (1 + MARGIN) * (self.fixed + self.per_example * batch_size)

    def fits(self, batch_size: int) -> bool:
        """Tell whether memory holds a batch of this size at once. Sizes at which something else failed are another matter."""
        beyond = [trial.batch_size for trial in self.trials if trial.outcome == MEMORY]
        return self.needed(batch_size) <= self.budget and batch_size < min(beyond, default=math.inf)

    @property
    def holds_validation(self) -> bool:
        """Whether memory holds a validation batch, whose size no plan decides."""
        return (1 + MARGIN) * self.validation <= self.budget

    @property
    def failing(self) -> dict[int, str]:
        """The sizes that failed for another reason than memory, with the error."""
        return {trial.batch_size: trial.error for trial in self.trials if trial.outcome == OTHER}


def measure_memory(
    problem: Problem,
    plan: Plan,
    sizes: Sequence[int],
    limit: int | None = None,
    seconds: float = 1.0,
    *,
    only_if_close: bool = False,
) -> Memory:
    """Measure what steps of some of these batch sizes need, and give the line through them.

    Arguments:
        problem, plan: what is to be trained.
        sizes: that come into question, smallest first.
        limit: bytes that this process (on an accelerator, its allocator) may use in all; None: 80 % of what is free now.
        seconds: that it may take, about.
        only_if_close: count first, and measure only where a tenth of the budget may not be enough.
    """
    found, started = room(problem.device), time.perf_counter()
    budget = SHARE * found.bytes if found is not None else math.inf
    if limit is not None:
        found = Room(max(0, limit - _in_use(problem.device)), "what the limit given leaves")
        budget = float(found.bytes)
    few = FIRST_BATCH_SIZE if problem.count is None else min(FIRST_BATCH_SIZE, problem.count)
    with preserve_process_state(plan.threads):
        descent = Descent(problem, plan.replace(steps=plan.steps or PLACEHOLDER_STEPS, batch_size=few, accumulate=1))
        try:
            try:
                with rng_lock:
                    drawn = descent.batches.draw()
                step_seconds, kept = _warm_up(descent, drawn)
            except Exception as error:
                failed = _failed(error)._replace(batch_size=few)
                how = f"not measured, as a step of {few} examples failed: {failed.error}"
                return Memory(0.0, 0.0, 0.0, {}, (failed,), found, budget, how)
            parts = _counted(descent, kept)
            held, counted = sum(fixed for fixed, _ in parts.values()), sum(each for _, each in parts.values())
            is_far = FAR * (held + COUNTED_FACTOR * counted * max(sizes)) < budget
            tried = list[Trial]()
            if not (is_far and only_if_close):
                tried += _try_sizes(descent, drawn, sizes, budget, step_seconds, started + seconds)
        finally:
            descent.batches.close()
    trials = tuple(trial for trial in tried if trial.batch_size)
    validation = max(
        (math.inf if t.outcome == MEMORY else float(t.bytes) for t in tried if not t.batch_size), default=0.0
    )
    measured = [(trial.batch_size, trial.bytes) for trial in trials if trial.outcome == FITS]
    fixed, per_example = _line(measured, COUNTED_FACTOR * counted)
    if is_far and only_if_close:
        how = "counted, as it is far from the limit"
    elif not measured:
        how = "counted with much to spare, as no child process could be had to measure it"
    elif problem.device.type == "cpu":
        how = "measured in child processes"
    else:
        how = "measured by the accelerator's allocator"
    parts["workspace"] = fixed, max(0.0, per_example - counted)
    return Memory(held + fixed, per_example, held + validation, parts, trials, found, budget, how)


def _warm_up(descent: Descent, drawn: Draw) -> tuple[float, tuple[float, float]]:
    """Take steps of a few examples here, and give their time and (activations', data's) bytes per example.

    What is compiled or set up once is then there, and so are gradients and the optimiser's state, in every child.
    """
    count, of_data = max(1, sum(drawn.sizes)), [leaf for part in drawn.parts for leaf in leaves(part)]
    others = {_address(tensor) for tensor in (*descent.model.parameters(), *descent.model.buffers(), *of_data)}
    descent.set_rate(descent.rate())
    with rng_lock, _counting_kept(others) as counter:
        backward(descent, drawn, (0, 0))
    descent.optimizer.step()
    started = time.perf_counter()
    with rng_lock:
        backward(descent, drawn, (0, 0))
    descent.optimizer.step()
    seconds = time.perf_counter() - started
    return seconds, (counter() / count, sum(leaf.nbytes for leaf in of_data) / count)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors have no storage
        return 0


@contextmanager
def _counting_kept(others: set[int]) -> Generator[Callable[[], int]]:
    """Within, count the bytes that are kept for the backward pass, each storage once, without `others`."""
    seen = dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address and address not in others:
            seen[address] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(seen.values())


def _counted(descent: Descent, kept: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Give the components that can be counted, (fixed, per example)."""
    model, plan = descent.model, descent.plan
    weights = sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    gradients = sum(p.grad.nbytes for p in descent.parameters if p.grad is not None and not p.grad.is_sparse)
    state = sum(leaf.nbytes for entry in descent.optimizer.state.values() for leaf in leaves(list(entry.values())))
    copies = (weights + state) * bool(plan.snapshot_every) + weights * descent.keeps_best
    return {
        "weights": (float(weights), 0.0),
        "gradients": (float(gradients), 0.0),
        "optimiser state": (float(state), 0.0),
        "copies to go back to": (float(copies), 0.0),
        "activations": (0.0, kept[0]),
        "data": (0.0, kept[1]),
    }


def _try_sizes(
    descent: Descent, drawn: Draw, sizes: Sequence[int], budget: float, step_seconds: float, until: float
) -> Iterator[Trial]:
    """Try some of the sizes, each four times the one before, and a validation batch, whose size is given as 0.

    Sizes that are sure to need more than half of the budget, or that the time is not enough for, are left out: the line tells.
    """
    device, problem = descent.problem.device, descent.problem
    if device.type == "cpu" and not can_fork(device):
        return
    with rng_lock:
        validation = _validation_batch(problem)
    done, last = list[tuple[int, int]](), 0
    largest_first = _by_size(problem)
    for size in [0, *sizes]:
        examples = size or LARGEST_BATCH
        expected = step_seconds * max(1.0, examples / FIRST_BATCH_SIZE) * STEPS
        if size and ((last and size < 4 * last) or len(done) >= SIZES):
            continue
        if done and (time.perf_counter() + expected > until or _ahead(done, size) > budget / 2):
            return
        with rng_lock:
            batch = validation if not size else _batch(descent, size, largest_first)
        if batch is None:
            continue
        data = sum(leaf.nbytes for leaf in leaves(batch))

        def work(batch: Any = batch, size: int = size) -> None:
            _work(descent, batch, size)

        def warm_up() -> None:
            backward(descent, drawn, (0, 0))

        seconds = CHILD_SECONDS + 10 * expected
        trial = _in_child(work, budget, seconds, warm_up) if device.type == "cpu" else _on_accelerator(work, device)
        yield trial._replace(batch_size=size, bytes=trial.bytes + data)
        del batch, work
        if trial.outcome == FITS and size:
            done.append((size, trial.bytes + data))
            last = size
        elif trial.outcome == HANGS or (trial.outcome == MEMORY and size):
            return


def _ahead(done: list[tuple[int, int]], size: int) -> float:
    """Give the bytes that a size should need, by those that were tried."""
    fixed, slope = _line(done, max(used / size for size, used in done))
    return fixed + slope * size


def _work(descent: Descent, batch: Any, size: int) -> None:
    """Take steps on a batch, or evaluate it where `size` is 0."""
    problem = descent.problem
    batch = to_device(batch, problem.device)
    if not size:
        objective = problem.validation_objective
        with evaluating(descent.model, objective):
            objective.evaluate(descent.model, batch)
        return
    for _ in range(STEPS):
        backward(descent, Draw([batch], [size], None), (0, 0))
        descent.optimizer.step()


def _batch(descent: Descent, size: int, largest_first: list[int]) -> Any:
    """Put together a batch, of the largest examples where they differ in size."""
    problem = descent.problem
    if isinstance(problem.train, StreamSource):
        sized = Descent(problem, descent.plan.replace(batch_size=size))
        try:
            return sized.batches.draw().parts[0]
        finally:
            sized.batches.close()
    rows = largest_first or range(len(problem.train))
    return in_parts(problem.train, [[rows[k % len(rows)] for k in range(size)]], torch.device("cpu"))[0]


def _validation_batch(problem: Problem) -> Any:
    """Give a first validation batch; None where there are no validation data, or they are a stream."""
    source = problem.validation
    if source is None or isinstance(source, StreamSource):
        return None
    batch, _ = next(iterate_once(source, min(LARGEST_BATCH, len(source))), (None, 0))
    return batch


def _by_size(problem: Problem) -> list[int]:
    """Give some examples, those of most bytes first, where examples are read one by one and differ in size; else none."""
    source = problem.train
    if not isinstance(source, ItemSource):
        return []
    found, until = dict[int, int](), time.perf_counter() + EXAMINE_SECONDS
    with rng_lock:
        for k in range(min(EXAMINED, len(source))):
            index = k * len(source) // min(EXAMINED, len(source))
            example = in_parts(source, [[index]], torch.device("cpu"))[0]
            found[index] = sum(leaf.nbytes for leaf in leaves(example))
            if time.perf_counter() > until:
                break
    if len(set(found.values())) < 2:
        return []
    return sorted(found, key=lambda index: -found[index])


def _line(points: Sequence[tuple[int, int]], slope: float) -> tuple[float, float]:
    """Give a line (fixed bytes, bytes per example) of which none of the points (size, bytes) lies above.

    Where they lie on no line, as freed memory is not always used again, each further example counts as one of the largest size
    does, which is more. `slope`: bytes per example where a single point, or none, does not give it.

    >>> _line([(8, 1000), (32, 1600), (128, 4000)], 1.0), _line([(8, 1000), (32, 4000), (128, 6400)], 1.0)
    ((800.0, 25.0), (2400.0, 50.0))
    """
    count = len(points)
    if count > 1:
        size_mean, used_mean = sum(size for size, _ in points) / count, sum(used for _, used in points) / count
        spread = sum((size - size_mean) ** 2 for size, _ in points)
        slope = max(0.0, sum((size - size_mean) * (used - used_mean) for size, used in points) / spread)
        largest, most = max(points)
        if any(abs(used - used_mean - slope * (size - size_mean)) > UNEVEN * most for size, used in points):
            slope = max(slope, most / largest)
    return max([0.0, *(used - slope * size for size, used in points)]), slope


def _in_use(device: torch.device) -> int:
    if device.type == "cpu":
        return resident_bytes() or peak_bytes()
    return torch.accelerator.memory_allocated(device)


# On an accelerator


def _on_accelerator(work: Callable[[], None], device: torch.device) -> Trial:
    """Do the work here, and ask the allocator: an accelerator that runs out of memory raises an error, and goes on."""
    release(device)
    try:
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        work()
        torch.accelerator.synchronize(device)
        return Trial(0, FITS, torch.accelerator.max_memory_allocated(device) - before)
    except Exception as error:
        return _failed(error)
    finally:
        release(device)


# In a child process


def _failed(error: BaseException) -> Trial:
    """Tell running out of memory from other errors."""
    if out_of_memory(error):
        return Trial(0, MEMORY, error=str(error))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Trial(0, OTHER, error=f"{type(error).__name__}: {lines[0]}")


def _in_child(
    work: Callable[[], None], budget: float, seconds: float, warm_up: Callable[[], None] = lambda: None
) -> Trial:
    """Do the work in a forked child, and give the bytes by which it grew at its peak; it is ended after so many seconds.

    `warm_up` is done first and not counted: pages of libraries, say, are not there in a fork until they are used.

    A child that dies of SIGKILL was killed for memory, as nobody else does that; other deaths are errors of their own.
    """

    def tried() -> str:
        try:
            _limit_data(budget)
            warm_up()
            _give_back_freed_memory()
            begin_peak()
            before = resident_bytes() or peak_bytes()
            work()
            trial = Trial(0, FITS, max(0, peak_bytes() - before))
        except Exception as error:
            trial = _failed(error)
        return json.dumps(trial._asdict())

    answer = in_child(tried, seconds)
    if not answer.in_time:
        return Trial(0, HANGS, error=f"it had not ended after {seconds:.0f} s")
    if answer.signal == signal.SIGKILL:
        return Trial(0, MEMORY, error="the process was killed")
    if answer.signal:
        kind = HANGS if answer.signal == signal.SIGALRM else OTHER
        return Trial(0, kind, error=f"the process died of {signal.Signals(answer.signal).name}")
    try:
        return Trial(**json.loads(answer.text))
    except (ValueError, TypeError):
        return Trial(0, OTHER, error="the process ended without an answer")


def _give_back_freed_memory() -> None:
    """Let the C library return to the system what was freed, so that it is counted when it is used again."""
    with suppress(OSError, AttributeError):  # there is no such function but in glibc
        ctypes.CDLL(None).malloc_trim(0)


def _limit_data(budget: float) -> None:
    """Let allocations fail that go beyond the budget, so that the machine itself does not run out of memory for a trial."""
    used = data_bytes()
    if math.isfinite(budget) and used is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + int(budget / SHARE)
        limits = [one for one in (wanted, soft, hard) if one != resource.RLIM_INFINITY]
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
