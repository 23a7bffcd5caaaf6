"""DeepSpeed's CPUAdam: C++ with AVX, which it compiles when it is first made (g++ and ninja, some minutes; then cached)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pip installs ninja

from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor

from peers.steps import Stepper
from peers.steps.sequence import around


def make(starts: list[Tensor]) -> Stepper:
    return around(lambda weights: DeepSpeedCPUAdam(weights, lr=1e-3, weight_decay=0.01, adamw_mode=True), starts)
