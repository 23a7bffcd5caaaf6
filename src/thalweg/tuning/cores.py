"""The processor cores that this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Give their number: by its affinity where the system has one, and by the share of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    return cores
