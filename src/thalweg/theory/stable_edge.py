"""The largest curvature at which a rule converges, and its rate and its noise below that, found from its equation alone.

Close to a minimum the loss is a bowl, L w² / 2, and its gradient is L w plus noise. There a step maps the weight and its momenta,
x = (w, momenta), linearly:

    x <- A x + b g,    g = L w + noise,    so    x <- M(L) x + b noise,    M(L) = A + L b (1, 0, 0, …)

The eigenvalues of M(L) say whether the descent converges and how fast; the covariance S that noise of variance s² keeps up in
the weights solves S = M S Mᵀ + s² b bᵀ.

A rule that divides by the usual size of the gradient (Adam, RMSprop) is linear only as long as that size does not change, as it
hardly does over the few steps in which a descent diverges. So the states that hold it, the *scales*, are held at 1, and the lines
of the equation that would change them are left out: what is called curvature is then the **preconditioned** one,
L / (sqrt(v) + eps). Which states are scales is found by symmetry: where the weight and every gradient change their sign, a
momentum changes its own, a scale does not. (The step then depends on L / (1 + eps); where eps is not tiny, results are for L with
scales of 1.)

Weight decay is left out, corrections that depend on the step are those of late steps, and numbers that are carried from step to
step have the values that they reach after 100,000 steps.

Sources: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Lessard, Recht & Packard 2016, arXiv:1408.3595 (eigenvalues of momentum
methods); Cohen et al. 2022, arXiv:2207.14484 (preconditioned curvature); Liu, Ziyin & Ueda 2021, arXiv:2012.03636 (noise at
finite rates).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from thalweg import rules
from thalweg.errors import RuleError, shown
from thalweg.rules import maths
from thalweg.rules.plain_form import PlainForm
from thalweg.rules.program import FUNCTIONS, read
from thalweg.rules.rule import DECAY, Rule

Array = np.ndarray[Any, np.dtype[np.float64]]
Constants = Mapping[str, Any]

_LATE_STEP = 10**9  # by which bias corrections have become 1
_SETTLING_STEPS = 100_000  # after which carried numbers are read
_SMALL = 2.0**-30  # distance from the minimum: squares vanish beside 1; a power of two, so that linear rules stay exact
_ROUNDING = 1e-10  # how far rounding may put the modulus of an eigenvalue above 1
_LOW_RATE, _SHALLOW = 1e-3, 1e-4  # a rate and a curvature far below any rule's edge
_SCANNED = np.geomspace(1e-6, 1e12, 400)  # values of rate times curvature between which bisection starts


class Edge(NamedTuple):
    """The largest curvature at which a rule still converges.

    - `curvature`: in units of loss per squared weight; infinite where none makes the rule diverge, None where its step has no
      eigenvalues (see `reason`).
    - `scales`: the states that were held at 1; where there are any, `curvature` is the preconditioned one.
    - `reason`: why there is no finite edge; else empty.
    """

    curvature: float | None
    scales: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class LinearStep:
    """A step near a minimum, x <- A x + b g, with x = `names` (the weight first, then its momenta).

    `state_matrix` is A and `gradient_vector` b.

    `scales` are the states that were held at 1 for it.
    """

    names: tuple[str, ...]
    state_matrix: Array
    gradient_vector: Array
    scales: tuple[str, ...]

    def at(self, curvature: float) -> Array:
        """Give the matrix M(L) by which a step multiplies x in a bowl of this curvature."""
        return self.state_matrix + curvature * self.gradient_vector[:, None] * np.eye(len(self.names))[0]

    def radius(self, curvature: float) -> float:
        """Give the factor by which a step shrinks (or stretches) x in the long run: the largest modulus of an eigenvalue."""
        return float(self.radii(np.array([curvature]))[0])

    def radii(self, curvatures: Array) -> Array:
        """Give `radius` at each of several curvatures."""
        matrices = np.stack([self.at(curvature) for curvature in curvatures])
        return np.abs(np.linalg.eigvals(matrices)).max(-1)


class _NotLinearError(RuleError):
    """The rule's step near a minimum is not a linear map of a weight and its momenta."""


def stable_edge(rule: Rule | str, constants: Constants | None = None, *, lr: float) -> Edge:
    """Find the largest curvature of a bowl in which a rule still converges, by bisection.

    Closed forms that it agrees with: 2 / lr for gradient descent, (2 + 2b) / lr for momentum b, (2 + 2b) / ((1 + 2b) lr) for
    Nesterov's, (2 + 2 beta1) / ((1 - beta1) lr) for Adam's preconditioned curvature: 38 / lr at its defaults.

    Arguments: a rule or its name; constants that differ from its defaults; `lr`, the learning rate, above 0.

    Raises RuleError for a rule or constant that does not exist, and for a rate that is not above 0.

    >>> round(stable_edge("momentum", {"momentum": 0.5}, lr=0.1).curvature, 9)
    30.0
    >>> edge = stable_edge("adamw", lr=0.001)
    >>> round(edge.curvature), edge.scales
    (38000, ('v',))
    >>> stable_edge("lion", lr=0.001).curvature is None
    True
    """
    try:
        linear = linearise(rule, constants, lr=lr)
    except _NotLinearError as error:
        return Edge(None, (), str(error))
    curvatures = _SCANNED / lr
    unstable = np.flatnonzero(linear.radii(curvatures) > 1 + _ROUNDING)
    if not unstable.size:
        return Edge(math.inf, linear.scales, "No curvature makes it diverge.")
    first = int(unstable[0])
    if first == 0:
        return Edge(0.0, linear.scales, "It diverges in every bowl, however shallow.")
    low, high = float(curvatures[first - 1]), float(curvatures[first])
    return Edge(_bisect(lambda curvature: linear.radius(curvature) > 1 + _ROUNDING, low, high), linear.scales)


def convergence_rate(
    rule: Rule | str, curvatures: Sequence[float], constants: Constants | None = None, *, lr: float
) -> float:
    """Give the factor by which a step multiplies the distance to the minimum, in the long run.

    In a bowl with several curvatures the slowest direction decides: the largest spectral radius of M(L) over them. At least 1
    where it does not converge. With k the ratio of largest to smallest curvature, gradient descent reaches (k - 1) / (k + 1),
    the heavy ball at its best (sqrt(k) - 1) / (sqrt(k) + 1).

    Raises RuleError where the step is not linear, with the reason.

    >>> round(convergence_rate("gradient_descent", [1.0, 9.0], lr=0.2), 12)
    0.8
    """
    linear = linearise(rule, constants, lr=lr)
    return max(linear.radius(curvature) for curvature in curvatures)


def variance(
    rule: Rule | str, constants: Constants | None = None, *, lr: float, curvature: float, noise: float
) -> float:
    """Give the variance of the weight about the minimum under noisy gradients, in the long run, exactly.

    It is S_ww of S = M S Mᵀ + s² b bᵀ; for momentum b that is lr s² (1 + b) / (L (1 - b) (2 (1 + b) - lr L)).

    Arguments: as `stable_edge`; `curvature` L; `noise` s, the standard deviation of the gradient's noise, independent from step
    to step. Of rules with scales both are the preconditioned ones, divided by sqrt(v) + eps.

    Gives infinity beyond the stable edge. Raises RuleError where the step is not linear, with the reason.

    >>> round(variance("gradient_descent", lr=0.1, curvature=10.0, noise=2.0), 12)
    0.04
    """
    linear = linearise(rule, constants, lr=lr)
    if linear.radius(curvature) >= 1:
        return math.inf
    step = linear.at(curvature)
    added = noise**2 * np.outer(linear.gradient_vector, linear.gradient_vector)
    system = np.eye(step.size) - np.kron(step, step)
    return float(np.linalg.solve(system, added.ravel())[0])


def temperature(
    rule: Rule | str, constants: Constants | None = None, *, lr: float, curvature: float, noise: float
) -> float:
    """Give the temperature T of a noisy descent: curvature times `variance`, in units of the loss.

    A particle at temperature T sits in a bowl with variance T / L and leaves a basin whose rim is h higher in a time that grows
    like exp(h / T) (Kramers 1940, doi:10.1016/S0031-8914(40)90098-2). Far below the stable edge T is the same in every bowl:
    lr s² / 2 for gradient descent, lr s² / (2 (1 - b)) for momentum b. Arguments and errors: as `variance`.

    >>> round(temperature("momentum", lr=0.01, curvature=1e-6, noise=2.0), 6)
    0.2
    """
    return curvature * variance(rule, constants, lr=lr, curvature=curvature, noise=noise)


def temperature_gain(rule: Rule | str, constants: Constants | None = None) -> float:
    """Give what a rule makes of the noise of gradients far below its stable edge: 2 T / (lr s²), the same at every rate.

    1 for gradient descent and for rules that average their gradients, as Adam does; 1 / (1 - b) for momentum b, which adds them
    up. Raises as `variance` does.

    >>> round(temperature_gain("momentum", {"momentum": 0.75}), 3), round(temperature_gain("adamw"), 3)
    (4.0, 1.0)
    """
    return 2 * temperature(rule, constants, lr=_LOW_RATE, curvature=_SHALLOW, noise=1.0) / _LOW_RATE


def linearise(rule: Rule | str, constants: Constants | None = None, *, lr: float) -> LinearStep:
    """Find A and b of a rule's step near a minimum, by evaluating its equation.

    Raises RuleError where the step is not linear there, with the reason; otherwise as `stable_edge`.

    >>> linear = linearise("momentum", {"momentum": 0.5}, lr=0.25)
    >>> linear.names, linear.state_matrix.tolist(), linear.gradient_vector.tolist()
    (('w', 'velocity'), [[1.0, -0.125], [0.0, 0.5]], [-0.25, 1.0])
    """
    rule = rules.get(rule)
    values = rule.complete(constants or {})
    if not 0 < lr < math.inf:
        raise RuleError(f"lr must be a number above 0, not {shown(lr)}.")
    _check_is_elementwise(rule)
    scales = _scales(rule, values, lr)
    names = ("w", *(state.name for state in rule.states(values) if state.name not in scales))
    step = _step(rule, values, lr, names, scales)
    basis = np.eye(len(names) + 1)  # one vector for each of x, the last for the gradient
    columns = np.array([step(row) for row in basis]).T
    _check_is_linear(step, columns)
    return LinearStep(names, columns[:, :-1], columns[:, -1], scales)


def _check_is_elementwise(rule: Rule) -> None:
    if rule.is_matrix:
        raise _NotLinearError("Its step depends on the whole matrix, so it cannot be found from one weight alone.")
    if rule.sums is not None:
        raise _NotLinearError("Its step depends on sums over all weights, so it cannot be found from one weight alone.")


def _scales(rule: Rule, constants: Constants, lr: float) -> tuple[str, ...]:
    """Name the active states that stay the same where the weight and all gradients change their sign."""
    signs = (1.0, -1.0)
    right, left = forms = [PlainForm(rule, 0.4 * sign, lr=lr, constants=constants) for sign in signs]
    for g in (0.3, -0.7, 0.5):
        for form, sign in zip(forms, signs, strict=True):
            form.step(g * sign)
    active = {state.name for state in rule.states(constants)}
    states = zip(rule.state, right.state, left.state, strict=True)
    pairs = [("w", right.w, left.w), *((state.name, *pair) for state, *pair in states)]
    same_sign = [name for name, a, b in pairs if not math.isclose(a, -b, rel_tol=1e-9)]
    for name, a, b in pairs:
        if name in same_sign and (name == "w" or not math.isclose(a, b, rel_tol=1e-9)):
            raise _NotLinearError(
                f"It moves differently to the left and to the right of the minimum: {name} is {a:g} and {b:g}."
            )
    return tuple(name for name in same_sign if name in active)


def _step(
    rule: Rule, constants: Constants, lr: float, names: tuple[str, ...], scales: tuple[str, ...]
) -> Callable[[Array], Array]:
    """Give the step as a function of the vector (x, g), in units of `_SMALL`, with the scales held at 1."""
    program = read(rule, constants)
    lines = [(line.name, _code(line.value)) for line in program.lines if line.name not in scales]
    results = dict(zip(("w", *program.state), (_code(result) for result in program.results), strict=True))
    fixed: dict[str, Any] = {name: getattr(maths, name) for name in FUNCTIONS}
    fixed |= {**_numbers_of_late_steps(rule, tuple(constants.items()), lr), **dict.fromkeys(scales, 1.0)}

    def step(point: Array) -> Array:
        known = {**fixed, **dict(zip((*names, "g"), (point * _SMALL).tolist(), strict=True))}
        try:
            for name, code in lines:
                known[name] = eval(code, known)
            return np.array([eval(results[name], known) for name in names]) / _SMALL
        except ZeroDivisionError:
            return np.full(len(names), math.nan)

    return step


def _code(expression: ast.expr) -> Any:
    return compile(ast.Expression(expression), "<equation>", "eval")


@lru_cache(maxsize=64)
def _numbers_of_late_steps(rule: Rule, given: tuple[tuple[str, Any], ...], lr: float) -> Mapping[str, Any]:
    """Give the numbers that the equation takes at a late step, without weight decay."""
    constants = dict(given)
    late = _LATE_STEP if rule.counts_steps else 2  # see `Rule.counts_steps`
    carried = rule.begin(constants)
    for _ in range(_SETTLING_STEPS):
        numbers = rule.numbers(late, carried, constants, lr)
        before, carried = carried, {name: numbers[name] for name in rule.carried}
        if carried == before:
            break
    return {**rule.numbers(late, carried, constants, lr), DECAY: 0.0}


def _check_is_linear(step: Callable[[Array], Array], columns: Array) -> None:
    """Compare the step with A x + b g at points other than those from which A and b were read."""
    count = columns.shape[1]
    if not np.isfinite(columns).all():
        raise _NotLinearError("Its step is not a finite number where the gradient is 0.")
    if _has_fixed_length(step, count):
        raise _NotLinearError(
            "Its steps are as long close to the minimum as far from it: it neither converges nor diverges, but ends up"
            " within a few rates of the minimum, whatever the curvature."
        )
    for phase in (0.3, 2.0, 4.1):
        point = np.cos(phase + 1.7 * np.arange(count))
        if not np.allclose(step(point), columns @ point, rtol=1e-6, atol=1e-6 * np.abs(columns).max()):
            raise _NotLinearError(
                "Its step is not a linear function of weight, momenta and gradient close to the minimum: it has no eigenvalues."
            )


def _has_fixed_length(step: Callable[[Array], Array], count: int) -> bool:
    gradient = np.eye(count)[-1]
    far, near = (abs(float(step(gradient * size)[0])) for size in (1.0, 1 / 1024))
    return near > far / 2 > 0


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Find between `low`, where a condition is false, and `high`, where it is true, the point where it changes, to 12 digits."""
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return (low + high) / 2
