"""Notes which of PyTorch's losses are called, and with what, whoever calls them: a module, a partial, a lambda or a `step`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thalweg.errors import ThalwegError
from thalweg.landscape.loss_contracts import LOSSES, LossCall, check_form

_SIGNATURES = {function: inspect.signature(function) for function in LOSSES}
_TARGETS = ("target", "targets")


class LossCalls(TorchFunctionMode):
    """Within, calls of PyTorch's losses are noted in `calls`, and refused where the loss itself would fail.

    What `torch.compile` or `torch.func` trace passes unseen.

    `data`: words after a row's number in messages, such as " of `validation`".

    Raises DataError in words that name the rows and what to do.

    >>> with LossCalls() as noted:
    ...     torch.nn.BCEWithLogitsLoss()(torch.zeros(2), torch.ones(2))
    tensor(0.6931)
    >>> noted.calls[0].name
    'binary_cross_entropy_with_logits'
    """

    def __init__(self, data: str = "") -> None:
        super().__init__()
        self.data = data
        self.calls: list[LossCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not torch.compiler.is_compiling() and func in LOSSES:
            call = _read(func, args, kwargs or {})
            if call is not None:
                self._note(call._replace(data=self.data))
        return func(*args, **(kwargs or {}))

    def _note(self, call: LossCall) -> None:
        try:
            check_form(call)
        except ThalwegError:
            raise
        except Exception:
            return  # tensors whose values cannot be looked at, such as those of torch.func
        self.calls.append(call)


def _read(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LossCall | None:
    """Read the arguments of a loss; None where they are not what it takes, which it then says itself."""
    try:
        bound = _SIGNATURES[function].bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    options = dict(bound.arguments)
    output = next(iter(options.values()))
    target = next((options[name] for name in _TARGETS if name in options), None)
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return None
    return LossCall(LOSSES[function], output, target, options)
