"""The contracts that a third party's part can be run through, as our own are."""

from __future__ import annotations

from thalweg.testing.causes import check_cause
from thalweg.testing.rules import check_rule
from thalweg.testing.shapes import check_shape

__all__ = ["check_cause", "check_rule", "check_shape"]
