"""Names that people type: the field's other words for a knob or an argument, each with the one word that is used here.

A wrong name is refused with the right one, and not accepted: a knob has one name in every plan, report and program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from thalweg.arguments import check_calls
from thalweg.errors import ArgumentError, ThalwegError, nearest

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

KNOBS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "learningrate", "step_size", "eta", "eta0", "max_lr", "peak_lr", "base_lr", "initial_lr"),
    "weight_decay": ("wd", "decay", "weightdecay", "l2", "l2_penalty", "regularization"),
    "weight_decay_schedule": ("wd_schedule", "decay_schedule", "weight_decay_scheduler", "wd_scheduler"),
    "batch_size": ("bs", "batch", "batchsize", "train_batch_size", "per_device_train_batch_size", "minibatch_size"),
    "rule": ("optimizer", "optimiser", "optim", "algorithm", "solver", "update_rule"),
    "schedule": ("scheduler", "lr_scheduler", "lr_schedule", "lr_scheduler_type", "learning_rate_schedule"),
    "schedule.warmup": ("warmup", "warm_up", "warmup_steps", "num_warmup_steps", "lr_warmup"),
    "steps": ("max_steps", "num_steps", "n_steps", "total_steps", "iterations", "max_iters", "max_iter", "n_iter"),
    "epochs": ("epoch", "n_epochs", "num_epochs", "max_epochs", "num_train_epochs"),
    "seconds": ("time", "max_time", "time_limit", "timeout"),
    "clip_norm": (
        *("clip", "grad_clip", "clip_grad", "gradient_clip", "gradient_clip_val", "clip_grad_norm", "clipnorm"),
        *("max_grad_norm", "max_norm", "gradient_clipping"),
    ),
    "clip_value": ("clipvalue", "clip_grad_value"),
    "accumulate": ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum", "accumulation_steps"),
    "ema": ("ema_decay", "moving_average", "weight_average"),
    "precision": ("dtype", "amp", "mixed_precision", "fp16", "bf16", "half"),
    "seed": ("random_state", "random_seed", "manual_seed"),
    "workers": ("num_workers", "n_workers", "n_jobs", "dataloader_num_workers"),
    "threads": ("num_threads", "n_threads"),
    "patience": ("early_stopping", "early_stopping_patience", "early_stop"),
    "validate_every": (
        "eval_every",
        "eval_steps",
        "val_every",
        "val_check_interval",
        "validation_every",
        "eval_interval",
    ),
    "checkpoint_seconds": ("checkpoint_every", "save_every", "save_steps"),
}
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "model": ("net", "network", "module", "model_init", "factory", "estimator"),
    "loss": ("criterion", "loss_fn", "loss_func", "loss_function", "objective"),
    "data": (
        "train",
        "training",
        "dataset",
        "train_data",
        "train_dataset",
        "train_loader",
        "train_dataloader",
        "inputs",
    ),
    "validation": (
        *("val", "valid", "val_data", "valid_data", "validation_data", "val_dataset", "eval_dataset", "val_loader"),
        *("val_dataloader", "test", "test_data"),
    ),
    "metrics": ("metric", "scoring", "compute_metrics", "callbacks_metrics"),
    "step": ("training_step", "train_step", "closure"),
    "evaluate": ("eval_step", "validation_step", "val_step"),
    "collate_fn": ("collate", "data_collator"),
    "weights": ("sample_weight", "sample_weights", "sampling_weights"),
    "select": ("monitor", "metric_for_best_model", "criterion_metric"),
    "mode": ("direction", "greater_is_better"),
    "out": ("output", "output_dir", "folder", "path", "run_dir", "log_dir", "save_dir", "outdir"),
    "progress": ("verbose", "progress_bar", "quiet", "silent"),
    "on_step": ("callback", "callbacks", "step_callback"),
    "changes": ("set", "changed", "knobs", "overrides"),
    "fixed": ("fix", "knobs", "hyperparameters"),
    "learning_rate_factor": ("learning_rate", "lr", "lr_factor", "lr_scale", "lr_mult"),
    "weight_decay_factor": ("weight_decay", "wd", "decay", "wd_factor", "decay_mult"),
    **KNOBS,
}
MISSING = {
    "task": " Give a thalweg.Task(model=…, loss=…, data=…).",
    "plan": " Give a thalweg.Plan(learning_rate=…), or one that `tune` chose; `fit` chooses its own.",
    "model": " Give an nn.Module, or a function without arguments that makes one.",
    "run": " Give a run, or its folder.",
    "inputs": " Give what the model takes, such as x.",
}
"""What to give for an argument that is missing."""


def right_word(name: str, known: Iterable[str]) -> str | None:
    """Give the word among those known for a name of the field's; None where there is none.

    >>> right_word("lr", ["learning_rate", "rule"]), right_word("warmup-steps", ["schedule"]), right_word("x", ["y"])
    ('learning_rate', 'schedule.warmup', None)
    """
    known, plain = set(known), name.lower().replace("-", "_")
    for word, others in ARGUMENTS.items():
        if (plain in others or plain == word) and word.partition(".")[0] in known and word != name:
            return word
    return None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say, for a message, what a name is called here, or which known one is spelt alike; nothing where neither is.

    >>> suggestion("lr", ["learning_rate"]), suggestion("learning_rat", ["learning_rate"])
    (" It is called 'learning_rate' here.", " Did you mean 'learning_rate'?")
    """
    known = list(known)
    word = right_word(name, known)
    return nearest(name, known) if word is None else f" It is called '{word}' here."


def checks_names(what: str, error: type[ThalwegError]) -> Callable[[type[T]], type[T]]:
    """Decorate a record, so that arguments that do not fit raise an error of ours, with the right name, and no TypeError."""

    def decorate(record: type[T]) -> type[T]:
        unknown = functools.partial(_unknown, what, error)
        record.__init__ = check_calls(record.__init__, what, error, unknown, MISSING)
        return record

    return decorate


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function, so that arguments that do not fit raise ArgumentError, with the right name, and no TypeError."""
    what = f"`{function.__name__}`"

    def refuse(name: str, known: list[str]) -> ThalwegError:
        knob = name if name in KNOBS else right_word(name, [word.partition(".")[0] for word in KNOBS])
        if right_word(name, known) is None and knob is not None and {"fixed", "plan"} & set(known):
            key = knob.partition(".")[0]
            way = f"fixed={{'{key}': …}}" if "fixed" in known else f"plan.replace({key}=…)"
            return ArgumentError(f"{what} takes no '{name}'. It is a knob of the plan: {way}.")
        return _unknown(what, ArgumentError, name, known)

    return check_calls(function, what, ArgumentError, refuse, MISSING)


def _unknown(what: str, error: type[ThalwegError], name: str, known: list[str]) -> ThalwegError:
    return error(f"{what} takes no '{name}'.{suggestion(name, known)} It takes {', '.join(known)}.")
