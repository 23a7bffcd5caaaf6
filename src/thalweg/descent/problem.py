"""Poses a task: opens and checks its data, chooses the device, and rehearses one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from thalweg.descent.ambient import ambient, rng_lock
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.places import places
from thalweg.descent.rehearsal import rehearse
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.objective import ONE_EXAMPLE_ERROR, Casts, Objective, check_labels
from thalweg.records.task import Task
from thalweg.records.weights import make_writable
from thalweg.sampling import Source, StreamSource, TensorSource, check_weights, mix, once, open_source
from thalweg.sampling.arrays import as_tensor
from thalweg.sampling.sources import leaves, nonfinite_rows, seed_all, tree_map

REHEARSED = 32  # examples of the rehearsal: more than one, for batch normalisation, and few, for speed
_INIT = 1  # mixed into the seed of the initialisation, so that its random numbers are not those of the steps


@dataclass(frozen=True)
class Problem:
    """A task that is checked and ready for training.

    - `objective`, `validation_objective`: the loss, with the casts that training and validation data need.
    - `train`, `validation`: the opened data.
    - `weights`: of each training example, for drawing with replacement.
    - `idle`: names of the parameters that got no gradient from the first batch.
    - `matrices`: names of the trainable matrices, each with its place in the network: see `places`.
    - `needs_two`: whether a batch of a single example fails in training.
    - `notes`: what the user should know about data and model.
    """

    task: Task
    objective: Objective
    validation_objective: Objective
    train: Source
    validation: Source | None
    device: torch.device
    weights: Tensor | None = None
    idle: tuple[str, ...] = ()
    matrices: Mapping[str, str] = field(default_factory=dict[str, str])
    needs_two: bool = False
    notes: tuple[str, ...] = field(default=())

    def with_own_loss(self) -> Problem:
        """Give the problem with a copy of a loss that is a module, so that its buffers are not shared by several runs."""
        own = self.objective.with_own_loss(self.device)
        validation_objective = Objective(own.task, self.validation_objective.cast_inputs)
        return replace(self, objective=own, validation_objective=validation_objective)

    @property
    def count(self) -> int | None:
        """The number of training examples; None for a stream."""
        return None if isinstance(self.train, StreamSource) else len(self.train)


def pose(task: Task, device: str | torch.device = "auto") -> Problem:
    """Open a task's data, and run one batch through a model of it: all mistakes that show there are refused before any step.

    Raises TaskError or DataError that says what is wrong, where, and what to do.
    """
    place = choose_device(device)
    with ambient(), rng_lock:
        model = build_model(task, 0, place)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        train, notes = _open(task.data, task, dtype, place, "data")
        validation = None
        if task.validation is not None:
            validation, more = _open(task.validation, task, dtype, place, "validation")
            notes += more
        weights = None if task.weights is None else as_tensor(task.weights, torch.float64, "weights")
        check_weights(weights, train)
        model.train()
        objective, batch, count = _rehearse_training(task, model, train, place)
        idle, matrices = _first_gradient(objective, model, batch)
        _check_all_labels(objective, model, {"data": train, "validation": validation}, batch)
        casts = objective.cast_inputs
        if validation is not None:
            casts = _rehearse_validation(objective.task, model, to_device(first_batch(validation, count), place))
        notes += _extra_state(model)
        needs_two = _needs_two(objective, model, train, place)
    return Problem(
        task,
        Objective(task, objective.cast_inputs),
        Objective(task, casts),
        train,
        validation,
        place,
        weights,
        idle,
        matrices,
        needs_two,
        tuple(notes),
    )


def choose_device(device: str | torch.device) -> torch.device:
    """Give the device: "auto" is the accelerator where there is one. Raises TaskError for one that is not there."""
    if str(device) == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if not isinstance(device, str | torch.device):
        raise TaskError(f"`device` is {device!r}. Give 'auto', 'cpu', 'cuda' or another of PyTorch's.")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise TaskError(
            f"The device {str(device)!r} cannot be used here ({_first_line(error)}). Use 'auto' or 'cpu'."
        ) from error
    return place


def build_model(task: Task, seed: int, device: torch.device) -> nn.Module:
    """Make the task's model: by the user's function, with random numbers from the seed, or as a copy of the user's module.

    Raises TaskError where the function fails or gives no module.
    """
    seed_all(mix(seed, _INIT))
    model = task.make_model()
    if any(p.is_meta for p in (*model.parameters(), *model.buffers())):
        raise TaskError(
            "The model has weights without values (device 'meta'). Give it values first: model.to_empty(…)."
        )
    model = model.to(device)
    make_writable(model)
    if not any(module.training for module in model.modules()):
        model.train()
    return model


def start_model(problem: Problem, seed: int) -> nn.Module:
    """Make the model that a run starts from; a first batch gives lazy layers their shapes, and so their initial weights."""
    model = build_model(problem.task, seed, problem.device)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        batch = to_device(first_batch(problem.train), problem.device)
        seed_all(mix(seed, _INIT))
        with torch.no_grad():
            problem.objective.loss(model, batch)
    return model


def _open(data: Any, task: Task, dtype: torch.dtype, device: torch.device, name: str) -> tuple[Source, list[str]]:
    source = open_source(data, float_dtype=dtype, collate_fn=task.collate_fn, name=name)
    if not isinstance(source, TensorSource):
        return source, []
    notes = [f"`{name}` is float64 and was cast to the model's {dtype}."] if _is_wider(data, dtype) else []
    check_finite(source, name)
    nest = source.nest
    if isinstance(nest, tuple) and len(nest) > 1 and task.loss is not None:
        nest = (*nest[:-1], tree_map(_widen, nest[-1]))
    if device.type != "cpu":
        nest = to_device(nest, device)
    return TensorSource(nest), notes


def _is_wider(data: Any, dtype: torch.dtype) -> bool:
    parts = data if isinstance(data, tuple) else (data,)
    return dtype != torch.float64 and any("float64" in str(getattr(part, "dtype", "")) for part in parts)


def _widen(target: Tensor) -> Tensor:
    # PyTorch's classification losses want class numbers as int64.
    return target.long() if target.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8) else target


def check_finite(source: TensorSource, name: str) -> None:
    """Raise DataError, with the first rows and columns, where the data have NaN or infinity."""
    for number, leaf in enumerate(leaves(source.nest)):
        rows = nonfinite_rows(leaf)
        if not rows:
            continue
        columns = (~torch.isfinite(leaf.reshape(len(leaf), -1))).any(0).nonzero().flatten().tolist()
        raise DataError(
            f"`{name}` (part {number + 1}, shape {tuple(leaf.shape)}) has NaN or infinity in {len(rows)} of {len(leaf)} rows:"
            f" rows {few(rows)}, columns {few(columns)}. Drop or fill them (or scale what is too large for {leaf.dtype})."
        )


def _rehearse_training(task: Task, model: nn.Module, train: Source, device: torch.device) -> tuple[Objective, Any, int]:
    """Run a first training batch; give the objective with its casts, the batch, and the number of examples asked for.

    Raises TaskError where the model makes parameters in its first forward pass.
    """
    known = [name for name, _ in model.named_parameters()]
    objective, batch, count = _rehearse_in_memory(Objective(task).with_own_loss(device), model, train, device)
    late = [name for name, _ in model.named_parameters() if name not in known]
    if late:
        raise TaskError(
            f"The model makes parameters in its first forward pass ({', '.join(late[:3])}), which no optimiser would know."
            f" Make them in __init__, or use lazy layers such as nn.LazyLinear."
        )
    return objective, batch, count


def _rehearse_validation(task: Task, model: nn.Module, batch: Any) -> Casts:
    """Run a first validation batch in evaluation mode, and give the casts that it needs."""
    model.eval()
    casts = rehearse(Objective(task), model, batch, training=False).cast_inputs
    model.train()
    return casts


def _rehearse_in_memory(
    objective: Objective, model: nn.Module, train: Source, device: torch.device
) -> tuple[Objective, Any, int]:
    """Run a first batch, of fewer examples where memory runs out. Raises TaskError where even two are too many."""
    count = REHEARSED
    while True:
        try:
            batch = to_device(first_batch(train, count), device)
            return rehearse(objective, model, batch), batch, count
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if count <= 2 or isinstance(train, StreamSource):
                raise TaskError(f"Memory runs out with a first small batch ({error}). Give a smaller model.") from error
        release(device)
        count //= 2


def first_batch(source: Source, count: int = REHEARSED) -> Any:
    """Give the first examples as a batch. Raises DataError where there are none."""
    batch, _ = next(once(source, count), (None, 0))
    if batch is None:
        raise DataError("The data stream gave no batch. It must start again each time it is iterated over.")
    return batch


def to_device(nest: Any, device: torch.device) -> Any:
    """Move a batch's tensors."""
    if device.type == "cpu":
        return nest
    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, nest)


def _first_gradient(objective: Objective, model: nn.Module, batch: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Give the names of the parameters that get no gradient, and the places of the matrices."""
    loss, _ = objective.loss(model, batch)
    try:
        loss.backward()
    except RuntimeError as error:
        raise TaskError(f"The gradient failed on the first batch: {_first_line(error)}") from error
    idle = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    return idle, places(model, loss)


def _extra_state(model: nn.Module) -> list[str]:
    own = [
        name or "the model"
        for name, m in model.named_modules()
        if type(m).get_extra_state is not nn.Module.get_extra_state
    ]
    if not own:
        return []
    return [f"{', '.join(own[:3])} keep extra state, which no checkpoint holds: a resumed run may differ there."]


def _needs_two(objective: Objective, model: nn.Module, train: Source, device: torch.device) -> bool:
    """Tell whether a single example fails in training; tried only where there is batch normalisation."""
    if isinstance(train, StreamSource) or not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return False
    try:
        with torch.no_grad():
            objective.loss(model, to_device(first_batch(train, 1), device))
    except Exception as error:
        return ONE_EXAMPLE_ERROR in str(error)
    return False


def _check_all_labels(objective: Objective, model: nn.Module, sources: dict[str, Source | None], batch: Any) -> None:
    """Check the labels of all data in memory, not of the first batch alone."""
    if objective.task.step is not None:
        return
    with torch.no_grad():
        output, _ = objective.outputs(model, batch)
    for source in sources.values():
        if isinstance(source, TensorSource) and isinstance(source.nest, tuple) and len(source.nest) > 1:
            target = source.nest[-1]
            if isinstance(target, Tensor) and not target.is_floating_point():
                check_labels(objective.task, output, target)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
