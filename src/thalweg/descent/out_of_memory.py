"""Running out of memory: recognising it on any device, and releasing cached memory."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out.

    >>> out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def release(device: torch.device) -> None:
    """Release the device's cached blocks, so that smaller ones can be allocated."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
