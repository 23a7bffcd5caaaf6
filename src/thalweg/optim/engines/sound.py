"""Sound tensors: whether a step can be taken on a parameter, its gradient and its state, and if not, why.

A kernel that is given an address believes it, so what changed under the optimiser must be found before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import RuleError
from thalweg.optim.engines.arithmetic import COMPUTE
from thalweg.rules.rule import State

PLAIN = (Tensor, torch.nn.Parameter)
"""Types whose tensors are their own memory; any other may stand for memory elsewhere, in pieces or in another form."""


def look_over(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Raise RuleError where a tensor has lost its memory or a gradient has not its parameter's shape; quick where all is well."""
    there = all(map(Tensor.data_ptr, parameters)) and all(map(Tensor.data_ptr, gradients))
    if there and [*map(Tensor.size, parameters)] == [*map(Tensor.size, gradients)]:
        return
    for p, g in zip(parameters, gradients, strict=True):
        check(p, g, {}, ())


def check(parameter: Tensor, gradient: Tensor, entry: Mapping[str, Any], states: Sequence[State]) -> None:
    """Raise RuleError where a step cannot be taken on a parameter, its gradient and its entry in the optimiser's state."""
    why = complaint(parameter, gradient, entry, states)
    if why is not None:
        raise RuleError(why.format(name="a parameter"))


def complaint(parameter: Tensor, gradient: Tensor, entry: Mapping[str, Any], states: Sequence[State]) -> str | None:
    """Say why no step can be taken, with "{name}" in the place of the parameter's name; None where one can."""
    if parameter.dtype not in COMPUTE:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE)
        return f"{{name}} has become {parameter.dtype}; what can be trained is one of {kinds}. No weight has moved."
    if not _are_alike(gradient, parameter):
        return (
            f"{{name}} is of {_form(parameter)}, but its gradient of {_form(gradient)}: was one of them replaced after "
            "backward()? Call it again. No weight has moved."
        )
    if gradient.device != parameter.device:
        return f"{{name}} is on {parameter.device}, but its gradient on {gradient.device}. No weight has moved."
    for of, tensor in (("", parameter), ("the gradient of ", gradient)):
        if tensor.is_meta:
            return (
                f"{of}{{name}} is on the meta device, where there are no numbers: call to_empty() on the model, load or "
                "initialise its weights, and give the optimiser the parameters that it has then."
            )
        if type(tensor) in PLAIN and not has_memory(tensor):
            return (
                f"the memory of {of}{{name}} has been freed: {tensor.untyped_storage().nbytes()} bytes are left of "
                f"{_bytes(tensor)}. Bring it back before the step. No weight has moved."
            )
    for state in states:
        held = entry.get(state.key)
        if state.shape == "weights" and isinstance(held, Tensor) and not _are_alike(held, parameter):
            return (
                f"{{name}} has become {_form(parameter)}, but its state `{state.key}` is of {_form(held)}: make a new "
                "optimiser for the new parameter, or give its state the new shape. No weight has moved."
            )
    return None


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_complex() == other.is_complex()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's storage reaches to its last element; `resize_` may have taken it away."""
    return tensor.untyped_storage().nbytes() >= _bytes(tensor)


def _form(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}" + (" (complex)" if tensor.is_complex() else "")


def _bytes(tensor: Tensor) -> int:
    """Give the bytes from a storage's start to a tensor's last element.

    >>> _bytes(torch.zeros(3, 4)[1:, :2])
    40
    """
    if tensor.numel() == 0:
        return 0
    last = sum(int(stride) * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (int(tensor.storage_offset()) + last + 1) * tensor.itemsize
