"""The contracts of rules, causes and decay shapes, for third parties' as well as our own."""

from __future__ import annotations

from thalweg.testing.causes import check_cause
from thalweg.testing.rules import check_rule
from thalweg.testing.shapes import check_shape

__all__ = ["check_cause", "check_rule", "check_shape"]
