"""One tree of errors: each says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence
from typing import Any

LARGEST = 10**60  # of an int whose digits a message repeats
LOG10_OF_2 = 0.30103


class ThalwegError(Exception):
    """The base class of all of thalweg's errors.

    `run` is the `Run` that was trained until then, where training had begun; else None.
    """

    run: Any = None


class ArgumentError(ThalwegError):
    """An argument of a function is of a kind that it does not take, or has a name that it does not know."""


class TaskError(ThalwegError):
    """The task does not fit together: its file, model, loss, step or metrics."""


class DataError(TaskError):
    """The data cannot be trained on: empty, of unequal lengths, not finite, or labels out of range."""


class PlanError(ThalwegError):
    """A knob of the plan has a value that is not allowed, or a name that does not exist."""


class RuleError(PlanError, ValueError):
    """An unknown update rule, a constant of one outside its range, or a tensor that no step can be taken on.

    It is a ValueError too, which is what PyTorch's own optimisers raise.
    """


class ScheduleError(PlanError):
    """An unknown schedule shape, or an option that does not fit it."""


class RunError(ThalwegError):
    """A run's folder cannot be written, read or resumed, or it holds another run."""


class CheckpointError(RunError):
    """A checkpoint is truncated, altered, of another model, or cannot be written."""


class StudyError(RunError):
    """The database of a search cannot be reached, read or written, or holds another search."""


class LostFolderError(RunError):
    """A run's folder was removed or replaced while the run was written to it."""


class DivergedError(ThalwegError):
    """The descent left every basin and the cures at hand did not bring it back."""


class NonFiniteError(DivergedError):
    """Loss or gradient stayed NaN or infinite; no weight was updated with it."""


class CallbackError(ThalwegError):
    """A function that was given as `on_step` or `on_validation` failed; its error is the `__cause__`, and the run is saved."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a verb; what was done until then is saved where the run has a folder.

    It is a `KeyboardInterrupt`, and no `ThalwegError`: `except Exception` lets it pass.

    Arguments:
        message: what was saved, and how to go on.
        signal: the signal's number, SIGINT or SIGTERM.
        run: the `Run` that was trained until then, with its model; None where training had not begun.
        survey: what a `survey` had measured until then; None elsewhere.
        comparison: what a `compare` had, if it had more than the ends; None elsewhere.
    """

    def __init__(
        self,
        message: str = "",
        *,
        signal: int = signal.SIGINT,
        run: Any = None,
        survey: Any = None,
        comparison: Any = None,
    ) -> None:
        super().__init__(message)
        self.signal = int(signal)
        self.run, self.survey, self.comparison = run, survey, comparison

    @property
    def exit_status(self) -> int:
        """The status with which a process conventionally ends on the signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


def error_text(error: BaseException) -> str:
    """Give an error's type and text in one line.

    >>> error_text(ValueError("one\\ntwo")), error_text(KeyError())
    ('ValueError: one two', 'KeyError')
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_SAME: tuple[tuple[str, ...], ...] = (
    ("lr", "learning_rate", "learningrate", "step_size", "stepsize", "eta"),
    ("weight_decay", "wd", "weightdecay", "l2"),
    ("eps", "epsilon"),
    ("momentum", "beta1", "betas", "beta", "b1", "mu"),
    ("beta2", "alpha", "rho", "b2", "betas"),
    ("clip_norm", "max_grad_norm", "max_norm", "grad_clip", "clip_grad", "clip_grad_norm", "clipnorm"),
    ("clip_value", "clipvalue", "clip_grad_value"),
    ("ema", "ema_decay", "ema_momentum"),
)
"""Words for the same thing, in the literature and in other libraries."""


def synonym(word: str, choices: Iterable[str]) -> str | None:
    """Give the choice that is another word for the same thing; None where there is none.

    >>> synonym("learning_rate", ["betas", "lr"])
    'lr'
    """
    choices = list(choices)
    return next((other for same in _SAME if word in same for other in choices if other in same), None)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Give `" Did you mean 'x'?"` for a mistyped word or another word for the same, or an empty text where no choice is similar.

    >>> nearest("adamww", ["adam", "adamw", "momentum"]), nearest("wd", ["lr", "weight_decay"])
    (" Did you mean 'adamw'?", " Did you mean 'weight_decay'?")
    """
    choices = list(choices)
    matches = difflib.get_close_matches(word, choices, n=1)
    found = synonym(word, choices) or (matches[0] if matches else None)
    return f" Did you mean '{found}'?" if found else ""


def shown(value: object, most: int = 200) -> str:
    """Give a value that somebody passed, for a message: the beginning of its `repr`, or its type where it has none.

    >>> shown("adamw"), shown(list(range(99)), 11), shown(10**9999)
    ("'adamw'", '[0, 1, 2, 3', 'an int of about 10,000 digits')
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"an int of about {round(value.bit_length() * LOG10_OF_2, -2):,.0f} digits"
    try:
        return repr(value)[:most]
    except Exception:  # a list with such an int, or a class whose `repr` fails
        return f"a {type(value).__name__} that cannot be shown"


def few(values: Sequence[object], most: int = 5, quote: str = "") -> str:
    """Say the first few numbers or names, for a message; each between two `quote`.

    >>> few([3, 7]), few(range(9)), few("abcd", most=3), few("ab", quote="`")
    ('3, 7', '0, 1, 2, 3, 4, …', 'a, b, c, …', '`a`, `b`')
    """
    return ", ".join(f"{quote}{value}{quote}" for value in values[:most]) + (", …" if len(values) > most else "")
