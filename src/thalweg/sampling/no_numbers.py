"""What is said of values that are no numbers: which columns and rows, and what makes numbers of them."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from thalweg.errors import shown

Array = np.ndarray[Any, Any]
Kind = Literal["words", "nearly numbers", "dates", "durations", "lists", "other"]

_OF_COLUMNS: dict[Kind, str] = {  # what to do about columns of a data frame
    "words": "pandas.get_dummies(frame, columns={columns}) makes columns of 0 and 1 of words.",
    "nearly numbers": "pandas.to_numeric(frame[{column!r}], errors='coerce').fillna(0) reads the numbers among them.",
    "dates": "(frame[{column!r}] - frame[{column!r}].min()) / numpy.timedelta64(1, 'D') makes days of dates.",
    "durations": "frame[{column!r}] / numpy.timedelta64(1, 's') makes seconds of durations.",
    "lists": "numpy.stack(frame[{column!r}]) makes an array of lists of one length.",
    "other": "Leave them out: frame.drop(columns={columns}).",
}
_OF_ONE: dict[Kind, str] = {  # what to do about a series, or an array of one dimension
    "words": "Code labels as 0, 1, 2, …: pandas.factorize(y)[0].",
    "nearly numbers": "pandas.to_numeric(y, errors='coerce') reads the numbers among them; what is none becomes NaN.",
    "dates": "(y - y.min()) / numpy.timedelta64(1, 'D') makes days of dates.",
    "durations": "y / numpy.timedelta64(1, 's') makes seconds of durations.",
    "lists": "Pad them, or give `collate_fn`.",
    "other": "Give numbers.",
}


class Bad(NamedTuple):
    """The first value that is no number: its row, the value, and of what kind it and its neighbours are."""

    row: int
    value: Any
    kind: Kind


def no_numbers(value: Any, array: Array, name: str) -> str:
    """Say which values of a frame, series or array are no numbers, and what to do."""
    if array.dtype.names:
        return (
            f"`{name}` is an array of records with the fields {list(array.dtype.names)}. Give one column for each:"
            f" numpy.lib.recfunctions.structured_to_unstructured(x)."
        )
    columns = getattr(value, "column_names", getattr(value, "columns", None))  # those of pyarrow are the arrays
    if columns is None and array.ndim == 2:
        return _of_array(array, name)
    if columns is None:
        return _of_one(first_bad(array), name)
    found = {str(column): bad for column in columns if (bad := first_bad(np.asarray(value[column]))) is not None}
    if len(list(columns)) == 1:
        return _of_one(next(iter(found.values()), None), name, f" of column {next(iter(found), '')!r}")
    return _of_frame(found, name)


def first_bad(column: Array) -> Bad | None:
    """Find the first value of a column that is no number; missing values and texts that are numbers are none.

    >>> first_bad(np.array([1, "2", None, "n/a"], dtype=object))
    Bad(row=3, value='n/a', kind='nearly numbers')
    """
    if column.dtype.kind in "biufc":
        return None
    flat = column.reshape(len(column), -1)[:, 0] if column.ndim > 1 else column
    for row, value in enumerate(flat.tolist() if column.dtype.kind not in "mM" else flat):
        if not _is_number(value):
            return Bad(row, value, _kind(value, flat))
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    if value is None or str(value) in ("<NA>", "NaT") or isinstance(value, np.datetime64 | np.timedelta64):
        return not isinstance(value, np.datetime64 | np.timedelta64)
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _kind(value: Any, column: Array) -> Kind:
    if isinstance(value, str):
        texts = (text for text in column.tolist() if isinstance(text, str | int | float))
        return "nearly numbers" if any(map(_is_number, texts)) else "words"
    if isinstance(value, np.datetime64 | datetime.date):
        return "dates"
    if isinstance(value, np.timedelta64 | datetime.timedelta):
        return "durations"
    return "lists" if isinstance(value, list | tuple | np.ndarray) else "other"


def _of_frame(found: Mapping[str, Bad], name: str) -> str:
    column, bad = next(iter(found.items()))
    remedies = [_of_columns(kind, found) for kind in _OF_COLUMNS if any(b.kind == kind for b in found.values())]
    return (
        f"`{name}` holds what is no number in columns {list(found)} ({_shown(bad.value)} in row {bad.row} of {column!r})."
        f" {' '.join(remedies)}"
    )


def _of_columns(kind: Kind, found: Mapping[str, Bad]) -> str:
    columns = [column for column, bad in found.items() if bad.kind == kind]
    return _OF_COLUMNS[kind].format(columns=columns, column=columns[0])


def _of_array(array: Array, name: str) -> str:
    bad_columns: Iterable[tuple[int, Bad | None]] = ((i, first_bad(array[:, i])) for i in range(array.shape[1]))
    column, bad = next(((i, bad) for i, bad in bad_columns if bad is not None), (0, None))
    if bad is None:
        return _of_one(None, name)
    remedy = _OF_COLUMNS[bad.kind].format(columns=[column], column=column)
    return (
        f"`{name}` holds what is no number ({_shown(bad.value)} in row {bad.row} of column {column}). Of"
        f" frame = pandas.DataFrame(x), {remedy}"
    )


def _of_one(bad: Bad | None, name: str, column: str = "") -> str:
    if bad is None:
        return f"`{name}` holds values that are no numbers. Give numbers."
    return f"`{name}` holds what is no number ({_shown(bad.value)} in row {bad.row}{column}). {_OF_ONE[bad.kind]}"


def _shown(value: Any) -> str:
    text = shown(value) if isinstance(value, str | int) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
