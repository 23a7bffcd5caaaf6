"""Using a trained model: its outputs for inputs, and loss and metrics on other data. Model and process are left as found."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from thalweg.descent.memory_format import in_memory_format
from thalweg.descent.metrics import join
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem, open_task, start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.rehearsal import wants_gradient
from thalweg.descent.validation import LARGEST_BATCH, SAMPLE, in_evaluation_mode, training_size, validate
from thalweg.errors import ArgumentError, DataError, RunError, TaskError, ThalwegError, shown
from thalweg.landscape.objective import TARGET_KEYS, Casts, Objective, describe
from thalweg.records.holdout import NOTHING
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.records.task import Task
from thalweg.sampling import Source, StreamSource, iterate_once, mix
from thalweg.sampling.sources import ItemSource, leaves, open_source, seed_all, to_device, tree_map

_PREDICTION = 5  # mixed into the seeds of predictions: data sets and models may draw at random


def predict(run: Run, inputs: Any, batch_size: int | None = None) -> Any:
    """Give the outputs of a run's model for inputs; see `Run.predict`."""
    given = None if batch_size is None else _whole_number(batch_size)
    model, task = run.model, run.find_task()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    separate, source = _open_inputs(inputs, task, dtype)
    own = source.own_batches if isinstance(source, ItemSource) else None
    micro = given or (LARGEST_BATCH if own is None else own.size)
    needs_gradient = False
    while True:
        try:
            with (
                preserve_process_state(),
                torch.set_grad_enabled(needs_gradient),
                in_evaluation_mode(model),
                in_memory_format(model, run.plan.memory_format),
            ):
                return _outputs(run, model, task, source, separate, micro)
        except DataError as error:
            if needs_gradient or not wants_gradient(error):
                raise
            needs_gradient = True  # the model takes a gradient itself, of its inputs, say
            continue
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or micro <= 1 or isinstance(source, StreamSource):
                raise
        release(device_of(model))
        micro //= 2


def _whole_number(batch_size: Any) -> int:
    try:
        number = operator.index(batch_size)
    except TypeError:
        number = 0
    if number < 1 or isinstance(batch_size, bool):
        raise ArgumentError(f"`batch_size` is {shown(batch_size)}, but it is a whole number, at least 1.")
    return number


def _outputs(run: Run, model: nn.Module, task: Task, source: Source, separate: bool, micro: int) -> Any:
    """Go through the inputs batch by batch. `separate`: a batch has no target."""
    device, precision = device_of(model), run.plan.precision
    parts: list[Any] = []
    casts = known_casts(run)
    with rng_lock, autocast(precision, device):
        batches = iterate_once(source, micro, own=False)  # in the order of the data, all of them
        for number in range(1 << 62):
            seed_all(mix(run.plan.seed, _PREDICTION, number))
            batch, _ = next(batches, (None, 0))
            if batch is None:
                break
            given = to_device(_without_target(batch, separate), device)
            output, casts = _call(model, task, given, casts)
            parts.append(tree_map(_to_host, output))
    return _joined(parts)


def _call(model: nn.Module, task: Task, batch: Any, casts: Casts) -> tuple[Any, Casts]:
    """Give the model's output, and the casts with which it took its inputs: those of training, else such as fit its dtype."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    first_error: Exception | None = None
    for choice in dict.fromkeys((casts, casts._replace(floats=dtype), casts._replace(floats=dtype, integers=dtype))):
        try:
            arguments, keywords, _ = Objective(task, choice).split(batch)
            return model(*arguments, **keywords), choice
        except Exception as error:
            if isinstance(error, ThalwegError) or out_of_memory(error):
                raise
            first_error = first_error or error
    assert first_error is not None
    text = " ".join(str(first_error).split())
    raise DataError(
        f"The model failed on these inputs ({', '.join(describe(leaf) for leaf in leaves(batch))}):"
        f" {type(first_error).__name__}: {text:.300} Give inputs as `data` of the task has them: a tuple of several inputs has no"
        f" target; a Dataset or DataLoader gives (inputs, target), and the last part is left out."
    ) from first_error


def _open_inputs(inputs: Any, task: Task, dtype: torch.dtype) -> tuple[bool, Source]:
    """Give whether the inputs come without targets, and their source. Arrays, tuples and mappings in memory have no targets."""
    in_memory = not isinstance(inputs, DataLoader | Dataset) and (
        isinstance(inputs, Tensor | tuple | Mapping)
        or hasattr(inputs, "to_numpy")
        or hasattr(inputs, "toarray")
        or hasattr(inputs, "__array__")
        or _is_nested_list(inputs)
    )
    if in_memory and isinstance(inputs, list):
        inputs = (inputs,)
    options: dict[str, Any] = {"float_dtype": dtype, "name": "inputs"}
    collate_fn = None if in_memory and not isinstance(inputs, tuple) else task.collate_fn
    try:
        return in_memory, open_source(inputs, collate_fn=collate_fn, **options)
    except DataError as error:
        raise DataError(str(error).replace("Give (x, y) arrays or tensors", "Give arrays or tensors")) from error


def _is_nested_list(inputs: Any) -> bool:
    """Tell whether this is a list of numbers or of lists of them, and not one of examples."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], int | float | list)


def _without_target(batch: Any, separate: bool) -> tuple[Any, ...]:
    """Give a batch as (inputs, …, None): with an empty target in place of its own, if it has one."""
    if isinstance(batch, Mapping):
        inputs = dict(cast("Mapping[str, Any]", batch))
        targets = [] if separate else [key for key in inputs if key in TARGET_KEYS]
        return {key: value for key, value in inputs.items() if [key] != targets}, None
    if not isinstance(batch, tuple | list):
        return batch, None
    parts = tuple(cast("tuple[Any, ...]", batch))
    return (*parts, None) if separate or len(parts) == 1 else (*parts[:-1], None)


def _to_host(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).detach().cpu()


def _joined(parts: list[Any]) -> Any:
    try:
        return join(parts)
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"The outputs of the batches differ in shape ({error}), so they cannot be joined. Give `batch_size` to predict in one"
            f" batch, or call run.model yourself."
        ) from error


def evaluate(what: Task | Run, data: Any = None, device: str = "auto") -> dict[str, float]:
    """Give loss and metrics of a run's model, or of a task's at its start; see `thalweg.evaluate`."""
    task = what if isinstance(what, Task) else what.find_task()
    to_hold_out = NOTHING
    if data is None and task.validation is None:
        if isinstance(what, Task) or not what.plan.holdout:
            raise TaskError(
                "There are no data to evaluate on: the task has no `validation`. Give data, such as a test set."
            )
        to_hold_out = what.plan.to_hold_out
    task = task if data is None else replace(task, validation=data)
    if isinstance(what, Task):
        problem = open_task(task, device)
        with preserve_process_state(), rng_lock:
            model = start_model(problem, 0)
        return validate_model(problem, model)
    model = what.model
    problem = open_task(task, str(device_of(model)) if device == "auto" else device, to_hold_out)
    if device_of(model) != problem.device:
        model = copy.deepcopy(model).to(problem.device)
    return validate_model(problem, model, what.plan)


def validate_model(problem: Problem, model: nn.Module, plan: Plan | None = None) -> dict[str, float]:
    """Give the validation figures of a model outside of a descent; `plan`: with which it was trained, if it was."""
    plan = plan or Plan()
    with preserve_process_state(), in_memory_format(model, plan.memory_format):
        size = None if plan.batch_size is None else training_size(problem, plan.batch_size, plan.accumulate)
        return validate(problem.with_own_loss(), model, plan.precision, seed=plan.seed, training_size=size)


def training_sample(problem: Problem) -> Problem | None:
    """Give the problem with its first training examples in place of the validation data; None where they are a stream."""
    source = problem.train
    if isinstance(source, StreamSource):
        return None
    if len(source) > SAMPLE:
        source = source.part(torch.arange(SAMPLE))
    return replace(problem, validation=source, validation_objective=problem.objective)


def device_of(model: nn.Module) -> torch.device:
    """Give the device of a model's first weight; the CPU where it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def casts_to_record(casts: Casts) -> dict[str, str]:
    """Give the casts of inputs that are in force as texts, for a run's summary."""
    return {
        name: str(dtype).removeprefix("torch.")
        for name, dtype in casts._asdict().items()
        if dtype is not None and name != "target"
    }


def known_casts(run: Run) -> Casts:
    """Read what `casts_to_record` gave; none for a run of an earlier version. Raises RunError where it is anything else."""
    recorded = run.summary.get("casts") or {}
    casts = {name: getattr(torch, dtype, None) for name, dtype in recorded.items()}
    if not casts.keys() <= set(Casts._fields) or not all(isinstance(dtype, torch.dtype) for dtype in casts.values()):
        raise RunError(
            f"The run's summary has casts of inputs that are none: {shown(recorded, 80)}. Restore run.json from a copy."
        )
    return Casts(**casts)
