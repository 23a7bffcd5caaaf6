"""Numbers and lengths of time as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> str:
    """Say a figure with about four digits.

    >>> number(0.03123456), number(1.2e-05), number(12345), number(True), number("adamw"), number(None)
    ('0.03123', '1.2e-05', '12,345', 'yes', 'adamw', 'off')
    """
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value.is_integer() and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}"


def seconds(value: float) -> str:
    """Say a length of time.

    >>> seconds(0.04), seconds(4.2), seconds(200), seconds(9000)
    ('0.04 s', '4.2 s', '3 min 20 s', '2 h 30 min')
    """
    if value < 1:
        return f"{value:.2f} s"
    if value < 90:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def change(name: str, start: Mapping[str, float], end: Mapping[str, float]) -> str:
    """Say how a figure changed: "2.298 to 0.0806", or only where it ended."""
    if name in start and math.isfinite(start[name]):
        return f"{number(float(start[name]))} to {number(float(end[name]))}"
    return number(float(end[name]))
