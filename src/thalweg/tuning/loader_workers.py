"""Loader workers: processes that load examples ahead, where loading takes a good part of a step and gives the same examples."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from contextlib import closing

from torch import Tensor

from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import Descent
from thalweg.descent.timing import WARM_UP, TimedDescent
from thalweg.errors import error_text
from thalweg.objects.state import ObjectState
from thalweg.records.plan import Plan
from thalweg.sampling import ItemSource
from thalweg.sampling.sources import leaves, loader_knobs
from thalweg.tuning.comparison import PAYS, Compared, Finding, Trial
from thalweg.tuning.cores import usable_cores

LOADING = 0.15  # share of a step that loading takes, above which workers are tried
DRAWN = 5  # batches that are drawn to time loading
TIMED = 16  # steps that are timed; workers load ahead, so that some steps wait and others do not, and the mean counts
AHEAD = 2  # batches that each worker loads ahead, as is PyTorch's default


def choose(trial: Trial) -> Finding | None:
    """Try as many workers as would hide loading; None for data in memory, streams, and loaders that have decided it.

    In workers a stream would come in another order. Where worker processes are not forked they would run the user's script
    again, so that none are taken there.
    """
    source = trial.problem.train
    if not isinstance(source, ItemSource) or loader_knobs(trial.problem.task.data) or trial.plan.workers:
        return None
    loading = _loading_seconds(trial)
    share = f"loading takes {min(1.0, loading / trial.per_step):.0%} of a step"
    if loading < LOADING * trial.per_step:
        return Finding(0, share)
    if multiprocessing.get_start_method() != "fork":
        return Finding(
            0, f"{share}, but on this platform a worker runs your script again; set `workers` where that is safe"
        )
    cores = usable_cores()
    count = max(1, min(cores, math.ceil(loading / max(trial.per_step - loading, 1e-9))))
    trial.say(f"loader workers: {share}, trying {count}")
    changed = trial.plan.replace(workers=count)
    try:
        if not _loads_the_same(trial.problem, trial.plan, changed):
            return Finding(0, f"{share}, but examples differ in workers, or the data set changes as it is read")
        means = [_mean_seconds(trial, plan, count) for plan in (trial.plan, changed)]
    except Exception as error:
        return Finding(0, f"{share}, but workers cannot load: {error_text(error):.200}")
    compared = Compared(means[0], means[1], means[1] / means[0])
    figures = compared.figures("workers", (0, count)) | {"cores": cores}
    if compared.ratio > PAYS:
        return Finding(0, f"{share}, but with {count} a step is not at least 5 % faster", figures)
    return Finding(count, f"{share}; with {count} a step takes {compared.ratio:.2f} of its time", figures)


def _loading_seconds(trial: Trial) -> float:
    """Give the seconds that a step's examples take to load, a median."""
    times = list[float]()
    with (
        closing(Descent(trial.problem, trial.plan).batches) as batches,
        preserve_process_state(trial.plan.threads),
        rng_lock,
    ):
        while len(times) < DRAWN and sum(times) <= trial.patience:
            started = time.perf_counter()
            batches.draw()
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _mean_seconds(trial: Trial, plan: Plan, count: int) -> float:
    """Give the mean seconds of a step once what was loaded ahead at the start is used up."""
    with closing(TimedDescent(trial.problem, plan)) as timed:
        timed.take(WARM_UP + AHEAD * count if plan.workers else WARM_UP, trial.patience)
        return statistics.fmean(timed.take(TIMED, sum(timed.times) + trial.patience))


def _loads_the_same(problem: Problem, plan: Plan, changed: Plan) -> bool:
    """Whether the first batches are the same, bit for bit, and reading them changes nothing that the data set keeps."""
    source = problem.train
    assert isinstance(source, ItemSource)
    kept, drawn = ObjectState({"data": source.items}), list[list[Tensor]]()
    for one in (plan, changed):
        with closing(Descent(problem, one).batches) as batches, preserve_process_state(one.threads), rng_lock:
            drawn.append([leaf for _ in range(2) for leaf in leaves(batches.draw().parts)])
    changes = kept.read()
    kept.write({})
    alike = [a.dtype == b.dtype and a.shape == b.shape and a.equal(b) for a, b in zip(*drawn, strict=True)]
    return not changes and bool(alike) and all(alike)
