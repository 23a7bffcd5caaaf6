"""Memory: what this process and the accelerator use now, and how much more there is. Nothing here allocates any."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED = 1 << 60  # control groups of the first version write a number beyond this for none


class Room(NamedTuple):
    """How many more bytes can be used, and by what they are limited, in words that follow "of"."""

    bytes: int
    what: str


def room(device: torch.device, root: Path = Path("/")) -> Room | None:
    """Give the tightest limit on further memory: the device's, on a CPU the machine's, a control group's or the process's own.

    None where the system does not tell. `root`: where the system's own files lie.
    """
    if device.type != "cpu":
        return _room_on(device)
    found = [*_of_machine(root), *_of_control_groups(root), *_of_process(root)]
    return min(found, key=lambda one: one.bytes, default=None)


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Give the bytes in use, by whose they are: those that the process has written, and those allocated on the accelerator.

    Pages of files that lie in memory are left out, as they grow with what is read, and are given back where memory is short.
    """
    used = dict[str, int]()
    with suppress(OSError, ValueError, IndexError):
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
        used["the process"] = (int(resident) - int(shared)) * _PAGE
    if device.type != "cpu":
        with suppress(RuntimeError, AssertionError):
            used["the accelerator"] = torch.accelerator.memory_allocated(device)
    return used


def resident_bytes() -> int | None:
    """Give the memory of this process that lies in RAM; None where the system does not tell."""
    return _status().get("VmRSS")


def data_bytes() -> int | None:
    """Give the address space of this process that RLIMIT_DATA counts; None where the system does not tell."""
    return _status().get("VmData")


def begin_peak() -> None:
    """Let `peak_bytes` count from here on, where the system can; else it counts from the beginning of the process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Give the most memory of this process that lay in RAM since `begin_peak`."""
    peak = _status().get("VmHWM")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _room_on(device: torch.device) -> Room | None:
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        cached = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return None
    return Room(free + max(0, cached), "what is free on the accelerator")


def _of_machine(root: Path) -> Iterator[Room]:
    available = _table(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield Room(available, "what is free on this machine")
    elif root == Path("/") and sys.platform == "darwin":
        yield Room(os.sysconf("SC_PHYS_PAGES") * _PAGE - peak_bytes(), "the machine's memory")


def _of_control_groups(root: Path) -> Iterator[Room]:
    """Give what each control group above this process leaves: version 2, and the memory controller of version 1."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":
                base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                base = root / "sys/fs/cgroup/memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            else:
                continue
            folders = [base / place.strip("/"), *(base / place.strip("/")).parents]
            for folder in folders[: len(folders) - len(base.parents)]:
                yield from _of_control_group(folder, *names)


def _of_control_group(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[Room]:
    try:
        text = (folder / limit_name).read_text().strip()
        limit, usage = math.inf if text == "max" else int(text), int((folder / usage_name).read_text())
    except (OSError, ValueError):
        return
    cache = 0
    with suppress(OSError, ValueError, StopIteration):
        lines = (folder / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.split()[0] == cache_name)  # given back when needed
    if limit < _UNLIMITED:
        yield Room(max(0, int(limit) - usage + cache), "what the control group leaves")


def _of_process(root: Path) -> Iterator[Room]:
    sizes = _table(root / "proc/self/status")
    for limit, size in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and size in sizes:
            yield Room(max(0, soft - sizes[size]), "what the process's limit (ulimit) leaves")


def _status() -> Mapping[str, int]:
    return _table(Path("/proc/self/status"))


def _table(path: Path) -> dict[str, int]:
    """Read lines such as `VmRSS:  1234 kB`, in bytes; others are left out."""
    found = dict[str, int]()
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value[:-3]) * 1024
    return found
