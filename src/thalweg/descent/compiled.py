"""A compiled forward pass: `torch.compile` for the batches of training that all have one size; the module stays as it is.

Whether a call goes the compiled way follows from that call alone, never from what was compiled before it. Else a resumed run,
which begins with another batch, would compile other code and have other bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from thalweg.descent.out_of_memory import out_of_memory
from thalweg.errors import error_text
from thalweg.sampling.sources import leaves

MOST_CHARACTERS = 200  # of a compiler's error that is repeated


class CompiledForward:
    """Sends a model's calls in training with batches of one size through compiled code, and all others the ordinary way.

    `has_compiled` says whether a call went that way. `failure` says why nothing is compiled any more, where compiling failed: the
    model is then called as if nobody had asked.

    Arguments:
        model: is called through this object until `undo`; neither its attributes nor the names of its weights change.
        made_by: what the model was made by or copied from: models of one make share compiled code.
        batch_size: of the batches that are compiled for.
    """

    def __init__(self, model: nn.Module, made_by: object, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._function = _compiled_function(made_by)
        self.failure: str | None = None
        self.has_compiled = False
        model._compiled_call_impl = (
            self  # what nn.Module.compile sets too: no attribute of the user's, nor part of a copy
        )

    def undo(self) -> None:
        """Have the model called in the ordinary way again."""
        self._model._compiled_call_impl = None

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the model."""
        if self.failure is None and self._is_for(arguments, keywords):
            try:
                with nullcontext() if self.has_compiled else _without_processes():
                    output = self._function(self._model, arguments, keywords)
                self.has_compiled = True
                return output
            except Exception as error:
                if out_of_memory(error):
                    raise
                # Compiling fails before anything has run, so that the call can be repeated; where it fails too, the fault is the
                # model's, and its own error the one to see.
                output = _call(self._model, arguments, keywords)
                self.failure = f"{error_text(error):.{MOST_CHARACTERS}}"
                return output
        return _call(self._model, arguments, keywords)

    def _is_for(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
        tensors = leaves((arguments, dict(keywords)))
        return (
            self._model.training
            and torch.is_grad_enabled()
            and bool(tensors)
            and all(tensor.dim() > 0 and len(tensor) == self._batch_size for tensor in tensors)
        )


def _call(model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    return model._call_impl(*arguments, **keywords)  # as `model(...)` does where nothing is compiled


_functions: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _compiled_function(made_by: object) -> Callable[..., Any]:
    """Give the function (model, arguments, keywords) whose compiled code the models of one make share."""
    try:
        known = _functions.get(made_by)
    except TypeError:  # it takes no weak references
        return _new_function()
    if known is None:
        known = _functions[made_by] = _new_function()
    return known


def _new_function() -> Callable[..., Any]:
    # torch.compile keeps what it compiled with the code object, a few versions of it: each make has one of its own.
    own = FunctionType(_call.__code__.replace(), _call.__globals__)
    # The whole forward as one graph, of static shapes: what is compiled depends on nothing but the batch.
    return torch.compile(own, fullgraph=True, dynamic=False)


@contextmanager
def _without_processes() -> Generator[None]:
    """Within, the compiler starts no processes of its own, unless the user has said how many."""
    if "TORCHINDUCTOR_COMPILE_THREADS" in os.environ:
        yield
        return
    import torch._inductor.config as settings  # takes seconds to import, and only who compiles needs it

    with settings.patch(compile_threads=1):
        yield


def compiled_graphs() -> int:
    """Give how many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters  # takes seconds to import, and only who compiles needs it

    return counters["stats"]["unique_graphs"]
