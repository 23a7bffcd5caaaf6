"""Engines: how a rule's equation is run on the weights at hand.

`tensors.py` runs every rule on every device. The seam for another one (a fused `cpu.py`) is the protocol `work.Engine`: two
calls a step, first `measure`, then `update`; it becomes an engine by a line in `ENGINES`, and `"auto"` may then choose it.
"""

from __future__ import annotations

from collections.abc import Callable

from thalweg.errors import RuleError, nearest
from thalweg.optim.engines.tensors import TensorEngine
from thalweg.optim.engines.work import Engine

ENGINES: dict[str, Callable[[], Engine]] = {"auto": TensorEngine, "tensors": TensorEngine}


def engine(name: str) -> Engine:
    """Make an engine by name. Raises RuleError, with the nearest name, for one that does not exist."""
    if name not in ENGINES:
        raise RuleError(f"There is no engine {name!r}; there are {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    return ENGINES[name]()
