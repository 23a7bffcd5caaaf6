"""Combinations of parameters of which a covering sample is tested always, and all in the long proofs."""

import itertools

import pytest


def covering(first, *others):
    """Give all combinations for `pytest.mark.parametrize`; all are heavy but one for each of the first.

    With it come the combinations of the others in turn: so each value of the first is tested, and each combination of the others.
    """
    combinations = [*itertools.product(*others)]
    return [
        _combined(one, combination, () if j == i % len(combinations) else (pytest.mark.heavy,))
        for i, one in enumerate(first)
        for j, combination in enumerate(combinations)
    ]


def _combined(one, combination, marks):
    values, name = (one.values, one.id) if hasattr(one, "values") else ((one,), str(one))
    marks = [*marks, *getattr(one, "marks", ())]
    return pytest.param(*values, *combination, marks=marks, id="-".join([name, *map(_name, combination)]))


def _name(value):
    if isinstance(value, dict):
        return ",".join(f"{key}={_name(item)}" for key, item in value.items()) or "plain"
    return getattr(value, "__name__", str(value))
