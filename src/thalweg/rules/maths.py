"""The few functions that an update rule may use besides + - * /.

Each is a `functools.singledispatch` function for Python's numbers; an engine registers its own kind of value (a tensor, an
array, a compiled scalar), so that one equation runs everywhere. The type of the *first* argument decides: put the tensor first.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any


@singledispatch
def sqrt(x: Any) -> Any:
    """Square root; NaN below zero, as tensors have it.

    >>> sqrt(9.0)
    3.0
    """
    return math.sqrt(x) if x >= 0 else math.nan


@singledispatch
def maximum(x: Any, y: Any) -> Any:
    """The larger of two; NaN where either is.

    >>> maximum(-1.0, 0.0)
    0.0
    """
    return x if x != x or x >= y else y


@singledispatch
def where(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, else `y`.

    >>> where(2.0 > 1.0, 5.0, 7.0)
    5.0
    """
    return x if condition else y


@singledispatch
def sign(x: Any) -> Any:
    """-1, 0 or 1. Of NaN engines make different things (torch gives 0): steps with such gradients are skipped.

    >>> sign(-3.5)
    -1.0
    """
    return math.copysign(1.0, x) if x > 0 or x < 0 else x


@singledispatch
def power(x: Any, exponent: float) -> Any:
    """`x` to a real exponent; NaN where the result is not real.

    >>> power(8.0, 2.0)
    64.0
    """
    try:
        return math.pow(x, exponent)
    except ValueError:
        return math.nan if x != 0 else math.inf


# What follows is for equations of whole tensors (`matrix_rule`).


@singledispatch
def norm(x: Any) -> Any:
    """Euclidean norm of all entries.

    >>> norm(-3.0)
    3.0
    """
    return abs(x)


@singledispatch
def rms(x: Any) -> Any:
    """Root mean square of all entries.

    >>> rms(-3.0)
    3.0
    """
    return abs(x)


@singledispatch
def lerp(x: Any, y: Any, share: float) -> Any:
    """Interpolate linearly from `x` to `y`: `(1 - share) x + share y`.

    >>> lerp(0.0, 8.0, 0.25)
    2.0
    """
    return x + share * (y - x)


@singledispatch
def gemm(x: Any, y: Any, z: Any, a: float, c: float) -> Any:
    """Give `a x + c y z`, where y z is a product of matrices; one operation where the engine has it."""
    return a * x + c * (y @ z)


@singledispatch
def half(x: Any) -> Any:
    """Round to bfloat16 (eight bits of precision) where the engine has it; else give the value as it is."""
    return x


@singledispatch
def add(x: Any, y: Any, c: float) -> Any:
    """Give `x + c y` in the precision of `x`, with one rounding where the engine can.

    >>> add(1.0, 2.0, -0.25)
    0.5
    """
    return x + c * y
