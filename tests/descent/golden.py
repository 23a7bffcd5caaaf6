"""The short runs whose losses are kept, and the way to record them anew: `python tests/descent/golden.py`."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.rules import RULES

KEPT = Path(__file__).parent / "golden" / "losses.json"
s = tw.schedule

COMMON: dict[str, Any] = {
    "learning_rate": 0.02,
    "batch_size": 5,
    "steps": 24,
    "threads": 1,
    "validate_every": 4,
    "engine": "tensors",  # whose order of sums is the same on every machine
    "weight_decay": 0.05,
}
PLANS: dict[str, dict[str, Any]] = {
    **{f"rule {rule}": {"rule": rule} for rule in RULES},
    # From 1e-6 its rate would hardly have grown in 24 steps.
    "rule prodigy": {"rule": "prodigy", "learning_rate": 1.0, "constants": {"d0": 1e-3}},
    "rule rmsprop, centered, with momentum": {"rule": "rmsprop", "constants": {"centered": True, "momentum": 0.5}},
    **{
        f"schedule {name}": {"rule": "momentum", "schedule": schedule}
        for name, schedule in {
            "linear": s.linear(warmup=4),
            "cosine": s.cosine(warmup=4),
            "polynomial": s.polynomial(power=2.0),
            "exponential": s.exponential(),
            "inverse square root": s.inverse_sqrt(warmup=4),
            "step": s.step(every=6),
            "warm-up, stable, decay": s.wsd(warmup=4),
            "one cycle": s.one_cycle(),
            "cosine restarts": s.cosine_restarts(),
            "plateau": s.plateau(patience=0, threshold=0.2),
            "sequence": s.sequence(s.constant(total=8), s.linear()),
        }.items()
    },
    "accumulation": {"accumulate": 2, "weight_decay": 0.1},
    "average of the weights": {"ema": 0.8, "clip_norm": 0.1},
    "clipped entries": {"rule": "gradient_descent", "clip_value": 0.05},
    "with replacement": {"replacement": True},
}


def capability() -> str:
    """Give what the bits may depend on: torch's version, the instructions its kernels were chosen for, and the processor.

    Libraries of matrix products choose their kernels by the processor's maker and model too.
    """
    version, instructions = torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability()
    return f"torch {version}, {instructions}, {processor()}"


def processor() -> str:
    """Name the processor, as the system does."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def task() -> tw.Task:
    """Give a task whose sums have at most five terms."""
    x = torch.linspace(-1, 1, 17)[:, None] * torch.tensor([1.0, -0.5, 0.25])
    y = x[:, :1] ** 2 - x[:, 1:2]

    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        with torch.no_grad():  # not drawn, so that a change of the initial draw shows elsewhere
            for p in net.parameters():
                p.copy_(torch.arange(p.numel()).reshape(p.shape) % 5 / 8 - 0.25)
        return net

    return tw.Task(model=model, loss=F.mse_loss, data=(x, y), validation=(x, y))


def losses(name: str) -> dict[str, list[str]]:
    """Walk one run and give its training and validation losses as hexadecimal floats, which hold every bit."""
    history = tw.train(task(), tw.Plan(**{**COMMON, **PLANS[name]})).history
    columns = ["loss", "validation/loss", *(["ema/loss"] if "ema/loss" in history else [])]
    return {c: [float(v).hex() for v in history[c] if v == v] for c in columns}


if __name__ == "__main__":
    torch.set_num_threads(1)
    KEPT.parent.mkdir(exist_ok=True)
    recorded = {"capability": capability(), "losses": {name: losses(name) for name in PLANS}}
    KEPT.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"{len(PLANS)} runs recorded on {recorded['capability']} in {KEPT}")
