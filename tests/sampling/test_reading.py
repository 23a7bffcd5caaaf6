import pytest
import torch
from torch.utils.data import Dataset

from thalweg.errors import DataError, TaskError
from thalweg.sampling import Batches, open_source
from thalweg.sampling.reading import describe_error, with_data_errors


class Corrupt(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise self.error
        return torch.ones(2), 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [ValueError("corrupt image 5.png"), KeyError("5.png"), FileNotFoundError(2, "No file")]
)
def test_an_example_that_cannot_be_read_is_named_in_one_line(error, workers):
    made = Batches(open_source(Corrupt(error), name="data"), 2, seed=0, shuffle=False, workers=workers)
    made.draw(), made.draw()
    with pytest.raises(DataError) as told:
        made.draw()
    made.close()
    text = str(told.value)
    assert text.startswith(f"Example 5 of `data` cannot be read: {type(error).__name__}: ")
    assert "test_reading.py, line" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "rows",
    [
        [(torch.ones(4), 0), (torch.ones(5), 0)],
        [(object(), 0), (object(), 0)],
        [{"a": 1}, {"b": 1}],
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_examples_that_do_not_go_together_are_told(rows, workers):
    made = Batches(open_source(rows), 2, seed=0, workers=workers)
    with pytest.raises(DataError) as told:
        made.draw()
    made.close()
    assert str(told.value).startswith("Examples of `data` cannot be put together into a batch: ")
    assert str(told.value).endswith("or give `collate_fn`, which pads or packs a list of examples.")
    assert "\n" not in str(told.value)


class Image:
    """What an image file is opened as, say."""


def test_images_that_are_no_tensors_are_to_be_made_tensors():
    made = Batches(open_source([(Image(), 0)] * 2), 2, seed=0)
    with pytest.raises(
        DataError,
        match=r"batch: they hold a \S*Image\. Turn it into a tensor in the data set, an image by torch",
    ):
        made.draw()


def test_a_collate_fn_that_fails_is_told_with_its_line():
    made = Batches(open_source([1, 2, 3], collate_fn=lambda rows: rows[7]), 2, seed=0)
    with pytest.raises(
        DataError, match=r"`collate_fn` failed on 2 examples: IndexError: list index.*test_reading\.py, line"
    ):
        made.draw()


def test_a_stream_that_fails_is_told():
    def broken():
        yield torch.ones(1)
        raise OSError("cable cut")

    stream = with_data_errors(broken(), "data")
    next(stream)
    with pytest.raises(DataError, match=r"Reading `data` failed: OSError: cable cut \(test_reading\.py, line \d+\)\."):
        next(stream)


def test_errors_of_the_family_pass_as_they_are():
    def strict():
        raise TaskError("say this")
        yield

    with pytest.raises(TaskError, match=r"^say this$"):
        next(with_data_errors(strict(), "data"))


def test_an_error_is_one_line_whatever_it_says():
    assert describe_error(ValueError("first\nsecond")) == "ValueError: first"
    assert describe_error(KeyError()) == "KeyError"
