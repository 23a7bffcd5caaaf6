"""Print what the watch has to go by in development programs, at some steps: `python bench/watch/figures.py NAME ...`.

A NAME is a part of a program's name; without one, all. For whoever sets thresholds: nothing is kept. The figures:

start, best, now    the loss at the start, the least smoothed loss, and the smoothed loss
fall, error         of the mean loss over the second half of the last 96 steps against the first, and the standard error of it
top, excess         the largest loss so far over that at the start; the largest `loss_excess` and `norm_excess` of the window
lengths             at which steps it was tried which multiple of the step lowers the next batch's loss most, and which it is
critical            the largest multiple of the update that still lowers the batch's loss
depth, fits         the first layer's gradient over the last one's, per weight, and how well a line fits (`watch/depth.py`)
dead, saturated     the largest shares of a layer's units
idle                the share of weights without a gradient; not stepped: parameters that no optimiser steps
decay, shrunk       what decay takes over what the gradient moves; the weights' norm over that at first
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import thalweg as tw
from thalweg.examples import faults
from thalweg.examples.faults.program import Program
from thalweg.landscape.critical_step import critical_step
from thalweg.watch.depth import gradient_over_depth
from thalweg.watch.probe import NotMeasuredError

SHARES = (0.05, 0.35, 0.65, 0.95)  # of the run
STEPS = 96  # that a fall is of


def figures(program: Program) -> Iterator[dict[str, Any]]:
    """Train a program as a person would, with a closure, and give the figures at some steps."""
    loop, recipe = program.loop(), program.recipe
    looks = {max(2, round(share * recipe.steps)) for share in SHARES}
    watch = tw.Watch(loop.model, loop.optimizer, total=recipe.steps)
    recorder, monitor = watch._recorder, watch._monitor
    assert recorder is not None
    wants = recorder.wants
    recorder.wants = lambda step: step in looks or wants(step)
    top = excess = norm_excess = -math.inf
    found = list[str]()
    for number, batch in enumerate(loop.batches(), 1):
        loss = loop.loss(batch)
        if loss.requires_grad:
            loss.backward()
        loop.optimizer.step()
        loop.schedule.step()
        loop.optimizer.zero_grad()
        for each in watch.step(loss, closure=lambda batch=batch: loop.loss(batch), indices=batch.indices):
            found.append(f"{each.name} {each.severity} {each.step}")
        window = monitor.window
        excess, norm_excess = max(excess, window.loss_excess), max(norm_excess, window.norm_excess)
        if window.start:
            top = max(top, loss.item() / window.start)
        if number in looks:
            yield {"step": number, "found": found[:3], "top": top, "excess": (excess, norm_excess), **measured(watch)}
        if watch._recorder is None:
            return
    watch.close()


def measured(watch: tw.Watch) -> dict[str, Any]:
    window, probe = watch._monitor.window, watch._probe
    blocks = [block for block in window.trend.blocks if block.step > window.step - STEPS]
    half = len(blocks) // 2
    made: dict[str, Any] = {"start": window.start, "best": window.best, "now": window.smoothed}
    if half:
        one, two = (float(np.mean([b.loss for b in part])) for part in (blocks[:half], blocks[half:]))
        made["fall"] = one - two
        made["error"] = math.hypot(
            *(math.sqrt(sum(b.error**2 for b in p)) / len(p) for p in (blocks[:half], blocks[half:]))
        )
    made["lengths"] = [f"{step}:{multiple:g}" for step, multiple in window.lengths]
    with suppress(NotMeasuredError):
        made["critical"] = critical_step(probe.loss_along()).lowers
    growth = gradient_over_depth(window)
    if growth is not None:
        made["depth"], made["fits"] = growth.ratio, growth.fits
    with suppress(NotMeasuredError):
        layers = probe.unit_activity()
        made["dead"] = max((layer.dead / layer.units for layer in layers), default=None)
        made["saturated"] = max((layer.saturated for layer in layers if not layer.is_output), default=None)
    sizes = np.array([math.prod(place.shape) for place in window.places])
    norms = [norms for norms in window.by_parameter if len(norms) == len(sizes)]
    if norms:
        idle = ~(np.nan_to_num(np.array(norms)) > 0).any(0)
        made["idle"] = float(sizes[idle].sum() / sizes.sum())
    made["not stepped"] = len(window.not_stepped)
    if window.weight_norms is not None and window.update_norms is not None and window.first_weight_norms is not None:
        decays = np.array([place.weight_decay for place in window.places])
        taken = window.rate * float(np.linalg.norm(decays * window.weight_norms))
        made["decay"] = taken / max(abs(float(np.linalg.norm(window.update_norms)) - taken), 1e-30)
        made["shrunk"] = float(np.linalg.norm(window.weight_norms) / np.linalg.norm(window.first_weight_norms))
    return made


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list):
        return "[" + " ".join(map(shown, value)) + "]"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[""])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for program in faults.programs("development"):
        if any(name in program.name for name in options.names):
            print(program.name)
            for made in figures(program):
                print("   ", ", ".join(f"{name} {shown(value)}" for name, value in made.items()), flush=True)


if __name__ == "__main__":
    main()
