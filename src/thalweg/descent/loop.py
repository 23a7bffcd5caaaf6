"""The loop of a descent: draw a batch, compute its gradient, step downhill, watch, record."""

from __future__ import annotations

import time

from thalweg.descent.cure import accept_step
from thalweg.descent.gradient import compute_gradient, inexact_parts
from thalweg.descent.late_weights import train_unfrozen, watch_weights
from thalweg.descent.memory_use import memory_in_use
from thalweg.descent.probe import DescentProbe
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.rare_figures import RareFigures
from thalweg.descent.recorder import Recorder
from thalweg.descent.selection import end_with_weights, validate_and_select
from thalweg.descent.state import Descent, default_validate_every
from thalweg.descent.stepping import take_step
from thalweg.optim.engines import compiles_first_step
from thalweg.sampling.sources import TensorSource
from thalweg.watch.step_recorder import step_figures

COMPILES = "The first step compiles the update rule for this accelerator: that may take some minutes, once per process."
MEMORY_EVERY = 50  # steps between readings of the memory in use
SETTLED, SETTLED_OF_STREAM = 100, 1000  # steps until what is set up once is there


def descend(descent: Descent, recorder: Recorder, until: int | None = None) -> None:
    """Take steps from the descent's present one to its end (or to step `until`), and record them.

    Raises DivergedError where no cure helps; Interrupted where the user stopped it and CallbackError where a callback failed (a
    checkpoint is written first).
    """
    plan = descent.plan
    every = plan.validate_every or default_validate_every(descent.total_steps, descent.steps_per_epoch)
    end = min(descent.total_steps, until or descent.total_steps)
    settled, probe, rare = settled_step(descent), DescentProbe(descent), RareFigures(descent, recorder)
    descent.monitor.try_rates(recorder.tries_rates)
    recorder.begin(descent)
    try:
        with preserve_process_state(plan.threads), recorder.stop_request.listening():
            if descent.step == 0 and not descent.initial_validation:
                if descent.accumulate > 1 and (text := inexact_parts(descent)):
                    recorder.event(0, "note", f"Steps go in {descent.accumulate} parts.{text}")
                validate_and_select(descent, recorder)
            if descent.step == 0:
                descent.trail.keep(-1, 0, descent.model)
            if plan.snapshot_every and descent.snapshot is None:
                descent.take_snapshot()
            if compiles_first_step(descent.problem.device):
                recorder.show(descent.step, "note", COMPILES)
            while descent.step < end and not descent.out_of_patience:
                started = time.perf_counter()
                # A snapshot holds the state before this gradient, but is kept only once the loss there is known: it might hold
                # weights that have begun to diverge, and a rollback to those would not help.
                before = descent.state_before_gradient() if descent.snapshot_due else None
                rate = descent.rate()
                descent.set_rate(rate)
                loss, examples = compute_gradient(descent, recorder)
                descent.objects.note_links()
                if before is not None and descent.monitor.trusts(loss) and descent.take_snapshot(before):
                    recorder.checkpoint_snapshot(descent)
                beside = rare.measure(loss)
                if plan.watch:
                    probe.prepare()
                taken = take_step(descent, loss)
                if descent.loss_scale.update(loss, taken.skipped):
                    message = f"float16 overflow: the loss scale is now {descent.loss_scale.value:g}."
                    recorder.event(descent.step + 1, "note", message)
                    continue
                seconds = time.perf_counter() - started
                step = descent.next_step
                figures = step_figures(step, loss, rate, examples, seconds, taken)._replace(**beside)
                if figures.step % MEMORY_EVERY == 0 and figures.step > settled:
                    figures = figures._replace(memory=memory_in_use(descent.problem.device))
                if not accept_step(descent, recorder, figures, probe):
                    continue
                descent.consecutive_skips = 0
                last, descent.step = descent.step, step
                probe.keep()
                descent.trail.keep(last, step, descent.model)
                recorder.step(figures)
                if descent.frozen:
                    train_unfrozen(descent, recorder)
                if _is_due(every, last, step, descent.total_steps):
                    validate_and_select(descent, recorder)
                    watch_weights(descent, recorder)
                if plan.digest_every and _is_due(plan.digest_every, last, step, descent.total_steps):
                    recorder.history.digest(step, descent.digest())
                recorder.checkpoint_when_due(descent)
            if descent.is_over:
                end_with_weights(descent, recorder)
            recorder.finish(descent)
    finally:
        descent.batches.close(goes_on=not descent.is_over)
        recorder.end()


def _is_due(every: int, last: int, step: int, total: int) -> bool:
    """Tell whether what is done every so many steps, and at the end, is due at a step that may be of several batches."""
    return step // every > last // every or step == total


def settled_step(descent: Descent) -> int:
    """Give the step from which on memory should not grow any more: what reads data one by one may keep them in its first pass."""
    if isinstance(descent.batches.source, TensorSource):
        return descent.step + SETTLED
    return descent.step + max(SETTLED, descent.steps_per_epoch or SETTLED_OF_STREAM)
