"""Several processes that measure one loss surface together: each has a share of its batches, and all have the sums.

What is decided by sums is decided alike in all of them, as a sum has the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes of a group of `torch.distributed`, its default one by default; every one of them has to do the same."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group, self.rank, self.count = group, dist.get_rank(group), dist.get_world_size(group)

    def own(self, parts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Give the parts that are this process's, each with its number among all."""
        return ((number, part) for number, part in enumerate(parts) if number % self.count == self.rank)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and give it."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def sum_numbers(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Add up some numbers over all processes, each for itself."""
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()

    def any_text(self, text: str) -> str:
        """Give the text of the first process that has one; empty where none has."""
        texts: list[Any] = [None] * self.count
        dist.all_gather_object(texts, text, group=self.group)
        return next((each for each in texts if each), "")


class OneProcess:
    """One process, which has all parts itself."""

    rank, count = 0, 1

    def own(self, parts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Give all parts, each with its number."""
        return iter(enumerate(parts))

    def sum(self, tensor: Tensor) -> Tensor:
        """Give the tensor as it is."""
        return tensor

    def sum_numbers(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Give the numbers as they are."""
        return list(numbers)

    def any_text(self, text: str) -> str:
        """Give the text as it is."""
        return text
