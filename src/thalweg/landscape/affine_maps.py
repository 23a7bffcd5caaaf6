"""Layers that see the data and no other trained weights: over a plane of weights their outputs are known after a few products.

X (W + a D1 + b D2) = X W + a X D1 + b X D2: whatever a and b are, the first layer of a network needs no more than two
additions. Of a network with wide inputs that is most of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

BYTES = 256 << 20  # of outputs that are kept
FEWEST_TERMS = 32  # of an output's sum: below, two additions cost as much
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AffineMaps:
    """Outputs of such layers, over the weights `point + sum of coordinates * directions`, by batch.

    Arguments:
        model: whose weights are at the point.
        shares: of each module's parameters, its part of the directions: by the parameter, one tensor for each direction.
    """

    def __init__(self, model: nn.Module, shares: dict[int, list[Tensor]]) -> None:
        self._modules = [
            module
            for module in model.modules()
            if type(module) in KINDS and _is_plain(module, shares) and _terms(module) >= FEWEST_TERMS
        ]
        self._shares = shares
        self._known: dict[tuple[int, nn.Module], list[Tensor]] = {}
        self._left = BYTES
        self.batch = 0
        self.coordinates: Sequence[float] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._known

    @contextmanager
    def noting(self, batch: int) -> Generator[None]:
        """Within, a batch is run through the model, with gradients, and what the layers give is noted."""
        calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

        def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            calls.setdefault(module, []).append((given[0] if len(given) == 1 else None, output))  # pyright: ignore[reportArgumentType]

        handles = [module.register_forward_hook(note) for module in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for module in list(self._modules):
            called = calls.get(module, [])
            given, output = called[0] if len(called) == 1 else (None, None)
            needed = 0 if output is None else (1 + self._count) * output.numel() * output.element_size()
            if given is None or output is None or given.requires_grad or needed > self._left:
                self._leave(module)
                continue
            self._left -= needed
            self._known[batch, module] = [output.detach(), *self._along(module, given, output)]

    def _leave(self, module: nn.Module) -> None:
        self._modules.remove(module)
        for key in [key for key in self._known if key[1] is module]:
            self._left += sum(part.numel() * part.element_size() for part in self._known.pop(key))

    @property
    def _count(self) -> int:
        return len(next(iter(self._shares.values()), []))

    def _along(self, module: nn.Module, given: Tensor, output: Tensor) -> list[Tensor]:
        """Give what the layer would give with each direction's part as its weights."""
        found = list[Tensor]()
        for number in range(self._count):
            weights = {name: self._shares[id(p)][number] for name, p in module.named_parameters()}
            with torch.no_grad():
                made: Tensor = functional_call(module, weights, (given,))
            found.append(made.to(output.dtype))
        return found

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Within, the layers give what they would at `coordinates`, for the batch number `batch`."""
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(_forward(module, self._from(module)))
            yield

    def _from(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(given: Tensor) -> Tensor:
            first, *others = self._known[self.batch, module]
            for coordinate, other in zip(self.coordinates, others, strict=True):
                first = torch.add(first, other, alpha=coordinate)
            return first

        return forward


@contextmanager
def _forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is there again


def _is_plain(module: nn.Module, shares: dict[int, list[Tensor]]) -> bool:
    """Tell whether a layer has weights of its own that are all trained, and no forward pass of its own."""
    own = list(module.parameters())
    return bool(own) and "forward" not in vars(module) and all(id(p) in shares for p in own)


def _terms(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return math.prod(weight.shape[1:])
