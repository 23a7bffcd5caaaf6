"""Files of lines, one finished run each, written when it ends: what makes them can be stopped at any time, and goes on."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import machine
from run import write_samples

Job = TypeVar("Job")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Give the lines of a file, none where there is no file; a last one that was cut off is dropped."""
    if not file.is_file():
        return []
    lines = list[dict[str, Any]]()
    for line in file.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")


def do_all(work: Callable[[Job], None], jobs: Sequence[Job], workers: int, every: int = 20) -> None:
    """Do jobs in processes of their own, and print after every so many how many are done."""
    print(f"{len(jobs)} to make", flush=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, _ in enumerate(pool.imap_unordered(work, jobs, chunksize=1), 1):
            if number % every == 0:
                print(f"{number} of {len(jobs)}", flush=True)


def write_table(
    name: str,
    settings: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    seconds: float,
    packages: tuple[str, ...] = ("torch",),
) -> None:
    """Write what was made of such lines for a table of the README; `packages` are those whose versions it says."""
    head = {"benchmark": name, "machine": machine.facts(packages), "settings": settings, "provisional": False}
    write_samples(name, {**head, "seconds": round(seconds), "samples": samples})
