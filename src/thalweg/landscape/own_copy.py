"""A run's own copies of objects that the user hands over, that are called again and again and may keep a state.

Several runs, one after the other or in threads, would mix up what they share.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")
_STATELESS = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    functools.partial,
    type,
)  # or of an object that is shared anyway
_in_turn = threading.RLock()


def own_copy(given: T, copied: dict[int, Any] | None = None) -> T:
    """Give a copy of an object with a state; functions, methods, and what cannot be copied, as they are.

    Weights of modules are shared, since they are large and do not change. `copied`: what was copied with others of one run, by
    identity, which is added to: what a loss and a metric hold together is one object again.

    >>> function, module = nn.functional.mse_loss, nn.MSELoss()
    >>> own_copy(function) is function, own_copy(module) is module
    (True, False)
    """
    if isinstance(given, _STATELESS):
        return given
    modules = [part for part in (given, *getattr(given, "__dict__", {}).values()) if isinstance(part, nn.Module)]
    weights = {id(p): p for module in modules for p in module.parameters()}
    return copied_with(given, weights, copied)


def copied_with(given: T, shared: Mapping[int, Any], copied: dict[int, Any] | None) -> T:
    """Give a copy which shares some objects, by identity; what cannot be copied as it is. See `own_copy`."""
    memo: dict[int, Any] = {} if copied is None else copied
    before = dict(memo)
    memo.update(shared)
    try:
        return copy.deepcopy(given, memo)
    except Exception:  # it holds a file, a lock or the like
        memo.clear()  # of half copies; the dict stays the same one, since `deepcopy` keeps something in it by its identity
        memo.update(before)
        return given


def own_copies(given: Mapping[str, T], copied: dict[int, Any] | None = None) -> dict[str, T]:
    """Give copies of named objects; what they hold together is one object in the copies too. See `own_copy`."""
    copied = {} if copied is None else copied
    return {name: own_copy(each, copied) for name, each in given.items()}


def in_turn(given: Mapping[str, Any], own: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Hold this from an object's reset to its figure: where one could not be copied, runs use it one after the other.

    It is taken before the lock of random numbers, and never within.
    """
    shared = any(each is own[name] and not isinstance(each, _STATELESS) for name, each in given.items())
    return _in_turn if shared else nullcontext()
