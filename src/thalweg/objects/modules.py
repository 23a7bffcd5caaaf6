"""What modules consist of: their tables of parameters, buffers, submodules and hooks, held and given again."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

from torch import nn

_TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))


class Structure:
    """Of some modules which parameters, buffers, submodules and hooks they have.

    A call may change it, as pruning and parametrizations do, which give a weight another name and hook in what computes it.

    `buffers`: whether buffers are part of it; else they are somebody else's business.
    """

    def __init__(self, modules: Iterable[nn.Module], *, buffers: bool = True) -> None:
        self._tables = tuple(name for name in _TABLES if buffers or name != "_buffers")
        self._held = [
            (module, {name: dict(table) for name in self._tables if (table := _table(module, name))})
            for module in modules
        ]

    def give_again(self) -> None:
        """Give the modules what they had."""
        for module, held in self._held:
            for name in self._tables:
                table, before = _table(module, name), held.get(name, {})
                if (
                    len(table) == len(before)
                    and all(map(operator.is_, table.values(), before.values()))
                    and [*table] == [*before]
                ):
                    continue
                for hidden in before.keys() - table.keys():  # by a plain attribute
                    module.__dict__.pop(hidden, None)
                table.clear()
                table.update(before)


def _table(module: nn.Module, name: str) -> dict[Any, Any]:
    """Give a module's table; an empty one where it keeps none, as compiled code does."""
    table = module.__dict__.get(name)
    return cast("dict[Any, Any]", table) if isinstance(table, dict) else {}
