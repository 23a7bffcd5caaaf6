"""What is done about an abnormal step: leave its batch out, go back to a snapshot, or change rate and clipping from here on."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from thalweg.descent.beginning import begin_again, can_begin_again, first_state
from thalweg.descent.courses import BETWEEN, Courses
from thalweg.descent.gradient import backward, squared_norm
from thalweg.descent.out_of_memory import release
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.their_objects import not_put_back
from thalweg.descent.untouched import untouched
from thalweg.errors import DivergedError, Interrupted, NonFiniteError, ThalwegError, error_text, few
from thalweg.formatting import capitalized
from thalweg.landscape.restart import forget, restart_layers
from thalweg.landscape.trained_weights import has_learnt
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.sampling import Draw, StreamSource, joined, mix
from thalweg.sampling.sources import to_device
from thalweg.watch.changes import Changes
from thalweg.watch.lost_terms import lost_terms
from thalweg.watch.monitor import intervenes
from thalweg.watch.probe import NotMeasuredError, Probe, measured_or_not
from thalweg.watch.replay import Batch

FAR = 4.0  # times the rate that gets furthest, or a quarter of it: such a rate is far off
MOST_SKIPS = 3  # batches in a row without a finite gradient before giving up
LOOKS_TRAINED = (
    "No layer was started anew: the network's weights look trained, and what they have learnt would be lost."
)
RESTART_SEED = 7919  # tells the random numbers of layers started anew from a run's others
STILL = 1e-6  # of the weights' norm: a move of less changes no loss by much
MOST_LEFT_OUT = 0.05  # of the examples, that single ones may be left out of
MOST_BAD_BATCHES = 10  # likewise, of batches that hold NaN or infinity: a few such rows hit three in a row by chance


def accept_step(descent: Descent, recorder: Recorder, figures: StepFigures, probe: Probe) -> bool:
    """Ask the monitor about a step, apply the cures of its diagnoses, and tell whether the step is accepted.

    Raises NonFiniteError after several batches in a row that are not finite, DivergedError where no cure is left.
    """
    found = descent.monitor.observe(figures, probe) if descent.plan.watch else []
    if not found and not figures.skipped:
        return True
    found = [each for one in found if (each := _by_courses(descent, recorder, one)) is not None]
    if not found and not figures.skipped:
        return True
    found = [_as_possible(descent, recorder, each) for each in found]
    accepted = not figures.skipped and not any(_undoes(descent, diagnosis.cure) for diagnosis in found)
    if not accepted:
        recorder.step(figures, taken=False)
    if not found:
        leave_batch_out(descent, recorder, figures, None)
    for diagnosis in found:
        apply(descent, recorder, figures, diagnosis)
    descent.beginning = None
    return accepted


def _as_possible(descent: Descent, recorder: Recorder, found: Diagnosis) -> Diagnosis:
    """Give a diagnosis whose cure can be applied here: what begins again only where that can be, what goes back for a warm-up or
    to start layers anew only where there is a snapshot, and layers only where the network does not look trained."""
    cure = found.cure
    if cure is not None and cure.begin_again:
        again = _makes_beginning(descent, recorder)
        action = f"{cure.action} The run begins again with that." if again else cure.action
        return replace(found, cure=replace(cure, action=action, rollback=again, begin_again=again))
    if cure is not None and cure.ema is not None and not descent.can_average:
        kept = "An average is kept already." if descent.optimizer.averages else "Of a stream no average is kept here."
        cure = replace(cure, ema=None, action=f"{cure.action} {kept}")
        found = replace(found, cure=cure)
    if cure is not None and cure.accumulate > 1 and (why := descent.why_not_together):
        average = " An average of the weights is kept from here on." if cure.ema is not None else ""
        action = f"Take larger batches. No step is made of several here, as {why}.{average}"
        cure = replace(cure, accumulate=1, action=action)
        found = replace(found, cure=cure)
    if cure is None or not (cure.restart or cure.warmup) or cure.forget:
        return found
    if cure.restart and descent.snapshot is not None and _has_learnt(descent):
        recorder.event(descent.step, "note", LOOKS_TRAINED)
    elif descent.snapshot is not None:
        return found
    return replace(found, cure=replace(cure, rollback=False, restart=()))


def _by_courses(descent: Descent, recorder: Recorder, found: Diagnosis) -> Diagnosis | None:
    """Give a diagnosis whose cure sets the rate by courses from the beginning, where they can be taken: the run begins again with
    the best one. Where that is the present one, a rate that was to be raised, or that only seemed too high, stays.

    A mere suspicion, which is a note, is dropped where no course gets further or none can be taken.
    """
    cure = found.cure
    if cure is None or not cure.by_courses:
        return found
    is_guess = found.severity == "note"
    unproven = None if is_guess else found
    if not recorder.tries_rates or not can_begin_again(descent):
        return unproven
    courses = Courses(descent, recorder, is_guess=is_guess)
    step, rate = descent.step, descent.plan.learning_rate
    recorder.show(step, "note", f"Trying other learning rates on the first {courses.steps} steps, beside the run.")
    try:
        best = courses.best(cure.rate_factor, has_failed=found.severity == "critical")
        if best is None and is_guess and cure.rate_factor < 1:
            best = courses.best(BETWEEN**2)  # few tries may be wrong about the side
    except Interrupted as stopped:
        message = f"Interrupted at step {step}, while other learning rates were tried: {recorder.how_to_go_on(descent)}"
        recorder.event(step, "interrupt", message)
        raise Interrupted(message, signal=stopped.signal) from stopped
    except Exception as error:  # there may be no memory for a second model
        release(descent.problem.device)
        recorder.event(step, "note", f"Other learning rates could not be tried from the beginning: {error_text(error)}")
        return unproven
    if best is not None or found.severity != "critical":
        descent.monitor.settle_rate()
    rate *= descent.changes.rate_factor
    ends = {rate * factor: courses.end(factor) for factor in sorted(courses.losses)}
    told = ", ".join(f"{one:.3g} comes to a loss of {end:.4g}" for one, end in ends.items())
    message = f"Tried learning rates on the first {courses.steps} steps, beside the run: {told}."
    if len(ends) > 1:
        recorder.event(
            step, "note", message, {"rates": list(ends), "losses": list(ends.values()), "tried": descent.tried}
        )
    if best is not None:
        text = f"Set the learning rate to {rate * best:.3g}, {best:.3g} times what it was: of those tried it gets furthest."
        cure = replace(cure, action=text, rollback=True, begin_again=True, rate_factor=best, clip_norm=None)
        is_far = not 1 / FAR < best < FAR
        severity = "critical" if found.severity == "critical" else "warning" if is_far else "note"
        found = replace(found, severity=severity, cure=cure)
        return _by_what_came_of_it(found, rate, best, courses) if is_guess else found
    if found.severity == "critical" or is_guess:
        return unproven
    if cure.rollback:
        descent.monitor.stands(found.step or descent.next_step)
    kept = Cure(
        f"The run goes on as it is: no rate that was tried brings it clearly further by its end than {rate:.3g}."
    )
    return replace(found, severity="note", cure=kept)


def _by_what_came_of_it(found: Diagnosis, rate: float, best: float, courses: Courses) -> Diagnosis:
    """Give a diagnosis that was a guess, of which courses have shown more than the signs for it, on whichever side."""
    side = "low" if best > 1 else "high"
    ends = courses.end(best), courses.end(1.0)
    cause = (
        f"The learning rate of {rate:.3g} is too {side}: on the first {courses.steps} steps of the run it comes to a loss of"
        f" {ends[1]:.4g}, and {rate * best:.3g} to {ends[0]:.4g}."
    )
    evidence = {f"loss after {courses.steps} steps at another rate": {"value": ends[0], "threshold": ends[1]}}
    return replace(found, name=f"learning-rate-too-{side}", cause=cause, evidence={**found.evidence, **evidence})


def _makes_beginning(descent: Descent, recorder: Recorder) -> bool:
    """Tell whether the run begins again: it may, and its first state could be made once more, which is kept until then."""
    if not can_begin_again(descent):
        return False
    if descent.beginning is None:
        reason = None
        try:
            descent.beginning = first_state(descent)
        except Exception as error:  # there may be no memory for a second model
            reason = error_text(error)
        if reason is not None:
            release(descent.problem.device)
            message = f"The run does not begin again, as its first weights could not be made once more: {reason}"
            recorder.event(descent.step, "note", message)
    return descent.beginning is not None


def _has_learnt(descent: Descent) -> bool:
    """Tell whether the snapshot's weights hold what somebody would miss."""
    assert descent.snapshot is not None
    return has_learnt(descent.model, descent.monitor.window.began_trained, descent.snapshot["loop"]["step"])


def _undoes(descent: Descent, cure: Cure | None) -> bool:
    """Tell whether a cure undoes a step that was taken. Leaving out a batch that has moved the weights needs a snapshot."""
    return intervenes(cure) and (descent.snapshot is not None or (cure is not None and not cure.skip_batch))


def apply(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis) -> None:
    """Apply the cure of a diagnosis; one that changes nothing is recorded all the same."""
    cure = found.cure
    if cure is not None and cure.skip_batch and (figures.skipped or descent.snapshot is not None):
        leave_batch_out(descent, recorder, figures, found)
        return
    recorder.add_diagnosis(found)
    recorder.event(figures.step, found.name, f"Step {figures.step:,}: {found.cause}", found.to_dict())
    if cure is not None and cure.leave_out:
        leave_examples_out(descent, recorder, found)
    if cure is not None and cure.rollback:
        roll_back(descent, recorder, figures, found)
    elif cure is not None:
        change_from_here(descent, recorder, figures, cure)


def leave_batch_out(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis | None) -> None:
    """Skip the batch of a step; training continues with the next one where the optimiser did not take the step.

    `found` is None where the plan has no watch and the gradient was not finite. Training continues from the snapshot, without
    this batch, where the step was taken, where the batch was replayed, so that the model holds the snapshot's weights, and where
    the forward pass has put NaN into running statistics (batch normalisation).

    Of several batches that make up one step those alone are left out that are not finite by themselves, where that can be told.

    Raises NonFiniteError after three steps in a row (ten where their data hold NaN or infinity), or where running
    statistics are NaN and there is no snapshot; DivergedError after three in a row that were finite.
    """
    assert descent.last_draw is not None
    bad = _bad_batches(descent, figures)
    step, batch = figures.step, Batch(joined([draw for _, draw in bad]), *bad[0][0])
    rows = batch.nonfinite_rows()
    rolls_back = found is not None and found.cure is not None and found.cure.rollback
    lost = lost_terms(step, figures.terms, None)
    which = "" if lost is None else f" {capitalized(str(lost))}."
    reason = f"{batch.fault(rows, replayed=rolls_back)}{which}"
    if found is not None and not figures.skipped:
        rolls_back, reason = True, capitalized(found.cause)
    positions = [position for position, _ in bad]
    descent.skipped_batches += positions
    descent.skipped_together += positions[1:]
    descent.consecutive_skips += int(figures.skipped)
    if found is not None:
        recorder.add_diagnosis(found)
    kind = "nonfinite" if found is None else found.name
    data = {"epoch": batch.epoch, "batch": batch.index_in_epoch, "rows": rows}
    label = batch.label if len(bad) == 1 else f"{batch.label}, and {len(bad) - 1} more of that step"
    recorder.event(step, kind, f"Step {step}: the batch ({label}) was left out. {reason}", data)
    many = descent.consecutive_skips >= (MOST_BAD_BATCHES if rows else MOST_SKIPS)
    if many and not figures.skipped:
        raise DivergedError(
            f"Step {step}: {descent.consecutive_skips} batches in a row were left out, and the next one is like them: {reason}"
        )
    if many:
        raise NonFiniteError(
            f"Step {step}: {descent.consecutive_skips} batches in a row gave a loss or gradient that is not finite; no weight"
            f" took any of these steps.{which} Look for log(0), division by zero or overflow in the loss, and for bad rows in the"
            f" data."
        )
    if not rolls_back and not _has_lost_statistics(descent):
        if len(bad) < len(descent.last_positions) and not isinstance(descent.problem.train, StreamSource):
            descent.batches.split(descent.accumulate, descent.last_position)  # the others of that step are drawn again
        return
    if descent.snapshot is None:
        raise NonFiniteError(
            f"Step {step}: a batch ({label}) put NaN into running statistics of the model, such as batch normalisation's."
            f" {reason} Mend the data, or plan with snapshot_every=50, so that there is a state to go back to."
        )
    _restore_snapshot(descent, recorder)


def _bad_batches(descent: Descent, figures: StepFigures) -> list[tuple[tuple[int, int], Draw]]:
    """Give the batches of a step, by their positions, for which it fails: those with data, a loss or a gradient that are not
    finite, where these are some of them."""
    drawn = list(zip(descent.last_positions, descent.last_draws, strict=True))
    if len(drawn) == 1 or not figures.skipped:
        return drawn
    bad = [(position, draw) for position, draw in drawn if Batch(draw, *position).nonfinite_rows()]
    if bad and not descent.problem.takes_nonfinite:
        return bad
    try:
        with measured_or_not(), untouched(descent):
            bad = [(position, draw) for position, draw in drawn if not _is_finite(descent, draw, position)]
    except (NotMeasuredError, ThalwegError):
        return drawn
    return bad or drawn


def _is_finite(descent: Descent, draw: Draw, position: tuple[int, int]) -> bool:
    """Tell whether loss and gradient of a batch are finite, at the weights of the moment."""
    loss = backward(descent, draw, position)
    return math.isfinite(loss) and math.isfinite(squared_norm(p.grad for p in descent.parameters))


def leave_examples_out(descent: Descent, recorder: Recorder, found: Diagnosis) -> None:
    """Leave the examples out that a diagnosis and earlier ones of its name list, where they are few of all."""
    draw, batches = descent.last_draw, descent.batches
    if draw is None or not batches.can_leave_out:
        return
    numbers = {number for one in (*recorder.diagnoses, found) if one.name == found.name for number in one.examples}
    indices = (
        numbers if draw.rows is None else (number for number, row in enumerate(draw.rows.tolist()) if row in numbers)
    )
    left_out = sorted({*batches.left_out, *indices})
    if left_out == batches.left_out:
        return
    if len(left_out) > MOST_LEFT_OUT * (descent.problem.count or 0):
        recorder.event(
            descent.step, "note", "No more examples are left out: they would be more than a few of the data."
        )
        return
    batches.leave_out(left_out)
    message = f"{len(left_out):,} training examples are left out from here on: {few(sorted(numbers), 20)}."
    recorder.event(descent.step, "cure", message, {"left_out": sorted(numbers)})


def roll_back(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis) -> None:
    """Go back to the snapshot with a lower rate and clipping.

    Where the loss has run away in too many attempts, in the last of which hardly any weight moved, it is not by the steps: the
    run goes on as before, and such a loss is no divergence from here on.

    Raises DivergedError (NonFiniteError for that symptom) where there is no snapshot, or too many attempts did not help.
    """
    step, kind = figures.step, NonFiniteError if found.symptom == "non-finite" else DivergedError
    if descent.snapshot is None:
        raise kind(f"{found} Snapshots are off, so there is nothing to go back to.")
    if descent.monitor.exhausted and found.symptom == "diverging" and _move(descent) < STILL:
        _let_rise(descent, recorder, found)
        return
    if descent.monitor.exhausted or found.cure is None:
        raise kind(
            f"Step {step}: {found.cause} {descent.monitor.attempts - 1} attempts with lower rates and clipping did not help."
            f" Look at the data and the loss with `thalweg check`, or start with a far smaller learning rate."
        )
    to = 0 if found.cure.begin_again else descent.snapshot["loop"]["step"]
    changes = descent.changes.with_cure(found.cure, to, descent.total_steps)
    if found.cure.begin_again and changes.anneal is not None and found.cure.anneal:
        changes = replace(changes, anneal=(descent.height_of_schedule(), *changes.anneal[1:]))
    descent.change(changes)
    draw = descent.last_draw
    if found.cure.begin_again:
        assert descent.beginning is not None
        begin_again(descent, descent.beginning)
        recorder.supersede(0)
    else:
        _restore_snapshot(descent, recorder)
    if found.cure.forget:
        forget(descent.optimizer, descent.model.modules())
        descent.take_snapshot()
    restarted = _restart(descent, recorder, found.cure, draw, step) if draw is not None else ()
    changes = descent.changes
    settings = f"with a rate of {descent.plan.learning_rate * changes.rate_factor:.3g}"
    settings += f", {changes.decay_factor:.3g} times the weight decay" if found.cure.decay_factor != 1 else ""
    if found.cure.anneal and changes.anneal is not None:
        start, end, share = changes.anneal
        settings += (
            f", which from step {start:,} on is at least {share:.2g} of its height, in a line to zero at step {end:,}"
        )
    settings += ", running means begun anew" if found.cure.forget else ""
    settings += f", reached over {found.cure.warmup} steps" if found.cure.warmup else ""
    settings += "" if changes.clip_norm is None else f" and gradients clipped at {changes.clip_norm:.3g}"
    settings += f", and with {', '.join(restarted)} started anew" if restarted else ""
    message = f"Went back from step {step:,} to step {descent.step:,}, {settings}."
    anew = {**({"restarted": list(restarted)} if restarted else {}), **({"forgot": True} if found.cure.forget else {})}
    tried = {"by_courses": True} if found.cure.begin_again and found.cure.by_courses else {}
    data = {"from": step, "to": descent.step, **changes.to_dict(), **anew, **tried}
    recorder.event(descent.step, "rollback", message, data)


def _restart(descent: Descent, recorder: Recorder, cure: Cure, draw: Draw, step: int) -> tuple[str, ...]:
    """Start the layers anew that a cure names, on a batch; the optimiser forgets them, and the snapshot holds them since."""
    if not cure.restart:
        return ()
    generator = torch.Generator().manual_seed(mix(descent.plan.seed, RESTART_SEED, step))
    objective, device = descent.problem.objective, descent.problem.device
    part = to_device(draw.parts[0], device)
    try:
        with measured_or_not(), untouched(descent, weights=False), objective.gradient_mode():
            restarted = restart_layers(
                descent.model,
                lambda: objective.loss(descent.model, part),
                cure.restart,
                generator,
                variance=cure.restart_variance,
            )
    except NotMeasuredError as reason:
        if descent.snapshot is not None:  # some may have been, where it failed on the way
            descent.load_weights(descent.snapshot["model"])
        recorder.event(descent.step, "note", f"No layer was started anew: {reason}.")
        return ()
    forget(descent.optimizer, (descent.model.get_submodule(name) for name in restarted))
    descent.take_snapshot()
    return restarted


def _let_rise(descent: Descent, recorder: Recorder, found: Diagnosis) -> None:
    """Go back, with rate and clipping as they were there, and take the loss for one that rises by itself from here on."""
    assert descent.snapshot is not None
    descent.change(Changes.from_dict(descent.snapshot["loop"]["cures"]))
    _restore_snapshot(descent, recorder)
    descent.monitor.dismiss(found.symptom)
    recorder.diagnoses[:] = [
        one for one in recorder.diagnoses if one.symptom != found.symptom or (one.step or 0) <= descent.step
    ]
    recorder.warn(
        descent.step,
        f"The loss rises after step {descent.step:,} also where hardly any weight is moved, so it is not the steps that raise it"
        f" but what it is made of: a queue that fills, a term that comes in bit by bit, targets that move, harder data. The run"
        f" goes on from there at its own rate, and a rising loss is taken for no divergence any more. Validations from different"
        f" moments may not compare: keep='last' ends with the last weights.",
    )


def _move(descent: Descent) -> float:
    """Give how far the trained weights are from the snapshot's, as a share of their norm."""
    assert descent.snapshot is not None
    before, moved, norm = descent.snapshot["model"], 0.0, 0.0
    for name, parameter in descent.model.named_parameters():
        if name in before and parameter.requires_grad:
            first = before[name].detach()
            moved += float((parameter.detach() - first).abs().double().square().sum())
            norm += float(first.abs().double().square().sum())
    return math.sqrt(moved / norm) if norm and math.isfinite(moved) else math.inf


def change_from_here(descent: Descent, recorder: Recorder, figures: StepFigures, cure: Cure) -> None:
    """Change the knobs from the next step on, where the cure says so."""
    changes = descent.changes.with_cure(cure, figures.step, descent.total_steps)
    if changes != descent.changes:
        descent.change(changes)
        recorder.event(figures.step, "cure", f"Step {figures.step:,}: {cure.action}", changes.to_dict())


def _restore_snapshot(descent: Descent, recorder: Recorder) -> None:
    assert descent.snapshot is not None
    lost = descent.load_state_dict(descent.snapshot, rollback=True)
    if lost:
        recorder.event(descent.step, "note", not_put_back(lost))
        descent.objects.give_up(lost)
    recorder.supersede(descent.step)


def _has_lost_statistics(descent: Descent) -> bool:
    """Tell whether a buffer of the model holds NaN or infinity where the snapshot holds none."""
    before = descent.snapshot["model"] if descent.snapshot else {}
    for name, buffer in descent.model.named_buffers():
        if not buffer.is_floating_point():
            continue
        lost = ~torch.isfinite(buffer) if name in before else torch.isnan(buffer)
        if name in before:
            lost &= torch.isfinite(before[name])  # a mask may hold -inf on purpose
        if bool(lost.any()):
            return True
    return False
