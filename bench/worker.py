"""A process that runs one peer on each request: `python bench/worker.py PEER`; requests and answers are lines of JSON.

With a process of its own, one peer's imports do not slow another's loop; the process stays alive, so that rounds alternate
between peers without importing each time. What a peer prints is discarded.
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


def measure(peer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Train once and give microseconds per step, and the loss at the end, which shows that the peer did train."""
    case = CASES[request["model"]]
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    x, y = data(case)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        model = peer.train(case.make, x, y, case.steps, Path(folder))
    per_step = microseconds(case.steps)
    with torch.no_grad():
        loss = float(F.cross_entropy(model.eval()(x), y))
    knobs = {"knobs": peer.chosen(case.make, x, y)} if hasattr(peer, "chosen") else {}
    return {"microseconds": round(per_step, 2), "loss": round(loss, 4), **knobs}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "BENCH_SHOW_ERRORS" not in os.environ:
        os.dup2(null, 2)
    peer = importlib.import_module(f"peers.{sys.argv[1]}")
    for line in sys.stdin:
        print(json.dumps(measure(peer, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
