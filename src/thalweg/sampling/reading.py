"""Reads examples and collates them, so that an error names the example, and the file and line in the user's code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch.utils.data import default_collate

from thalweg.errors import DataError, ThalwegError
from thalweg.objects.code import lies_in_library
from thalweg.objects.random_generators import find_generators, seed_generator
from thalweg.sampling.order import mix
from thalweg.sampling.seeds import seed_all

LONGEST = 240  # characters of an error's own text: some of PyTorch's go on for thousands
Collate = Callable[[list[Any]], Any]


class SeededItems:
    """Seeds the random generators from (seed, epoch, index) before it reads an item, so that augmentation is reproducible.

    Those are the global ones, and any that the data set or its transforms hold themselves.
    """

    def __init__(self, items: Any, seed: int, name: str = "data") -> None:
        self.items = items
        self.seed = seed
        self.name = name
        self._own: list[Any] | None = None  # found at the first item, in the process that reads

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Any:
        epoch, index = epoch_and_index
        if self._own is None:
            self._own = find_generators(self.items)
        seed = mix(self.seed, epoch, index)
        seed_all(seed)
        for number, generator in enumerate(self._own):
            seed_generator(generator, mix(seed, number))
        try:
            return self.items[index]
        except Exception as error:
            raise DataError(f"Example {index} of `{self.name}` cannot be read: {describe_error(error)}.") from error


class Collator:
    """Collates examples into a batch, with the user's `collate_fn`, else with PyTorch's."""

    def __init__(self, collate_fn: Collate | None, name: str = "data") -> None:
        self.collate_fn = collate_fn
        self.name = name

    def __call__(self, examples: list[Any]) -> Any:
        """Give the batch. Raises DataError where the examples cannot be collated."""
        try:
            if self.collate_fn is None:
                return _with_tuples(default_collate(examples), examples[0])
            return self.collate_fn(examples)
        except ThalwegError:
            raise
        except Exception as error:
            if self.collate_fn not in (None, default_collate):
                raise DataError(f"`collate_fn` failed on {len(examples)} examples: {describe_error(error)}.") from error
            kind = re.search(r"^default_collate: .* found <class '(.+)'>", str(error))
            what = describe_error(error) if kind is None else f"they hold a {kind[1]}"
            tensors = (
                ""
                if kind is None
                else " Turn it into a tensor in the data set, an image by torch.from_numpy(np.array(image))."
            )
            raise DataError(
                f"Examples of `{self.name}` cannot be put together into a batch: {what}.{tensors} Make them equal in shape"
                f" and type, or give `collate_fn`, which pads or packs a list of examples."
            ) from error


def _with_tuples(batch: Any, example: Any) -> Any:
    """Give a collated batch with tuples where the examples have them: PyTorch makes lists of them."""
    if type(example) is tuple:
        return tuple(_with_tuples(part, of) for part, of in zip(batch, example, strict=True))
    if type(example) is list:
        return [_with_tuples(part, of) for part, of in zip(batch, example, strict=True)]
    if type(example) is dict:
        return {key: _with_tuples(part, example[key]) for key, part in batch.items()}
    return batch


def start_iterator(data: Iterable[Any], name: str) -> Iterator[Any]:
    """Give `iter(data)`. Raises DataError where that fails, as starting loader workers may."""
    try:
        return iter(data)
    except ThalwegError:
        raise
    except Exception as error:
        raise DataError(f"Reading `{name}` cannot begin: {describe_error(error)}.") from error


def with_data_errors(batches: Iterator[Any], name: str) -> Generator[Any]:
    """Give the same batches; an error in reading them, here or in a loader's worker, becomes a DataError of one sentence.

    Closing the generator ends a loader's workers at once, even while something else (a traceback, say) refers to the loader.
    """
    process = os.getpid()
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except DataError as error:
                lines = str(error).strip().splitlines()
                if len(lines) == 1:
                    raise
                # An error from a worker has the worker's traceback as its text, whose last line is the message.
                raise DataError(lines[-1].partition("DataError: ")[2] or lines[-1]) from error
            except ThalwegError:
                raise
            except Exception as error:
                raise DataError(f"Reading `{name}` failed: {describe_error(error)}.") from error
            yield batch
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)
        if shut_down is not None and os.getpid() == process:
            shut_down()
        elif shut_down is not None:
            # A child that was forked meanwhile ends: the workers are its parent's, and PyTorch's iterator, which would end them
            # when it is deleted, is told that they have ended.
            vars(batches)["_shutdown"] = True


def describe_error(error: BaseException) -> str:
    """Describe an error in one line: its type, its first line, and the file and line in the user's code that raised it."""
    text = shorten((str(error).strip().splitlines() or [""])[0], LONGEST, placeholder=" …").rstrip(".")
    if text.startswith("Caught ") and " in DataLoader worker" in text:  # the last line is the error itself
        return str(error).strip().splitlines()[-1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    location = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{location}"


def _is_ours(path: str) -> bool:
    return path.startswith(("<", str(Path(__file__).parent.parent))) or lies_in_library(path)
