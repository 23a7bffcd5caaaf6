"""Opening a task: its data are opened and checked, the device is chosen, and one batch is rehearsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from thalweg.descent.evaluation_mode import rehearse_evaluation
from thalweg.descent.held_out import NOTHING_HELD_OUT, HeldOut, check_criterion, hold_out
from thalweg.descent.matrix_roles import matrix_roles
from thalweg.descent.moving_weights import mark_weights, moved_since
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.outside_weights import check_no_gradient_elsewhere, check_outside_weights
from thalweg.descent.parts import training_reduction
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.rehearsal import (
    NonFiniteLossError,
    NothingCountsError,
    Rehearsal,
    check_gradient_is_finite,
    rehearse,
)
from thalweg.descent.target_check import check_targets
from thalweg.descent.their_objects import (
    as_found,
    counting_data,
    feeding_back,
    not_kept,
    objects_of,
    what_gives_examples,
)
from thalweg.descent.user_errors import rehearse_gradient
from thalweg.errors import DataError, TaskError, few, shown
from thalweg.formatting import capitalized, is_storable
from thalweg.landscape.objective import ONE_EXAMPLE_ERROR, Casts, Objective, with_weights_cast
from thalweg.landscape.own_copy import in_turn, own_copies
from thalweg.landscape.reduction import Reduction
from thalweg.objects.state import ObjectState
from thalweg.records.holdout import NOTHING, Holdout
from thalweg.records.task import Task
from thalweg.records.weights import buffer_shapes, make_writable
from thalweg.sampling import ItemSource, Source, StreamSource, TensorSource, check_weights, mix
from thalweg.sampling.arrays import as_tensor
from thalweg.sampling.opening import (
    FIRST_BATCH_SIZE,
    NonFinite,
    batch_of_rows,
    find_nonfinite,
    first_batch,
    in_parts,
    open_data,
    spread_batch,
)
from thalweg.sampling.reading import describe_error
from thalweg.sampling.sources import loader_knobs, nonfinite_rows, seed_all

_INIT = 1  # mixed into the seed of the initialisation, so that it differs from those of the steps


@dataclass(frozen=True)
class Problem:
    """A task that is checked and ready for training.

    - `objective`, `validation_objective`: the loss, with the casts that training and validation data need.
    - `train`, `validation`: the opened data.
    - `held_out`: which of the training examples are the validation data, where the task has none.
    - `weights`: of each training example, for drawing with replacement.
    - `without_gradient`: names of the parameters that got no gradient from the first batch.
    - `sparse_gradients`: whether a parameter's gradient is sparse, as that of `nn.Embedding(sparse=True)`.
    - `needs_two_examples`: whether a batch of a single example fails in training.
    - `takes_nonfinite`: whether the data hold NaN or infinity with which the loss is finite all the same.
    - `last_batch_fails`: why no step can be taken on the last batch of the user's loader, which is smaller; else empty.
    - `notes`: what the user should know about data and model.
    - `moving`: names of the parameters that the forward pass changes, in training or evaluation.
    - `is_exact`: whether nothing was found by which a resumed run may differ from the uninterrupted one.
    """

    task: Task
    objective: Objective
    validation_objective: Objective
    train: Source
    validation: Source | None
    device: torch.device
    weights: Tensor | None = None
    without_gradient: tuple[str, ...] = ()
    sparse_gradients: bool = False
    needs_two_examples: bool = False
    takes_nonfinite: bool = False
    last_batch_fails: str = ""
    notes: tuple[str, ...] = field(default=())
    held_out: HeldOut = NOTHING_HELD_OUT
    is_exact: bool = True
    moving: frozenset[str] = frozenset()

    def with_own_loss(self) -> Problem:
        """Give the problem with copies of a loss and of metrics that have a state, so that several runs do not share it."""
        copied: dict[int, Any] = {}
        own = self.objective.with_own_loss(self.device, copied).task
        own = replace(own, metrics=own_copies(self.task.metrics, copied))
        return replace(self, objective=self.objective.of(own), validation_objective=self.validation_objective.of(own))

    @property
    def count(self) -> int | None:
        """The number of training examples; None for a stream."""
        return None if isinstance(self.train, StreamSource) else len(self.train)

    @property
    def loader_knobs(self) -> dict[str, Any]:
        """The knobs that the user's `DataLoader` has decided; its batch holds no more than the examples that are not held out."""
        knobs = loader_knobs(self.task.data)
        if self.held_out.share and knobs.get("batch_size") is not None and self.count is not None:
            knobs["batch_size"] = min(knobs["batch_size"], self.count)
        return knobs

    def check_last_batch(self) -> None:
        """Raise DataError where no step can be taken on the last batch of the user's loader, which is smaller.

        It is the loader's word, so no plan can change it. Evaluating may take such a batch.
        """
        if self.last_batch_fails:
            raise DataError(self.last_batch_fails)

    @cached_property
    def matrix_roles(self) -> Mapping[str, str]:
        """Names of the trainable matrices, each with its role in the network. Computed only for rules that need it."""
        return {name: role for name, (role, is_trained) in self._matrix_roles.items() if is_trained}

    @property
    def matrix_roles_unfrozen(self) -> Mapping[str, str]:
        """The same of all matrices, as if none were frozen."""
        return {name: role for name, (role, _) in self._matrix_roles.items()}

    @cached_property
    def _matrix_roles(self) -> Mapping[str, tuple[str, bool]]:
        """The role of each matrix, and whether it is trained: a role is the same beside layers that are frozen."""
        with preserve_process_state(), rng_lock, as_found(self.task):
            problem = self.with_own_loss()  # a loss that counts its calls, say, must begin each run as it was given
            model = start_model(problem, 0).train()
            frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad and _has_gradient(p)}
            try:
                for parameter in frozen.values():
                    parameter.requires_grad_(True)
                try:  # two examples show the graph as well as more do
                    loss, _ = problem.objective.loss(model, first_batch(self.train, self.device, 2, own=True))
                except Exception:  # of code that takes no batch of two: one such as was rehearsed with
                    loss, _ = problem.objective.loss(model, first_batch(self.train, self.device))
                roles = matrix_roles(model, loss)
                return {name: (role, name not in frozen) for name, role in roles.items()}
            finally:
                for parameter in frozen.values():
                    parameter.requires_grad_(False)


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def open_task(task: Task, device: str | torch.device = "auto", to_hold_out: Holdout = NOTHING) -> Problem:
    """Open a task's data, and run one batch through a model of it: mistakes that show there raise before any step.

    `to_hold_out`: of the training examples, for validation.

    Raises TaskError or DataError that says what is wrong, where, and what to do; PlanError for what cannot be held out.
    """
    copied: dict[int, Any] = {}
    chosen_device, metrics = choose_device(device), own_copies(task.metrics, copied)
    with in_turn(task.metrics, metrics), preserve_process_state(), rng_lock, as_found(task):
        model = build_model(task, 0, chosen_device)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        options: dict[str, Any] = {
            "float_dtype": dtype,
            "device": chosen_device,
            "collate_fn": task.collate_fn,
            "has_targets": task.loss is not None,
        }
        task, notes = with_weights_cast(task, dtype)
        whole, more = open_data(task.data, name="data", **options)
        notes += more
        validation = None
        if task.validation is not None:
            validation, more = open_data(task.validation, name="validation", **options)
            notes += more
        weights = None if task.weights is None else as_tensor(task.weights, torch.float64, "weights")
        check_weights(weights, whole)
        held_out = hold_out(task, whole, weights, to_hold_out)
        train = whole
        if held_out.share:
            train, validation = held_out.parts(whole)
            weights = None if weights is None else weights[held_out.training]
        notes += check_criterion(task, validation, held_out)
        notes += [f"{capitalized(held_out.reason)}."] * bool(held_out.reason)
        model.train()
        own = replace(Objective(task).with_own_loss(chosen_device, copied).task, metrics=metrics)
        found = find_nonfinite(whole, "data")
        objects, items = (
            objects_of(own, model),
            ObjectState(what_gives_examples(whole)),
        )
        # All examples are rehearsed and looked at, those that are held out too, so that rows have the user's own numbers.
        unmoved = mark_weights(model)
        rehearsal, batch, count, more = _rehearse_training(own, model, whole, chosen_device, found)
        notes += [*more, *rehearsal.notes]
        moving = moved_since(unmoved, model)
        objects.read()  # so that what comes and goes from call to call shows in the next reading
        objects.note_links()
        notes += check_outside_weights(Objective(own, rehearsal.casts), model, batch, rehearsal.loss, task.model)
        before = objects.with_gradient()
        gradient = rehearse_gradient(Objective(own, rehearsal.casts), model, batch, rehearsal.loss)
        check_no_gradient_elsewhere(before, objects.with_gradient())
        objects.read()
        objects.forget_links()  # what is made in evaluation goes again in a run
        notes += check_targets(Objective(own, rehearsal.casts), model, whole, rehearsal.calls, count)
        nonfinite = _check_nonfinite(own, model, rehearsal.casts, whole, batch, found)
        unmoved = mark_weights(model)
        evaluation = rehearse_evaluation(
            own, model, rehearsal, train, validation, chosen_device, count, objects.unchanged
        )
        moving |= moved_since(unmoved, model)
        reduction = training_reduction(
            own, model, rehearsal, batch, whole, chosen_device, validation, objects.unchanged
        )
        measured = evaluation.reduction or reduction
        notes += [*nonfinite, *evaluation.notes, *_incomparable(measured, train, validation)]
        needs_two_examples = _needs_two_examples(Objective(own, rehearsal.casts), model, train, chosen_device)
        last_batch_fails = _last_batch_fails(Objective(own, rehearsal.casts), model, train, chosen_device)
        objects.read()
        lost = not_kept(objects) + counting_data(items)
        lost += [
            text
            for source in (train, validation)
            if isinstance(source, StreamSource)
            for text in not_kept(source.objects)
        ]
        lost += feeding_back(objects, train.objects) if isinstance(train, StreamSource) else []
        notes += lost
    return Problem(
        task,
        Objective(task, rehearsal.casts, reduction, evaluation.needs_gradient),
        Objective(task, evaluation.casts, measured, evaluation.needs_gradient),
        train,
        validation,
        chosen_device,
        weights,
        gradient.missing,
        gradient.sparse,
        needs_two_examples,
        bool(nonfinite) or evaluation.takes_nonfinite,
        last_batch_fails,
        tuple(notes),
        held_out,
        not lost,
        frozenset(moving),
    )


def choose_device(device: str | torch.device) -> torch.device:
    """Give the device: "auto" is the accelerator where there is one. Raises TaskError for one that is not there."""
    if not isinstance(device, str | torch.device):
        raise TaskError(f"`device` is {shown(device)}. Give 'auto', 'cpu', 'cuda' or another of PyTorch's.")
    if str(device) == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise TaskError(
            f"The device {str(device)!r} cannot be used here ({_first_line(error)}). Use 'auto' or 'cpu'."
        ) from error
    return chosen


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
    unwritable = [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if not is_storable(name)]
    if unwritable:
        raise TaskError(f"The weight {unwritable[0]!r:.80} has a name that no file takes. Rename it.")
    model = model.to(device)
    make_writable(model)
    if (
        len({module.training for module in model.modules()}) == 1
    ):  # with layers in evaluation mode it stays as it was made
        model.train()  # a model's own `train` may keep layers in evaluation mode
    return model


def start_model(problem: Problem, seed: int) -> nn.Module:
    """Make the model that a run starts from; a first batch gives lazy layers their shapes, and so their initial weights."""
    model = build_model(problem.task, seed, problem.device)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        batch = first_batch(problem.train, problem.device)
        seed_all(mix(seed, _INIT))
        with problem.validation_objective.gradient_mode():
            problem.objective.loss(model, batch)
    return model


def _rehearse_training(
    task: Task, model: nn.Module, train: Source, device: torch.device, found: NonFinite | None
) -> tuple[Rehearsal, Any, int, list[str]]:
    """Run a first training batch, and give it with the number of examples that it was asked for: fewer where memory runs out.

    Where its loss is not finite, as of sorted data whose first targets are all ignored, and that of examples from all over the
    data is, those are the batch, and a note says so. `found`: where the data hold NaN or infinity.

    Raises TaskError where even two examples are too many, or the model makes parameters or resizes buffers in its forward pass.
    """
    known, shapes = [name for name, _ in model.named_parameters()], buffer_shapes(model)
    count, notes = FIRST_BATCH_SIZE, list[str]()
    while True:
        try:
            # Where memory runs out with the batch of a user's loader, training will split it too.
            batch = first_batch(train, device, count)
            try:
                rehearsal = rehearse(task, model, batch, nonfinite=found and found.text)
            except (NothingCountsError, NonFiniteLossError) as error:
                rehearsal, batch = _rehearse_spread(task, model, train, device, count, error)
                notes = [
                    "The loss of the first examples is not finite, that of examples from all over the data is. Are all targets of"
                    " the first ones ignored, or of one class? A step without a finite loss is left out."
                ]
            break
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if count <= 2 or isinstance(train, StreamSource):
                raise TaskError(f"Memory runs out with a first small batch ({error}). Give a smaller model.") from error
        release(device)
        count //= 2
    added = [name for name, _ in model.named_parameters() if name not in known]
    if added:
        raise TaskError(
            f"The model makes parameters in its first forward pass ({', '.join(added[:3])}), which no optimiser would know."
            f" Make them in __init__, or use lazy layers such as nn.LazyLinear."
        )
    for name, shape in buffer_shapes(model).items():
        if shapes.get(name, shape) != shape:
            raise TaskError(
                f"The forward pass gives the buffer `{name}` another shape, {shape} instead of {shapes[name]}, into which no"
                f" checkpoint could be loaded. Give it its final shape in __init__, or keep it in an attribute that is no buffer."
            )
    return rehearsal, batch, count, notes


def _rehearse_spread(
    task: Task, model: nn.Module, train: Source, device: torch.device, count: int, error: TaskError
) -> tuple[Rehearsal, Any]:
    """Rehearse examples from all over the data, and give them too. Raises `error` where their loss is not finite either."""
    if isinstance(train, StreamSource):
        raise error
    batch = spread_batch(train, device, count)
    try:
        return rehearse(task, model, batch), batch
    except (NothingCountsError, NonFiniteLossError):
        raise error from None


def _check_nonfinite(
    task: Task, model: nn.Module, casts: Casts, train: Source, batch: Any, found: NonFinite | None
) -> list[str]:
    """Give a note where the training data hold NaN or infinity that model and loss take; the loss decides.

    Raises DataError where loss or gradient are not finite with such examples.
    """
    if found is None:
        rows = nonfinite_rows(batch)
        return [f"The first batch has NaN or infinity in rows {few(rows)}; the loss is finite all the same."] * bool(
            rows
        )
    assert isinstance(train, TensorSource)
    rehearsal = rehearse(task, model, batch_of_rows(train, found.rows), casts, nonfinite=found.text)
    check_gradient_is_finite(rehearsal.loss, model, found.text)
    return [f"{found.text}. Loss and gradient are finite all the same, so they stay as they are."]


def _incomparable(reduction: Reduction, train: Source, validation: Source | None) -> list[str]:
    """Give a note where validation averages a loss over batches of which it is no mean: another batch size gives another one."""
    if reduction.kind != "batch":
        return []
    source = train if validation is None else validation
    own = isinstance(source, StreamSource) or (isinstance(source, ItemSource) and source.own_batches is not None)
    batches = "the loader's own batches" if own else "batches of the training's size"
    return [
        f"The loss of a batch is no mean over its examples (it compares them, or divides sums, say). Validation averages it over"
        f" {batches}; with another batch size it is another figure."
    ]


def _needs_two_examples(objective: Objective, model: nn.Module, train: Source, device: torch.device) -> bool:
    """Tell whether a batch of one example fails in training; tried only where there is batch normalisation."""
    if isinstance(train, StreamSource) or not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return False
    if isinstance(train, ItemSource) and train.own_batches is not None and train.own_batches.drop_last:
        return False  # the loader never gives one, unless all are of one
    try:
        with torch.no_grad():
            objective.loss(model, first_batch(train, device, 1))
    except Exception as error:
        return ONE_EXAMPLE_ERROR in str(error)
    return False


def _last_batch_fails(objective: Objective, model: nn.Module, train: Source, device: torch.device) -> str:
    """Say why the loss of the last batch of a user's loader fails for its size, where it does: a batch of one, say.

    Where it fails with a whole batch of these examples too, that is not for its size, and not for here to say.
    """
    own = train.own_batches if isinstance(train, ItemSource) else None
    if not isinstance(train, ItemSource) or own is None or own.drop_last or not 0 < len(train) % own.size < len(train):
        return ""
    count = len(train)
    last, whole = range(count - count % own.size, count), range(count - own.size, count)

    def failure(rows: range) -> Exception | None:
        try:
            with torch.enable_grad():  # a loss may take gradients itself
                objective.loss(model, in_parts(train, [rows], device)[0])
        except Exception as error:
            return error
        return None

    error = failure(last)
    if error is None or out_of_memory(error) or failure(whole) is not None:
        return ""
    size = "a single one" if len(last) == 1 else f"one of {len(last)}"
    return (
        f"`data` has {count} examples in the loader's batches of {own.size}, so that an epoch's last batch is {size}, which"
        f" model or loss cannot take ({describe_error(error)}). Set drop_last=True in the DataLoader, or another batch_size."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
