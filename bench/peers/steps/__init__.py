"""One file per peer, in full: `make(starts)` gives a `Stepper`, which takes a whole step from the initial weights `starts`.

All clip by the global norm 1.0, check that it is finite, take AdamW at 1e-3 with a decay of 0.01, and keep an average of the
weights at 0.999. A package that is not installed raises ImportError when the peer is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Stepper(NamedTuple):
    """What is called of a peer: `prepare` with a step's gradients, not timed; `step`, timed; `weights` gives the current ones."""

    prepare: Callable[[list[Tensor]], None]
    step: Callable[[], object]
    weights: Callable[[], list[Tensor]]
