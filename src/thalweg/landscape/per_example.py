"""The loss of each example of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from thalweg.errors import TaskError
from thalweg.landscape.loss_contracts import LOSSES
from thalweg.landscape.objective import Objective

_SIGNATURES = {
    function: inspect.signature(function)
    for function in (*LOSSES, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss)
}


def per_example_losses(objective: Objective, model: nn.Module, batch: Any, size: int) -> Tensor | None:
    """Give the loss of each of the `size` examples of a batch, as they came; None where it cannot be told.

    It is what the task's own `per_example_loss` gives. Without one the model is called once, and what the task calls of PyTorch's
    losses is computed again without its reduction: an example's loss is the mean of its elements, and the sum over all such
    calls. No gradient is computed; modes and random states are the caller's.

    Raises TaskError where the task's own function gives anything else than a vector of as many numbers.
    """
    own = objective.task.per_example_loss
    if own is None:
        return unreduced_losses(lambda: objective.loss(model, batch), size)
    with torch.no_grad():
        return _checked(own(model, batch), size)


def unreduced_losses(call: Callable[[], Any], size: int | None = None) -> Tensor | None:
    """Give the loss of each example, as PyTorch's losses that `call` calls give them; None where there are none.

    Of several losses each example's are summed. `size`: how many examples there are; None: as many as the first loss has rows.
    """
    with torch.no_grad(), _Unreduced(size) as seen:
        call()
    parts = [part for part in seen.parts if part is not None]
    return torch.stack(parts).sum(0) if parts and len(parts) == len(seen.parts) else None


def _checked(losses: Any, size: int) -> Tensor:
    if not isinstance(losses, Tensor) or losses.shape != (size,):
        got = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise TaskError(f"`per_example_loss` gave {got} for a batch of {size} examples: it is to give each one's loss.")
    return losses.detach().float()


class _Unreduced(TorchFunctionMode):
    """Within, PyTorch's losses are computed again without their reduction; `parts` are the means of each example's elements."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size
        self.parts = list[Tensor | None]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIGNATURES and not torch.compiler.is_compiling():
            bound = _SIGNATURES[func].bind(*args, **kwargs)
            # The older forms of these options win over `reduction`.
            options = {**bound.arguments, "size_average": None, "reduce": None, "reduction": "none"}
            allowed = _SIGNATURES[func].parameters
            self.parts.append(self._rows(func(**{name: value for name, value in options.items() if name in allowed})))
        return func(*args, **kwargs)

    def _rows(self, elements: Tensor) -> Tensor | None:
        if self.size is None and elements.dim():
            self.size = len(elements)
        if not self.size or not elements.numel() or elements.numel() % self.size:
            return None
        return elements.detach().float().reshape(self.size, -1).mean(1)
