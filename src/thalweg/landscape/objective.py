"""The objective: the loss as a function of a model and a batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.rnn import PackedSequence

from thalweg.errors import DataError, TaskError, shown
from thalweg.formatting import is_storable
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import LOSSES, LossCall, misfits
from thalweg.landscape.loss_terms import TOTAL, read_terms
from thalweg.landscape.own_copy import copied_with, own_copy
from thalweg.landscape.reduction import Reduction, called_weight, is_class_loss, loss_option, stated_reduction, unwrap
from thalweg.records.task import StepResult, Task

ONE_EXAMPLE_ERROR = (
    "Expected more than 1 value per channel"  # what PyTorch's batch normalisation says of a single example
)
ONE_EXAMPLE_HINT = (
    " Batch normalisation needs two examples per batch: set drop_last=True, in your DataLoader where you give one, else in the"
    " plan (fixed={'drop_last': True}), or another batch size."
)
TARGET_KEYS = ("target", "targets", "label", "labels", "y")


class Casts(NamedTuple):
    """Dtypes to which a batch's floating-point inputs, integer inputs and target are cast; None leaves them as they are."""

    floats: torch.dtype | None = None
    integers: torch.dtype | None = None
    target: torch.dtype | None = None


class Losses(NamedTuple):
    """What a batch gives: its mean loss, the loss's weight where the task's own step returns one, its terms by name, and whether
    it is their sum."""

    loss: Tensor
    weight: float | Tensor | None
    terms: Mapping[str, Tensor] = {}
    is_sum: bool = False


class Objective:
    """The loss of a task as a function of a model and a batch.

    Arguments:
        task: gives the loss function, or its own `step` and `evaluate`.
        cast_inputs: dtypes that the model and the loss need: images stored as bytes, say, become floats for a model that
            computes on floats.
        reduction: how the losses of parts make up that of the whole batch; None: as the loss says of itself.
        needs_gradient: whether model or loss take gradients themselves, of their inputs say, so that they cannot be evaluated
            with gradients disabled.
    """

    def __init__(
        self,
        task: Task,
        cast_inputs: Casts | None = None,
        reduction: Reduction | None = None,
        needs_gradient: bool = False,
    ) -> None:
        self.task = task
        self.cast_inputs = cast_inputs or Casts()
        self.reduction = reduction or (stated_reduction(task.loss) if task.step is None else Reduction())
        self.needs_gradient = needs_gradient
        self._casts = self.cast_inputs != Casts()

    def with_own_loss(self, device: torch.device, copied: dict[int, Any] | None = None) -> Objective:
        """Give an objective whose loss, where it is an object with a state, is a copy: a loss may have buffers, as a model does.

        That of a module is on the device. What cannot be copied is used as it is. For `copied` see `own_copy`.
        """
        loss = self.task.loss
        if not isinstance(loss, nn.Module):
            own = own_copy(loss, copied)
            return self if own is loss else self.of(replace(self.task, loss=own))
        # Weights that are on the device already, such as those of a perceptual loss, are shared and not copied.
        shared = {id(p): p for p in loss.parameters() if p.device.type == device.type}
        own = copied_with(loss, shared, copied)
        if own is loss:
            return self
        return self.of(replace(self.task, loss=own if device.type == "cpu" else own.to(device)))

    def of(self, task: Task) -> Objective:
        """Give the same objective of another copy of the task."""
        return Objective(task, self.cast_inputs, self.reduction, self.needs_gradient)

    def gradient_mode(self) -> AbstractContextManager[Any]:
        """Within, gradients are disabled, as evaluating wants, except where this objective needs them."""
        return torch.enable_grad() if self.needs_gradient else torch.no_grad()

    @property
    def loss_buffers(self) -> dict[str, Tensor]:
        """The buffers of a loss that is a module; calling it may change them."""
        return dict(self.task.loss.named_buffers()) if isinstance(self.task.loss, nn.Module) else {}

    def weight(self, batch: Any, size: int, noted: LossCalls | None = None) -> float:
        """Give the weight of the loss of a batch of `size` examples in an average over several; see `Reduction`.

        `noted`: what `noting` gave when the loss was computed.
        """
        called = None if noted is None else called_weight(noted.calls)
        if called is not None:
            return called
        target = self.split(batch)[2] if self.reduction.kind == "targets" else None
        return self.reduction.weight(target, size)

    def weight_of(self, own: float | Tensor | None, batch: Any, size: int, noted: LossCalls | None = None) -> float:
        """Give the weight as `weight` does, or the one that the task's own function returned; a sum's parts all weigh 1."""
        if own is None or self.reduction.kind == "sum":
            return self.weight(batch, size, noted)
        return float(own)

    def noting(self) -> LossCalls | nullcontext[None]:
        """Within, PyTorch's losses are noted where a batch's weight follows from their calls; see `weight`."""
        return LossCalls() if self.reduction.kind == "calls" else nullcontext()

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Give the batch's mean loss, and its weight where the task's own step returns one (else None: see `weight`).

        Raises as `losses` does.
        """
        return self.losses(model, batch)[:2]

    def losses(self, model: nn.Module, batch: Any) -> Losses:
        """Give the same with the terms that the loss is made of, where the task's own step names them.

        Raises DataError for a label the model has no output for, TaskError for one example under batch normalisation and for a
        step that returns something else.
        """
        if self.task.step is not None:
            return losses_of(self.task.step(model, batch), "step")
        output = target = None
        try:
            output, target = self.outputs(model, batch)
            return Losses(cast(Any, self.task.loss)(output, target), None)
        except (IndexError, RuntimeError, ValueError) as error:
            if ONE_EXAMPLE_ERROR in str(error):
                raise TaskError(f"{error}.{ONE_EXAMPLE_HINT}") from error
            check_labels(self.task, output, target, where=" of this batch")
            raise

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Give the model's output and the target."""
        arguments, keywords, target = self.split(batch)
        if self.cast_inputs.target is not None and isinstance(target, Tensor):
            target = target.to(self.cast_inputs.target)
        return model(*arguments, **keywords), target

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None, Mapping[str, Any]]:
        """Give the loss for validation, its weight as `loss` does, and the figures that the task's own function returns.

        Those are the terms of its loss, and what it returns beside it.
        """
        own = self.task.evaluate or self.task.step
        if own is None:
            return *self.loss(model, batch), {}
        function, result = "step" if self.task.evaluate is None else "evaluate", own(model, batch)
        loss, weight, terms, _ = losses_of(result, function)
        return loss, weight, {**terms, **figures_of(result, function)}

    def split(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Cut a batch into the model's positional and keyword arguments and the target."""
        if type(batch) is tuple and len(batch) == 2 and type(batch[0]) is Tensor:  # the usual (x, y)
            return (self._cast(batch[0]),), {}, batch[1]
        if isinstance(batch, Mapping):
            return self._split_mapping(cast("Mapping[str, Any]", batch))
        if isinstance(batch, Tensor):
            return (self._cast(batch),), {}, batch
        if not isinstance(batch, tuple | list) or isinstance(batch, PackedSequence):
            raise TaskError(
                f"A batch is a {type(batch).__name__}, and which part of it is the target is not clear. Let the data give"
                f" (input, target), or give step(model, batch)."
            )
        parts = tuple(cast("tuple[Any, ...]", batch))
        if len(parts) == 1:
            return (self._cast(parts[0]),), {}, parts[0]
        inputs, target = parts[:-1], parts[-1]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), {key: self._cast(value) for key, value in inputs[0].items()}, target
        if len(inputs) == 1 and type(inputs[0]) is tuple:  # a named tuple or other object is one input, not its fields
            inputs = cast("tuple[Any, ...]", inputs[0])
        return tuple(self._cast(part) for part in inputs), {}, target

    def _split_mapping(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        targets = [key for key in batch if key in TARGET_KEYS]
        if len(targets) != 1:
            raise TaskError(
                f"A batch is a mapping with the keys {list(batch)}, and which is the target is not clear."
                f" Call exactly one of them {' or '.join(TARGET_KEYS)}, or give `step`."
            )
        return (), {key: self._cast(value) for key, value in batch.items() if key != targets[0]}, batch[targets[0]]

    def _cast(self, value: Any) -> Any:
        if not self._casts or not isinstance(value, Tensor) or value.is_complex():
            return value
        dtype = self.cast_inputs.floats if value.is_floating_point() else self.cast_inputs.integers
        return value if dtype is None else value.to(dtype)


def with_weights_cast(task: Task, dtype: torch.dtype) -> tuple[Task, list[str]]:
    """Cast the weights of PyTorch's losses, as `CrossEntropyLoss(weight=...)` has, to the model's dtype, as the data are.

    Gives the task with a copy of its loss, and a sentence where anything was cast. The user's own module stays as it is. The
    weights may be keywords of a partial, too.
    """
    if isinstance(task.loss, functools.partial) and task.loss.func in LOSSES:
        weights = {name: value for name, value in task.loss.keywords.items() if _is_unlike(value, dtype)}
        if not weights:
            return task, []
        loss = functools.partial(task.loss, **{name: weight.to(dtype) for name, weight in weights.items()})
        texts = [f"`{name}` of {LOSSES[task.loss.func]} is {_dtype(weight)}" for name, weight in weights.items()]
        return replace(task, loss=loss), [f"{', '.join(texts)} and was cast to the model's {dtype}."]
    if not isinstance(task.loss, nn.Module) or not list(_unlike_weights(task.loss, dtype)):
        return task, []
    loss = copy.deepcopy(task.loss, {id(p): p for p in task.loss.parameters()})
    cast_names: list[str] = []
    for module, name, weight in list(_unlike_weights(loss, dtype)):
        setattr(module, name, weight.to(dtype))
        cast_names.append(f"`{name}` of {type(module).__name__} is {_dtype(weight)}")
    return replace(task, loss=loss), [f"{', '.join(cast_names)} and was cast to the model's {dtype}."]


def _unlike_weights(loss: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in loss.modules():
        for name, weight in module.named_buffers(recurse=False):
            if isinstance(module, _Loss) and _is_unlike(weight, dtype):
                yield module, name, weight


def _is_unlike(weight: Any, dtype: torch.dtype) -> bool:
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dtype == dtype:
        return False
    # Only float64 is sure to be no choice: outputs may be float32 of a model in half precision.
    return torch.float64 in (weight.dtype, dtype)


def make_gradients_dense(parameters: Iterable[Tensor]) -> None:
    """Make the gradients of `nn.Embedding(sparse=True)` what they are with sparse=False, which is the same gradient."""
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.to_dense()


def losses_of(result: StepResult, function: str) -> Losses:
    """Read what a task's `step` or `evaluate` returned.

    Raises TaskError where it is neither a loss nor (loss, weight) nor (loss, weight, figures), and for terms that are none.
    """
    loss, weight = (result[0], result[1]) if isinstance(result, tuple) and len(result) in (2, 3) else (result, None)
    if isinstance(loss, Tensor):
        return Losses(loss, weight)
    # A mapping with an attribute `loss` is another library's output; of `evaluate` other figures come third.
    if isinstance(loss, Mapping) and function == "step" and not isinstance(getattr(loss, "loss", None), Tensor):
        try:
            descended, terms = read_terms(loss)
        except ValueError as error:
            raise TaskError(f"`{function}` returned {error}") from None
        return Losses(descended, weight, terms, is_sum=TOTAL not in loss)
    raise TaskError(f"`{function}` returned {_returned(result, function)}")


def _returned(result: Any, function: str) -> str:
    """Say what `step` or `evaluate` returned instead of a loss, and what to return."""
    what = f"a {type(result).__name__}"
    if result is None:
        return "nothing. End it with `return loss`."
    if isinstance(result, int | float):
        return f"{what}. Return the loss as a tensor, without .item()."
    if isinstance(getattr(result, "loss", None), Tensor):
        return f"{what}. Return its loss: outputs.loss."
    if isinstance(result, Mapping) and function == "evaluate":
        key = next((key for key in cast("Mapping[Any, Any]", result) if "loss" in str(key)), "loss")
        return (
            f"{what}. Return its loss, with the other figures third: (losses[{key!r}], None, {{'accuracy': accuracy}})."
        )
    if function == "evaluate" and isinstance(result, tuple):
        what += " that does not begin with the loss"
    return (
        f"{what}. It returns the loss, or (loss, weight), both scalars: the sum of several losses; several losses with an"
        f" optimiser each (a GAN, say) are not what thalweg trains."
    )


def figures_of(result: StepResult, function: str) -> Mapping[str, Any]:
    """Give the figures of (loss, weight, figures), none for another result. Raises TaskError where they are no table of them."""
    figures = result[2] if isinstance(result, tuple) and len(result) == 3 else {}
    if not isinstance(figures, Mapping) or any(
        not isinstance(n, str) or n == "loss" or "/" in n or not is_storable(n)
        for n in cast("Mapping[Any, Any]", figures)
    ):
        raise TaskError(
            f"`{function}` returned {shown(figures, 80)} as the third of (loss, weight, figures). Give a table of numbers by"
            f" names, such as {{'accuracy': 0.5}}; 'loss' is taken and '/' separates columns."
        )
    return figures


def describe(value: Any) -> str:
    """Describe a value for a message: a tensor's shape and dtype, else its type.

    >>> describe(torch.zeros(2, 3))
    '(2, 3) float32'
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {_dtype(value)}"
    return type(value).__name__


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def class_count(task: Task, output: Any) -> int | None:
    """Give the number of classes where the loss is PyTorch's cross-entropy or negative log-likelihood, else None."""
    if not is_class_loss(task.loss) or not isinstance(output, Tensor) or output.ndim < 1:
        return None
    return output.shape[1] if output.ndim > 1 else output.shape[0]


def check_labels(task: Task, output: Any, target: Any, *, where: str = "") -> None:
    """Refuse class labels that the model has no output for, where the loss is known.

    Raises DataError that names the first such row, followed by `where`.
    """
    if class_count(task, output) is None or not isinstance(target, Tensor):
        return
    inner, _ = unwrap(task.loss)
    name = "nll_loss" if isinstance(inner, nn.NLLLoss) or inner is nn.functional.nll_loss else "cross_entropy"
    options = {"ignore_index": loss_option(task.loss, "ignore_index", -100)}
    for misfit in misfits(LossCall(name, output, target, options, where)):
        if misfit.certain:
            raise DataError(misfit.message)
