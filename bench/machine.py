"""The machine and the versions that samples were measured with. No path and no host name is among them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "skorch",
    "pytorch-lightning",
    "transformers",
    "accelerate",
    "scikit-learn",
)
ROOT = Path(__file__).parent.parent


def facts(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Give processor, cores, memory, system, the packages' versions and commit."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "commit": _commit(),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in packages if name in installed}


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "bench/*.py", "bench/peers")
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")


def _line(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
