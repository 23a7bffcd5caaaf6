"""thalweg beside what people do instead, on every task of the suite: fixed recipes, methods without a rate, finders, searches.

    python bench/tuning/peers.py --workers 2 [--seeds 3] [--methods NAME ...] [TASK ...]

Each line of `bench/raw/tuning/peers/TASK.jsonl` is one method on one seed: the best validation loss of what it ends with, what it
cost in full trainings (U, counted in examples through forward and backward) and in seconds. Stop it at any time, it goes on where
it was. Batch size and epochs are the task's; every method runs in thalweg's loop on one thread, so the methods alone differ.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import thalweg as tw
from thalweg.descent.loop import descend
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan
from thalweg.records.request import EFFORTS
from thalweg.tuning.tune import LEAST_SECONDS, MOST_TRAININGS
from tuning import finders
from tuning.lines import append_line, do_all, read_lines
from tuning.suite import SUITE
from tuning.table import CURVE, RAW, best_loss, full_plan, problem_of, round_to

OPTUNA_UNITS = (2.0, 4.0, 8.0, 12.0)
SLACK = 1e-3  # units that are too few for a trial


class Outcome(NamedTuple):
    """The best validation loss of what a method ends with, and its price in full trainings."""

    loss: float
    units: float


def plan_for(task: str, seed: int, shape: str = "constant", **knobs: Any) -> Plan:
    """Give the settled plan of a full run, which nobody watches."""
    return full_plan(task, seed, shape, watch=False, **knobs)


RECIPES: dict[str, dict[str, Any]] = {
    "AdamW 1e-3, its defaults": {"rule": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01},
    "AdamW 1e-3, cosine": {
        "rule": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "shape": "cosine", "warmup": 0.05,
    },
    "AdamW 3e-4, cosine": {
        "rule": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01, "shape": "cosine", "warmup": 0.05,
    },
    "AdamW 3e-3, cosine": {
        "rule": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1, "shape": "cosine", "warmup": 0.05,
    },
    "AdamW 2e-2, linear": {
        "rule": "adamw", "learning_rate": 2e-2, "weight_decay": 0.1, "shape": "linear", "warmup": 0.1,
    },
    "NAdamW 1.75e-3 of AlgoPerf": {
        "rule": "nadam", "learning_rate": 1.75e-3, "weight_decay": 0.081, "shape": "cosine", "warmup": 0.02,
        "constants": {"beta1": 0.933, "beta2": 0.9955, "decoupled_weight_decay": True},
    },
    "SGD 0.1, momentum 0.9, cosine": {
        "rule": "momentum", "learning_rate": 0.1, "weight_decay": 5e-4, "shape": "cosine",
    },
    "SGD 0.01, momentum 0.9": {"rule": "momentum", "learning_rate": 0.01},
    "Lion 3e-4, cosine": {
        "rule": "lion", "learning_rate": 3e-4, "weight_decay": 0.3, "shape": "cosine", "warmup": 0.05,
    },
    "Muon 2e-2, linear": {
        "rule": "muon", "learning_rate": 2e-2, "weight_decay": 0.1, "shape": "linear", "warmup": 0.05,
    },
    "Schedule-Free AdamW 2.5e-3": {
        "rule": "schedule_free_adamw", "learning_rate": 2.5e-3, "weight_decay": 0.01, "warmup": 0.05,
    },
    "Prodigy, cosine": {"rule": "prodigy", "learning_rate": 1.0, "weight_decay": 0.01, "shape": "cosine"},
}  # fmt: skip
"""The first ten are the fixed recipes."""


def recipe(name: str) -> Callable[[str, int], Outcome]:
    return lambda task, seed: Outcome(best_loss(task, plan_for(task, seed, **RECIPES[name])), 1.0)


def effort_of(effort: float | str, task: str) -> float:
    """Give the price of an effort in full trainings: of a preset what it buys on a machine that does nothing else.

    That is by the median CPU seconds of `thalweg, 1 U`, which are there first.
    """
    if not isinstance(effort, str):
        return effort
    alone = [line["cpu_seconds"] for line in read_lines(file_of(task)) if line["method"] == "thalweg, 1 U"]
    if not alone:
        raise SystemExit(f"A preset's price on {task} follows from `thalweg, 1 U`: make that first.")
    trainings = EFFORTS[effort]
    floor = min(1 + LEAST_SECONDS[effort] / statistics.median(alone), MOST_TRAININGS)
    return float(f"{max(trainings, floor):.3g}")


def fitted(effort: float | str) -> Callable[[str, int], Outcome]:
    """Run thalweg itself."""

    def run(task: str, seed: int) -> Outcome:
        entry = SUITE[task]
        fixed = {
            "batch_size": entry.batch_size,
            "threads": 1,
            "compile": False,
        }  # whose trial would be most of the time
        done = tw.fit(
            entry.make(),
            epochs=entry.epochs,
            effort=effort_of(effort, task),
            seed=seed,
            fixed=fixed,
            progress=False,
            say=lambda _: None,
        )
        price = done.plan.why("learning_rate").figures.get("price", 1.0)
        return Outcome(done.metrics["loss"], float(price))

    return run


def top_after_an_epoch(task: str, seed: int) -> Outcome:
    """Train twelve AdamW rates for one epoch, and the best three to the end (arXiv:2307.15422)."""
    rates = [float(f"{1e-4 * 5000 ** (k / 11):.3g}") for k in range(12)]
    plans = [plan_for(task, seed, "cosine", learning_rate=rate, weight_decay=0.01, warmup=0.05) for rate in rates]
    assert plans[0].steps is not None
    epoch = min(plans[0].steps_per_epoch or 1, plans[0].steps)
    share = epoch / plans[0].steps
    first = [
        best_loss(task, plan.replace(steps=epoch, schedule=plan.schedule.resolve(plan.steps or 1, None)))
        for plan in plans
    ]
    best = sorted(range(12), key=lambda k: first[k])[:3]
    return Outcome(min(best_loss(task, plans[k]) for k in best), 12 * share + 3 * (1 - share))


def found_by(finder: Callable[[str, int], tuple[float, int]], warmup: float) -> Callable[[str, int], Outcome]:
    """Let a library's finder choose AdamW's rate, and run it with a warm-up and a cosine."""

    def run(task: str, seed: int) -> Outcome:
        rate, taken = finder(task, seed)
        plan = plan_for(task, seed, "cosine", learning_rate=rate, weight_decay=0.01, warmup=warmup)
        assert plan.steps is not None
        return Outcome(best_loss(task, plan), 1.0 + taken / plan.steps)

    return run


class Trial(NamedTuple):
    """How a run that is judged in parts ended: its last and best validation loss, the steps it took, and whether by itself."""

    value: float
    best: float
    steps: int
    failed: bool = False


def run_in_parts(task: str, plan: Plan, stop_at: int, goes_on: Callable[[int, float], bool]) -> Trial:
    """Run to `stop_at` at most, as long as `goes_on` says: it is given each part of the curve and the best loss so far."""
    assert plan.steps is not None
    descent, recorder, value = Descent(problem_of(task), plan), Recorder(), math.inf
    try:
        for part in range(1, CURVE + 1):
            until = min(stop_at, round(part * plan.steps / CURVE))
            descend(descent, recorder, until=until)
            value = (descent.best_validation or {}).get("value", math.inf)
            if not goes_on(part, value) or until >= stop_at:
                break
    except (DivergedError, tw.ThalwegError):
        return Trial(math.inf, value, descent.step, failed=True)
    return Trial(value, value, descent.step)


def optuna_search(units: float, pruner: str) -> Callable[[str, int], Outcome]:
    """Search with Optuna's TPE until so many trainings' worth of steps are spent; the best trial's model is the result."""

    def run(task: str, seed: int) -> Outcome:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kinds = {
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=CURVE),
        }
        study = optuna.create_study(  # Hyperband draws from its name
            study_name=f"{task} {seed}", sampler=optuna.samplers.TPESampler(seed=seed), pruner=kinds[pruner]()
        )
        spent, best = 0.0, math.inf
        while units - spent > SLACK:
            trial = study.ask()
            plan = plan_for(
                task, seed, "cosine", warmup=trial.suggest_categorical("warmup", [0.02, 0.1]),
                learning_rate=trial.suggest_float("learning_rate", 1e-4, 0.5, log=True),
                weight_decay=trial.suggest_float("weight_decay", 1e-4, 1.0, log=True),
            )  # fmt: skip
            assert plan.steps is not None
            is_pruned = False

            def goes_on(part: int, value: float, trial: Any = trial) -> bool:
                nonlocal is_pruned
                trial.report(value, part)
                is_pruned = part < CURVE and trial.should_prune()
                return not is_pruned

            done = run_in_parts(task, plan, min(plan.steps, round((units - spent) * plan.steps)), goes_on)
            states = optuna.trial.TrialState
            state = states.FAIL if done.failed else states.PRUNED if is_pruned else states.COMPLETE
            study.tell(trial, done.value if state is states.COMPLETE else None, state=state)
            spent, best = spent + max(done.steps, 1) / plan.steps, min(best, done.best)
        return Outcome(best, spent)

    return run


def syne_tune_search(units: float) -> Callable[[str, int], Outcome]:
    """Search with Syne Tune's ASHA, one trial after the other, until so many trainings' worth of steps are spent."""

    def run(task: str, seed: int) -> Outcome:
        from syne_tune.backend.trial_status import Trial as Told
        from syne_tune.config_space import choice, loguniform
        from syne_tune.optimizer.baselines import ASHA
        from syne_tune.optimizer.scheduler import SchedulerDecision

        space = {
            "learning_rate": loguniform(1e-4, 0.5),
            "weight_decay": loguniform(1e-4, 1.0),
            "warmup": choice([0.02, 0.1]),
        }
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        scheduler = ASHA(space, metric="loss", time_attr="part", max_t=CURVE, random_seed=seed)
        spent, best, number = 0.0, math.inf, 0
        while units - spent > SLACK:
            suggestion = scheduler.suggest()
            told = Told(number, suggestion.config, datetime.datetime.now())
            scheduler.on_trial_add(told)
            plan = plan_for(task, seed, "cosine", **suggestion.config)
            assert plan.steps is not None

            def goes_on(part: int, value: float, told: Any = told) -> bool:
                result = {"loss": min(value, 1e30), "part": part}
                if part == CURVE:
                    scheduler.on_trial_complete(told, result)
                    return False
                return scheduler.on_trial_result(told, result) == SchedulerDecision.CONTINUE

            done = run_in_parts(task, plan, min(plan.steps, round((units - spent) * plan.steps)), goes_on)
            if done.failed:
                scheduler.on_trial_error(told)
            spent, best, number = spent + max(done.steps, 1) / plan.steps, min(best, done.best), number + 1
        return Outcome(best, spent)

    return run


METHODS: dict[str, Callable[[str, int], Outcome]] = {
    **{f"thalweg, {units:g} U": fitted(units) for units in (1.0, 2.0, 4.0, 12.0)},
    **{
        f"thalweg, {preset}": fitted(preset) for preset in ("quick", "standard")
    },  # thorough is 12 U, however short the run
    **{name: recipe(name) for name in RECIPES},
    "top 3 after one epoch": top_after_an_epoch,
    "Lightning's rate finder, then cosine": found_by(finders.lightning, 0.05),
    "fastai's rate finder, then cosine": found_by(finders.fastai, 0.25),  # its one-cycle rises for a quarter of the run
    **{f"Optuna TPE, median pruner, {units:g} U": optuna_search(units, "median") for units in OPTUNA_UNITS},
    "Optuna TPE, Hyperband, 4 U": optuna_search(4.0, "hyperband"),
    "Syne Tune ASHA, 4 U": syne_tune_search(4.0),
}
FIXED = list(RECIPES)[:10]


def file_of(task: str) -> Path:
    return RAW / "peers" / f"{task}.jsonl"


def work(job: tuple[str, str, int]) -> None:
    torch.set_num_threads(1)
    task, method, seed = job
    started, cpu = time.perf_counter(), time.process_time()
    try:
        outcome = METHODS[method](task, seed)
    except ImportError:
        return
    line = {
        "task": task,
        "method": method,
        "seed": seed,
        "loss": round_to(outcome.loss),
        "units": round(outcome.units, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }
    append_line(file_of(task), line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*SUITE, []])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    (RAW / "peers").mkdir(parents=True, exist_ok=True)
    wanted = list[tuple[str, str, int]]()
    for task in options.tasks or SUITE:
        present = {(line["method"], line["seed"]) for line in read_lines(file_of(task))}
        wanted += [
            (task, method, seed)
            for seed in range(options.seeds)
            for method in options.methods
            if (method, seed) not in present
        ]
    do_all(work, wanted, options.workers)


if __name__ == "__main__":
    main()
