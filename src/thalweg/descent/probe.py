"""The probe of a descent: rare measurements on the batch of the step just taken, after which all is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import torch
from torch import Tensor

from thalweg.descent.gradient import backward, squared_norm
from thalweg.descent.precision import autocast
from thalweg.descent.replay import SnapshotReplay
from thalweg.descent.state import Descent, clone_into
from thalweg.descent.untouched import untouched
from thalweg.errors import CheckpointError
from thalweg.landscape.constant_output import constant_output_loss, zero_output_loss
from thalweg.landscape.first_nonfinite import first_nonfinite
from thalweg.landscape.normalisation import Normalisation, normalisations
from thalweg.landscape.per_example import per_example_losses
from thalweg.landscape.unit_activity import Layer, unit_activity
from thalweg.records.weights import model_state
from thalweg.sampling import Draw
from thalweg.sampling.sources import to_device
from thalweg.watch.lost_terms import gradients_text
from thalweg.watch.probe import ExampleLosses, FixedAnswer, NotMeasuredError, Probe, along, root_mean_square
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.step_recorder import is_measured, second_moment_memory


class DescentProbe(Probe):
    """Measures on a descent.

    `before`: copies of the weights from before the step, where `Monitor.wants_update` asked for them, else None.
    """

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        self.before: list[Tensor] | None = None

    def prepare(self) -> None:
        """Before a step is taken, keep what will be asked for after it: now and then norms of weights and updates, and copies of
        the weights."""
        descent, step = self.descent, self.descent.next_step
        if step < descent.monitor.usual_before:  # as in most steps
            self.before = None
            return
        if is_measured(step):
            descent.optimizer.measure = True
        wanted = descent.monitor.wants_update(step)
        self.before = [parameter.detach().clone() for parameter in descent.parameters] if wanted else None

    def keep(self) -> None:
        """After a step was accepted, keep what the next one will be asked for."""
        descent = self.descent
        descent.earlier = self.before if descent.monitor.trying else None

    @contextmanager
    def measuring(self) -> Generator[None]:
        """Within, the user's objects are looked at once for several measurements."""
        with ExitStack() as stack:
            with suppress(NotMeasuredError):  # each measurement says so itself
                stack.enter_context(untouched(self.descent))
            yield

    def batch(self) -> Batch:
        """Give the examples of the step, and its position in the data."""
        return Batch(self._draw(), *self.descent.last_position)

    def replay(self) -> Replay:
        """Give a replay from the last snapshot, if there is one."""
        if self.descent.snapshot is None:
            return super().replay()
        return SnapshotReplay(self.descent)

    def loss_along(self) -> Callable[[float], float]:
        """Give the loss of the step's batch, with the random numbers of the step, along the update."""
        return self._along(self.before, [parameter.detach().clone() for parameter in self.descent.parameters])

    def others_along(self) -> Callable[[float], float]:
        """Give the loss of the step's batch along the update of the step before."""
        return self._along(self.descent.earlier, self.before)

    def _along(self, start: Sequence[Tensor] | None, end: Sequence[Tensor] | None) -> Callable[[float], float]:
        parameters, draw = self.descent.parameters, self._draw()
        if start is None or end is None or not len(start) == len(end) == len(parameters):
            raise NotMeasuredError("weights from before the step")

        def loss() -> float:
            with untouched(self.descent):
                return self._loss(draw)

        return along(parameters, start, end, loss)

    def unit_activity(self, *, at_snapshot: bool = False) -> tuple[Layer, ...]:
        """Give what the units do on the examples of the step."""
        parts = self._draw().parts
        with untouched(self.descent), self._at_snapshot() if at_snapshot else nullcontext():
            return unit_activity(self.descent.model, [lambda part=part: self._output(part) for part in parts])

    @contextmanager
    def _at_snapshot(self) -> Generator[None]:
        """Within, the model has the last snapshot's weights and buffers."""
        descent = self.descent
        if descent.snapshot is None:
            raise NotMeasuredError("weights from before the step, of which snapshots are off")
        now = clone_into(None, model_state(descent.model))
        try:
            descent.load_weights(descent.snapshot["model"])  # without buffers that were made since
        except CheckpointError as error:
            raise NotMeasuredError("weights from before the step, which has given them other names") from error
        try:
            yield
        finally:
            with suppress(CheckpointError):  # names that the call itself has changed are put back with the weights
                descent.load_weights(now)

    def example_losses(self) -> ExampleLosses:
        """Give the loss of each example at the last snapshot's weights: those now have moved by it."""
        draw = self._draw()
        with untouched(self.descent), self._at_snapshot():
            losses = self._each(draw)
        return ExampleLosses(losses, losses[:0], draw.numbers(range(len(losses))))

    def zero_output_loss(self) -> float:
        """Give that of the step's batch."""
        draw = self._draw()
        with untouched(self.descent):
            loss = zero_output_loss(self.descent.model, lambda: self._loss(draw))
        return super().zero_output_loss() if loss is None else loss

    def output_size(self) -> float:
        """Give it on the first part of the step's examples."""
        part = self._draw().parts[0]
        with untouched(self.descent), self._at_snapshot():
            found = self._output(part)
        return root_mean_square(found[0] if isinstance(found, tuple) else found)

    def second_moment_memory(self) -> float:
        """Give that of the plan's rule."""
        return second_moment_memory(self.descent.optimizer)

    def gradient_at_snapshot(self) -> float:
        """Give it, of all parts of the step's batch."""
        descent = self.descent
        with untouched(descent), self._at_snapshot():
            backward(descent, self._draw())
            return math.sqrt(squared_norm(p.grad for p in descent.parameters))

    def normalisations(self) -> tuple[Normalisation, ...]:
        """Give what they are given on the first part of the step's examples."""
        part = self._draw().parts[0]
        with untouched(self.descent):
            return normalisations(self.descent.model, lambda: self._output(part))

    def first_nonfinite(self) -> str:
        """Say where the first number that is not finite is, at the weights of the moment."""
        with untouched(self.descent):
            return first_nonfinite(self.descent.model, lambda: self._loss(self._draw()))

    def nonfinite_term(self) -> str:
        """Say of which terms of the loss the gradient is not finite, at the weights of the moment."""
        descent, lost = self.descent, list[str]()
        if not descent.terms or not math.isfinite(descent.monitor.window.loss):
            return super().nonfinite_term()
        for name in descent.terms:
            with untouched(descent):
                backward(descent, self._draw(), term=name)
                if not math.isfinite(squared_norm(p.grad for p in descent.parameters)):
                    lost.append(name)
        return gradients_text(lost, descent.terms)

    def fixed_answer(self) -> FixedAnswer:
        """Give that of the step's batch."""
        constant, draw = self.constant_loss(), self._draw()
        with untouched(self.descent):
            return FixedAnswer(constant, self._loss(draw))

    def constant_loss(self) -> float:
        """Give that of the step's batch."""
        draw = self._draw()
        with untouched(self.descent):
            loss = constant_output_loss(self.descent.model, lambda: self._loss(draw))
        return super().constant_loss() if loss is None else loss

    def _draw(self) -> Draw:
        if self.descent.last_draw is None:
            raise NotMeasuredError("the examples of the batch")
        return self.descent.last_draw

    def _each(self, draw: Draw) -> Tensor:
        objective, device = self.descent.problem.objective, self.descent.problem.device
        found: list[Tensor] = []
        for part, size in zip(draw.parts, draw.sizes, strict=True):
            with autocast(self.descent.plan.precision, device):
                losses = per_example_losses(objective, self.descent.model, to_device(part, device), size)
            if losses is None:
                raise NotMeasuredError("the loss of each example: give the task `per_example_loss`")
            found.append(losses.cpu())
        return torch.cat(found)

    def _loss(self, draw: Draw) -> float:
        objective, losses, weights = self.descent.problem.objective, 0.0, 0.0
        for part, size in zip(draw.parts, draw.sizes, strict=True):
            loss = self._loss_of(part)
            weight = objective.weight(part, size)
            losses, weights = losses + loss * weight, weights + weight
        if objective.reduction.kind == "sum":  # as in a step
            weights = float(draw.batches)
        return losses / weights if weights else float("nan")

    def _loss_of(self, part: object) -> float:
        descent = self.descent
        objective, device = descent.problem.objective, descent.problem.device
        with (
            torch.enable_grad(),
            autocast(descent.plan.precision, device),
        ):  # as in a step, which may take gradients itself
            loss, _ = objective.loss(descent.model, to_device(part, device))
        return loss.item()

    def _output(self, part: object) -> object:
        """Call the model on a batch as a step does; gives its output, nothing where the task has a `step` of its own."""
        descent = self.descent
        objective, device = descent.problem.objective, descent.problem.device
        with torch.enable_grad(), autocast(descent.plan.precision, device):
            if objective.task.step is None:
                return objective.outputs(descent.model, to_device(part, device))
            objective.loss(descent.model, to_device(part, device))
        return None
