"""Does the loss jump up at single steps?"""

from __future__ import annotations

import math

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import ODD, Window

OVER_MEDIAN = "loss over the median"
MANY, WITHIN = 3, 500  # spikes within so many steps are no accident any more


def spiky(window: Window) -> Symptom | None:
    """See a loss or gradient norm far outside those of the last steps: three times as far above their median as the largest of
    them (two times for the gradient's norm, which hardly ever is so in a healthy run).

    One that recovers by itself is only noted; the third within 500 steps is a warning. A loss of three times the median is seen
    too, now and then, as something that single examples may explain.
    """
    if not is_spike(window) and not window.is_odd:
        return None
    many = sum(step > window.step - WITHIN for step in window.spikes)
    is_loss = window.is_odd or window.loss_excess > window.norm_excess
    middle = (
        sorted(values)[len(values) // 2] if (values := window.losses if is_loss else window.gradient_norms) else 0.0
    )
    value = window.loss if is_loss else window.gradient_norm
    lasts = is_spike(window) and many >= MANY
    again = f", the {many}. such step of the last {WITHIN}" if lasts else ""
    return Symptom(
        name="spiky",
        step=window.step,
        since=window.step,
        text=f"the {'loss' if is_loss else 'gradient norm'} jumped to {value:.4g}, from a median of {middle:.4g}{again}",
        evidence={
            "loss": {"value": window.loss},
            "gradient_norm": {"value": window.gradient_norm},
            "spikes within 500 steps": {"value": many, "threshold": MANY},
            **(
                {}
                if is_spike(window)
                else {OVER_MEDIAN: {"value": value / middle if middle else math.inf, "threshold": ODD}}
            ),
        },
        severity="warning" if lasts else "note",
    )


def is_spike(window: Window) -> bool:
    """Tell whether the last step is a spike by the largest of those before it, rather than only far above their median."""
    return bool(window.spikes) and window.spikes[-1] == window.step
