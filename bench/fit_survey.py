"""What the brief survey at the end of a `fit` costs, beside the training whose end it is of: wall-clock time, on one thread.

The training is one plan without a search, which `fit` would do first. A survey that gives up, as there is too little time,
counts with what it took until then.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

import thalweg as tw
from thalweg.descent.brief_survey import brief_survey
from thalweg.descent.problem import open_task
from thalweg.examples import digits, mnist

PACKAGES = ("torch", "numpy", "scipy")
ROUNDS = 5
WORK = {
    "digits, 500 steps": (digits.task, 500),
    "digits, 6,000 steps": (digits.task, 6000),
    "mnist (a CNN), 300 steps": (mnist.task, 300),
}


def run(options: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    samples, rounds = list[dict[str, Any]](), options.rounds or ROUNDS
    for number in range(rounds):
        for name, (task, steps) in WORK.items():
            print(f"fit_survey: {name}, round {number}", file=sys.stderr, flush=True)
            made = task()
            trained = tw.train(made, tw.Plan(steps=steps, learning_rate=3e-3, seed=number, threads=1), progress=False)
            problem = open_task(made)
            started = time.perf_counter()
            found = brief_survey(trained, problem)
            seconds = time.perf_counter() - started
            samples.append(
                {
                    "work": name,
                    "round": number,
                    "training": trained.summary["seconds"],
                    "value": seconds,
                    "examples": 0 if found is None else found.examples,
                    "products": 0 if found is None else found.products,
                    "kind": None if found is None else found.kind,
                }
            )
    return {"settings": {"rounds": rounds, "threads": [1]}, "samples": samples}
