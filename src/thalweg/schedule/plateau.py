"""Reduce on plateau: its state between validations, and how a validation's metric changes it.

The state is a dict of up to four numbers: `factor` (what the peak rate is multiplied by now), `bad` (validations in a row
without a new best), `rest` (validations left of the cool-down), and, once there was one, `best`. A missing best is left out
rather than infinite, so that the state passes through TOML and JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

State = dict[str, float]


def initial_state() -> State:
    """Give the state before the first validation."""
    return {"factor": 1.0, "bad": 0, "rest": 0}


def next_state(state: Mapping[str, float], metric: float, options: Mapping[str, Any]) -> State:
    """Give the state after a validation. A metric that is not finite is never a best."""
    factor, best, rest = state["factor"], state.get("best"), int(state["rest"])
    better = math.isfinite(metric) and (best is None or _is_better(metric, best, options))
    bad = 0 if better or rest > 0 else int(state["bad"]) + 1
    rest = max(rest - 1, 0)
    if bad > options["patience"]:
        factor, bad, rest = max(factor * options["factor"], options["minimum"]), 0, options["cooldown"]
    after: State = {"factor": factor, "bad": bad, "rest": rest}
    if better:
        best = metric
    return after if best is None else {**after, "best": best}


def _is_better(metric: float, best: float, options: Mapping[str, Any]) -> bool:
    margin = options["threshold"] * (abs(best) if options["threshold_mode"] == "rel" else 1)
    return metric < best - margin if options["mode"] == "min" else metric > best + margin
