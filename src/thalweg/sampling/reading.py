"""Reading single examples and putting them together, so that a failure says which example and where in whose code."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from thalweg.errors import DataError, ThalwegError
from thalweg.sampling.order import mix
from thalweg.sampling.seeds import seed_all

Collate = Callable[[list[Any]], Any]


class SeededItems:
    """Reads each item under random states that are a function of (seed, epoch, index), so that augmentation repeats."""

    def __init__(self, items: Any, seed: int, name: str = "data") -> None:
        self.items = items
        self.seed = seed
        self.name = name

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        seed_all(mix(self.seed, epoch, index))
        try:
            return self.items[index]
        except Exception as error:
            raise DataError(f"Example {index} of `{self.name}` cannot be read: {described(error)}.") from error


class Together:
    """Puts examples together into a batch: by the person's `collate_fn`, else by PyTorch's own."""

    def __init__(self, collate_fn: Collate | None, name: str = "data") -> None:
        self.collate_fn = collate_fn
        self.name = name

    def __call__(self, examples: list[Any]) -> Any:
        """Give the batch. Raises DataError where the examples do not go together."""
        try:
            return (self.collate_fn or default_collate)(examples)
        except ThalwegError:
            raise
        except Exception as error:
            if self.collate_fn not in (None, default_collate):
                raise DataError(f"`collate_fn` failed on {len(examples)} examples: {described(error)}.") from error
            raise DataError(
                f"Examples of `{self.name}` cannot be put together into a batch: {described(error)}. Make them equal in"
                f" shape and type, or give `collate_fn`, which pads or packs a list of examples."
            ) from error


def begun(data: Iterable[Any], name: str) -> Iterator[Any]:
    """Start to read. Raises DataError where that fails, as loader workers may."""
    try:
        return iter(data)
    except ThalwegError:
        raise
    except Exception as error:
        raise DataError(f"Reading `{name}` cannot begin: {described(error)}.") from error


def retold(batches: Iterator[Any], name: str) -> Generator[Any]:
    """Pass batches on; what fails in reading them, here or in a loader's worker, is told in one sentence.

    Closing it ends a loader's workers at once, whoever still holds the loader (a traceback, say).

    Raises DataError.
    """
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
                raise DataError(lines[-1].partition("DataError: ")[2] or lines[-1]) from error  # from a worker
            except ThalwegError:
                raise
            except Exception as error:
                raise DataError(f"Reading `{name}` failed: {described(error)}.") from error
            yield batch
    finally:
        end = getattr(batches, "_shutdown_workers", None)
        if end is not None:
            end()


def described(error: BaseException) -> str:
    """Tell an error in one line: its kind, its first line, and the place in the person's code where it was raised."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    if text.startswith("Caught ") and " in DataLoader worker" in text:  # the last line is the error itself
        return str(error).strip().splitlines()[-1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _is_ours(path: str) -> bool:
    return "site-packages" in path or path.startswith(("<", str(Path(__file__).parent.parent)))
