"""Names that people type for a schedule: the words of other libraries, each with the one that is used here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from thalweg.arguments import check_calls
from thalweg.errors import ScheduleError, nearest

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

WORDS: Mapping[str, tuple[str, ...]] = {
    "total": (
        *("total_steps", "num_training_steps", "num_steps", "n_steps", "max_steps", "steps", "epochs", "total_epochs"),
        *("t_max", "total_iters", "decay_steps", "t_initial"),
    ),
    "warmup": (
        *("warm_up", "num_warmup_steps", "warmup_steps", "warmup_epochs", "warmup_iters", "warmup_ratio", "warmup_t"),
        *("pct_warmup", "warmup_fraction"),
    ),
    "final": ("eta_min", "min_lr", "lr_min", "min_lr_ratio", "end_factor", "end_lr", "lr_end", "final_lr", "alpha"),
    "minimum": ("eta_min", "min_lr", "lr_min", "min_lr_ratio"),
    "gamma": ("decay_rate", "decay_factor", "decay", "factor"),
    "factor": ("gamma", "decay_rate", "decay_factor", "decay"),
    "every": ("step_size", "decay_every", "decay_steps"),
    "milestones": ("boundaries",),
    "timescale": ("shift", "decay_steps"),
    "rise": ("pct_start",),
    "period": ("t_0", "first_cycle_steps", "cycle_length"),
    "growth": ("t_mult", "cycle_mult"),
    "total_steps": ("total", "steps", "num_training_steps", "max_steps"),
    "steps_per_epoch": ("epoch_steps", "batches_per_epoch"),
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say, for a message, what a name is called here, or which known one is spelt alike; nothing where neither is.

    >>> suggestion("T_max", ["total", "warmup"]), suggestion("min_lr", ["final"])
    (" It is called 'total' here.", " It is called 'final' here, a share of the peak learning rate.")
    """
    known, plain = list(known), name.lower()
    word = next((word for word, others in WORDS.items() if word in known and plain in others), None)
    if word is None:
        return nearest(name, known)
    is_rate = {"lr", "eta"} & set(plain.split("_"))
    return f" It is called '{word}' here{', a share of the peak learning rate' if is_rate else ''}."


def takes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or method, so that arguments that do not fit raise ScheduleError, and no TypeError."""
    what = f"`schedule.{function.__qualname__.removesuffix('.__init__')}`"

    def unknown(name: str, known: list[str]) -> ScheduleError:
        return ScheduleError(f"{what} takes no '{name}'.{suggestion(name, known)} It takes {', '.join(known)}.")

    return check_calls(function, what, ScheduleError, unknown)


def checks_names(record: type[T]) -> type[T]:
    """Decorate a class, as `takes` does a function."""
    record.__init__ = takes(record.__init__)
    return record
