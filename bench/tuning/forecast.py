"""Forecasts against what came: `python bench/tuning/forecast.py --write`.

The table of finished runs (`table.py`) has runs that were cooled down from several places and the same runs at their planned
end, which is what `thalweg forecast` says beforehand. The forecast of the progress line goes by validations on the way, which
the table does not hold: `--curves` trains the best rates of each task anew and keeps theirs in `bench/raw/curves.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from thalweg.descent.loop import descend
from thalweg.descent.memory_history import MemoryHistory
from thalweg.descent.projection import AT_A_VALIDATION, COOL, COOLED, Law, Trend, trend
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan
from tuning import table
from tuning.lines import append_line, read_lines, write_table
from tuning.suite import DEVELOPMENT, HELD_OUT
from tuning.table import Key

CURVES = table.RAW.with_name("curves.jsonl")
POINTS = 20  # validations of a curve
SHARES = (0.25, 0.5, 0.75, 0.9)  # of the run, at which the table shows what a curve's validations forecast
FRESH = ("small_gpt", "text_classes")  # tasks that nobody had looked at when the laws were settled
FRESH_RATES, FRESH_PLACES = (0.0048, 0.0104, 0.0226), (0.2, 0.35, 0.5)
HALVES = {
    "development": list(DEVELOPMENT),
    "held out, looked at": [task for task in HELD_OUT if task not in FRESH],
    "fresh": list(FRESH),
}
NEAR_BEST = 1.5  # of a task's best loss: runs that end above are at rates that nobody keeps
SECONDS = 12.0  # of a run that a curve is made of, at most


class Case(NamedTuple):
    """A forecast that could have been made: the loss at a share of the run, the trend of validations, and what came."""

    task: str
    share: float
    loss: float
    end: float
    trend: Trend | None = None


def cooled_cases(tasks: Sequence[str]) -> Iterator[Case]:
    """Give the cooled losses of the table with the ends of the same runs, at rates that end near the best."""
    for case, _ in cooled_lines(tasks):
        yield case


def cases_with_trend(tasks: Sequence[str]) -> Iterator[Case]:
    """Give those of them whose validations on the way are known and make a trend."""
    known = {(curve["task"], curve["rate"]): curve for curve in curves()}
    for case, line in cooled_lines(tasks):
        curve = known.get((case.task, line["rate"]))
        if curve is not None and line["rule"] == "adamw" and line["seed"] == 0:
            found = trend(curve["steps"], curve["losses"], until=case.share * curve["steps"][-1])
            if found is not None:
                yield case._replace(trend=found)


def cooled_lines(tasks: Sequence[str]) -> Iterator[tuple[Case, dict[str, Any]]]:
    for task in set(tasks) & set(FRESH):
        for curve in fresh_curves(task):
            for share, loss in curve["cooled"]:
                line = {"rule": "adamw", "rate": curve["rate"], "seed": 0}
                yield Case(task, share, loss, curve["losses"][-1]), line
    tasks = [task for task in tasks if task not in FRESH]
    for task in tasks:
        lines = [line for line in table.read(task) if is_usual(line)]
        ends = {of(line): line["loss"] for line in lines if line["cool"] is None}
        for line in lines:
            rule = [end for (name, _, _), end in ends.items() if name == line["rule"]]
            end = ends.get(of(line))
            if line["cool"] is not None and end is not None and end <= NEAR_BEST * min(rule):
                yield Case(task, line["cool"][0], line["loss"], end), line


def of(line: dict[str, Any]) -> tuple[str, float, int]:
    return line["rule"], line["rate"], line["seed"]


def is_usual(line: dict[str, Any]) -> bool:
    """Tell whether a run is whole, as the search would set it, and was left alone by the watch."""
    usual = line["part"] == 1 and line["batch"] == 1 and line["timescale"] == table.priors.TIMESCALE
    return usual and line.get("loss") is not None and line["cures"]["rate_factor"] == 1


def fresh_curves(task: str) -> list[dict[str, Any]]:
    """Give the curves of a task that has no table, of rates that end near the best of them."""
    own = [curve for curve in curves() if curve["task"] == task and curve.get("cooled")]
    return [curve for curve in own if curve["losses"][-1] <= NEAR_BEST * min(one["losses"][-1] for one in own)]


def curve_cases(tasks: Sequence[str]) -> Iterator[Case]:
    """Give the validations of the curves with their ends."""
    fresh = [curve for task in FRESH for curve in fresh_curves(task)]
    for curve in [curve for curve in curves() if curve["task"] not in FRESH] + fresh:
        if curve["task"] not in tasks:
            continue
        for share in SHARES:
            steps, losses = curve["steps"], curve["losses"]
            at = min(range(len(steps)), key=lambda k: abs(steps[k] / steps[-1] - share))
            found = trend(steps, losses, until=steps[at])
            if found is not None:
                yield Case(curve["task"], share, losses[at], losses[-1], found)


def curves() -> list[dict[str, Any]]:
    return read_lines(CURVES)


def make_curves() -> None:
    """Train the two best rates of every task that takes seconds, and keep the validations on the way."""
    torch.set_num_threads(1)
    known = {(curve["task"], curve["rate"]) for curve in curves()}
    for task in FRESH:
        for rate in FRESH_RATES:
            if (task, rate) not in known:
                plan = table.plan_of(Key(task, rate))
                assert plan.steps is not None
                line = curve_of(task, plan.replace(validate_every=max(1, plan.steps // POINTS)))
                if line is not None:
                    places = [(at, table.measure(Key(task, rate, cool=(at, COOL)))["loss"]) for at in FRESH_PLACES]
                    line["cooled"] = [[at, loss] for at, loss in places if loss is not None]
                    append_line(CURVES, line)
                print(task, rate, flush=True)
    for task in (name for name in (*DEVELOPMENT, *HELD_OUT) if name not in FRESH):
        whole = [one for one in table.read(task) if is_usual(one) and one["cool"] is None and one["rule"] == "adamw"]
        runs = [one for one in whole if one["seed"] == 0 and one["seconds"] <= SECONDS]
        for rate in [one["rate"] for one in sorted(runs, key=lambda one: one["loss"])[:2]]:
            if (task, rate) not in known:
                plan = table.plan_of(Key(task, rate))
                assert plan.steps is not None
                line = curve_of(task, plan.replace(validate_every=max(1, plan.steps // POINTS)))
                if line is not None:
                    append_line(CURVES, line)
                print(task, rate, flush=True)


def curve_of(task: str, plan: Plan) -> dict[str, Any] | None:
    """Train a run, and give its validations; None where it diverged."""
    history = MemoryHistory()
    try:
        descend(Descent(table.problem_of(task), plan), Recorder(history=history))
    except DivergedError:
        return None
    columns = history.columns()
    found = [
        (int(step), float(loss))
        for step, loss in zip(columns["step"], columns["validation/loss"], strict=True)
        if step > 0 and math.isfinite(loss)
    ]
    steps, losses = zip(*found, strict=True)
    return {
        "task": task,
        "rate": plan.learning_rate,
        "steps": steps,
        "losses": [float(f"{loss:.6g}") for loss in losses],
    }


def judged(cases: Sequence[Case], law: Law) -> dict[str, float]:
    """Give the coverage of one and two errors, and the median error relative to what came; `naive`: were it to stay as it is."""
    within, errors, naive, widths = list[float](), list[float](), list[float](), list[float]()
    for case in cases:
        value, error = law.end(case.loss, case.share, case.trend)
        within.append(abs(case.end - value) / error)
        errors.append(abs(value / case.end - 1))
        naive.append(abs(case.loss / case.end - 1))
        widths.append(error / value)
    return {
        "runs": len(cases),
        "one": statistics.fmean(ratio <= 1 for ratio in within),
        "two": statistics.fmean(ratio <= 2 for ratio in within),
        "error": statistics.median(errors),
        "naive": statistics.median(naive),
        "width": statistics.median(widths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", action="store_true", help="train the runs whose validations are kept")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/raw/forecast.json")
    options, started = parser.parse_args(), time.perf_counter()
    if options.curves:
        make_curves()
    samples = list[dict[str, Any]]()
    for what, law, cases_of in (
        ("cooled down, with the trend", COOLED, cases_with_trend),
        ("cooled down, too few validations", COOLED, cooled_cases),
        ("last validation", AT_A_VALIDATION, curve_cases),
    ):
        for half, tasks in HALVES.items():
            cases = list(cases_of(tasks))
            for share in sorted({case.share for case in cases}):
                own = [case for case in cases if case.share == share]
                count = len({case.task for case in own})
                samples.append({"what": what, "half": half, "share": share, "tasks": count, **judged(own, law)})
                print(json.dumps(samples[-1]))
    if options.write:
        write_table("forecast", {"near_best": NEAR_BEST, "seeds": table.SEEDS}, samples, time.perf_counter() - started)


if __name__ == "__main__":
    main()
