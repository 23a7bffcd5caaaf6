"""A count that stays on the accelerator, and is read some steps late, so that the host never synchronises with the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DeviceSkipCounter:
    """Counts steps in a row that were skipped; `skips` is the count of some steps ago, the newest that has reached the host."""

    def __init__(self) -> None:
        self.skips = 0
        self._on_device: Tensor | None = None  # the present count
        self._in_flight: tuple[Tensor, Any] | None = None  # a copy on its way to the host, and its event

    def update(self, was_taken: Tensor) -> None:
        """Count a step by whether it was taken (0-dim bool tensor on the accelerator); read what has arrived of earlier ones."""
        before = self._on_device
        if before is None:
            before = torch.zeros((), dtype=torch.int64, device=was_taken.device)
        self._on_device = torch.where(was_taken, 0, before + 1)
        if self._in_flight is not None:
            arrived, event = self._in_flight
            if event is not None and not event.query():
                return
            self.skips = int(arrived)
        self._in_flight = _copy_to_host(self._on_device)


def _copy_to_host(value: Tensor) -> tuple[Tensor, Any]:
    """Start copying a 0-dim tensor to the host without synchronising; gives the copy, and the event that ends it (None: done)."""
    if value.device.type == "cpu":
        return value, None
    copy = torch.empty((), dtype=value.dtype, pin_memory=True)
    copy.copy_(value, non_blocking=True)
    event = torch.Event(value.device)
    event.record()
    return copy, event
