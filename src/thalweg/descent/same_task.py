"""Whether the task that a run is given is the one that it began with: data, criterion, loss, code and starting weights."""

from __future__ import annotations

from pathlib import Path

from thalweg.descent.problem import Problem, start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import Descent, weights_digest
from thalweg.errors import RunError
from thalweg.records.fingerprint import fingerprint
from thalweg.records.run_inputs import TaskSums
from thalweg.sampling import Source
from thalweg.sampling.data_sum import DataSum, is_random, sum_data
from thalweg.sampling.sources import checksum


def sum_task(descent: Descent, like: TaskSums | None = None) -> TaskSums:
    """Sum what can be compared of a task, before its first step; with `like`, data that are read one by one as they were then."""
    problem, task = descent.problem, descent.problem.task
    buffers = sorted(problem.objective.loss_buffers.items())
    with preserve_process_state(), rng_lock:
        return TaskSums(
            _sum(problem.train, like and like.data),
            _sum(problem.validation, like and like.validation),
            "none" if problem.weights is None else checksum([("", problem.weights)]),
            checksum(buffers),
            descent.digest(),
            {"select": task.select, "mode": task.mode},
            fingerprint(task, descent.model),
        )


def _sum(source: Source | None, like: DataSum | None) -> DataSum | None:
    return None if source is None else sum_data(source, like if like is not None and like.sum else None)


def check_data(folder: Path, problem: Problem, there: TaskSums, here: TaskSums) -> None:
    """Refuse to go on with other data than the run's. Raises RunError that says which, and how they differ."""
    if found := data_changes(problem, there, here):
        raise RunError(
            f"{'. '.join(found)}: the task gives other data than those of the run in {folder}. Where it splits or draws them at"
            f" random, seed that; or start a new run in another folder."
        )


def data_changes(problem: Problem, there: TaskSums, here: TaskSums) -> list[str]:
    """Say which data are others, and how they differ."""
    differences = {
        "training": _difference(problem.train, there.data, here.data),
        "validation": _difference(problem.validation, there.validation, here.validation),
    }
    found = [f"The {words} data {why}" for words, why in differences.items() if why]
    if there.weights and there.weights != here.weights:
        found.append("The sampling weights have other values")
    return found


def _difference(source: Source | None, there: DataSum | None, here: DataSum | None) -> str:
    """Say how some data differ; nothing where they do not, or cannot be compared."""
    if there is None or here is None or source is None:
        return "" if there is here else f"are {'new' if there is None else 'gone'}"
    if None not in (there.count, here.count) and there.count != here.count:
        return f"have {here.count:,} examples instead of {there.count:,}"
    if not there.sum or not here.sum or _same_parts(there, here) or is_random(source, there):
        return ""
    kind = "batches" if there.count is None else "examples"
    return f"have other values (by a sum of {'all' if there.read == there.count else f'{there.read:,}'} {kind})"


def _same_parts(there: DataSum, here: DataSum) -> bool:
    return (there.sum, there.drawn_sum == "", there.unlike) == (here.sum, here.drawn_sum == "", here.unlike)


def changes(problem: Problem, there: TaskSums, here: TaskSums) -> list[str]:
    """Say what differs of a task besides its data: criterion, loss, code, and what examples draw at random."""
    found = there.edited(here)
    parts = [("data", problem.train, there.data, here.data)]
    parts += [("validation", problem.validation, there.validation, here.validation)]
    for name, source, was, now in parts:
        if source is None or was is None or now is None or not was.drawn_sum or not now.drawn_sum:
            continue
        if was.drawn_sum != now.drawn_sum and not is_random(source, was):
            found.append(f"`{name}` gives other examples by the same random numbers")
    return found


def starts_elsewhere(descent: Descent, there: TaskSums, here: TaskSums) -> bool:
    """Whether the model starts from other weights; not where it starts from others each time it is made."""
    if not there.start or there.start == here.start:
        return False
    with preserve_process_state(), rng_lock:
        again = start_model(descent.problem, descent.plan.seed)
    return weights_digest(again) == here.start


def unsummed(sums: TaskSums) -> list[str]:
    """Say which data cannot be compared when the run is resumed, and why."""
    said: list[str] = []
    for name, data in (("data", sums.data), ("validation", sums.validation)):
        if data is not None and data.failed:
            said.append(
                f"`{name}` cannot be summed ({data.failed}): other data would not be noticed when the run is resumed."
            )
        elif data is not None and data.unlike:
            parts = ", ".join(str(part + 1) for part in data.unlike)
            said.append(
                f"Part {parts} of each example of `{name}` is another each time it is read, by random numbers that nobody can"
                f" seed: it is not summed, and a resumed run trains on other numbers. Draw from generators of torch, NumPy or"
                f" Python."
            )
    return said
