"""Cures as values: what to change, chosen from recent steps. The descent applies them."""

from __future__ import annotations

import math

from thalweg.records.diagnosis import Cure
from thalweg.watch.window import Window


def lower_rate_and_clip(window: Window, attempt: int) -> Cure:
    """Go back, lower the learning rate and clip.

    The first attempt halves the rate; the next ones divide it by 4, 8, … on top of that, so that a rate a thousand times too
    high is lowered enough in four attempts. The clip norm is the 90th percentile of the recent gradient norms, 1.0 where
    there are fewer than twenty.
    """
    return back(window, 0.5**attempt)


def back(window: Window, factor: float) -> Cure:
    """Go back, multiply the learning rate by a factor, and clip as `lower_rate_and_clip` does."""
    finite = sorted(n for n in window.gradient_norms if math.isfinite(n) and n > 0)
    clip = finite[int(0.9 * (len(finite) - 1))] if len(finite) >= 20 else 1.0
    return Cure(
        action=f"Go back to the last good snapshot, lower the rate from {window.rate:.3g} by a factor of {factor:.3g}, and clip"
        f" the gradient's norm at {clip:.3g}.",
        rollback=True,
        rate_factor=factor,
        clip_norm=clip,
        code=f"watch.go_back(rate_factor={factor:.3g}, clip_norm={clip:.3g})",
    )


def raise_rate(window: Window, factor: float) -> Cure:
    """Raise the learning rate from here on."""
    return Cure(
        action=f"Raise the learning rate from {window.rate:.3g} by a factor of {factor:g}.",
        rate_factor=factor,
        code=f"watch.change(rate_factor={factor:g})",
    )
