"""A fingerprint of a task's code: what of its model and functions can be compared when a run is resumed.

A task that was edited in between trains on without an error, where the shapes of the weights still fit. Its functions are
compared by their compiled code, which comments and layout do not change, with the constants, defaults and functions of the user's
that they use; its modules by their settings, such as dropout's `p`. What cannot be seen there is not compared.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from thalweg.objects.code import cells_of, is_library, names_in
from thalweg.records.task import Task
from thalweg.sampling.data_sum import part_sums

MOST_BYTES = 1 << 20  # of a tensor that a function uses, for its values to be compared
MOST_MODULES = 500  # of which the settings are kept one by one; a larger model's are kept as one digest
PYTHON = "python"  # the key of the version by which the code was compiled: other versions compile it otherwise
SCHEME = 3  # of these digests: what it counts up with is not compared with digests of an earlier one
_PLAIN = (bool, int, float, str, bytes, type(None))


def fingerprint(task: Task, model: nn.Module) -> dict[str, str]:
    """Give part of the task -> digest of its code, and name of a module -> its settings; `model` is fresh from the task.

    Where objects of the user's cannot be looked at, nothing is known of them, and the fingerprint is empty.
    """
    try:
        return _fingerprint(task, model)
    except Exception:
        return {}


def _fingerprint(task: Task, model: nn.Module) -> dict[str, str]:
    functions = {name: getattr(task, name) for name in ("model", "loss", "step", "evaluate", "collate_fn")}
    functions |= {
        f"{name}.collate_fn": getattr(getattr(task, name), "collate_fn", None) for name in ("data", "validation")
    }
    functions |= {f"metric '{name}'": metric for name, metric in task.metrics.items()}
    parts = {
        f"`{name}`" if "'" not in name else name: _code(value) for name, value in functions.items() if value is not None
    }
    classes = {type(module) for module in model.modules() if not is_library(type(module).__module__)}
    parts |= {f"class {kind.__qualname__}": _code(kind) for kind in classes}
    settings = {f"model.{name}" if name else "model": _settings(module) for name, module in model.named_modules()}
    if isinstance(task.loss, nn.Module):
        settings |= {
            f"loss.{name}" if name else "loss": _settings(module) for name, module in task.loss.named_modules()
        }
    if len(settings) > MOST_MODULES:
        settings = {"the settings of the modules": _digest(repr(settings))}
    return {
        PYTHON: f"{sys.version_info.major}.{sys.version_info.minor}, {SCHEME}",
        **dict(sorted(parts.items())),
        **settings,
    }


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Say in words what differs between two fingerprints; nothing where one of them is empty.

    >>> changes({"python": "3.11", "`loss`": "a1", "model.1": "Dropout(p=0.5)"}, {"python": "3.11", "`loss`": "b2"})
    ['`loss` has other code', 'model.1, which was Dropout(p=0.5), is gone']
    """
    same_python = before.get(PYTHON) == now.get(PYTHON)
    found: list[str] = []
    for name in dict.fromkeys((*before, *now)) if before and now else ():
        was, is_now, code = before.get(name), now.get(name), name.startswith(("`", "class ", "metric "))
        if was == is_now or name == PYTHON or (code and not same_python and is_now):
            continue
        if was is None or is_now is None:
            what = name if code else f"{name}, which {'is' if was is None else 'was'} {is_now or was},"
            found.append(f"{what} is {'new' if was is None else 'gone'}")
        else:
            settings = f"{name} was {was} and is {is_now}" if "(" in was else f"{name} are others"
            found.append(f"{name} has other code" if code else settings)
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _settings(module: nn.Module) -> str:
    """Give a module's class and its plain attributes."""
    plain = [f"{name}={value!r}" for name, value in _plain(vars(module)).items() if name != "training"]
    return f"{type(module).__name__}({', '.join(plain)})"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name[:1] != "_" and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in cast("tuple[Any, ...]", value))
    return isinstance(value, _PLAIN)


def _code(value: Any) -> str:
    """Give a digest of what a function, a class or an object that can be called does, as far as its code tells."""
    return _digest("\n".join(_describe(value, set())))


def _describe(value: Any, seen: set[int]) -> Iterator[str]:
    """Yield lines that tell a value of code from another one; what was described already is left out."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        yield f"partial {[a for a in partial.args if _is_plain(a)]} {_plain(partial.keywords)}"
        yield from _describe(partial.func, seen)
    elif isinstance(value, types.MethodType):
        yield from _describe(value.__func__, seen)
        yield from _describe(type(value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        yield from _describe_function(value, seen)
    elif isinstance(value, type):
        yield f"class {value.__qualname__}"
        if not is_library(value.__module__):
            for name, member in sorted(vars(value).items()):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(function, types.FunctionType):
                    yield from _describe(function, seen)
                elif not name.startswith("__") and _is_plain(member):
                    yield f"{name}={member!r}"
    elif isinstance(value, nn.Module):
        yield from _describe(type(value), seen)
    elif callable(value) and not isinstance(value, types.BuiltinFunctionType):
        yield f"object {_plain(getattr(value, '__dict__', {}))}"
        yield from _describe(type(value), seen)
    else:
        yield str(getattr(value, "__qualname__", type(value).__qualname__))


def _describe_function(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    yield f"function {function.__qualname__}"
    if is_library(function.__module__ or ""):
        return
    yield from _describe_compiled(function.__code__)
    yield f"defaults {[d for d in function.__defaults__ or () if _is_plain(d)]} {_plain(function.__kwdefaults__ or {})}"
    written = {i.argval for i in dis.get_instructions(function.__code__) if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    used = [(name, function.__globals__[name]) for name in names_in(function.__code__) if name in function.__globals__]
    used += [(name, cell.cell_contents) for name, cell in cells_of(function)]
    for name, value in used:
        if name in written:  # a counter, say
            continue
        if _is_plain(value):
            yield f"{name}={value!r}"
        elif isinstance(value, Tensor | np.ndarray) and value.nbytes <= MOST_BYTES:  # weights of classes, say
            with suppress(TypeError):  # an array of objects
                yield f"{name}={[part.hex() for part in part_sums(value)]}"
        elif isinstance(value, types.FunctionType | type | functools.partial):
            yield from _describe(value, seen)


def _describe_compiled(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _describe_compiled(constant)
        else:  # a set has no order of its own
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
