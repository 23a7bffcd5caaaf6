"""Reduce on plateau: what it remembers between validations, and how a new figure changes that.

Four plain numbers: `factor` (what the rate has come down to), `bad` (validations in a row without a new best), `rest`
(validations of the cool-down left), and, once there was one, `best`. No infinity stands in for a missing best, so that
the state passes through TOML and JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

State = dict[str, float]


def initial() -> State:
    """Give the state before the first validation."""
    return {"factor": 1.0, "bad": 0, "rest": 0}


def observe(state: Mapping[str, float], metric: float, options: Mapping[str, Any]) -> State:
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
