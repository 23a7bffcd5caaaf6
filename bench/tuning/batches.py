"""What each batch size comes to, at equal epochs and at equal seconds: finished runs of several tasks, sizes and seeds.

`python -m bench.tuning.batches epochs` and `... seconds` write `raw/batch_epochs.jsonl` and `raw/batch_seconds.jsonl`, one line a
run, and leave out those that they have; `... rules` compares rules of choosing on them. The rate of each run is searched at a
price of two trainings, as the best rate depends on the batch size. At equal seconds, each size gets as many steps as its own
time per step, measured once for all, allows; the task's noise scale is measured with it, by batch size and length of the run.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.tuning.suite import SUITE

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.descent.timing import time_steps
from thalweg.tuning.gradient_noise import measure_noise_scale

RAW = Path(__file__).parents[1] / "raw"
EPOCHS: dict[str, float] = {
    "short": 2,
    "noisy_labels": 5,
    "raw_columns": 10,
    "fine_tuning": 3,
    "frozen_trunk": 3,
    "tiny": 20,
    "raw_targets": 20,
    "series": 6,
    "small_mlp": 3,
    "autoencoder": 2,
    "norm_cnn": 1,
    "short_text": 2,
}
SECONDS = {
    "short": 0.5,
    "noisy_labels": 0.6,
    "small_mlp": 1.5,
    "frozen_trunk": 0.6,
    "autoencoder": 1.0,
    "raw_columns": 0.4,
    "raw_targets": 0.5,
    "series": 1.0,
}
SIZES, SEEDS = (8, 16, 32, 64, 128, 256, 512), (0, 1)
Losses = dict[tuple[str, int], dict[int, float]]  # (task, seed) -> batch size -> loss


def read(name: str) -> list[dict[str, Any]]:
    path = RAW / f"batch_{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(name: str, row: dict[str, Any]) -> None:
    with (RAW / f"batch_{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, file=sys.stderr)


def fit(name: str, task: tw.Task, size: int, seed: int, **budget: Any) -> None:
    run = tw.fit(task, **budget, effort=2.0, seed=seed, fixed={"batch_size": size, "threads": 1}, progress=False)
    row = {"task": name, "batch_size": size, "seed": seed, "steps": run.plan.steps, "loss": run.metrics["loss"]}
    kind = "epochs" if "epochs" in budget else "seconds"
    write(kind, {**row, **({"examples": len(task.data[0]), **budget} if kind == "epochs" else {})})


def at_equal_epochs() -> None:
    done = {(row["task"], row["batch_size"], row["seed"]) for row in read("epochs")}
    for seed in SEEDS:
        for name, epochs in EPOCHS.items():
            task = SUITE[name].make()
            for size in SIZES[:-1]:
                if (name, size, seed) not in done and size <= len(task.data[0]) // 4:
                    fit(name, task, size, seed, epochs=epochs)


def at_equal_seconds() -> None:
    done = {(row["task"], row.get("batch_size"), row.get("seed")) for row in read("seconds")}
    timed = {row["task"]: row["seconds_per_step"] for row in read("seconds") if "seconds_per_step" in row}
    for name in SECONDS.keys() - timed.keys():
        problem = open_task(SUITE[name].make())
        sizes = [size for size in SIZES if size <= (problem.count or 0) // 3]
        plan = tw.Plan(threads=1, clip_norm=1.0, learning_rate=0.0226)
        timed[name] = {
            str(size): min(time_steps(problem, plan.replace(batch_size=size), count=15).seconds for _ in range(4))
            for size in sizes
        }
        noise = {
            f"{size}@{steps}": measure_noise_scale(problem, plan.replace(batch_size=size), steps, seconds=10)
            for size in (32, 64)
            for steps in (200, 1000)
        }
        write("seconds", {"task": name, "seconds_per_step": timed[name], "noise_scale": noise})
    for seed in SEEDS:
        for name, each in timed.items():
            task = SUITE[name].make()
            for size, seconds in each.items():
                if (name, int(size), seed) not in done:
                    fit(name, task, int(size), seed, steps=max(4, round(SECONDS[name] / seconds)))


def losses(name: str) -> Losses:
    found: Losses = defaultdict(dict)
    for row in read(name):
        if "loss" in row:
            found[row["task"], row["seed"]][row["batch_size"]] = row["loss"]
    return found


def regret(found: Losses, choose: Callable[[str, list[int]], int]) -> str:
    """Give the geometric mean, and the worst, of the chosen size's loss over the best size's."""
    ratios = [by_size[choose(task, sorted(by_size))] / min(by_size.values()) for (task, _), by_size in found.items()]
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}, worst {max(ratios):.2f}"


def rules() -> None:
    """Print what rules of choosing come to."""
    examples = {row["task"]: row["examples"] * row["epochs"] for row in read("epochs")}

    def leaving(task: str, sizes: list[int]) -> int:
        enough = [size for size in sizes if examples[task] / size >= 5000]
        return enough[-1] if enough else sizes[0]

    print("equal epochs: leaving 5,000 updates", regret(losses("epochs"), leaving))
    for size in SIZES[1:5]:
        print(f"equal epochs: {size}", regret(losses("epochs"), lambda _, sizes, b=size: min(b, sizes[-1])))
    rows = {row["task"]: row for row in read("seconds") if "seconds_per_step" in row}
    seconds = {
        task: {int(size): s for size, s in row["seconds_per_step"].items() if int(size) in losses("seconds")[task, 0]}
        for task, row in rows.items()
    }

    def half_as_fast(task: str, sizes: list[int]) -> int:
        speed = {size: size / seconds[task][size] for size in sizes}
        return min(size for size in sizes if size >= 32 and speed[size] >= 0.5 * max(speed.values()))

    print("equal seconds: half as fast", regret(losses("seconds"), half_as_fast))
    for key in ("32@200", "32@1000", "64@200", "64@1000"):
        for floor in (1.0, 16.0):

            def least_time(task: str, sizes: list[int], key: str = key, floor: float = floor) -> int:
                value = float((rows[task]["noise_scale"][key] or [100.0])[0])
                scale = max(floor, value if math.isfinite(value) else 100.0)
                return min(sizes, key=lambda size: (1 + scale / size) * seconds[task][size])

            print(f"equal seconds: noise scale {key}, at least {floor:g}", regret(losses("seconds"), least_time))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"epochs": at_equal_epochs, "seconds": at_equal_seconds, "rules": rules}[sys.argv[1]]()
