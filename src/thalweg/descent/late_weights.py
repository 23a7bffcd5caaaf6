"""Weights that come into play after a run has begun: unfrozen, made, put in another's place, or of something else than the model.

The optimiser is given what is trainable at the beginning. A layer that is unfrozen later is given to it then; of the others it is
said that nobody trains them.
"""

from __future__ import annotations

from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import few


def train_unfrozen(descent: Descent, recorder: Recorder) -> None:
    """Give the optimiser what was frozen when the run began and no longer is, in groups as the plan makes them."""
    names = [name for name, parameter in descent.frozen if parameter.requires_grad]
    if names:
        descent.adopt(names)
        verb = "were" if len(names) > 1 else "was"
        message = f"{few(names, 3, '`')} {verb} frozen when the run began, and is trained from here on."
        recorder.event(descent.step, "note", message)


def watch_weights(descent: Descent, recorder: Recorder) -> None:
    """Look, at a validation, for weights that came into play since the last one."""
    train_unfrozen(descent, recorder)
    known = {id(parameter) for parameter in descent.parameters}
    present = list(descent.model.named_parameters())
    late = [name for name, p in present if p.requires_grad and id(p) not in known]
    elsewhere = descent.objects.with_gradient()
    if elsewhere:  # what the user's own code trains, such as a discriminator, is its business
        theirs = known | {id(parameter) for _, parameter in present} | descent.objects.trained()
        elsewhere = {path: tensor for path, tensor in elsewhere.items() if id(tensor) not in theirs}
    names = [name for name in (*late, *elsewhere) if name not in descent.untrained]
    descent.untrained.update(names)
    for tensor in elsewhere.values():
        tensor.grad = None  # which adds up otherwise, and is nobody's
    if names:
        recorder.warn(
            descent.step,
            f"{few(names, 3, '`')} came to be after the first step, or is used only since, and wants a gradient: nobody trains"
            f" it. Make every layer in the model's __init__, keep its parameters (change them in place), or freeze it.",
        )
