"""What an accelerator has decided, known here some steps late, because to know it at once would be to wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DeviceSkipCounter:
    """Follows, step by step, whether a step was taken; `missed` is how many in a row were not, as far as is known."""

    def __init__(self) -> None:
        self.missed = 0
        self._there: Tensor | None = None  # how many in a row, on the accelerator
        self._under_way: tuple[Tensor, Any] | None = None

    def follow(self, taken: Tensor) -> None:
        """Take in a step (a 0-dim tensor of bool on the accelerator), and read what has arrived of earlier ones."""
        before = torch.zeros((), dtype=torch.int64, device=taken.device) if self._there is None else self._there
        self._there = torch.where(taken, 0, before + 1)
        if self._under_way is not None:
            arrived, event = self._under_way
            if event is not None and not event.query():
                return
            self.missed = int(arrived)
        self._under_way = _sent(self._there)


def _sent(there: Tensor) -> tuple[Tensor, Any]:
    """Send a number to the host without a wait; gives where it will arrive, and what tells that it has (None: it is there)."""
    if there.device.type == "cpu":
        return there, None
    here = torch.empty((), dtype=there.dtype, pin_memory=True)
    here.copy_(there, non_blocking=True)
    event = torch.Event(there.device)
    event.record()
    return here, event
