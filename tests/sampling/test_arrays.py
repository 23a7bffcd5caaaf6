import decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import recfunctions

from thalweg.errors import DataError
from thalweg.sampling.arrays import as_tensor

X = np.arange(12, dtype=np.float32).reshape(4, 3)
LABELS = np.array([2, 0, 1, 2])
wanted = torch.arange(12.0).reshape(4, 3)

NUMBERS = {
    "float64": X.astype(np.float64),
    "float16": X.astype(np.float16),
    "long double": X.astype(np.longdouble),
    "big-endian": X.astype(">f4"),
    "Fortran order": np.asfortranarray(X),
    "objects": X.astype(object),
    "a slice with strides": np.repeat(X, 2, 1)[:, ::2],
    "a list of lists": X.tolist(),
    "a list of arrays": list(X),
    "a tensor that needs a gradient": torch.tensor(X, requires_grad=True),
    "a frame": pd.DataFrame(X, columns=list("abc")),
    "a frame with another index": pd.DataFrame(X, index=[7, 7, 1, 0]),
    "a frame of nullable numbers": pd.DataFrame(X).convert_dtypes(),
    "a frame of objects": pd.DataFrame(X).astype(object),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_come_as_floats_of_the_models_dtype(kind):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = as_tensor(NUMBERS[kind], dtype, "data")
        if kind == "a frame of nullable numbers":
            tensor = tensor.to(dtype)  # pandas finds that they are whole
        assert tensor.dtype == dtype
        assert not tensor.requires_grad
        assert torch.equal(tensor, wanted.to(dtype))


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype(np.int32),
        LABELS.astype(np.uint16),
        LABELS.astype(np.uint64),
        LABELS.astype(">i8"),
        LABELS.astype(object),
        LABELS.tolist(),
        pd.Series(LABELS, index=[3, 2, 1, 0]),
        pd.Series(LABELS).astype("Int64"),
        pd.Series(pd.factorize(pd.Series(["c", "a", "b", "c"]), sort=True)[0]),
        LABELS[::-1][::-1],
        ["2", "0", "1", "2"],
    ],
)
def test_labels_stay_whole_numbers(labels):
    tensor = as_tensor(labels, torch.float32, "data")
    assert not tensor.is_floating_point()
    assert tensor.tolist() == LABELS.tolist()


def test_bytes_and_flags_keep_their_dtype():
    assert as_tensor(np.zeros((2, 3), np.uint8), torch.float32, "data").dtype == torch.uint8
    assert as_tensor(np.zeros(2, bool), torch.float32, "data").dtype == torch.bool
    assert as_tensor(pd.Series([True, False]), torch.float32, "data").dtype == torch.bool


@given(
    hnp.arrays(
        hnp.floating_dtypes(endianness="?") | hnp.integer_dtypes(endianness="?"),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 100},
    ),
    st.booleans(),
)
def test_any_array_comes_through_unchanged_and_is_not_changed(array, backwards):
    given_ = array[::-1] if backwards else array
    before = given_.copy()
    given_.flags.writeable = False
    tensor = as_tensor(given_, torch.float64, "data")
    assert np.array_equal(tensor.numpy(), before.astype(before.dtype.newbyteorder("=")))
    tensor += 1
    assert np.array_equal(given_, before)


def test_a_writeable_array_of_the_right_kind_is_not_copied():
    assert as_tensor(X, torch.float32, "data").data_ptr() == X.ctypes.data


def test_missing_values_become_nan_so_that_their_rows_can_be_named():
    frame = pd.DataFrame({"a": [1, None, 3], "b": [1.0, 2.0, 3.0]}).convert_dtypes()
    tensor = as_tensor(frame, torch.float32, "data")
    assert torch.isnan(tensor).tolist() == [[False, False], [True, False], [False, False]]
    assert torch.isnan(as_tensor(np.array([1.5, None], dtype=object), torch.float32, "data")).tolist() == [False, True]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.array(["a", "b"]), r"`data` holds what is no number \('a' in row 0\)\. Code labels as 0, 1, 2, …"),
        (pd.Series([[1, 2], [3]]), r"holds rows of different lengths"),
        (pd.DataFrame({"a": pd.interval_range(0, 2)}), r"\(\(0, 1\] in row 0 of column 'a'\)\. Give numbers\."),
        ([[1, 2], [3]], r"holds rows of different lengths\. Pad them, or give `collate_fn`\."),
        (np.float32(3), r"`data` is the single value 3\.0\. The first dimension counts examples\."),
        (torch.tensor(3), r"`data` is the single value 3\. The first dimension counts examples\."),
        (torch.eye(3).to_sparse(), r"`data` is a sparse tensor\. Give \.to_dense\(\)"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(value, told):
    with pytest.raises(DataError, match=told):
        as_tensor(value, torch.float32, "data")


def test_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(DataError, match=r"`data` is a sparse matrix\. Give \.toarray\(\)"):
        as_tensor(sparse.eye(3, format="csr"), torch.float32, "data")


FRAME = pd.DataFrame({"a": [1.5, 2.0, 3.0], "n": [1, 2, 3]})
MIXED = {
    "flags": FRAME.assign(f=[True, False, True]),
    "flags beside whole numbers": FRAME[["n"]].assign(f=[True, False, True]),
    "nullable numbers": FRAME.assign(
        f=pd.array([1, 0, 1], dtype="Int64"), g=pd.array([0.5, 1.5, 2.5], dtype="Float64")
    ),
    "nullable flags": FRAME.assign(f=pd.array([True, False, True], dtype="boolean")),
    "categories that are numbers": FRAME.assign(f=pd.Categorical([1, 0, 1])),
    "decimals": FRAME.assign(f=[decimal.Decimal("0.5")] * 3),
    "objects that are numbers": FRAME.assign(f=np.array([1, 0.5, 2], dtype=object)),
    "texts that are numbers": FRAME.assign(f=["1", "0.5", "1e2"]),
    "dummies of words": pd.get_dummies(FRAME.assign(f=["u", "v", "u"]), columns=["f"]),
}


@pytest.mark.parametrize("case", MIXED)
def test_frames_of_several_kinds_of_numbers_come_as_numbers(case):
    frame = MIXED[case]
    tensor = as_tensor(frame, torch.float64, "data")
    assert torch.equal(tensor.double(), torch.from_numpy(frame.astype(float).to_numpy().copy()))


def days(dates):
    return (dates - dates.min()) / np.timedelta64(1, "D")


WORDS = FRAME.assign(f=[True, False, True], town=["Ulm", "Bonn", "Ulm"])
DATES = pd.Series(pd.to_datetime(["2020-01-01", "2020-01-03", "2020-01-02"]))
SECONDS = pd.Series(pd.to_timedelta([1, 2, 3], unit="s"))
GAPS = FRAME.assign(d=["1", "n/a", "3"])

# what is given, what is told, and the same mended as it says
TOLD = {
    "words beside flags": (
        WORDS,
        r"in columns \['town'\] \('Ulm' in row 0 of 'town'\)\. pandas\.get_dummies\(frame, columns=\['town'\]\) makes columns",
        pd.get_dummies(WORDS, columns=["town"]),
    ),
    "categories": (
        FRAME.assign(c=pd.Categorical(list("uvu")), d=["x", "y", "z"]),
        r"in columns \['c', 'd'\] .*get_dummies\(frame, columns=\['c', 'd'\]\)",
        pd.get_dummies(FRAME.assign(c=pd.Categorical(list("uvu")), d=["x", "y", "z"]), columns=["c", "d"]),
    ),
    "dates": (
        FRAME.assign(d=DATES),
        r"\(2020-01-01.* in row 0 of 'd'\)\. \(frame\['d'\] - frame\['d'\]\.min\(\)\) / numpy\.timedelta64\(1, 'D'\) makes days",
        FRAME.assign(d=days(DATES)),
    ),
    "durations": (
        FRAME.assign(d=SECONDS),
        r"frame\['d'\] / numpy\.timedelta64\(1, 's'\) makes seconds",
        FRAME.assign(d=SECONDS / np.timedelta64(1, "s")),
    ),
    "numbers with a word among them": (
        GAPS,
        r"\('n/a' in row 1 of 'd'\)\. pandas\.to_numeric\(frame\['d'\], errors='coerce'\)\.fillna\(0\) reads the numbers",
        GAPS.assign(d=pd.to_numeric(GAPS["d"], errors="coerce").fillna(0)),
    ),
    "several kinds": (
        WORDS.assign(d=DATES),
        r"in columns \['town', 'd'\] .*get_dummies\(frame, columns=\['town'\]\).*\(frame\['d'\] - frame",
        pd.get_dummies(WORDS.assign(d=days(DATES)), columns=["town"]),
    ),
    "periods": (
        FRAME.assign(p=pd.period_range("2020", periods=3)),
        r"Leave them out: frame\.drop\(columns=\['p'\]\)\.$",
        FRAME,
    ),
    "labels": (
        pd.Series(list("uvu")),
        r"\('u' in row 0\)\. Code labels as .*: pandas\.factorize\(y\)\[0\]\.$",
        pd.factorize(np.array(list("uvu")))[0],
    ),
    "labels that are categories": (
        pd.Series(pd.Categorical(list("uvu"))),
        r"pandas\.factorize\(y\)\[0\]",
        pd.factorize(pd.Series(pd.Categorical(list("uvu"))))[0],
    ),
    "labels in a frame of one column": (
        pd.DataFrame({"kind": list("uvu")}),
        r"\('u' in row 0 of column 'kind'\)\. Code labels as",
        pd.factorize(pd.Series(list("uvu")))[0],
    ),
    "dates alone": (DATES, r"\(y - y\.min\(\)\) / numpy\.timedelta64\(1, 'D'\) makes days", days(DATES)),
    "dates in an array": (DATES.to_numpy(), r"\(y - y\.min\(\)\) / numpy", days(DATES.to_numpy())),
    "words in an array": (
        np.array([["1", "u"], ["2", "v"]]),
        r"\('u' in row 0 of column 1\)\. Of frame = pandas\.DataFrame\(x\), pandas\.get_dummies\(frame, columns=\[1\]\)",
        pd.get_dummies(pd.DataFrame(np.array([["1", "u"], ["2", "v"]])), columns=[1]),
    ),
    "records": (
        np.array([(1, 2.0), (3, 4.0)], dtype=[("a", int), ("b", float)]),
        r"an array of records with the fields \['a', 'b'\]\..*structured_to_unstructured\(x\)",
        recfunctions.structured_to_unstructured(np.array([(1, 2.0), (3, 4.0)], dtype=[("a", int), ("b", float)])),
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_is_no_number_is_told_with_its_column_and_the_advice_works(case):
    value, told, mended = TOLD[case]
    with pytest.raises(DataError, match=told) as raised:
        as_tensor(value, torch.float32, "data")
    assert "'f'" not in str(raised.value)  # flags are numbers
    tensor = as_tensor(mended, torch.float32, "data")
    assert len(tensor) == len(value)
    assert torch.isfinite(tensor).all()


def test_tensors_without_values_are_told():
    with pytest.raises(
        DataError, match=r"`data` has no values \(its device is 'meta'\)\. Give tensors that hold the data"
    ):
        as_tensor(torch.zeros(4, 3, device="meta"), torch.float32, "data")


class Dated:
    """A frame as polars gives it: of dates beside numbers, `to_numpy` makes numbers of days."""

    class Date:
        def is_temporal(self):
            return True

    columns = ("when", "x")
    dtypes = (Date(), object())
    days = np.array(["2024-01-01", "2024-01-03"], "datetime64[D]")

    def to_numpy(self):
        return np.stack([self.days.astype(np.float64), [0.5, 1.5]], 1)

    def __getitem__(self, name):
        return self.days if name == "when" else np.array([0.5, 1.5])


class Table(Dated):
    """A table as pyarrow gives it: `columns` are arrays, and columns without a common type make no NumPy array."""

    column_names = ("when", "x")
    columns = (np.array([1, 2]), np.array([3, 4]))
    dtypes = ()

    def to_numpy(self):
        raise TypeError("no common DType")

    def __array__(self, dtype=None, copy=None):
        raise TypeError("no common DType")


class Column:
    """An array as pyarrow gives it: `to_numpy` refuses to copy, which gaps, words and dates need."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def to_numpy(self):
        raise ValueError("Needed to copy 1 chunks with 1 nulls, but zero_copy_only was True")

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.mark.parametrize("frame", [Dated(), Table()])
def test_dates_in_a_frame_of_any_kind_are_no_numbers(frame):
    with pytest.raises(DataError, match=r"no number in columns \['when'\] \(2024-01-01 in row 0 of 'when'\)"):
        as_tensor(frame, torch.float32, "data")


def test_an_array_that_has_to_be_copied_is_read_or_refused_for_what_it_holds():
    read = as_tensor(Column([1.0, np.nan]), torch.float32, "data")
    assert (float(read[0]), read.isnan().tolist()) == (1.0, [False, True])
    with pytest.raises(DataError, match=r"holds what is no number \('cat' in row 0\). Code labels"):
        as_tensor(Column(np.array(["cat", "dog"], object)), torch.float32, "data")


def test_a_frame_that_has_not_been_computed_is_refused():
    class LazyFrame:
        def collect(self):
            raise AssertionError

    with pytest.raises(DataError, match=r"`data` is a LazyFrame, which has not been computed. Give .collect\(\)"):
        as_tensor(LazyFrame(), torch.float32, "data")
