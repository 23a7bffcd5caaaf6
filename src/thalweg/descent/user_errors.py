"""Errors from the user's code, and from PyTorch within it, named in one sentence: where, what, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn

from thalweg.descent.out_of_memory import out_of_memory
from thalweg.errors import TaskError, ThalwegError
from thalweg.landscape.objective import ONE_EXAMPLE_ERROR, ONE_EXAMPLE_HINT, Objective
from thalweg.sampling.reading import describe_error

_DEVICE_ADVICE = (
    "Tensors made in forward, `step` or the loss belong on the input's device: torch.zeros(..., device=x.device), or"
    " register_buffer for constants."
)
_ADVICE = {  # what PyTorch says -> what to do; of several, the first
    ONE_EXAMPLE_ERROR: ONE_EXAMPLE_HINT.strip(),
    "backward through the graph a second time": (
        "A gradient went through here already: `step` must not call backward(), which is done for it, and what the model keeps"
        " from batch to batch, such as a hidden state, needs .detach()."
    ),
    "modified by an inplace operation": (
        "What the gradient needs was changed in place: write x = x + y instead of x += y, and step no optimizer in `step`."
    ),
    "leaf Variable that requires grad": (
        "A parameter is changed in place: do so under torch.no_grad(), or make a new tensor (w = w * mask)."
    ),
    "does not require grad": (
        "Nothing that can be trained leads to it: look for .detach(), .item(), .data, torch.no_grad() or an argmax between the"
        " parameters and the loss."
    ),
    "created only for scalar outputs": "The loss must be one number: call .mean().",
    "same device": _DEVICE_ADVICE,
    "expected device": _DEVICE_ADVICE,
    "Expected hidden": "A hidden state kept from a batch of another size does not fit: start anew, or set drop_last.",
    "unsafe to autocast": "Give the scores before the sigmoid to binary_cross_entropy_with_logits, or set precision='float32'.",
    "not implemented for 'Half'": "PyTorch has no such operation in half precision here: set precision='float32'.",
    "not implemented for 'BFloat16'": "PyTorch has no such operation in half precision here: set precision='float32'.",
    "Can't call numpy()": "Use PyTorch's functions instead of numpy's, or .detach() where no gradient is needed.",
    "must be Tensor, not numpy": "Give tensors: torch.as_tensor(array).",
    "var has negative": "Make the variance positive: F.softplus(v), or v.exp() of its logarithm.",
    "device type tensor to numpy": "Call .cpu() first, or use PyTorch's functions.",
}
_DTYPE_ERRORS = ("dtype", "scalar type", "Byte", "Input type")  # words of PyTorch's messages about dtypes
_DTYPE_ADVICE = (
    "Make tensors that the model or the loss brings, such as weights and masks, in the input's dtype (dtype=x.dtype)."
)


class naming_errors:  # noqa: N801 # a context manager, used like a function
    """Within, any error becomes a TaskError `{place} failed {where}: {error}. {what to do}`, in one line.

    thalweg's own errors and those of memory that ran out pass unchanged, and so does what is no Exception (KeyboardInterrupt).

    Arguments:
        place: what failed, as a sentence begins: "The loss".
        where: such as "on the first training batch"; default: nothing.
        step: the step, counted from 1, instead of `where`.
        advice: what to do about an error, where the place knows it; "" for the general advice.

    >>> with naming_errors("The backward pass", step=3):
    ...     torch.ones(()).backward()
    Traceback (most recent call last):
    thalweg.errors.TaskError: The backward pass failed in step 3: RuntimeError: element 0 of tensors does not require grad...
    """

    def __init__(
        self, place: str, where: str = "", *, step: int | None = None, advice: Callable[[Exception], str] | None = None
    ) -> None:
        self.place, self.where, self.step, self.advice = place, where, step, advice

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, ThalwegError) or out_of_memory(error):
            return
        where = f" in step {self.step}" if self.step is not None else self.where and f" {self.where}"
        advice = (self.advice(error) if self.advice else "") or advice_on(error)
        raise TaskError(f"{self.place} failed{where}: {describe_error(error)}.{advice and f' {advice}'}") from error


def advice_on(error: BaseException) -> str:
    """Give what to do about an error of PyTorch's; "" where that is not known."""
    text = str(error)
    known = next((advice for words, advice in _ADVICE.items() if words in text), "")
    return known or (_DTYPE_ADVICE if is_dtype_mismatch(error) else "")


def is_dtype_mismatch(error: BaseException | None) -> bool:
    """Tell whether an error of PyTorch's is about tensors of dtypes that do not go together."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _DTYPE_ERRORS)


class FirstGradient(NamedTuple):
    """Trainable parameters without a gradient, and whether any gradient is sparse."""

    missing: tuple[str, ...]
    sparse: bool


def rehearse_gradient(objective: Objective, model: nn.Module, batch: Any, loss: torch.Tensor) -> FirstGradient:
    """Take a first gradient, and one more after it as the second step will.

    What a model or a loss keeps from one batch to the next with its graph fails only in the second.

    Raises TaskError where a gradient fails, or no parameter gets one.
    """
    with naming_errors("The backward pass", "on the first training batch"):
        loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing = tuple(name for name, p in trainable.items() if p.grad is None)
    if len(missing) == len(trainable):
        where = "step(model, batch)" if objective.task.step is not None else "loss(output, target)"
        raise TaskError(
            f"No parameter of the model gets a gradient: the loss is made of other tensors that can be trained. Use the model, or"
            f" its output, that {where} is given."
        )
    sparse = any(p.grad is not None and p.grad.is_sparse for p in trainable.values())
    model.zero_grad(set_to_none=True)
    with naming_errors("The model or the loss", "on a second training batch"):
        again, _ = objective.loss(model, batch)
    with naming_errors("The backward pass", "on a second training batch"):
        again.backward()
    model.zero_grad(set_to_none=True)
    return FirstGradient(missing, sparse)
