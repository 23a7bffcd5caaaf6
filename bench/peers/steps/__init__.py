"""One file a peer, in full: `make(starts)` gives what takes AdamW's step with everything around it.

All clip by the global norm 1.0, look whether it is finite, take AdamW at 1e-3 with a decay of 0.01, and keep an average of the
weights at 0.999. A package that is not there raises ImportError when the peer is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Stepper(NamedTuple):
    """A peer at work: `prepare` takes a step's gradients, outside the clock, `step` is timed, `weights` shows where they are."""

    prepare: Callable[[list[Tensor]], None]
    step: Callable[[], object]
    weights: Callable[[], list[Tensor]]
