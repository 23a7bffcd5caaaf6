"""Engines: how a rule's equation is run on the weights at hand.

`tensors.py` runs every rule on every device, `cpu.py` compiles it into one sweep over the CPU's memory. The seam for another
one is the protocol `work.Engine`: two calls a step, first `measure`, then `update`; it becomes an engine by a line in `ENGINES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from thalweg.errors import RuleError, nearest
from thalweg.optim.engines import foreach
from thalweg.optim.engines.cpu import CpuEngine
from thalweg.optim.engines.interface import Engine
from thalweg.optim.engines.tensors import TensorEngine

ENGINES: dict[str, Callable[[], Engine]] = {"cpu": CpuEngine, "tensors": TensorEngine}


def engine(name: str) -> Engine:
    """Make an engine by name; "auto" is "cpu" where Numba is at hand, which leaves to "tensors" what it cannot sweep.

    Raises RuleError, with the nearest name, for one that does not exist, or cannot be here.
    """
    if name == "auto":
        name = best(torch.device("cpu"))
    if name not in ENGINES:
        raise RuleError(f"There is no engine {name!r}; there are auto, {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    if name == "cpu" and not is_compiling():
        raise RuleError(
            "The engine 'cpu' needs Numba, which is not installed here: pip install numba, or take 'tensors'."
        )
    return ENGINES[name]()


def best(device: torch.device) -> str:
    """Name the fastest engine for weights on a device."""
    return "cpu" if device.type == "cpu" and is_compiling() else "tensors"


def keeps_waiting(device: torch.device) -> bool:
    """Whether the first step on a device compiles the rule, with nothing else to do meanwhile: up to some minutes, once."""
    return device.type != "cpu" and foreach.compiles(device)


def is_compiling() -> bool:
    """Whether equations can be compiled here."""
    return importlib.util.find_spec("numba") is not None
