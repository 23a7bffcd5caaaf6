"""Measure and write the tables: `python bench/run.py loop speed step rules resume cost memory learning holdout
landscape basins fit_survey`.

--only NAME     only these peers (loop, step), models (speed, step), rules or examples (learning): printed, not written
--rounds N      this number of rounds instead of the benchmark's own
--threads N     this number of threads instead of the benchmark's own (loop, speed, step, rules)
--provisional   say in the tables that the machine had other work to do
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

import tables
from machine import PACKAGES, facts

BENCHMARKS = (
    "loop",
    "speed",
    "step",
    "rules",
    "resume",
    "cost",
    "memory",
    "learning",
    "holdout",
    "landscape",
    "basins",
    "fit_survey",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--provisional", action="store_true")
    options = parser.parse_args()
    for name in options.benchmarks:
        started = time.perf_counter()
        module = importlib.import_module(name)
        machine = facts(getattr(module, "PACKAGES", PACKAGES))
        measured = module.run(options)
        seconds = round(time.perf_counter() - started)
        head = {"benchmark": name, "provisional": options.provisional, "seconds": seconds, "machine": machine}
        print(f"{name}: {seconds} s\n\n{tables.render(head | measured)}\n", flush=True)
        if not options.only:
            write_samples(name, head | measured)
            tables.write()
            tables.update_project_readme(check=False)


def write_samples(name: str, measured: dict[str, Any]) -> None:
    """Write the samples, one per line, so that a diff of the file shows which were measured anew."""
    samples = measured.pop("samples")
    head = json.dumps(measured, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(sample) for sample in samples)
    (tables.RAW / f"{name}.json").write_text(f'{head},\n "samples": [\n{lines}\n ]\n}}\n', "utf-8")


if __name__ == "__main__":
    main()
