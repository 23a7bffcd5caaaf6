"""Where descents end: reported, not asserted.

- batch: plain SGD at one rate with small, middle and all batches, until the loss over all training data is a tenth of a nat:
do larger batches end sharper, at equal training loss?
- schedule: the same steps of AdamW at a constant rate and at one that falls to zero: what does the fall do to sharpness?
- seeds: AdamW from several seeds to a low loss: are their losses alike, and what lies between them on the straight way, after the
hidden units of one were put into the other's order, and along a trained curve?

On the 8 x 8 digits, by a perceptron and a small CNN, in one process on one thread. Sharpness is the largest eigenvalue of the
Hessian of the loss over all training data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.examples import digits
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective

MODELS = ("mlp", "cnn")
SEEDS, BATCHES, REACHED, RATE, MOST_STEPS, LOOK_EVERY = 4, (8, 64, 1438), 0.1, 0.1, 20_000, 20
STEPS, HIGHEST = 600, 3e-3
Make = Callable[[], nn.Module]


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def make_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip


MAKE: dict[str, Make] = {"mlp": make_mlp, "cnn": make_cnn}


def task_of(make: Make) -> tw.Task:
    found = digits.task()
    return tw.Task(model=make, loss=F.cross_entropy, data=found.data, validation=found.validation, name="digits")


def sharpness(model: nn.Module, task: tw.Task) -> float:
    x, y = (torch.as_tensor(each) for each in task.data)
    surface = ModelSurface(model.eval(), Objective(task), [Part((x, y), 1.0)])
    point = surface.point
    return eigenpairs(surface.hessian(point), point, top=1, bottom=0, tolerance=0.01).top[0]


def until(make: Make, task: tw.Task, batch: int, seed: int) -> tuple[nn.Module, int]:
    """Descend by plain SGD until the loss over all training data is REACHED."""
    x, y = (torch.as_tensor(each) for each in task.data)
    torch.manual_seed(seed)
    model, draw = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for step in range(1, MOST_STEPS + 1):
        rows = torch.randperm(len(x), generator=draw)[:batch]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if step % LOOK_EVERY == 0:
            with torch.no_grad():
                if float(F.cross_entropy(model(x), y)) <= REACHED:
                    return model, step
    raise SystemExit(f"{MOST_STEPS} steps with batches of {batch} did not reach a loss of {REACHED}.")


def batches(name: str) -> list[dict[str, Any]]:
    make, task, found = MAKE[name], task_of(MAKE[name]), list[dict[str, Any]]()
    x, y = (torch.as_tensor(each) for each in task.validation)
    for batch in BATCHES:
        for seed in range(SEEDS):
            model, steps = until(make, task, batch, seed)
            with torch.no_grad():
                held_out = float(F.cross_entropy(model(x), y))
            found.append(
                {
                    "what": "batch",
                    "of": batch,
                    "seed": seed,
                    "value": sharpness(model, task),
                    "steps": steps,
                    "held": held_out,
                }
            )
    return found


def trained(task: tw.Task, seed: int, schedule: tw.schedule.Schedule) -> tw.Run:
    plan = tw.Plan(
        rule="adamw", learning_rate=HIGHEST, batch_size=64, steps=STEPS, seed=seed, keep="last", schedule=schedule
    )
    return tw.train(task, plan.replace(watch=False), progress=False)


def schedules_and_seeds(name: str) -> list[dict[str, Any]]:
    task, found, runs = task_of(MAKE[name]), list[dict[str, Any]](), list[tw.Run]()
    for seed in range(SEEDS):
        for kind, schedule in (
            ("constant", tw.schedule.constant()),
            ("falls to zero", tw.schedule.linear(warmup=0.05)),
        ):
            run = trained(task, seed, schedule)
            found.append({"what": "schedule", "of": kind, "seed": seed, "value": sharpness(run.model, task)})
            runs += [run] if kind != "constant" else []
    compared = tw.compare(runs)
    found += [{"what": "loss", "of": "end", "seed": seed, "value": loss} for seed, loss in enumerate(compared.losses)]
    found += [
        {"what": "barrier", "of": way.kind, "seed": way.first, "other": way.second, "value": way.height}
        for way in compared.ways
    ]
    return found


def run(options: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    samples = list[dict[str, Any]]()
    models = [name for name in MODELS if name in options.only] or list(MODELS)
    for name in models:
        for part in (batches, schedules_and_seeds):
            print(f"basins: {name}, {part.__name__}", file=sys.stderr, flush=True)
            samples += [{"model": name, **sample} for sample in part(name)]
    return {"settings": {"models": models, "seeds": SEEDS, "threads": [1], "reached": REACHED}, "samples": samples}
