"""The probe of a training loop of one's own: what a closure that recomputes the batch's loss, or the loop itself, can tell."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.landscape.constant_output import constant_output_loss, zero_output_loss
from thalweg.landscape.first_nonfinite import first_nonfinite
from thalweg.landscape.loss_terms import TOTAL
from thalweg.landscape.normalisation import Normalisation, normalisations
from thalweg.landscape.per_example import unreduced_losses
from thalweg.landscape.put_back import buffers_put_back
from thalweg.landscape.unit_activity import Layer, unit_activity
from thalweg.records.diagnosis import Cure
from thalweg.records.step_figures import StepFigures
from thalweg.sampling import Draw
from thalweg.sampling.sources import leaves
from thalweg.watch.lost_terms import gradients_text
from thalweg.watch.probe import ExampleLosses, FixedAnswer, NotMeasuredError, Probe, along, root_mean_square, write
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.step_recorder import StepRecorder, second_moment_memory

USUAL = 8  # batches whose examples' losses are kept, to compare with
NEEDS_CLOSURE = "needs `closure=`, which recomputes the batch's loss"


class LoopProbe(Probe):
    """Measures on the step that a person's loop has just taken.

    Arguments:
        model: the network.
        recorder: holds the weights before the step where they were kept, and the last snapshot.
    """

    def __init__(self, model: nn.Module, recorder: StepRecorder) -> None:
        self.model, self.recorder = model, recorder
        self.closure: Callable[[], Any] | None = None
        self.indices: Sequence[int] | Tensor | None = None
        self.per_example: Tensor | None = None
        self.inputs: Any = None  # of the model's last call
        self.usual: deque[Tensor] = deque(maxlen=USUAL)

    def given(
        self, closure: Callable[[], Any] | None, indices: Sequence[int] | Tensor | None, per_example: Tensor | None
    ) -> None:
        """Take what the loop gives of a step."""
        if self.per_example is not None:
            self.usual.append(self.per_example)
        self.closure, self.indices = closure, indices
        self.per_example = None if per_example is None else per_example.detach().float().flatten()

    @property
    def size(self) -> int:
        """How many examples the model was called on last; 0 where that is not known."""
        if self.inputs is not None and self.inputs[0]:  # most models are called on one tensor
            first = self.inputs[0][0]
            if isinstance(first, Tensor) and first.dim():
                return first.size(0)
        return next((len(each) for each in leaves(self.inputs) if each.dim()), 0)

    def batch(self) -> Batch:
        """Give what the model was called on last."""
        if self.inputs is None:
            return super().batch()
        size = self.size
        indices = None if self.indices is None else torch.as_tensor(self.indices)
        return Batch(Draw([self.inputs], [size], indices), 0, self.recorder.count)

    def loss_along(self) -> Callable[[float], float]:
        """Give the loss of the closure along the update."""
        self._closure()
        before, parameters = self.recorder.before, self.recorder.parameters
        if before is None:
            return super().loss_along()
        return along(parameters, before, [parameter.detach().clone() for parameter in parameters], self._loss)

    def others_along(self) -> Callable[[float], float]:
        """Give the loss of the closure along the update of the step before."""
        self._closure()
        earlier, before = self.recorder.earlier, self.recorder.before
        if earlier is None or before is None or len(earlier) != len(before):
            return super().others_along()
        return along(self.recorder.parameters, earlier, before, self._loss)

    def unit_activity(self, *, at_snapshot: bool = False) -> tuple[Layer, ...]:
        """Give what the units do on this batch."""
        closure = self._closure()
        outputs: list[Any] = []

        def call() -> Any:
            closure()
            return outputs[-1] if outputs else None

        handle = self.model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            with self.unchanged(), self._at_snapshot() if at_snapshot else nullcontext():
                return unit_activity(self.model, [call])
        finally:
            handle.remove()

    @contextmanager
    def _at_snapshot(self) -> Generator[None]:
        """Within, the model has the last snapshot's weights and buffers."""
        held, snapshot = self.recorder.held, self.recorder.snapshot
        if snapshot is None:
            raise NotMeasuredError("weights from before the step, of which snapshots are off")
        now = [tensor.detach().clone() for tensor in held]
        try:
            write(held, snapshot.tensors)
            yield
        finally:
            write(held, now)

    def example_losses(self) -> ExampleLosses:
        """Give what the loop gave as `per_example`; else what PyTorch's losses give, as called by the closure, at the weights of
        the last snapshot."""
        examples = [] if self.indices is None else [int(index) for index in self.indices]
        if self.per_example is not None:
            usual = torch.cat([*self.usual]) if self.usual else self.per_example[:0]
            return ExampleLosses(self.per_example.cpu(), usual.cpu(), examples)
        closure, snapshot = self._closure(), self.recorder.snapshot
        with self.unchanged(), self._at_snapshot() if snapshot is not None else nullcontext():
            losses = unreduced_losses(closure)
        if losses is None:
            raise NotMeasuredError("needs `per_example=`, the loss of each example")
        return ExampleLosses(losses.cpu(), losses[:0].cpu(), examples if len(examples) == len(losses) else [])

    def term_gradients(self) -> dict[str, float]:
        """Give the norm of the gradient of each term that the closure gives, at the weights of the moment; nothing where it gives
        no terms, or they lead to no weight."""
        trained = [parameter for parameter in self.recorder.parameters if parameter.requires_grad]
        if self.closure is None or not trained:
            return {}
        with self.unchanged(), torch.enable_grad():
            terms = self.closure()
            if not isinstance(terms, Mapping):
                return {}
            given = {name: term for name, term in terms.items() if isinstance(term, Tensor) and name != TOTAL}
            led = [name for name, term in given.items() if term.requires_grad]
            norms: dict[str, float] = dict.fromkeys(given, 0.0) if led else {}
            for name in led:
                gradients = torch.autograd.grad(
                    given[name].sum(), trained, retain_graph=name != led[-1], allow_unused=True
                )
                squares = [float(gradient.to_dense().norm()) ** 2 for gradient in gradients if gradient is not None]
                norms[name] = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan
        return norms

    def nonfinite_term(self) -> str:
        """Say of which terms of the loss the gradient is not finite, at the weights of the moment."""
        norms = self.term_gradients()
        if not any(map(math.isfinite, norms.values())):  # as of weights that have become NaN
            return super().nonfinite_term()
        return gradients_text([name for name, norm in norms.items() if not math.isfinite(norm)], norms)

    def zero_output_loss(self) -> float:
        """Give that of the closure."""
        self._closure()
        loss = zero_output_loss(self.model, self._loss)
        return super().zero_output_loss() if loss is None else loss

    def output_size(self) -> float:
        """Give it on this batch."""
        closure, outputs = self._closure(), list[Any]()
        handle = self.model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            with self.unchanged(), self._at_snapshot():
                closure()
        finally:
            handle.remove()
        return root_mean_square(outputs[-1] if outputs else None)

    def second_moment_memory(self) -> float:
        """Give that of the optimiser."""
        return second_moment_memory(self.recorder.optimizer)

    def loss_at_snapshot(self) -> float:
        """Give that of the closure."""
        self._closure()
        with self._at_snapshot():
            return self._loss()

    def gradient_at_snapshot(self) -> float:
        """Give it, of the closure."""
        closure = self._closure()
        trained = [parameter for parameter in self.recorder.parameters if parameter.requires_grad]
        with self.unchanged(), self._at_snapshot(), torch.enable_grad():
            loss = closure()
            loss = sum(loss.values()) if isinstance(loss, Mapping) else loss
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise NotMeasuredError("a closure that gives a loss with a gradient")
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return math.sqrt(math.fsum(float(g.to_dense().double().norm()) ** 2 for g in gradients if g is not None))

    def normalisations(self) -> tuple[Normalisation, ...]:
        """Give what they are given on this batch."""
        closure = self._closure()
        with self.unchanged():
            return normalisations(self.model, closure)

    def first_nonfinite(self) -> str:
        """Say where the first number that is not finite is."""
        closure = self._closure()
        with self.unchanged():
            return first_nonfinite(self.model, closure)

    def fixed_answer(self) -> FixedAnswer:
        """Give that of the closure."""
        return FixedAnswer(self.constant_loss(), self._loss())

    def constant_loss(self) -> float:
        """Give that of the closure."""
        self._closure()
        loss = constant_output_loss(self.model, self._loss)
        return super().constant_loss() if loss is None else loss

    def replay(self) -> Replay:
        """Give a replay of this one batch at the weights of the last snapshot, of which only the loss is known."""
        self._closure()
        if self.recorder.snapshot is None:
            return super().replay()

        def replay(batches: Sequence[Batch], change: Cure | None = None) -> list[StepFigures]:
            with self._at_snapshot():
                return [StepFigures(self.recorder.count, self._loss(), math.nan, math.nan) for _ in batches]

        return replay

    def _closure(self) -> Callable[[], Any]:
        if self.closure is None:
            raise NotMeasuredError(NEEDS_CLOSURE)
        return self.closure

    def _loss(self) -> float:
        with self.unchanged():
            loss = self._closure()()
        if isinstance(loss, Mapping):
            loss = loss[TOTAL] if TOTAL in loss else sum(loss.values())
        return float(loss.detach() if isinstance(loss, Tensor) else loss)

    @contextmanager
    def unchanged(self, *, weights: bool = True) -> Generator[None]:
        """Within, the closure may be called; weights (where not told otherwise), buffers, gradients and random numbers are as
        before afterwards."""
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        devices = {parameter.device.index or 0 for parameter in self.model.parameters() if parameter.is_cuda}
        try:
            with (
                buffers_put_back(self.model, self.model.parameters() if weights else ()),
                torch.random.fork_rng(list(devices)),
                torch.no_grad(),
            ):
                yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
