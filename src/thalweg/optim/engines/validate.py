"""Whether a step can be taken on a parameter, its gradient and its state, and if not, why.

A kernel reads and writes whatever lies at the addresses that it is given, so tensors that were freed, resized or replaced since
the last step must be found before it runs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from thalweg.errors import RuleError
from thalweg.optim.engines.arithmetic import COMPUTE_DTYPE
from thalweg.optim.engines.metadata_guards import GradientsApart, MemoryGuard
from thalweg.rules.rule import State

OWN_MEMORY = (Tensor, torch.nn.Parameter)
"""Types whose numbers lie in the tensor's own storage. A subclass (`DTensor`, say) may have them elsewhere or in another form."""

_DTYPES = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE_DTYPE)


class StepCheck:
    """Checks at every step what a step needs of parameters and gradients; what is as at the last one is only compared."""

    def __init__(self) -> None:
        self._last: MemoryGuard | None = None
        self._addresses: Sequence[int] = ()  # the parameters' at that step, apart from one another
        self._gradients_are_apart: GradientsApart | None = None

    def checked(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Mapping[Tensor, Mapping[str, Any]]
    ) -> Sequence[Tensor]:
        """Give the gradients, copied where they lie in the memory of weights or state, which change while gradients are read.

        Raises RuleError where a step cannot be taken on a parameter and its gradient.
        """
        tensors = [*parameters, *gradients]
        if self._last is not None and self._last.matches(tensors) and self._are_known_apart(parameters, gradients):
            return gradients
        self._last = None
        for p, g in zip(parameters, gradients, strict=True):
            validate(p, g, {}, ())
        if not {*map(type, tensors)} <= {*OWN_MEMORY}:
            return gradients
        if not are_apart(parameters):
            raise RuleError(
                "two parameters share memory, so that both would move the same weights: give the optimiser one of them (a tied "
                "weight is one Parameter in two places), or a clone() of one. No weight has moved."
            )
        state_tensors = (t for entry in state.values() for t in entry.values() if type(t) in OWN_MEMORY)
        others = [*parameters, *(t for t in state_tensors if t.layout is torch.strided)]
        overlapping = _overlapping(gradients, parameters, others)
        if any(overlapping):
            return [g.clone() if is_one else g for g, is_one in zip(gradients, overlapping, strict=True)]
        self._last, self._addresses = MemoryGuard(tensors), [*map(Tensor.data_ptr, parameters)]
        self._gradients_are_apart = GradientsApart(gradients, others)
        return gradients

    def _are_known_apart(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
        """Tell whether the parameters are where they were, and no gradient lies in their memory or that of their state."""
        if self._gradients_are_apart is None or [*map(Tensor.data_ptr, parameters)] != self._addresses:
            return False
        return self._gradients_are_apart([*map(Tensor.data_ptr, gradients)])


def validate(parameter: Tensor, gradient: Tensor, entry: Mapping[str, Any], states: Sequence[State]) -> None:
    """Raise RuleError where a step cannot be taken on a parameter, its gradient and its entry in the optimiser's state."""
    why = why_invalid(parameter, gradient, entry, states)
    if why is not None:
        raise RuleError(why.format(name="a parameter"))


def why_invalid(parameter: Tensor, gradient: Tensor, entry: Mapping[str, Any], states: Sequence[State]) -> str | None:
    """Say why no step can be taken, with "{name}" in the place of the parameter's name; None where one can."""
    return (
        _dtype_problem(parameter)
        or _gradient_problem(parameter, gradient)
        or _memory_problem("{name}", parameter)
        or _memory_problem("the gradient of {name}", gradient)
        or _layout_problem(parameter)
        or _state_problem(parameter, entry, states)
    )


def _dtype_problem(parameter: Tensor) -> str | None:
    if parameter.dtype not in COMPUTE_DTYPE:
        return f"{{name}} has become {parameter.dtype}; what can be trained is one of {_DTYPES}. No weight has moved."
    return None


def _gradient_problem(parameter: Tensor, gradient: Tensor) -> str | None:
    if not _are_alike(gradient, parameter):
        return (
            f"{{name}} is of {_describe(parameter)}, but its gradient of {_describe(gradient)}: was one of them replaced after "
            "backward()? Call it again. No weight has moved."
        )
    if gradient.device != parameter.device:
        return f"{{name}} is on {parameter.device}, but its gradient on {gradient.device}. No weight has moved."
    if gradient.dtype not in COMPUTE_DTYPE:
        return f"the gradient of {{name}} is {gradient.dtype}; it can be one of {_DTYPES}. No weight has moved."
    return None


def _memory_problem(what: str, tensor: Tensor) -> str | None:
    if tensor.is_meta:
        return (
            f"{what} is on the meta device, where there are no numbers: call to_empty() on the model, load or "
            "initialise its weights, and give the optimiser the parameters that it has then."
        )
    if type(tensor) not in OWN_MEMORY:
        return None
    if is_functorch_wrapped_tensor(tensor):
        return f"{what} is a tensor of torch.func, which has no numbers of its own: take what it stands for. No weight has moved."
    if not has_memory(tensor):
        return (
            f"the memory of {what} has been freed: {tensor.untyped_storage().nbytes()} bytes are left of "
            f"{_bytes_to_last_element(tensor)}. Bring it back before the step. No weight has moved."
        )
    return None


def _layout_problem(parameter: Tensor) -> str | None:
    """Say why nothing can be written in place into a parameter of this layout."""
    if type(parameter) not in OWN_MEMORY:
        return None
    if parameter.is_inference() and not torch.is_inference_mode_enabled():
        return (
            "{name} was made in inference mode, where PyTorch lets nothing be changed in place afterwards: give the optimiser "
            "a clone() of it, made outside. No weight has moved."
        )
    if torch._debug_has_internal_overlap(parameter) == 1:  # pyright: ignore[reportPrivateImportUsage]
        return (
            f"several weights of {{name}} are one place in memory (strides {tuple(parameter.stride())}), which cannot be moved "
            "as many: give the optimiser what it was expanded from, or a clone(). No weight has moved."
        )
    if parameter.is_conj() or parameter.is_neg():
        return (
            "{name} shows memory with its sign turned: give the optimiser what it is a view of, or the tensor of "
            "resolve_conj() and resolve_neg(). No weight has moved."
        )
    return None


def _state_problem(parameter: Tensor, entry: Mapping[str, Any], states: Sequence[State]) -> str | None:
    for key, what in (("step", "step count"), ("ema_since", "count of the steps before its average")):
        if not _is_count(count := entry.get(key, 0)):
            shown = repr(count).replace("{", "{{").replace("}", "}}")  # the message is a format string
            return (
                f"the {what} of {{name}} has become {shown}, which must be a number from 0 up: load its state anew. No weight has"
                " moved."
            )
    for state in states:
        value = entry.get(state.key)
        if not isinstance(value, Tensor):
            continue
        if _state_shape(state, parameter) != value.shape or value.is_complex() is not parameter.is_complex():
            return (
                f"{{name}} has become {_describe(parameter)}, but its state `{state.key}` is of {_describe(value)}: make a new "
                "optimiser for the new parameter, or give its state the new shape. No weight has moved."
            )
        if value.layout is not torch.strided:
            return f"the state `{state.key}` of {{name}} is {value.layout}: make it dense, as the weights. No weight has moved."
        if value.is_meta:
            return (
                f"the state `{state.key}` of {{name}} is on the meta device, where there are no numbers: load it anew."
            )
        why = _memory_problem(f"the state `{state.key}` of {{name}}", value)
        if why is not None:
            return why
    return None


def _state_shape(state: State, parameter: Tensor) -> torch.Size | None:
    """Give the shape that state must have; None where there is none for such a parameter."""
    is_matrix = parameter.ndim >= 2
    if not state.exists_for(is_matrix):
        return None
    if state.shape == "weights" or not is_matrix:
        return parameter.shape
    *most, rows, columns = parameter.shape
    return torch.Size([*most, rows, 1] if state.shape == "rows" else [*most, 1, columns])


def _is_count(value: Any) -> bool:
    try:
        return 0 <= float(value) < math.inf
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_complex() == other.is_complex()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's storage reaches to its last element; `untyped_storage().resize_(0)` frees it under the tensor."""
    return tensor.untyped_storage().nbytes() >= _bytes_to_last_element(tensor)


def check_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuleError where two parameters have one entry in the optimiser's state."""
    if len({*map(id, entries)}) < len(entries):
        raise RuleError("two parameters have one dict as their state: give each its own, a copy.deepcopy() of it.")


def are_apart(tensors: Sequence[Tensor]) -> bool:
    """Tell whether no two tensors have memory in common.

    >>> one = torch.zeros(4)
    >>> are_apart([one[:2], one[2:]]), are_apart([one[:3], one[2:]])
    (True, False)
    """
    spans = sorted(_span(tensor) for tensor in tensors if tensor.numel() > 0)
    return all(end <= start for (_, end), (start, _) in pairwise(spans))


def _overlapping(gradients: Sequence[Tensor], parameters: Sequence[Tensor], others: Sequence[Tensor]) -> list[bool]:
    """Tell of each gradient whether it lies among weights or state; not where it is its own weights, element by element."""
    spans = sorted(map(_span, others))
    starts = [start for start, _ in spans]
    ends = [*accumulate((end for _, end in spans), max)]

    def overlaps(gradient: Tensor, parameter: Tensor) -> bool:
        start, end = _span(gradient)
        before = bisect_left(starts, end)  # so many begin before its end
        return before > 0 and ends[before - 1] > start and not _are_same_memory(gradient, parameter)

    return [*map(overlaps, gradients, parameters)]


def _span(tensor: Tensor) -> tuple[int, int]:
    """Give the addresses of a tensor's first byte and of the one behind its last."""
    start = tensor.data_ptr()
    return start, start + _bytes_to_last_element(tensor) - int(tensor.storage_offset()) * tensor.itemsize


def _are_same_memory(one: Tensor, other: Tensor) -> bool:
    same = one.data_ptr() == other.data_ptr() and one.dtype is other.dtype
    return same and one.shape == other.shape and one.stride() == other.stride()


def _describe(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}" + (" (complex)" if tensor.is_complex() else "")


def _bytes_to_last_element(tensor: Tensor) -> int:
    """Give the bytes from a storage's start to a tensor's last element.

    >>> _bytes_to_last_element(torch.zeros(3, 4)[1:, :2])
    40
    """
    if tensor.numel() == 0:
        return 0
    last = sum(int(stride) * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (int(tensor.storage_offset()) + last + 1) * tensor.itemsize
