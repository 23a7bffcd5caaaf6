"""What a run's numbers depend on besides its plan and state: versions, the machine, and settings of the whole process.

They go with every checkpoint, and are compared when the run goes on: where they differ, so may the last bits.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "ONEDNN_MAX_CPU_ISA"),
    "PYTHONHASHSEED",
)
"""Environment variables that change results, of libraries and of code that goes through a set."""


def surroundings(device: torch.device) -> dict[str, Any]:
    """Give them by name, as plain values."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": np.__version__,
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "denormal numbers flushed": float(torch.tensor(1e-40) * 1) == 0,
        "mkldnn enabled": bool(getattr(torch._C, "_get_mkldnn_enabled", lambda: True)()),
        "cuDNN enabled": bool(cudnn.enabled),
        "cuDNN deterministic": bool(cudnn.deterministic),
        "cuDNN benchmark": bool(cudnn.benchmark),
        "cuDNN TF32": bool(cudnn.allow_tf32),
        "flash attention": cuda.flash_sdp_enabled(),
        "memory-efficient attention": cuda.mem_efficient_sdp_enabled(),
        "plain attention": cuda.math_sdp_enabled(),
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        **{name: os.environ.get(name) for name in VARIABLES},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what differs; what only one of them knows is left out.

    >>> differences({"torch": "2.9.0", "MKL_CBWR": None}, {"torch": "2.9.1", "MKL_CBWR": None})
    ['torch was 2.9.0 and is 2.9.1']
    """
    return [
        f"{name} was {before[name]} and is {now[name]}"
        for name in before
        if now.get(name, before[name]) != before[name]
    ]
