"""Is the loss or the gradient still a number?"""

from __future__ import annotations

import math

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window


def nonfinite(window: Window) -> Symptom | None:
    """See a loss or gradient that is NaN or infinite. The optimiser has left the weights untouched where it is thalweg's."""
    if window.is_finite:
        return None
    loss, norm = window.loss, window.gradient_norm
    part, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", norm)
    which = f": {_which_term(window)}" if part == "loss" and window.terms else ""
    stands = "; no weight took this step" if window.skipped else ""
    return Symptom(
        name="non-finite",
        step=window.step,
        since=window.step,
        text=f"the {part} is not finite ({value}){which}{stands}",
        evidence={
            "loss": {"value": loss, "threshold": "finite"},
            "gradient_norm": {"value": norm, "threshold": "finite"},
            "learning_rate": {"value": window.rate},
            **{f'term "{name}"': {"value": term, "threshold": "finite"} for name, term in window.terms.items()},
        },
        severity="critical",
    )


def _which_term(window: Window) -> str:
    """Say which term of the loss was the first that was not finite."""
    if window.lost_terms is not None:
        return str(window.lost_terms)
    return "each of its terms is finite, but what was made of them is not"
