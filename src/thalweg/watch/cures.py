"""Cures as values: what to change, chosen from recent steps. The descent applies them."""

from __future__ import annotations

import math
from collections.abc import Collection

from thalweg.errors import few
from thalweg.records.diagnosis import Cure
from thalweg.watch.window import Window

AVERAGE = 0.98  # decay of an average of the weights that takes out the noise of single batches: of fifty steps


def lower_rate_and_clip(window: Window, attempt: int) -> Cure:
    """Go back, lower the learning rate and clip.

    The first attempt halves the rate; the next ones divide it by 4, 8, … on top of that, so that a rate a thousand times too
    high is lowered enough in four attempts. The clip norm is the 90th percentile of the recent gradient norms, 1.0 where
    there are fewer than twenty.
    """
    return back(window, 0.5**attempt)


def back(window: Window, factor: float) -> Cure:
    """Go back, multiply the learning rate by a factor, and clip as `lower_rate_and_clip` does."""
    clip = usual_norm(window)
    return Cure(
        action=f"Go back to the last good snapshot, lower the rate from {window.rate:.3g} by a factor of {factor:.3g}, and clip"
        f" the gradient's norm at {clip:.3g}.",
        rollback=True,
        by_courses=True,
        rate_factor=factor,
        clip_norm=clip,
        code=f"watch.go_back(rate_factor={factor:.3g}, clip_norm={clip:.3g})",
    )


def usual_norm(window: Window) -> float:
    """Give the 90th percentile of the recent gradient norms, 1.0 where there are fewer than twenty."""
    finite = sorted(n for n in window.gradient_norms if math.isfinite(n) and n > 0)
    return finite[int(0.9 * (len(finite) - 1))] if len(finite) >= 20 else 1.0


def raise_rate(window: Window, factor: float) -> Cure:
    """Raise the learning rate, from the beginning of the run where it is near: little was learnt since."""
    return Cure(
        action=f"Raise the learning rate from {window.rate:.3g} by a factor of {factor:g}.",
        begin_again=True,
        by_courses=True,
        rate_factor=factor,
        code=f"watch.change(rate_factor={factor:g})",
    )


def matrices(window: Window) -> list[str]:
    """Give the names of all layers with a matrix or kernel."""
    places = sorted(window.places, key=lambda place: place.depth)
    names = [place.name.rpartition(".") for place in places if len(place.shape) > 1]
    return list(dict.fromkeys(layer for layer, _, weight in names if layer and weight.startswith("weight")))


def restart(layers: Collection[str], advice: str, *, variance: float = 1.0) -> Cure:
    """Go back, and start layers anew.

    Arguments:
        layers: their names. `advice`: what else helps, a sentence.
        variance: of each unit's signal then. One carries signals on; less keeps those that grew where functions are near a line.
    """
    names = tuple(dict.fromkeys(layers))
    of = "" if variance == 1.0 else f", variance={variance:g}"
    return Cure(
        action=f"Go back, and start {few(names)} anew so that each unit's signal has mean zero and variance {variance:g}."
        f" {advice}",
        rollback=True,
        restart=names,
        restart_variance=variance,
        code=f"watch.go_back(); watch.restart({list(names)}{of})",
    )
