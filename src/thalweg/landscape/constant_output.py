"""The loss of a batch where a network says the same of every example, or nothing: what anything that learns must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def constant_output_loss(model: nn.Module, call: Callable[[], float]) -> float | None:
    """Compute a loss with the model's output replaced by its mean over the batch; None where it gives no single tensor.

    For a distance it is that of the best such answer once the mean is learnt, and for class scores near that of the classes'
    shares. A batch of few examples says little.

    Arguments:
        model: the network. Its hooks are as before afterwards.
        call: computes the loss, for which it calls the model.

    >>> model = nn.Linear(1, 1)
    >>> import torch
    >>> x = torch.tensor([[0.0], [2.0]])
    >>> with torch.no_grad():
    ...     _ = model.weight.fill_(1.0), model.bias.zero_()
    ...     constant_output_loss(model, lambda: float((model(x) - x).square().mean()))
    1.0
    """
    return _with_output(model, call, lambda output: output.mean(0, keepdim=True).expand_as(output).contiguous())


def zero_output_loss(model: nn.Module, call: Callable[[], float]) -> float | None:
    """Compute a loss with zeros as the model's output, likewise: what a network of usual size begins with, or near it."""
    return _with_output(model, call, lambda output: (0.0 * output).nan_to_num())


def _with_output(model: nn.Module, call: Callable[[], float], change: Callable[[Tensor], Tensor]) -> float | None:
    replaced = list[bool]()

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() < 1 or not output.is_floating_point():
            return None
        replaced.append(True)
        return change(output)

    handle = model.register_forward_hook(hook)
    try:
        loss = call()
    finally:
        handle.remove()
    return loss if replaced else None
