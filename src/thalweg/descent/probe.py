"""The probe of a descent: rare measurements on the batch of the step just taken, after which all is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thalweg.descent.gradient import backward, squared_norm
from thalweg.descent.precision import autocast
from thalweg.descent.replay import SnapshotReplay
from thalweg.descent.state import Descent, clone_into
from thalweg.descent.untouched import untouched
from thalweg.landscape.constant_output import constant_output_loss
from thalweg.landscape.first_nonfinite import first_nonfinite
from thalweg.landscape.per_example import per_example_losses
from thalweg.landscape.unit_activity import Layer, unit_activity
from thalweg.records.weights import load_model_state, model_state
from thalweg.sampling import Draw
from thalweg.sampling.sources import to_device
from thalweg.watch.lost_terms import gradients_text
from thalweg.watch.probe import ExampleLosses, NotMeasuredError, Probe, along
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.step_recorder import is_measured


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
        descent, step = self.descent, self.descent.step + 1
        if is_measured(step):
            descent.optimizer.measure = True
        wanted = descent.monitor.wants_update(step)
        self.before = [parameter.detach().clone() for parameter in descent.parameters] if wanted else None

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
        return self._along([self._draw()])

    def others_along(self) -> Callable[[float], float]:
        """Give the mean loss of the batches before it along the update."""
        others = [draw for draw in self.descent.recent_draws if draw is not self.descent.last_draw]
        return self._along(others) if others else super().others_along()

    def _along(self, draws: Sequence[Draw]) -> Callable[[float], float]:
        before, parameters = self.before, self.descent.parameters
        if before is None or len(before) != len(parameters):
            raise NotMeasuredError("weights from before the step")
        after = [parameter.detach().clone() for parameter in parameters]

        def loss_at(multiple: float) -> float:
            with untouched(self.descent):
                try:
                    with torch.no_grad():
                        for parameter, was, came in zip(parameters, before, after, strict=True):
                            parameter.copy_(torch.lerp(was, came, multiple) if multiple != 1.0 else came)
                    return sum(self._loss(draw) for draw in draws) / len(draws)
                finally:
                    with torch.no_grad():
                        for parameter, came in zip(parameters, after, strict=True):
                            parameter.copy_(came)

        return along(loss_at)

    def unit_activity(self) -> tuple[Layer, ...]:
        """Give what the units do on the examples of the last steps."""
        with untouched(self.descent):
            parts = [part for draw in self.descent.recent_draws for part in draw.parts]
            return unit_activity(self.descent.model, [lambda part=part: self._output(part) for part in parts])

    def example_losses(self) -> ExampleLosses:
        """Give the loss of each example at the last snapshot's weights: those now have moved by it."""
        descent, draw = self.descent, self._draw()
        if descent.snapshot is None:
            raise NotMeasuredError("weights from before the step, of which snapshots are off")
        now = clone_into(None, model_state(descent.model))
        with untouched(self.descent):
            load_model_state(descent.model, descent.snapshot["model"])
            try:
                losses = self._each(draw)
                others = [self._each(other) for other in descent.recent_draws if other is not draw]
            finally:
                load_model_state(descent.model, now)
        examples = draw.numbers(range(len(losses)))
        return ExampleLosses(losses, torch.cat(others) if others else losses[:0], examples)

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

    def constant_loss(self) -> float:
        """Give that of the last steps' examples."""
        with untouched(self.descent):
            losses = [
                constant_output_loss(self.descent.model, lambda draw=draw: self._loss(draw))
                for draw in self.descent.recent_draws
            ]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if known else super().constant_loss()

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
