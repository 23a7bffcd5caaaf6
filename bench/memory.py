"""How much memory a descent takes beyond the bare loop's: `python bench/memory.py VARIANT` is one process that trains.

Imports and data are loaded before; what is measured is how far the resident set rises from there at its peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any] | None] = {
    "bare loop": None,
    "thalweg": {"ema": None, "snapshot_every": 0},
    "thalweg, EMA": {"snapshot_every": 0},
    "thalweg, snapshot": {"ema": None, "snapshot_every": 5},
    "thalweg, EMA, snapshot": {"snapshot_every": 5},
}
ROUNDS = 7
STATUS = Path("/proc/self/status")


def run(options: Any) -> dict[str, Any]:
    from models import BATCH, CASES

    rounds, samples = options.rounds or ROUNDS, list[dict[str, Any]]()
    for number in range(rounds):
        for variant in VARIANTS:
            done = subprocess.run([sys.executable, __file__, variant], capture_output=True, text=True, check=True)
            samples.append({"variant": variant, "round": number, **json.loads(done.stdout)})
    settings = {
        "variants": list(VARIANTS),
        "batch": BATCH,
        "steps": CASES["11m"].steps,
        "weights_mib": 11_036_682 * 4 / 2**20,
    }
    return {"settings": {**settings, "rounds": rounds}, "samples": samples}


def child(variant: str) -> dict[str, float]:
    """Train once in this process and give the rise in MiB."""
    import sqlite3

    import filelock
    import torch

    import thalweg as tw
    from models import CASES, data
    from peers import bare
    from runs import plan_of

    assert sqlite3  # both are imported so that what they take is not counted
    assert filelock
    case, knobs = CASES["11m"], VARIANTS[variant]
    x, y = data(case)
    torch.set_num_threads(1)
    torch.nn.functional.linear(x[:64], torch.zeros(8, 1280)).sum()  # libraries that load at the first call
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        if knobs is None:
            model: Any = bare.train(case.make, x, y, case.steps, Path(folder))
        else:
            task = tw.Task(model=case.make, loss=torch.nn.functional.cross_entropy, data=(x, y))
            model = tw.train(task, plan_of(case.steps, **knobs), out=Path(folder) / "run")
    del model
    return {"mib": round(resident("VmHWM") - before, 1), "before_mib": round(before, 1)}


def resident(key: str) -> float:
    """Read the resident set now (VmRSS) or at its peak (VmHWM), in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1])))
