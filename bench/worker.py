"""A process that runs one peer whenever it is asked: `python bench/worker.py PEER`, one JSON object a line each way.

A process of its own keeps one peer's imports out of another's loop; staying alive lets the rounds alternate between peers
without paying for imports each time. What a peer prints goes nowhere.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from models import CASES, data, microseconds


def measure(peer: Any, wish: dict[str, Any]) -> dict[str, Any]:
    """Train once and give microseconds a step, and the loss that was reached as a proof of work."""
    case = CASES[wish["model"]]
    torch.set_num_threads(wish["threads"])
    torch.manual_seed(0)
    x, y = data(case)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        model = peer.train(case.make, x, y, case.steps, Path(folder))
    each = microseconds(case.steps)
    with torch.no_grad():
        loss = float(F.cross_entropy(model.eval()(x), y))
    return {"microseconds": round(each, 2), "loss": round(loss, 4)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if "BENCH_SHOW_ERRORS" not in os.environ:
        os.dup2(nowhere, 2)
    peer = importlib.import_module(f"peers.{sys.argv[1]}")
    for line in sys.stdin:
        print(json.dumps(measure(peer, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
