"""Turns arrays, data frames, series and lists into tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import DataError
from thalweg.sampling.no_numbers import no_numbers

_UNEQUAL = "`{name}` holds rows of different lengths. Pad them, or give `collate_fn`."


def as_tensor(value: Any, float_dtype: torch.dtype, name: str) -> Tensor:
    """Turn an array, frame, series, list or tensor into a tensor; floats get `float_dtype`. The original is not changed.

    Raises DataError where the values are no numbers, rows have different lengths, or the data are sparse; `name` is
    their name in messages.
    """
    tensor = _dense(value, name) if isinstance(value, Tensor) else torch.from_numpy(_as_array(value, name))
    if tensor.is_complex():
        return tensor.to(float_dtype.to_complex())
    return tensor.to(float_dtype) if tensor.is_floating_point() else tensor


def _dense(value: Tensor, name: str) -> Tensor:
    """Give an ordinary tensor without a gradient.

    Raises DataError for sparse, nested, quantised and 0-dimensional ones, and those without values.
    """
    if value.is_meta:
        raise DataError(f"`{name}` has no values (its device is 'meta'). Give tensors that hold the data.")
    if value.layout is not torch.strided:
        raise DataError(f"`{name}` is a sparse tensor. Give .to_dense(), or a Dataset that gives dense examples.")
    if value.is_nested:
        raise DataError(
            f"`{name}` is a nested tensor. Give a list of examples and `collate_fn`, or .to_padded_tensor(0.0)."
        )
    if value.is_quantized:
        raise DataError(f"`{name}` is a quantised tensor. Give .dequantize().")
    if value.ndim == 0:
        raise DataError(f"`{name}` is the single value {value.item()}. The first dimension counts examples.")
    return value.detach().clone() if value.is_inference() else value.detach()  # autograd refuses inference tensors


def _as_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    if callable(getattr(value, "toarray", None)):
        raise DataError(f"`{name}` is a sparse matrix. Give .toarray(), or a Dataset that gives dense examples.")
    if np.ma.is_masked(value):
        value = value.astype(np.float64).filled(np.nan)  # NaN, as missing values are in pandas
    try:
        array = _to_numpy(value)
    except ValueError as error:
        raise DataError(_UNEQUAL.format(name=name)) from error
    except TypeError as error:  # a table whose columns have no type in common
        raise DataError(no_numbers(value, np.empty(0, object), name)) from error
    if array.ndim == 0 and callable(getattr(value, "collect", None)):
        raise DataError(f"`{name}` is a {type(value).__name__}, which has not been computed. Give .collect().")
    if array.ndim == 0:
        raise DataError(f"`{name}` is the single value {array}. The first dimension counts examples.")
    if array.dtype == object or array.dtype.kind in "US":
        array = _from_objects(array, value, name)
    if array.dtype.kind not in "biufc" or (array.ndim == 2 and _has_dates(value)):
        raise DataError(no_numbers(value, array, name))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.itemsize > 16 or array.dtype == np.longdouble:  # torch has no dtype that wide
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()


def _to_numpy(value: Any) -> np.ndarray[Any, Any]:
    if not hasattr(value, "to_numpy"):
        return np.asarray(value)
    try:
        return value.to_numpy()
    except (
        TypeError,
        ValueError,
    ):  # of pyarrow, whose arrays with gaps, words or dates are no NumPy array without a copy
        return np.asarray(value)


def _has_dates(frame: Any) -> bool:
    """Tell whether a frame has columns of dates or durations, of which polars makes numbers where others are beside them."""
    return any(dtype.is_temporal() for dtype in getattr(frame, "dtypes", ()) if hasattr(dtype, "is_temporal"))


def _from_objects(array: np.ndarray[Any, Any], value: Any, name: str) -> np.ndarray[Any, Any]:
    """Read an array of Python objects or texts as numbers: integers stay integers, missing values become NaN."""
    try:
        if all(isinstance(entry, str) and entry.strip().lstrip("+-").isdecimal() for entry in array.flat):
            return array.astype(np.int64)
        numbers = np.asarray(array.tolist())
        if numbers.dtype.kind in "biuf":
            return numbers
        present = array.astype(str) != "<NA>"  # pandas' missing value, which float() refuses
        return np.where(present, array, np.nan).astype(np.float64)
    except (TypeError, ValueError) as error:
        if any(isinstance(row, list | tuple | np.ndarray) for row in array.flat):
            raise DataError(_UNEQUAL.format(name=name)) from error
        raise DataError(no_numbers(value, array, name)) from error
