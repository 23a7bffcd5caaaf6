"""Which units of a network are dead or saturated: what its activation functions give on some batches, layer by layer.

Functions and modules are seen alike (`F.relu` in a block's own forward as well as `nn.ReLU`). What runs inside one call of
PyTorch's own, as the gates of `nn.LSTM` do, or what `torch.compile` has traced, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

DEAD = 1e-5  # of the layer's largest output: a unit that never gives more is dead
SATURATED = {"tanh": 4.0, "sigmoid": 6.0}  # inputs beyond which the slope is below 0.0013 and 0.0025
MOST_LAYERS = 1_000  # that are told apart; a loop over time calls one function again and again

_RECTIFIERS: dict[Any, str] = {
    F.relu: "ReLU", torch.relu: "ReLU", torch.relu_: "ReLU", F.relu_: "ReLU", Tensor.relu: "ReLU", Tensor.relu_: "ReLU",
    F.relu6: "ReLU6", F.gelu: "GELU", F.silu: "SiLU", F.mish: "Mish", F.hardswish: "Hardswish", F.threshold: "Threshold",
}  # fmt: skip
_BOUNDED: dict[Any, str] = {
    F.tanh: "tanh", torch.tanh: "tanh", torch.tanh_: "tanh", Tensor.tanh: "tanh", Tensor.tanh_: "tanh",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", torch.sigmoid_: "sigmoid", Tensor.sigmoid: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
}  # fmt: skip
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage]
    nn.modules.batchnorm._BatchNorm,  # pyright: ignore[reportPrivateUsage]
    nn.modules.instancenorm._InstanceNorm,  # pyright: ignore[reportPrivateUsage]
    nn.GroupNorm,
)


@dataclass
class Layer:
    """The units of one activation function, over all batches.

    - `name`: the module whose output it was applied to, as it is said, and `module` its name; `kind`: the function; `examples`:
      how many it saw.
    - `dead`: units that gave nothing on any example; of functions that can be so, else 0. `saturated`: the share of inputs at
      which the slope is next to nothing; of bounded functions, else 0.
    - `is_output`: it gives the model's output: there certain predictions saturate, which is no fault.
    """

    name: str
    kind: str
    units: int
    examples: int = 0
    saturated: float = 0.0
    is_output: bool = False
    highest: Tensor | None = None
    module: str = ""

    @property
    def dead(self) -> int:
        """How many units never gave anything."""
        if self.highest is None:
            return 0
        return int((self.highest <= DEAD * self.highest.max()).sum())

    def __repr__(self) -> str:
        return (
            f"<{self.kind} after {self.name}: {self.dead} of {self.units} units dead, {self.saturated:.1%} saturated>"
        )


class _Activity(TorchFunctionMode):
    """Within, calls of activation functions are noted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = dict[tuple[str, str, int, int], Layer]()
        self.outputs = dict[int, Layer]()  # of the present call, by the identity of what was given
        self._names = {module: name for name, module in model.named_modules()}
        self._open = list[
            tuple[str, dict[str, int]]
        ]()  # modules under way, with how often each kind was called in them
        self._last: nn.Module | None = None  # that ended and has weights
        self._kept = list[Any]()

    def before(self, module: nn.Module, _: Any) -> None:
        self._open.append((self._names.get(module, ""), {}))

    def after(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._open:
            self._open.pop()
        if any(True for _ in module.parameters(recurse=False)):
            self._last = module

    def begin(self) -> None:
        self._open, self._last, self.outputs, self._kept = [], None, {}, []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kind = _RECTIFIERS.get(func) or _BOUNDED.get(func)
        if kind is None or torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        given = args[0] if args else (kwargs or {}).get("input")
        share = _saturated(given.detach(), kind) if kind in SATURATED and isinstance(given, Tensor) else 0.0
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() > 1 and result.numel() and result.is_floating_point():
            self._note(kind, result, share)
        return result

    def _note(self, kind: str, result: Tensor, share: float) -> None:
        where, calls = self._open[-1] if self._open else ("", {})
        number = calls[kind] = calls.get(kind, 0) + 1
        dimension = 1 if isinstance(self._last, _CHANNELS_FIRST) else result.dim() - 1
        key = where, kind, number, result.shape[dimension]
        if key not in self.layers:
            if len(self.layers) >= MOST_LAYERS:
                return
            name = "the input" if self._last is None else f"`{self._names.get(self._last, '')}`"
            module = "" if self._last is None else self._names.get(self._last, "")
            self.layers[key] = Layer(name, kind, result.shape[dimension], module=module)
        layer = self.layers[key]
        examples = len(result)
        layer.saturated = (layer.saturated * layer.examples + share * examples) / (layer.examples + examples)
        layer.examples += examples
        if kind not in SATURATED:
            others = [one for one in range(result.dim()) if one != dimension]
            highest = result.detach().abs().amax(others).float()
            layer.highest = highest if layer.highest is None else torch.maximum(layer.highest, highest)
        self.outputs[id(result)] = layer
        self._kept.append(result)  # so that no other tensor gets its identity


def _saturated(given: Tensor, kind: str) -> float:
    return float((given.abs() > SATURATED[kind]).float().mean())


def unit_activity(model: nn.Module, calls: Iterable[Callable[[], Any]]) -> tuple[Layer, ...]:
    """Call the model on some batches, and give what its activation functions gave, in the order in which they are called.

    Arguments:
        model: the network. Its hooks are as before afterwards; its mode is the caller's choice.
        calls: each calls it on one batch, and gives its output.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
    ...     unit_activity(model, [lambda: model(torch.rand(8, 2))])[0].dead
    1
    """
    seen, handles = _Activity(model), list[Any]()
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(seen.before))
            handles.append(module.register_forward_hook(seen.after, always_call=True))
        for call in calls:
            seen.begin()
            with seen:
                output = call()
            for tensor in _tensors(output):
                if (layer := seen.outputs.get(id(tensor))) is not None:
                    layer.is_output = True
    finally:
        for handle in handles:
            handle.remove()
        seen.begin()
    return tuple(seen.layers.values())


def _tensors(nest: Any) -> list[Tensor]:
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    return [one for part in nest for one in _tensors(part)] if isinstance(nest, list | tuple) else []
