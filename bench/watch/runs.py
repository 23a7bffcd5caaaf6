"""Run the programs of `thalweg.examples.faults`, watched and not: `python bench/watch/runs.py --half development`.

Each finished run is one line of bench/raw/watch/MODE.jsonl, so that this can be stopped at any time and goes on. The modes:

off     a loop of one's own with torch.optim, without the watch: all programs and healthy twins, several seeds
twins   `tw.train` without the watch: what is healthy only, to compare `train` with
train   `tw.train` with the watch, which cures by itself
cured   the loop with the watch, given a closure and the examples' indices; what it diagnoses is cured by `watch.apply`
closure the same, but nothing is cured
bare    the loop with the watch, given the loss alone
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import thalweg as tw
from thalweg.errors import ThalwegError
from thalweg.examples import faults
from thalweg.examples.faults.program import Program, judged
from thalweg.records.diagnosis import Diagnosis
from tuning.lines import append_line, read_lines

RAW = Path(__file__).parents[1] / "raw" / "watch"
MODES = ("off", "twins", "train", "cured", "closure", "bare")
SEEDS = 3


def file_of(mode: str) -> Path:
    return RAW / f"{mode}.jsonl"


def twin_of(program: Program) -> Program:
    """Give the healthy twin under the name that it has as a program of its own, if it is one: many share it."""
    healthy = HEALTHY.get((program.source, program.network, program.recipe.rule))
    twin = program.twin
    return healthy if healthy is not None and healthy.recipe == twin.recipe else twin


HEALTHY = {
    (each.source, each.network, each.recipe.rule): each for each in faults.programs() if each.name.endswith("/healthy")
}


def found_by(diagnoses: Iterable[Diagnosis]) -> list[dict[str, Any]]:
    return [
        {
            "name": d.name,
            "symptom": d.symptom,
            "severity": d.severity,
            "step": d.step,
            "examples": list(d.examples)[:10],
        }
        for d in diagnoses
    ]


def in_train(program: Program, *, watch: bool = True) -> dict[str, Any]:
    """Train by `tw.train`."""
    plan = program.plan() if watch else program.plan().replace(watch=False)
    error = None
    try:
        run = tw.train(program.task(), plan, progress=False)
    except ThalwegError as caught:
        run, error = caught.run, f"{type(caught).__name__}: {caught}"
    if run is None:
        return {"loss": math.inf, "found": [], "refused": error}
    try:
        loss = judged(program.recipe, run.model)
    except ThalwegError as caught:
        loss, error = math.inf, error or str(caught)
    cures = [event.kind for event in run.events if event.kind in ("cure", "rollback")]
    tried = max((int((event.data or {}).get("tried", 0)) for event in run.events), default=0)
    return {"loss": loss, "found": found_by(run.diagnoses), "error": error, "cures": len(cures), "tried": tried}


def in_loop(program: Program, *, watch: bool, measures: bool = False, cures: bool = False) -> dict[str, Any]:
    """Train as a person would, by an optimiser of PyTorch."""
    loop, recipe = program.loop(), program.recipe
    optimizer, found, applied, error = loop.optimizer, list[Diagnosis](), 0, None
    seen = tw.Watch(loop.model, optimizer, total=recipe.steps) if watch else None
    for number, batch in enumerate(loop.batches()):
        loss = loop.loss(batch)
        if loss.requires_grad:
            loss.backward()
        if number >= recipe.not_taken:
            optimizer.step()
            loop.schedule.step()
        optimizer.zero_grad()
        if seen is None:
            continue
        closure = (lambda batch=batch: loop.loss(batch)) if measures else None
        for diagnosis in seen.step(loss, closure=closure, indices=batch.indices if measures else None):
            found.append(diagnosis)
            if cures:
                try:
                    seen.apply(diagnosis)
                    applied += diagnosis.cure is not None
                except ThalwegError as caught:  # there is nothing to go back to
                    error = str(caught)
        if (number + 1) % max(1, recipe.steps // 10) == 0:
            seen.validated(loop.held_out_loss())
    if seen is not None:
        seen.close()
    return {"loss": loop.held_out_loss(), "found": found_by(found), "cures": applied, "error": error}


RUN: dict[str, Callable[[Program], dict[str, Any]]] = {
    "off": lambda program: in_loop(program, watch=False),
    "twins": lambda program: in_train(program, watch=False),
    "train": in_train,
    "cured": lambda program: in_loop(program, watch=True, measures=True, cures=True),
    "closure": lambda program: in_loop(program, watch=True, measures=True),
    "bare": lambda program: in_loop(program, watch=True),
}


def jobs(mode: str, half: str | None, seeds: int) -> list[Program]:
    """Give the programs of a mode, each with its seed; those that are not watched include candidates, to find which do harm."""
    chosen = [each for each in faults.programs() if half in (None, each.half)]
    if mode in ("off", "twins"):
        faulty = [each for each in faults.candidates() if half in (None, each.half)]
        chosen = [each for each in chosen if not each.causes]
        chosen = list({each.name: each for each in (*map(twin_of, faulty), *chosen)}.values())
        chosen += faulty if mode == "off" else []
    if mode in ("train", "twins"):
        chosen = [each for each in chosen if not each.own_loop_only]
    random.Random(0).shuffle(chosen)  # so that the first runs speak for all
    return [each.with_seed(seed) for seed in range(seeds) for each in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", default=MODES, help=f"of {', '.join(MODES)}; default: all")
    parser.add_argument("--half", choices=("development", "held out"), help="default: both")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each program")
    parser.add_argument("--only", default="", help="names that hold this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RAW.mkdir(parents=True, exist_ok=True)
    for mode in options.modes:
        done = {(line["program"], line["seed"]) for line in read_lines(file_of(mode))}
        left = [
            each
            for each in jobs(mode, options.half, options.seeds)
            if (each.name, each.seed) not in done and options.only in each.name
        ]
        began = time.perf_counter()
        for number, program in enumerate(left, 1):
            started = time.process_time()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                made = RUN[mode](program)
            told = sorted(
                {str(each.message) for each in said if "watch" in str(each.message) or "cause" in str(each.message)}
            )
            line = {"program": program.name, "seed": program.seed, "half": program.half, **made}
            line["seconds"] = round(time.process_time() - started, 2)
            append_line(file_of(mode), {**line, "warned": told} if told else line)
            if number % 20 == 0 or number == len(left):
                each = (time.perf_counter() - began) / number
                rest = each * (len(left) - number)
                print(f"{mode}: {number} of {len(left)}, {rest:.0f} s left", flush=True)


if __name__ == "__main__":
    main()
