"""Runs by construction: figures as a descent writes them, without a descent."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg import schedule
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.history import FILE, Event, History
from thalweg.records.plan import Evidence, Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.records.run_folder import PLAN, RunFolder

RATE = schedule.linear(warmup=0.1)
HOSTILE = "<script>alert('x')</script>\"'&\x1b[31m\x00\n"


def columns(steps: int, every: int, *, validation: bool = True, ema: bool = False, end: float = 0.1) -> HistoryColumns:
    """The history of a run that learns: step 0 has a validation alone, every further step its figures."""
    random = np.random.default_rng(0)
    step = np.arange(steps + 1, dtype=np.float64)
    share = step / max(steps, 1)
    curve = 2.3 * (1 - share) ** 2 + end
    noise = np.exp(0.3 * random.standard_normal(steps + 1))
    norms = 1.5 * curve * noise
    factor = RATE.resolve(max(steps, 2)).factor
    told = (step % every == 0) | (step == steps)
    figures = {
        "loss": curve * noise,
        "learning_rate": 0.003 * np.array([factor(max(s - 1, 0)) for s in range(steps + 1)]),
        "gradient_norm": norms,
        "clip_scale": np.minimum(1, 1 / norms),
        "examples": np.full(steps + 1, 32.0),
        "seconds": np.full(steps + 1, 0.001),
    }
    for values in figures.values():
        values[0] = np.nan
    figures["validation/loss"] = np.where(told, curve + 0.05, np.nan)
    if validation:
        figures["validation/accuracy"] = np.where(told, 0.98 - 0.9 * (1 - share) ** 4, np.nan)
    if ema:
        figures["ema/loss"] = np.where(told & (step > 0), curve + 0.02, np.nan)
    return HistoryColumns({"step": step, **figures})


def searched() -> dict[str, Evidence]:
    rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    figures = {
        "learning_rates": [*rates, 1e-3, 3e-3, 3e-3, 1e-2],
        "steps": [80] * 6 + [225] * 4,
        "seeds": [0] * 6 + [0, 0, 1000, 0],
        "scores": [2.3, 2.1, 0.9, 0.5, 3.0, float("inf"), 0.4, 0.2, 0.22, 0.3],
        "price": 3.7,
    }
    sizes = {
        "batch_sizes": [32, 64, 128],
        "examples_per_second": [9000, 14000, 0],
        "megabytes": [410, 411, 900],
        "memory": "measured in child processes",
        "memory_limit_megabytes": 800.0,
        "memory_limit": "what is free on this machine",
        "noise_scale": [40.0, 30.0, 60.0],
        "fixed_megabytes": {"weights": 100.0, "gradients": 100.0},
        "kilobytes_per_example": {"activations": 30.0},
    }
    return {
        "learning_rate": Evidence("searched", "best of 10 short runs", figures),
        "batch_size": Evidence("measured", "the largest that leaves 1,000 updates", sizes),
        "weight_decay": Evidence("derived", "1 / (rate x 0.3 x steps)"),
    }


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Make a run in memory; `summary`, `metrics`, `history` and whatever else is given replace what a healthy run has."""

    def make(
        steps: int = 400,
        *,
        validation: bool = True,
        ema: bool = False,
        plan: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        history: Mapping[str, np.ndarray] | None = None,
        **given: Any,
    ) -> Run:
        every = max(1, steps // 20)
        figures = columns(steps, every, validation=validation, ema=ema)
        if history is not None:
            figures = HistoryColumns({**figures, **history})
        knobs: dict[str, Any] = {
            "learning_rate": 0.003,
            "batch_size": 32,
            "weight_decay": 0.1,
            "schedule": RATE,
            "steps": max(steps, 2),
            "steps_per_epoch": max(1, steps // 20),
            "clip_norm": 10.0,
            "evidence": searched(),
        }
        start = {"loss": float(figures["validation/loss"][0])}
        end = {"loss": float(figures["validation/loss"][-1])}
        if validation:
            start["accuracy"], end["accuracy"] = 0.08, 0.98
        known = {
            "status": "finished",
            "name": "digits",
            "steps": steps,
            "seconds": 3.42,
            "examples": 1438,
            "parameters": 26122,
            "device": "cpu",
            "torch": "2.13.0",
            "select": "loss",
            "mode": "min",
            "validated": validation,
            "start": start,
            "weights": {"step": steps, "averaged": ema},
            "cures": {"rate_factor": 1.0, "clip_norm": 10.0},
            "stopped_early": False,
            "notes": [],
            "idle_parameters": [],
        }
        return Run(
            plan=Plan(**{**knobs, **(plan or {})}),
            history=figures,
            summary={**known, **(summary or {})},
            **{"metrics": end, **given},
        )

    return make


@pytest.fixture
def rescued(make_run: Callable[..., Run]) -> Run:
    """A run that diverged at step 120, went back to 100 and came through at half the rate."""
    cure = Cure("Go back, halve the rate and clip at 1.", rollback=True, rate_factor=0.5, clip_norm=1.0)
    found = Diagnosis(
        symptom="diverging",
        cause="the smoothed loss runs away.",
        severity="critical",
        step=120,
        since=112,
        evidence={"smoothed_loss": {"value": 9.1, "threshold": 4.2}, "note": "a text"},
        not_measured=("bad batch",),
        examples=(4, 5),
        cure=cure,
        verified=True,
        probability=0.9,
    )
    back = {"from": 120, "to": 100, "rate_factor": 0.5, "clip_norm": 1.0}
    events = (
        Event(120, "diverging", str(found), lists(found.to_dict()), 1, True),
        Event(100, "rollback", "Went back from step 120 to step 100.", back, 2, False),
        Event(300, "resume", "Went on from step 300.", {}, 3, False),
        Event(350, "nonfinite", "step 350: this batch was left out.", {}, 3, False),
    )
    summary = {"cures": {"rate_factor": 0.5, "clip_norm": 1.0}}
    return make_run(events=events, diagnoses=(found,), summary=summary, ema=True)


@pytest.fixture
def hostile(make_run: Callable[..., Run]) -> Run:
    """A run in which every text that a task can choose is an attack."""
    from dataclasses import replace

    plain = make_run()
    figures = {**plain.history, f"validation/{HOSTILE}": plain.history["validation/loss"]}
    found = Diagnosis(
        HOSTILE, HOSTILE, evidence={HOSTILE: {"value": HOSTILE, "threshold": 1.0}}, consequences=(HOSTILE,)
    )
    evidence = {"learning_rate": Evidence("given", HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE]})}
    return replace(
        plain,
        plan=plain.plan.replace(evidence=evidence),
        history=HistoryColumns(figures),
        events=(
            Event(3, HOSTILE, HOSTILE, {}, 1, False),
            Event(4, "rollback", HOSTILE, {"from": 9, "to": 4}, 1, False),
        ),
        diagnoses=(found,),
        metrics={"loss": 0.1, HOSTILE: 0.5},
        summary={**plain.summary, "name": HOSTILE, "device": HOSTILE, "notes": [HOSTILE], "idle_parameters": [HOSTILE]},
        folder=Path(f"runs/{HOSTILE.replace('/', '|')}"),
    )


def lists(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in entries.items()}


@pytest.fixture
def keep() -> Callable[[Run, Path], Run]:
    """Write a run into a folder as a descent does, and open it."""

    def write(run: Run, folder: Path) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in run.history if name != "step"]
        with History(folder / FILE) as history:
            for row in range(len(run.history["step"])):
                values = {name: float(run.history[name][row]) for name in names if not np.isnan(run.history[name][row])}
                history.append(int(run.history["step"][row]), values)
            for event in run.events:
                history.event(event.step, event.kind, event.message, event.data)
        run.plan.save(folder / PLAN)
        status = {
            "status": run.summary["status"],
            "metrics": dict(run.metrics),
            "summary": dict(run.summary),
            "diagnoses": [lists(d.to_dict()) for d in run.diagnoses],
        }
        RunFolder(folder).write_status(status)
        return Run.open(folder)

    return write
