"""The contract of an update rule: claims that hold for every one in `thalweg.rules`, and that a third party's can be tested for.

Each claim is a function of a rule and a set of its constants that raises AssertionError; `check_rule` runs all of them.
"""

from __future__ import annotations

import copy
import importlib
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import RuleError
from thalweg.optim import Optimizer
from thalweg.rules.plain_form import PlainForm
from thalweg.rules.rule import Rule

Constants = Mapping[str, Any]
Claim = Callable[[Rule, Constants], None]


def check_rule(rule: Rule) -> None:
    """Run a rule through the contract, at its defaults and with everything switched on.

    Raises AssertionError that lists every broken claim.

    >>> from thalweg.rules import RULES
    >>> check_rule(RULES["adamw"])
    """
    broken: list[str] = []
    for constants in variants(rule):
        for claim in CLAIMS:
            try:
                claim(rule, constants)
            except Exception as error:  # A claim may break in any way: each is reported.
                broken.append(f"{claim.__name__} {dict(constants)}: {type(error).__name__}: {error}")
    if broken:
        raise AssertionError(f"{rule.name} breaks {len(broken)} claims of the contract:\n" + "\n".join(broken))


def variants(rule: Rule) -> list[dict[str, Any]]:
    """Give the constants to test at: the defaults, and the same with every switch True and every share of 0 at 0.5."""
    changed: dict[str, Any] = {name: True for name, value in rule.constants.items() if isinstance(value, bool)}
    for name, value in rule.constants.items():
        if isinstance(value, float) and value == 0 and name in rule.ranges and rule.ranges[name].high <= 1:
            changed[name] = 0.5
    return [dict(rule.constants), {**rule.constants, **changed}] if changed else [dict(rule.constants)]


def it_says_where_it_comes_from(rule: Rule, constants: Constants) -> None:
    """A source, a title, and state keys that do not collide with each other or the engine's."""
    del constants
    assert rule.source.strip(), "source is empty"
    assert rule.title.strip(), "the equation has no docstring"
    keys = [s.key for s in rule.state]
    assert len({*keys, "step", "ema"}) == len(keys) + 2, f"state keys {keys} must differ, also from step and ema"


def it_refuses_constants_outside_their_range(rule: Rule, constants: Constants) -> None:
    """Just outside either end, NaN, a word that is no choice, and an unknown name are RuleErrors."""
    for name, wanted in rule.ranges.items():
        ends = [wanted.low if wanted.low_open else wanted.low - 1, wanted.high if wanted.high_open else wanted.high + 1]
        for bad in [*(end for end in ends), math.nan, "many"]:
            _refused(rule, {**constants, name: bad})
    for name in rule.choices:
        _refused(rule, {**constants, name: "no such choice"})
    _refused(rule, {**constants, "no_such_constant": 1.0})


def it_is_a_pure_function_of_scalars(rule: Rule, constants: Constants) -> None:
    """Python's numbers give finite numbers, a new weight and each state, and the same ones each time (not of matrix rules)."""
    if rule.is_matrix:
        return
    numbers = [0.7, -0.3, *(0.2 for _ in rule.state)]
    first, again = (_evaluate(rule, constants, numbers) for _ in range(2))
    assert len(first) == 1 + len(rule.state), f"gives {len(first)} values for w and {len(rule.state)} of state"
    assert all(math.isfinite(v) for v in first), f"gives {first} for finite input"
    assert first == again, "gives other values when called again"


def it_is_elementwise(rule: Rule, constants: Constants) -> None:
    """Arrays and tensors give, element by element, what scalars give (within 4 ulp of float64)."""
    if rule.is_matrix:
        return
    values = _values(1 + 1 + len(rule.state), 7)
    one_by_one = np.array([_evaluate(rule, constants, row) for row in values.T.tolist()]).T
    arrays = _evaluate(rule, constants, list(values))
    tensors = _evaluate(rule, constants, [torch.from_numpy(row) for row in values])
    for index, column in enumerate(one_by_one):
        for result in (arrays[index], tensors[index]):
            np.testing.assert_allclose(
                np.broadcast_to(np.asarray(result), column.shape), column, rtol=1e-15, atol=1e-15
            )


def it_gives_matrices_the_same_as_tensors_and_as_arrays(rule: Rule, constants: Constants) -> None:
    """Finite values in the shapes of the input, the same each time; at the defaults arrays give what tensors give."""
    if not rule.is_matrix:
        return
    arrays, tensors = _matrices(rule), [torch.from_numpy(array) for array in _matrices(rule)]
    first, again = (_evaluate(rule, constants, list(tensors)) for _ in range(2))
    shapes = [tuple(given.shape) for given in (tensors[0], *tensors[2:])]
    assert [tuple(value.shape) for value in first] == shapes, "shapes of weights or state change"
    assert all(bool(value.isfinite().all()) for value in first), f"gives {first} for finite input"
    assert _equal([*first], [*again]), "gives other values when called again"
    if constants == dict(rule.constants):
        for one, other in zip(first, _evaluate(rule, constants, list(arrays)), strict=True):
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-12, atol=1e-12)


def it_does_not_write_into_its_arguments(rule: Rule, constants: Constants) -> None:
    """Weights, gradients and state given to the equation are as before."""
    rows = _matrices(rule) if rule.is_matrix else _values(2 + len(rule.state), 5)
    given = [torch.from_numpy(row) for row in rows]
    before = [t.clone() for t in given]
    _evaluate(rule, constants, given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)), "an argument was changed in place"


def it_stands_still_at_rate_zero(rule: Rule, constants: Constants) -> None:
    """Without a rate no weight moves, whatever the gradient and decay."""
    (w,) = _descended(rule, constants, lr=0.0, weight_decay=0.1)
    assert torch.equal(w, _starts(rule)[0]), "weights moved at lr=0"


def it_stands_still_where_gradients_are_zero(rule: Rule, constants: Constants) -> None:
    """With gradients of 0, no decay and no steps before, no weight moves."""
    weights = _starts(rule)
    _descend(_optimizer(rule, constants, weights, weight_decay=0.0), weights, 3, sign=0.0)
    assert torch.equal(weights[0], _starts(rule)[0]), "weights moved though all gradients were 0"


def it_moves_on_every_engine_as_in_its_plain_form(rule: Rule, constants: Constants) -> None:
    """Five steps are those of `rules.plain_form.PlainForm`, in float64, with weight decay; of a matrix rule at its defaults."""
    if rule.is_matrix and constants != dict(rule.constants):
        return  # `half` rounds on tensors only
    for engine in ("tensors", "auto"):
        weights = _starts(rule)
        form = PlainForm(rule, weights[0].numpy().copy(), lr=0.01, weight_decay=0.1, constants=constants)
        optimizer = _optimizer(rule, constants, weights, weight_decay=0.1, engine=engine)
        for step in range(5):
            weights[0].grad = (weights[0] * (step + 1)).sin() + 0.1
            form.step(weights[0].grad.numpy().copy())
            optimizer.step()
            np.testing.assert_allclose(weights[0].numpy(), form.w, rtol=1e-9, atol=1e-11, err_msg=f"engine {engine}")


def it_stays_finite_under_one_huge_gradient_that_is_clipped(rule: Rule, constants: Constants) -> None:
    """An entry of 1e30 in float32 among some of 1 and 0, at clip_norm=1, leaves weights and state finite."""
    weights = [w.float() for w in _starts(rule)]
    optimizer = _optimizer(rule, constants, weights, clip_norm=1.0)
    for huge in (1.0, 1e30, 1.0):
        weights[0].grad = torch.ones_like(weights[0])
        weights[0].grad.view(-1)[:2] = torch.tensor([huge, 0.0])
        optimizer.step()
        states = [value for entry in optimizer.state.values() for value in entry.values()]
        assert all(bool(t.isfinite().all()) for t in [*weights, *states]), "weights or state are no longer finite"


def it_goes_downhill(rule: Rule, constants: Constants) -> None:
    """A convex quadratic is at most half as high after 300 steps at one of the rates 1e-3 … 1."""
    start = float((_starts(rule)[0] ** 2).sum())
    ends = [float((_descended(rule, constants, steps=300, lr=lr)[0] ** 2).sum()) for lr in (1e-3, 1e-2, 1e-1, 1.0)]
    assert min(ends) < start / 2, f"the quadratic fell from {start:g} to {ends} only"


def it_climbs_as_it_descends(rule: Rule, constants: Constants) -> None:
    """`maximize` with the gradient's sign turned gives the same bits."""
    (down,) = _descended(rule, constants)
    (up,) = _descended(rule, constants, sign=-1.0, maximize=True)
    assert torch.equal(down, up), "maximize is not the mirror of minimising"


def it_gives_the_same_bits_gathered_or_alone(rule: Rule, constants: Constants) -> None:
    """Small tensors in one block and the same numbers in one large tensor move alike, in float64; matrices are never cut.

    The tensor engine gives the same bits. A compiled kernel may contract a product and a sum otherwise at a tensor's end than in
    the middle, and sums over all weights are rounded block by block: those need only come close.
    """
    if rule.is_matrix:
        return
    for engine in ("tensors", "auto"):
        alone, gathered = _cut_or_whole(rule, constants, engine)
        if engine == "tensors" and rule.sums is None:
            assert torch.equal(alone, gathered), "a block's bits differ from a lone tensor's"
        else:
            torch.testing.assert_close(
                alone, gathered, rtol=1e-9 if rule.sums else 1e-14, atol=1e-12 if rule.sums else 1e-14
            )


def _cut_or_whole(rule: Rule, constants: Constants, engine: str) -> list[Tensor]:
    large = 40_000
    torch_random = torch.Generator().manual_seed(5)
    start = torch.randn(large, dtype=torch.float64, generator=torch_random)
    slope = torch.randn(large, dtype=torch.float64, generator=torch_random)
    alone, gathered = [start.clone()], list(start.clone().split(1000))
    for weights, slopes in ((alone, [slope]), (gathered, list(slope.split(1000)))):
        options = {"weight_decay": 0.1, "clip_value": 1.5, "engine": engine, **_averaged(rule)}
        optimizer = _optimizer(rule, constants, weights, **options)
        for _ in range(3):
            for w, s in zip(weights, slopes, strict=True):
                w.grad = s * w
            optimizer.step()
    return [alone[0], torch.cat(gathered)]


def it_continues_from_its_state_dict(rule: Rule, constants: Constants) -> None:
    """Saved, loaded into a new optimiser and continued, it gives the bits of the uninterrupted descent."""
    (straight,) = _descended(rule, constants, steps=9, **_averaged(rule))
    weights = _starts(rule)
    first = _optimizer(rule, constants, weights, **_averaged(rule))
    _descend(first, weights, 4)
    second = _optimizer(rule, constants, weights, **_averaged(rule))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    _descend(second, weights, 5)
    assert torch.equal(straight, weights[0]), "a loaded state does not continue bit for bit"


def it_skips_a_nonfinite_gradient(rule: Rule, constants: Constants) -> None:
    """NaN or infinity in a gradient leaves weights and state as they were."""
    weights = _starts(rule)
    optimizer = _optimizer(rule, constants, weights)
    _descend(optimizer, weights, 2)
    before = copy.deepcopy([weights, list(optimizer.state.values())])
    for bad in (math.nan, math.inf):
        weights[0].grad = torch.ones_like(weights[0])
        weights[0].grad[1] = bad
        optimizer.step()
        assert optimizer.last is not None
        assert optimizer.last.skipped, "the step was not skipped"
    assert _equal(before, [weights, list(optimizer.state.values())]), "weights or state changed"


def it_is_pickled_by_name(rule: Rule, constants: Constants) -> None:
    """A rule that is defined in a module is pickled by name and comes back as itself."""
    del constants
    if getattr(importlib.import_module(rule.equation.__module__), rule.name, None) is rule:
        assert pickle.loads(pickle.dumps(rule)) is rule, "pickling gives another rule"
    assert copy.deepcopy(rule) is rule, "deepcopy gives another rule"


CLAIMS: tuple[Claim, ...] = (
    it_says_where_it_comes_from,
    it_refuses_constants_outside_their_range,
    it_is_a_pure_function_of_scalars,
    it_is_elementwise,
    it_gives_matrices_the_same_as_tensors_and_as_arrays,
    it_does_not_write_into_its_arguments,
    it_stands_still_at_rate_zero,
    it_stands_still_where_gradients_are_zero,
    it_moves_on_every_engine_as_in_its_plain_form,
    it_stays_finite_under_one_huge_gradient_that_is_clipped,
    it_goes_downhill,
    it_climbs_as_it_descends,
    it_gives_the_same_bits_gathered_or_alone,
    it_continues_from_its_state_dict,
    it_skips_a_nonfinite_gradient,
    it_is_pickled_by_name,
)


def _refused(rule: Rule, constants: Constants) -> None:
    try:
        rule.complete(constants)
    except RuleError:
        return
    raise AssertionError(f"{dict(constants)} was accepted")


def _evaluate(rule: Rule, constants: Constants, values: list[Any]) -> tuple[Any, ...]:
    numbers = {**rule.numbers(3, rule.begin(constants), constants, 0.01), "weight_decay": 0.1}
    if rule.decide is not None:
        numbers |= rule.decide([0.1] * 9, numbers)
    out = rule(*values, **{name: numbers[name] for name in rule.takes})
    return out if isinstance(out, tuple) else (out,)


def _values(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Make numbers in ±[0.1, 1] for weights and gradients, positive for state (averages of squares among them)."""
    drawn = np.random.default_rng(7).uniform(0.1, 1.0, (rows, columns))
    drawn[:2] *= np.where(np.random.default_rng(8).random((2, columns)) < 0.5, -1.0, 1.0)
    return drawn


def _matrices(rule: Rule) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Make a matrix of weights, one of gradients, and state in its shapes."""
    drawn = _values(2 + len(rule.state), 12).reshape(-1, 3, 4)
    shapes = {"weights": np.s_[:, :], "rows": np.s_[:, :1], "columns": np.s_[:1, :]}
    state = [values[shapes[s.shape]] for s, values in zip(rule.state, drawn[2:], strict=True)]
    return [drawn[0], drawn[1], *(values.copy() for values in state)]


def _starts(rule: Rule) -> list[Tensor]:
    numbers = torch.linspace(-1.0, 2.0, 12 if rule.is_matrix else 7, dtype=torch.float64)
    return [numbers.view(3, 4) if rule.is_matrix else numbers]


def _averaged(rule: Rule) -> dict[str, Any]:
    """Turn an EMA on, unless the rule averages the weights itself."""
    return {"ema": 0.9} if rule.average is None else {}


def _optimizer(rule: Rule, constants: Constants, weights: list[Tensor], **options: Any) -> Optimizer:
    named: dict[str, Any] = {"lr": 0.01, **constants, **options}
    return Optimizer(weights, rule, **named)


def _descend(optimizer: Optimizer, weights: list[Tensor], steps: int, sign: float = 1.0) -> None:
    for _ in range(steps):
        for w in weights:
            w.grad = sign * w
        optimizer.step()


def _descended(rule: Rule, constants: Constants, *, steps: int = 5, sign: float = 1.0, **options: Any) -> list[Tensor]:
    weights = _starts(rule)
    _descend(_optimizer(rule, constants, weights, **options), weights, steps, sign)
    return weights


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return all(_equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list) else a == b
