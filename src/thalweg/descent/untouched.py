"""Calling a descent's model and loss beside its steps, without leaving a trace in it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from thalweg.descent.gradient import STEP_SEED
from thalweg.descent.moving_weights import all_put_back, put_back
from thalweg.descent.process_state import rng_lock
from thalweg.descent.state import Descent
from thalweg.descent.their_objects import STEPPING
from thalweg.landscape.put_back import buffers_put_back
from thalweg.sampling import mix
from thalweg.sampling.sources import seed_all
from thalweg.watch.probe import NotMeasuredError


def _without_compiling() -> AbstractContextManager[object]:
    """Within, what was compiled runs as it was written: hooks, and gradients that are off, would have it compiled anew.

    Where nothing was, the compiler is not even loaded: that takes a second.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def untouched(descent: Descent, *, weights: bool = True) -> Generator[None]:
    """Within, the model may be called and gradients taken; its buffers, weights that it moves itself, gradients and the user's
    objects are as before afterwards. Random numbers are those of the step; each step seeds its own.

    Within another one the user's objects and the weights are put back by that: comparing them takes a while. `weights`: whether
    they are put back; else only those that the model is known to move.

    Raises NotMeasuredError where something that the code carries could not be put back, such as a place in an iterator: to
    call it would change the run.
    """
    gradients = [(parameter, parameter.grad) for parameter in descent.model.parameters()]
    terms, is_inner = descent.terms, descent.is_untouched
    descent.is_untouched = True
    try:
        with (
            rng_lock,
            _without_compiling(),
            nullcontext() if is_inner else descent.objects.unchanged(*STEPPING),
            all_put_back(descent.model) if weights and not is_inner else nullcontext(),
            put_back(descent.model, descent.moving) if descent.moving else nullcontext(),
            buffers_put_back(descent.model, descent.problem.objective.loss_buffers.values()),
        ):
            for path in descent.objects.irrevocable:
                raise NotMeasuredError(f"the step once more would change `{path}` for good")
            seed_all(mix(descent.plan.seed, STEP_SEED, *descent.last_position))
            try:
                yield
            finally:
                descent.terms = terms
                for parameter, gradient in gradients:
                    parameter.grad = gradient
    finally:
        descent.is_untouched = is_inner
