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
        self._unreduced: dict[int, Tensor] = {}  # the number of a call -> its elements

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = None
        if not torch.compiler.is_compiling() and func in LOSSES:
            call = _read(func, args, kwargs or {})
        noted = call is not None and self._note(call._replace(data=self.data))
        result = func(*args, **(kwargs or {}))
        if noted and not self.calls[-1].is_reduced:
            self._unreduced[len(self.calls) - 1] = result
        return result

    def settle(self, loss: Any) -> tuple[LossCall, ...]:
        """Give the calls; of those without a reduction with the elements that this loss, made of them, counts."""
        for number, elements in self._unreduced.items():
            counts = _counts(loss, elements)
            if counts is not None:
                self.calls[number] = self.calls[number]._replace(counts=counts)
        return tuple(self.calls)

    def _note(self, call: LossCall) -> bool:
        try:
            check_form(call)
        except ThalwegError:
            raise
        except Exception:
            return False  # tensors whose values cannot be looked at, such as those of torch.func
        self.calls.append(call)
        return True


def _counts(loss: Any, elements: Tensor) -> Tensor | None:
    """Tell which elements a loss depends on; None where that is not known."""
    try:
        (slopes,) = torch.autograd.grad(loss, elements, retain_graph=True, allow_unused=True)
    except Exception:  # no gradient, or more than one number
        return None
    return torch.zeros_like(elements) if slopes is None else slopes != 0


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
