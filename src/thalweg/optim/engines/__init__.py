"""Engines: how a rule's equation is evaluated on the parameters, by device, dtype and memory layout.

`tensors.py` runs every rule on every device with PyTorch's and NumPy's operations; `cpu.py` compiles a rule into one fused loop
over the CPU's memory. Another engine implements the protocol `interface.Engine` (two calls per step: `measure_gradients`, then
`update`) and is added as a line in `ENGINES`.
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


def make_engine(name: str) -> Engine:
    """Make an engine by name; "auto" is "cpu" where Numba is installed, else "tensors".

    The engine "cpu" itself handles parameters that it cannot compile for (on other devices, say) as "tensors" does.

    Raises RuleError for a name that does not exist, with the nearest one that does, and for "cpu" without Numba.
    """
    if name == "auto":
        name = fastest_engine(torch.device("cpu"))
    if name not in ENGINES:
        raise RuleError(f"There is no engine {name!r}; there are auto, {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    if name == "cpu" and not has_numba():
        raise RuleError(
            "The engine 'cpu' needs Numba, which is not installed here: pip install numba, or take 'tensors'."
        )
    return ENGINES[name]()


def fastest_engine(device: torch.device) -> str:
    """Name the fastest engine for parameters on a device."""
    return "cpu" if device.type == "cpu" and has_numba() else "tensors"


def compiles_first_step(device: torch.device) -> bool:
    """Whether the first step on a device blocks while torch.compile compiles the rule, which may take minutes, once."""
    return device.type != "cpu" and foreach.can_compile(device)


def has_numba() -> bool:
    """Whether Numba is installed, which compiles rules for the CPU."""
    return importlib.util.find_spec("numba") is not None
