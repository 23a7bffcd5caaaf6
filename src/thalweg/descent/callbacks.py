"""Functions of the user's that are called while a run trains: after every step, and after every validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from thalweg.descent.state import Descent
from thalweg.errors import ArgumentError, CallbackError, shown
from thalweg.objects.state import ObjectState
from thalweg.records.step_figures import StepFigures

OnStep = Callable[[nn.Module, StepFigures], Any]
OnValidation = Callable[[nn.Module, int, Mapping[str, float]], Any]


class Callbacks:
    """Calls the user's functions; what they return is ignored.

    They get the model as it is trained. They change no bit of the run unless they change its weights or buffers: the modes of
    its modules are put back, and random numbers and gradients are made anew for every step.

    What they carry themselves (a counter, the best figure so far) is in `objects`, goes with every checkpoint and is put back
    when a run is resumed; no rollback undoes it, since they have seen the steps that it takes back.

    An error that one of them raises is kept in `failure`, for the run to end with once it is saved, and none is called any more.
    A KeyboardInterrupt that one of them raises becomes `stop`.

    Arguments:
        on_step: `on_step(model, figures)`, after a step was taken.
        on_validation: `on_validation(model, step, figures)`, after a validation, the first one at step 0. `figures` are those of
            the averaged weights where these validated better; the model always has the weights that are trained.

    Raises ArgumentError where one cannot be called.
    """

    def __init__(self, on_step: OnStep | None = None, on_validation: OnValidation | None = None) -> None:
        for name, function in (("on_step", on_step), ("on_validation", on_validation)):
            if function is not None and (not callable(function) or isinstance(function, type)):
                raise ArgumentError(
                    f"`{name}` is {shown(function, 80)}, which cannot be called. Give a function, or None."
                )
        self.on_step, self.on_validation = on_step, on_validation
        self.objects = ObjectState({"on_step": on_step, "on_validation": on_validation})
        self.failure: CallbackError | None = None
        self.stop: KeyboardInterrupt | None = None
        self._process = os.getpid()
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []

    @property
    def is_empty(self) -> bool:
        """Whether nobody is to be told of anything."""
        return self.on_step is None and self.on_validation is None

    def begin(self, descent: Descent) -> None:
        """Take note of the descent whose model is given to the functions."""
        self._model, self._modules = descent.model, list(descent.model.modules())

    def step(self, figures: StepFigures) -> None:
        """Call `on_step`."""
        if self.on_step is not None:
            self._call("on_step", self.on_step, figures.step, figures)

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Call `on_validation`."""
        if self.on_validation is not None:
            self._call("on_validation", self.on_validation, step, step, dict(figures))

    def _call(self, name: str, function: Callable[..., Any], step: int, *arguments: Any) -> None:
        if self._model is None or self.failure is not None or self.stop is not None:
            return
        modes = [module.training for module in self._modules]
        try:
            function(self._model, *arguments)
        except KeyboardInterrupt as stop:
            if (
                os.getpid() != self._process
            ):  # in a child that the function forked, the run is not to be stopped and saved
                raise
            self.stop = stop
        except Exception as error:
            if os.getpid() != self._process:
                raise
            text = " ".join(str(error).split())
            self.failure = CallbackError(f"`{name}` failed after step {step}: {type(error).__name__}: {text or '-'}.")
            self.failure.__cause__ = error
        for module, training in zip(self._modules, modes, strict=True):
            if module.training is not training:
                module.training = training
