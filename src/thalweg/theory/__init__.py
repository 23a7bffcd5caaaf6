"""What an update rule does in a bowl, from its equation alone: stable edge, rate of convergence, temperature of its noise.

>>> edge = stable_edge("momentum", {"momentum": 0.5}, lr=0.1)
>>> round(edge.curvature, 9)
30.0
"""

from __future__ import annotations

from thalweg.theory.closed_forms import edge_form, temperature_form
from thalweg.theory.stable_edge import (
    Edge,
    LinearStep,
    convergence_rate,
    linearise,
    stable_edge,
    temperature,
    temperature_gain,
    variance,
)

__all__ = [
    "Edge",
    "LinearStep",
    "convergence_rate",
    "edge_form",
    "linearise",
    "stable_edge",
    "temperature",
    "temperature_form",
    "temperature_gain",
    "variance",
]
