"""The loss of a batch where a network says the same of every example: what anything that learns must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def constant_output_loss(model: nn.Module, call: Callable[[], float]) -> float | None:
    """Compute a loss with the model's output replaced by its mean over the batch; None where it gives no single tensor.

    For a distance it is that of the best such answer once the mean is learnt, and for class scores near that of the classes'
    shares.

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
    replaced = list[bool]()

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() < 1 or not output.is_floating_point():
            return None
        replaced.append(True)
        return output.mean(0, keepdim=True).expand_as(output).contiguous()

    handle = model.register_forward_hook(hook)
    try:
        loss = call()
    finally:
        handle.remove()
    return loss if replaced else None
