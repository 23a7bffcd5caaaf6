"""How far `thalweg fit` gets on the examples, against AdamW as PyTorch sets it up, over seeds.

Both have the same data split, the same initial weights, the same number of epochs, and the same order of examples where the
batch sizes are equal. AdamW has a rate of 1e-3, weight decay 1e-2, no schedule, batches of 64. For both the best of equally many
validations counts; the last one is given too.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import thalweg as tw
from models import BATCH
from thalweg import examples
from thalweg.descent.problem import Problem, build_model, open_task
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.state import default_validate_every
from thalweg.descent.validation import validate
from thalweg.sampling import Batches

SEEDS = (0, 1, 2)


def run(options: Any) -> dict[str, Any]:
    names = options.only or list(examples.EXAMPLES)
    seeds, samples = SEEDS[: options.rounds], list[dict[str, Any]]()
    for name in names:
        epochs = examples.info(name).epochs
        task = examples.load(name)
        for seed in seeds:
            for who, train in (("adamw", adamw), ("thalweg", ours)):
                started = time.perf_counter()
                result = train(task, epochs, seed)
                seconds = round(time.perf_counter() - started, 1)
                metric = next(iter(task.metrics))
                sample = {"example": name, "who": who, "seed": seed, "epochs": epochs, "metric": metric, **result}
                samples.append({**sample, "seconds": seconds})
                best = ", ".join(f"{key} {value:.4f}" for key, value in result["best"].items())
                print(
                    f"learning: {name}, seed {seed}, {who}: {best}, last loss {result['last']['loss']:.4f}", flush=True
                )
    return {"settings": {"seeds": list(seeds), "threads": torch.get_num_threads()}, "samples": samples}


def ours(task: tw.Task, epochs: float, seed: int) -> dict[str, Any]:
    run = tw.fit(task, epochs=epochs, seed=seed)
    last = {key.partition("/")[2]: float(run.history[key][-1]) for key in run.history if key.startswith("validation/")}
    plan = run.plan
    knobs = {"learning_rate": plan.learning_rate, "batch_size": plan.batch_size, "weight_decay": plan.weight_decay}
    return {"best": rounded(run.metrics), "last": rounded(last), "plan": {**knobs, "steps": plan.steps}}


def adamw(task: tw.Task, epochs: float, seed: int) -> dict[str, Any]:
    problem = open_task(task)
    batches = Batches(problem.train, BATCH, seed=seed)
    assert batches.steps_per_epoch is not None
    total = round(epochs * batches.steps_per_epoch)
    every = default_validate_every(total, batches.steps_per_epoch)
    with preserve_process_state():
        model = build_model(task, seed, problem.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        validations = [validate(problem, model)]
        for step in range(1, total + 1):
            descend(problem, model, optimizer, batches)
            if step % every == 0 or step == total:
                validations.append(validate(problem, model))
    sign = 1 if task.mode == "min" else -1
    return {
        "best": rounded(min(validations, key=lambda figures: sign * figures[task.select])),
        "last": rounded(validations[-1]),
    }


def descend(problem: Problem, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
    (batch,) = batches.draw().parts
    model.train()
    loss, _ = problem.objective.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def rounded(figures: Any) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in figures.items()}
