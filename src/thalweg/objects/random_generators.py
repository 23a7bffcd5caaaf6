"""Random generators of the user's own that a data set draws from, and seeding them."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.objects.code import cells_of, is_library, names_in
from thalweg.objects.values import is_random

MOST_OBJECTS = 2_000  # that are looked at
MOST_ITEMS = 100  # of a container whose items are looked at: transforms are few, examples many


def find_generators(root: Any) -> list[Any]:
    """Give the random generators that an object holds, in its attributes, transforms, methods and what these use of a module."""
    found: list[Any] = []
    seen, left = set[int](), [root]
    while left and len(seen) < MOST_OBJECTS:
        value = left.pop()
        if id(value) in seen or isinstance(value, Tensor | np.ndarray | str | bytes | int | float | types.ModuleType):
            continue
        seen.add(id(value))
        if is_random(value):
            found.append(value)
        else:
            left += _parts(value)
    return found


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from list(cast("Mapping[Any, Any]", value).values()) if len(value) <= MOST_ITEMS else ()
    elif isinstance(value, list | tuple):
        yield from cast("list[Any]", value) if len(cast("list[Any]", value)) <= MOST_ITEMS else ()
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from () if is_library(value.__module__) else list(vars(value).values())
    elif isinstance(attributes := getattr(value, "__dict__", None), dict):
        yield from list(cast("dict[str, Any]", attributes).values())
        yield type(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    if is_library(function.__module__ or ""):
        return
    yield from (cell.cell_contents for _, cell in cells_of(function))
    scope = function.__globals__
    yield from (scope[name] for name in names_in(function.__code__) if name in scope)


def seed_generator(generator: Any, seed: int) -> None:
    """Seed a random generator of torch, NumPy or Python."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed & 0xFFFFFFFF)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    else:
        bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
        bits.state = type(bits)(seed).state
