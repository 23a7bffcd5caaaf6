"""What people hold their numbers in, turned into tensors: arrays, data frames, series, lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import DataError

_LABELS = "Code labels as 0, 1, 2, … (pandas.factorize does it)."


def as_tensor(value: Any, float_dtype: torch.dtype, name: str) -> Tensor:
    """Turn an array, frame, series, list or tensor into a tensor; floats get `float_dtype`. The original is not changed.

    Raises DataError where these are no numbers, rows have different lengths, or it is sparse.
    """
    tensor = _plain(value, name) if isinstance(value, Tensor) else torch.from_numpy(_as_array(value, name))
    if tensor.is_complex():
        return tensor.to(float_dtype.to_complex())
    return tensor.to(float_dtype) if tensor.is_floating_point() else tensor


def _plain(value: Tensor, name: str) -> Tensor:
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
    return value.detach().clone() if value.is_inference() else value.detach()  # no gradient passes through the former


def _as_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    if callable(getattr(value, "toarray", None)):
        raise DataError(f"`{name}` is a sparse matrix. Give .toarray(), or a Dataset that gives dense examples.")
    if np.ma.is_masked(value):
        value = value.astype(np.float64).filled(np.nan)  # what is masked is missing
    try:
        array = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    except ValueError as error:
        raise DataError(f"`{name}` holds rows of different lengths. Pad them, or give `collate_fn`.") from error
    if array.dtype == object:
        array = _numbers(array, value, name)
    if array.dtype.kind not in "biufc":
        seen = array.reshape(-1)[:1].tolist()
        raise DataError(f"`{name}` holds {array.dtype} values such as {seen}. Give numbers. {_LABELS}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.itemsize > 16 or array.dtype == np.longdouble:  # no tensor is that wide
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) if array.ndim else array
    if array.ndim == 0:
        raise DataError(f"`{name}` is the single value {array}. The first dimension counts examples.")
    return array if array.flags.writeable else array.copy()


def _numbers(array: np.ndarray[Any, Any], value: Any, name: str) -> np.ndarray[Any, Any]:
    """Read a column of Python objects: whole numbers stay whole, missing values become NaN."""
    try:
        found = np.asarray(array.tolist())
        if found.dtype.kind in "biuf":
            return found
        present = array.astype(str) != "<NA>"  # pandas' missing value is no float
        return np.where(present, array, np.nan).astype(np.float64)
    except (TypeError, ValueError) as error:
        columns = [str(c) for c in getattr(value, "columns", []) if not _is_numeric(value[c])]
        where = f" in columns {columns}" if columns else ""
        raise DataError(f"`{name}` holds values that are no numbers{where} ({error}). {_LABELS}") from error


def _is_numeric(column: Any) -> bool:
    return np.issubdtype(np.asarray(column).dtype, np.number)
