"""Histories of other programs: a table of steps as CSV or JSON lines, or TensorBoard's event files; loss and learning rate are
enough."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import RunError, shown
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import FILE
from thalweg.records.run_folder import PLAN
from thalweg.records.step_figures import StepFigures
from thalweg.watch.event_files import is_event_file, is_event_folder, read_scalars, rows
from thalweg.watch.findings import findings_after_training
from thalweg.watch.finished import FinishedHistory, Values
from thalweg.watch.monitor import SAME_FAILURE_STEPS, Monitor

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".log")
MOST_BYTES = 1 << 30
LOSS = (
    "loss",
    "train_loss",
    "training_loss",
    "loss_train",
    "batch_loss",
    "train_loss_step",
    "loss_step",
    "train_loss_epoch",
    "epoch_loss",
)
NAMES: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "trainer_global_step", "iteration", "iter", "it", "update", "batch", "n_iter"),
    "loss": LOSS,
    "learning_rate": ("learning_rate", "lr", "train_learning_rate", "train_lr", "lr_group_0", "epoch_learning_rate"),
    "gradient_norm": ("gradient_norm", "grad_norm", "train_grad_norm", "train_gradient_norm", "gnorm"),
    "validation/loss": (
        "validation_loss", "val_loss", "eval_loss", "valid_loss", "dev_loss", "test_loss", "loss_val", "validation_loss_epoch",
        "loss_validation", "loss_valid", "loss_eval", "loss_test", "val_loss_epoch",
    ),
}  # fmt: skip
NEEDED = {
    "learning_rate": "a column of the learning rate, to tell a schedule's end and a rate too low",
    "gradient_norm": "a column of the gradient norm, for spikes and gradients that are not finite",
    "validation/loss": "a column of the validation loss, for overfitting",
}


@dataclass(frozen=True)
class ForeignHistory:
    """A table of another program's training.

    - `columns`: by our names ("step", "loss", "learning_rate", "gradient_norm", "validation/loss"), NaN where a row has none.
    - `taken`: which of the table's columns each was taken from.
    - `lacks`: what more would help, in words.
    - `notes`: what is to be said of the files, in words.
    """

    columns: Mapping[str, Values]
    taken: Mapping[str, str]
    lacks: tuple[str, ...]
    notes: tuple[str, ...] = ()


def is_foreign(path: Path) -> bool:
    """Tell whether a path is a file that is named as a table or an event file is, or a folder of event files and no run's."""
    try:
        if path.is_dir():
            is_run = any((path / name).exists() for name in (PLAN, FILE))
            return not is_run and is_event_folder(path)
        return (path.suffix.lower() in ENDINGS and path.is_file()) or is_event_file(path)
    except OSError:  # not to be looked at: what opens it says so
        return False


def read_history(path: Path) -> ForeignHistory:
    """Read a table, as CSV (also with tabs or semicolons) or as JSON lines, or TensorBoard's event files.

    Raises RunError where it is none of these, has no loss, is damaged, or has a cell that is neither a number nor empty; it names
    the place.
    """
    if path.is_dir() or is_event_file(path):
        scalars, notes = read_scalars(path)
        return replace(_history(rows(scalars), path), notes=notes)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path} is larger than {MOST_BYTES >> 30} GiB. Give a table of at most that.")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is no text ({error}). Give a CSV or JSON lines file of a training's steps.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    table = _json_rows(lines, path) if first.lstrip().startswith("{") else _csv_rows(lines, path)
    return _history(list(table), path)


def diagnose_history(history: ForeignHistory) -> list[Diagnosis]:
    """Give what its figures show: as they would have been seen step by step, and at the end."""
    losses, steps = history.columns["loss"], history.columns["step"]
    present = np.flatnonzero(history.columns["loss is there"])  # though the cell may say NaN
    monitor, found = Monitor(total=len(present)), list[Diagnosis]()
    window = monitor.window
    window.knows_gradient = "gradient_norm" in history.taken
    rates, norms = (history.columns[name] for name in ("learning_rate", "gradient_norm"))
    validation = history.columns["validation/loss"]
    numbers = dict(zip(present.tolist(), range(1, len(present) + 1), strict=True))
    last = 0
    for row in range(len(losses)):
        if row in numbers:
            last = numbers[row]
            found += monitor.observe(StepFigures(last, float(losses[row]), float(rates[row]), float(norms[row])))
        if math.isfinite(validation[row]):
            monitor.validated(last, float(validation[row]))
    at = {number: int(steps[row]) for row, number in numbers.items()}
    found = [_renumbered(each, at) for each in _begun(found)]
    finished = FinishedHistory(
        columns=history.columns,
        validated="validation/loss" in history.taken,
        steps=int(steps[-1]) if len(steps) else 0,
    )
    known = {(each.name, each.symptom) for each in found}
    found += [each for each in findings_after_training(finished) if (each.name, each.symptom) not in known]
    return [replace(each, not_measured=(*each.not_measured, *history.lacks, *history.notes)) for each in found]


def _begun(found: list[Diagnosis]) -> list[Diagnosis]:
    """Leave out what goes on: a failure that nobody cures is found again at every step."""
    kept, last = list[Diagnosis](), dict[tuple[str, str], int]()
    for each in found:
        key, step = (each.name, each.symptom), each.step or 0
        if key not in last or step > last[key] + SAME_FAILURE_STEPS:
            kept.append(each)
        last[key] = step
    return kept


def _renumbered(found: Diagnosis, at: Mapping[int, int]) -> Diagnosis:
    """Give a diagnosis by the table's own steps instead of its rows."""
    step, since = (None if number is None else at.get(number, number) for number in (found.step, found.since))
    return replace(found, step=step, since=since)


def _csv_rows(lines: list[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    used = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if len(used) < 2:
        raise RunError(f"{path} holds no table: give a line of names and a line for each step.")
    head = used[0][1]
    separator = max(",;\t", key=head.count)
    names = [name.strip() for name in next(csv.reader([head], delimiter=separator))]
    for number, line in used[1:]:
        cells = next(csv.reader([line], delimiter=separator))
        if len(cells) != len(names):
            raise RunError(f"{path}, line {number}: {len(cells)} cells, where the first line has {len(names)} names.")
        yield number, dict(zip(names, cells, strict=True))


def _json_rows(lines: list[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}, line {number}: no JSON ({error}). Is the file cut off?") from error
        if not isinstance(row, dict):
            raise RunError(f"{path}, line {number}: {shown(row, 60)} is no table of figures by names.")
        yield number, {str(name): value for name, value in row.items()}


def _history(table: list[tuple[int, dict[str, Any]]], path: Path) -> ForeignHistory:
    names = list(dict.fromkeys(name for _, row in table for name in row))
    by_plain = {_plain(name): name for name in reversed(names)}
    taken = {ours: by_plain[one] for ours, known in NAMES.items() if (one := _first(known, by_plain)) is not None}
    rates = [
        name for name in names if _plain(name).startswith("lr_")
    ]  # with the optimiser's name behind it, as Lightning's
    if "learning_rate" not in taken and rates:
        taken["learning_rate"] = rates[0]
    if "loss" not in taken:
        raise RunError(
            f"{path} has no column of the training loss: its columns are {', '.join(names[:12]) or 'none'}. Name it `loss`, or"
            f" `train_loss`."
        )
    columns: dict[str, Values] = {}
    for ours in NAMES:
        name = taken.get(ours)
        cells = [] if name is None else [_number(row.get(name), path, line, name) for line, row in table]
        columns[ours] = np.array(cells if cells else [None] * len(table), dtype=np.float64)
        if ours == "loss":
            columns["loss is there"] = np.array([cell is not None for cell in cells], dtype=np.float64)
    if "step" not in taken:
        columns["step"] = np.arange(1, len(table) + 1, dtype=np.float64)
    else:
        columns["step"] = _filled(columns["step"])
    return ForeignHistory(columns, taken, tuple(text for name, text in NEEDED.items() if name not in taken))


def _filled(steps: Values) -> Values:
    """Give rows without a step that of the row before."""
    filled, last = steps.copy(), 0.0
    for row, step in enumerate(steps):
        last = last if math.isnan(step) else step
        filled[row] = last
    return filled


def _first(known: Iterable[str], there: Mapping[str, str]) -> str | None:
    return next((name for name in known if name in there), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _number(cell: Any, path: Path, line: int, name: str) -> float | None:
    """Give a cell as a number, None where it is empty. Raises RunError where it is neither."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        if isinstance(cell, bool):
            raise ValueError
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        raise RunError(f"{path}, line {line}, column `{name}`: {shown(cell, 40)} is no number.") from None
