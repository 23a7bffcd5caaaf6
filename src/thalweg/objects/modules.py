"""What modules consist of: their tables of parameters, buffers, submodules and hooks, held and given again."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))


class Structure:
    """Of some modules which parameters, buffers, submodules and hooks they have.

    A call may change it, as pruning and parametrizations do, which give a weight another name, the module another class, and hook
    in what computes it. So it may hook into a weight's gradient, or hang something on a weight.

    `buffers`: whether buffers are part of it; else they are somebody else's business.
    """

    def __init__(self, modules: Iterable[nn.Module], *, buffers: bool = True) -> None:
        self._tables = tuple(name for name in _TABLES if buffers or name != "_buffers")
        self._held = [
            (module, type(module), {name: dict(table) for name in self._tables if (table := _table(module, name))})
            for module in modules
        ]
        self._weights = [
            (
                parameter,
                {*vars(parameter)},
                {name: dict(hooks) for name in _OF_TENSORS if (hooks := getattr(parameter, name))},
            )
            for module, *_ in self._held
            for parameter in module._parameters.values()
            if parameter is not None
        ]

    def give_again(self) -> None:
        """Give the modules what they had."""
        for module, kind, held in self._held:
            attributes = module.__dict__
            if type(module) is not kind:
                module.__class__ = kind
            for name in self._tables:
                if not attributes.get(name) and name not in held:  # as most tables of hooks
                    continue
                table, before = _table(module, name), held.get(name, {})
                if all(map(operator.is_, table.values(), before.values())) and [*table] == [*before]:
                    continue
                for hidden in before.keys() - table.keys():  # by a plain attribute
                    attributes.pop(hidden, None)
                table.clear()
                table.update(before)
        for parameter, names, held in self._weights:
            for name in vars(parameter).keys() - names:
                delattr(parameter, name)
            for name in _OF_TENSORS:
                hooks, before = getattr(parameter, name), held.get(name, {})
                if hooks is not None and [*hooks] != [*before]:
                    hooks.clear()
                    hooks.update(before)


def hooks_of(tensor: Tensor) -> list[Any]:
    """Give the functions that a backward pass calls with a tensor's gradient."""
    return [hook for name in _OF_TENSORS for hook in (getattr(tensor, name) or {}).values()]


def _table(module: nn.Module, name: str) -> dict[Any, Any]:
    """Give a module's table; an empty one where it keeps none, as compiled code does."""
    table = module.__dict__.get(name)
    return cast("dict[Any, Any]", table) if isinstance(table, dict) else {}
