"""What the source text of a kernel calls, as Numba compiles it: memory by its address, and the functions of `rules.maths`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import intrinsic


@lru_cache(maxsize=2)
def names(dtype: str) -> dict[str, Any]:
    """Give the names that the text of a kernel for "float32" or "float64" may use."""
    number = types.float32 if dtype == "float32" else types.float64
    return {
        "carray_": carray,
        "numbers_": _pointer(number),
        "integers_": _pointer(types.int64),
        "doubles_": _pointer(types.float64),
        "fetch_and_add_one_": _fetch_and_add_one,
        "dtype_": number,
        "double_": types.float64,
        "sqrt": math.sqrt,
        "maximum": _maximum,
        "where": _where,
        "sign": _sign,
        "power": _power,
    }


def _pointer(number: types.Number) -> Any:
    """Make the function that turns an address into a pointer to numbers of a type.

    Numba has no such function: without it a kernel would have to be given arrays, and to make an array for every tensor at every
    step costs more than the step.
    """

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(number)(types.intp), generate

    return pointer


@intrinsic
def _fetch_and_add_one(context: Any, address: Any) -> Any:
    """Give the integer at an address and add one to it, atomically, so that no two threads get the same.

    Numba has no atomic operations on the CPU; a plain read and write would hand one chunk to two threads, which would both
    update its weights.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], context.get_value_type(types.CPointer(types.int64)))
        return builder.atomic_rmw("add", place, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(types.intp), generate


@njit(inline="always")
def _maximum(x: Any, y: Any) -> Any:
    return x if (x != x or x >= y) else y


@njit(inline="always")
def _where(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


@njit(inline="always")
def _sign(x: Any) -> Any:
    return x if x == 0 else math.copysign(type(x)(1), x)


@njit(inline="always")
def _power(x: Any, exponent: Any) -> Any:
    return x**exponent
