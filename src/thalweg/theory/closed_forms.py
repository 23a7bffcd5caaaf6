"""Closed forms of a rule's stable edge and temperature, for the rules that have one.

A form is not assigned to a rule by name. It is compared with what `stable_edge` finds from the rule's equation, at several
rates and momenta, all else at the rule's defaults, and given only where both agree; so it holds for the equation as it
is, and a new rule gets its forms without an entry anywhere.

Sources: Cohen et al. 2021, arXiv:2103.00065, and 2022, arXiv:2207.14484 (edges); Liu, Ziyin & Ueda 2021, arXiv:2012.03636
(momentum's temperature). Those with q follow in the same way from the recursion of two steps that remains when the momentum is
eliminated; Schedule-Free's edge from an average that has all but stopped to move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from thalweg import rules
from thalweg.rules.formula import Assignment
from thalweg.rules.notation import expression
from thalweg.rules.rule import Rule
from thalweg.theory.stable_edge import stable_edge, temperature

Form = Sequence[str]

# Lines "name = expression", the last of which is the result; {b} stands for the rule's momentum. The first form that agrees is
# given, so those with a momentum come before those without.
_EDGES: list[Form] = [
    ["L = (2 + 2 * {b}) / ((1 + 2 * {b}) * lr)"],
    ["L = (2 + 2 * {b}) / lr"],
    ["L = 2 / ((1 - {b}) * lr)"],
    ["L = (2 + 2 * {b}) / ((1 - {b}) * lr)"],
    ["L = (2 + 2 * {b}) / ((1 + 2 * {b}) * (1 - {b}) * lr)"],
    ["L = 2 / lr"],
]
_LOOKING_AHEAD = "(1 + 2 * {b} + 2 * ({b} * {b}) - {b} * q * (1 + 2 * {b})) / ((1 - {b} * q) * (1 + q * (1 + 2 * {b})))"
_TEMPERATURES: list[Form] = [
    ["q = 1 - lr * L", f"T = lr * (sigma * sigma) * {_LOOKING_AHEAD}"],
    ["T = lr * (sigma * sigma) * (1 + {b}) / ((1 - {b}) * (2 * (1 + {b}) - lr * L))"],
    ["T = lr * (sigma * sigma) * (1 + {b}) / (2 * (1 + {b}) - (1 - {b}) * lr * L)"],
    ["q = 1 - (1 - {b}) * lr * L", f"T = (1 - {{b}}) * lr * (sigma * sigma) * {_LOOKING_AHEAD}"],
    ["T = lr * (sigma * sigma) / (2 - lr * L)"],
]
_TOLERANCE = 1e-4  # relative difference that eps and not quite converged numbers make
_COMPARED = [(0.02, 0.2), (0.02, 0.9), (0.5, 0.6)]  # rates and momenta at which forms are compared
_SHARE, _SIGMA = 0.3, 0.7  # temperatures are compared at this share of the edge, with noise of this standard deviation


def edge_form(rule: Rule | str) -> list[Assignment]:
    """Give the closed form of a rule's stable edge L, in `lr` and its constants; nothing where none is known.

    >>> from thalweg.rules.formula import as_text
    >>> print(as_text(edge_form("adamw"), "="))
    L = (2 + 2 β₁) / ((1 − β₁) η)
    >>> edge_form("lion")
    []
    """
    return _agreeing(rules.get(rule), _EDGES, _edge)


def temperature_form(rule: Rule | str) -> list[Assignment]:
    """Give the closed form of a rule's temperature T, in `lr`, the curvature L, the noise sigma and its constants.

    >>> from thalweg.rules.formula import as_text
    >>> print(as_text(temperature_form("gradient_descent"), "="))
    T = η σ² / (2 − η L)
    """
    return _agreeing(rules.get(rule), _TEMPERATURES, _temperature)


Found = tuple[float, Mapping[str, float]]
"""A value found from the equation, and the variables beside rate and momentum for which a form must give the same value."""


def _edge(rule: Rule, constants: Mapping[str, float], lr: float) -> Found | None:
    curvature = stable_edge(rule, constants, lr=lr).curvature
    return None if curvature is None else (curvature, {})


def _temperature(rule: Rule, constants: Mapping[str, float], lr: float) -> Found | None:
    edge = stable_edge(rule, constants, lr=lr).curvature
    if edge is None or not 0 < edge < math.inf:
        return None
    found = temperature(rule, constants, lr=lr, curvature=_SHARE * edge, noise=_SIGMA)
    return found, {"L": _SHARE * edge, "sigma": _SIGMA}


def _agreeing(
    rule: Rule, forms: Sequence[Form], find: Callable[[Rule, Mapping[str, float], float], Found | None]
) -> list[Assignment]:
    momentum = next((name for name in ("momentum", "beta1") if name in rule.constants), None)
    if rule.is_matrix:
        return []
    found = [(find(rule, {momentum: b} if momentum else {}, lr), lr, b) for lr, b in _COMPARED]
    for form in forms:
        if momentum is None and any("{b}" in line for line in form):
            continue
        lines = [line.format(b=momentum).split(" = ") for line in form]
        if all(value and _gives(lines, value, {"lr": lr, momentum or "": b}) for value, lr, b in found):
            return [Assignment(name, expression(value)) for name, value in lines]
    return []


def _gives(lines: Sequence[Sequence[str]], found: Found, numbers: Mapping[str, float]) -> bool:
    known: dict[str, float] = {**numbers, **found[1]}
    for name, value in lines:
        known[name] = eval(value, {}, known)
    return math.isclose(known[lines[-1][0]], found[0], rel_tol=_TOLERANCE)
