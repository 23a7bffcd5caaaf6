import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
        (np.array(["a", "b"]), r"`data` holds <U1 values such as \['a'\]\. Give numbers\. Code labels as 0, 1, 2, …"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), r"`data` holds datetime64\[D\] values"),
        (pd.DataFrame({"a": [1.0], "town": ["Ulm"]}), r"no numbers in columns \['town'\] \(could not convert"),
        (pd.Series(pd.Categorical(["u", "v"])), r"holds values that are no numbers .* Code labels as 0, 1, 2"),
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
