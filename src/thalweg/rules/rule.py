"""An update rule is one equation: a pure function of one scalar weight, its gradient and its state.

`@rule` turns such a function into a `Rule`, a frozen value that says all an engine must know: which state the equation
carries and what PyTorch calls it, the constants with their defaults and ranges, and what is computed once per step.
`@matrix_rule` does the same for an equation that needs whole tensors (products of matrices, norms).
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from types import MappingProxyType
from typing import Any, NamedTuple

from thalweg.errors import RuleError, nearest, shown

Scalars = Callable[[int, Mapping[str, Any]], Mapping[str, float]]
Decide = Callable[[Sequence[float], Mapping[str, Any]], Mapping[str, float]]

DECAY = "weight_decay"
_ENGINE_NAMES = ("lr", DECAY)


class State(NamedTuple):
    """What the equation carries from step to step for each weight.

    - `name`: in the equation.
    - `key`: in `state_dict` (PyTorch's name, where PyTorch has the same thing).
    - `start`: "zeros", "weights" (a copy of the weight), a number, or the name of the constant that holds it.
    - `when`: the name of a constant; the state exists only where that is true or not 0.
    - `shape`, of matrix rules: "weights", "rows" (one number per row of the last two dimensions) or "columns".
    - `only`, of matrix rules: the state exists for "matrices" (two dimensions or more) or for "vectors" alone.
    """

    name: str
    key: str
    start: float | str = "zeros"
    when: str | None = None
    shape: str = "weights"
    only: str | None = None

    def begin(self, constants: Mapping[str, Any]) -> float | str:
        """Give what the state starts from: a number, or "weights"."""
        if self.start == "zeros":
            return 0.0
        return self.start if self.start == "weights" else float(constants.get(str(self.start), self.start))

    def exists_for(self, matrix: bool) -> bool:
        """Tell whether the state exists for a tensor that is, or is not, a matrix."""
        return self.only is None or (self.only == "matrices") == matrix


class Range(NamedTuple):
    """An interval of the real line, written as in mathematics.

    >>> Range.parse("[0, 1)").holds(1.0)
    False
    >>> str(Range.parse("(0, inf)"))
    '(0, inf)'
    """

    low: float
    high: float
    low_open: bool
    high_open: bool

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read "[0, 1)", "(0, inf)" and the like."""
        low, high = text[1:-1].split(",")
        return cls(float(low), float(high), text[0] == "(", text[-1] == ")")

    def holds(self, value: float) -> bool:
        """Tell whether the value lies inside; NaN never does."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule: the equation and what an engine must know to run it.

    - `equation(w, g, *state, lr=…, **constants, **scalars)` gives the new weight and the new state, in the order of `state`.
    - `constants`: name to default; `ranges`: name to the interval the constant must lie in.
    - `choices`: of a constant that is a word, name to the values it may have.
    - `scalars(step, numbers)`: what depends on the step alone (bias corrections), in float64, once per step. The first step is 1,
      `numbers` are the constants, `lr` and what is carried. What it gives under a name of `carried` is carried to the next step.
    - `carried`: numbers that are carried from step to step, each with its start: a number or the name of a constant.
    - `sums(w, g, *state, lr=…, …)`: an equation like the rule's own, of which each result is summed over all weights of a
      group, before they move; `decide(sums, numbers)` makes scalars (and carried numbers) of the totals.
    - `average(w, *state, **constants)`: the weights to evaluate and to save, where gradients are taken at others
      (`Optimizer.averaged`).
    - `finds_rate`: the rule finds its own learning rate, which `lr` only multiplies: it stays at 1.
    - `second_moment`: the expression, in the equation's names, of the mean square that divides the gradient, if one does.
    - `rest`: of a matrix rule, the rule for tensors of fewer than two dimensions.
    - `takes_decay`: the equation takes `weight_decay` itself (decoupled); otherwise the engine adds `weight_decay * w` to the
      gradient (coupled), as it does where the constant that `decoupled` names is false.
    - `takes`: the names of all numbers that the equation takes, weight decay included.
    - `grouped`: PyTorch's name for several constants at once (`betas`).
    - `fixed`: PyTorch's options of which this rule supports one value; they are written into a `state_dict`, and
      another value is refused there and when an optimiser is made.
    - `takes_sparse`: whether sparse gradients may be given, as PyTorch's class of the same equation takes them: a weight whose
      gradient is 0 then moves by its own state at most, which is what a sparse gradient says of all weights that it leaves out.
    - `counts_steps`: whether `state_dict` has a `step`. Without one, `scalars` gets 1 for a parameter's first step (while it has
      no state) and 2 for every later one.
    - `optimizer`: the name of the class in `thalweg.optim`.
    """

    name: str
    equation: Callable[..., Any]
    state: tuple[State, ...]
    constants: Mapping[str, Any]
    ranges: Mapping[str, Range]
    scalars: Scalars | None
    source: str
    title: str
    takes: tuple[str, ...]
    weight_decay: float
    decoupled: str | None = None
    learning_rate: float | None = None
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, "tuple[Any, ...]"])
    aliases: tuple[str, ...] = ()
    grouped: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    takes_sparse: bool = False
    counts_steps: bool = False
    optimizer: str = ""
    carried: Mapping[str, float | str] = field(default_factory=dict[str, float | str])
    sums: Callable[..., Any] | None = None
    decide: Decide | None = None
    average: Callable[..., Any] | None = None
    finds_rate: bool = False
    second_moment: str | None = None
    is_matrix: bool = False
    rest: Rule | None = None

    def __call__(self, *values: Any, **constants: Any) -> Any:
        """Evaluate the equation itself, on numbers, arrays or tensors."""
        return self.equation(*values, **constants)

    def __repr__(self) -> str:
        return f"<rule {self.name}: {self.title}>"

    def __reduce__(self) -> tuple[Callable[[str, str], Rule], tuple[str, str]]:
        return _load_rule, (self.equation.__module__, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rule:
        return self

    def states(self, constants: Mapping[str, Any]) -> tuple[State, ...]:
        """Give the active states: those that exist under these constants (RMSprop's `centered` and `momentum` add one each)."""
        return tuple(s for s in self.state if s.when is None or constants[s.when])

    @property
    def takes_decay(self) -> bool:
        """Whether the equation shrinks the weights itself."""
        return DECAY in self.takes

    def couples(self, constants: Mapping[str, Any]) -> bool:
        """Tell whether weight decay goes through the gradient under these constants."""
        return not self.takes_decay or (self.decoupled is not None and not constants[self.decoupled])

    def begin(self, constants: Mapping[str, Any]) -> dict[str, float]:
        """Give the carried numbers as they are before the first step."""
        return {name: float(constants.get(str(start), start)) for name, start in self.carried.items()}

    def numbers(self, step: int, carried: Mapping[str, float], constants: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        """Give the numbers that the equation takes at a step, by name: all but weight decay and what `decide` makes of `sums`.

        >>> from thalweg.rules.adam import adam
        >>> round(adam.numbers(1, {}, adam.constants, 0.1)["correction1"], 12)
        0.1
        """
        known = {**constants, **carried, "lr": lr}
        return {**known, **self.scalars(step, known)} if self.scalars is not None else known

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The constants' names in a parameter group."""
        return tuple(self.group_defaults())

    def group_defaults(self) -> dict[str, Any]:
        """Give the constants' defaults under the names they have in a parameter group (`betas` for `beta1`, `beta2`)."""
        return self.to_group(self.constants)

    def to_group(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        """Rename the equation's constants to a parameter group's.

        >>> from thalweg.rules.adam import adam
        >>> adam.to_group({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8})
        {'betas': (0.9, 0.99), 'eps': 1e-08}
        """
        group = dict(constants)
        for name, members in self.grouped.items():
            values = tuple(group.pop(m, self.constants[m]) for m in members)
            group = {name: values, **group}
        return group

    def from_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Pick the equation's constants from a parameter group."""
        constants = {name: group[name] for name in self.constants if name in group}
        for name in self.grouped:
            constants.update(self._ungroup(name, group[name]))
        return constants

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the constants given, by their own or PyTorch's grouped names, with defaults, and check each.

        Raises `RuleError` for an unknown name, a value of the wrong kind or outside its range.

        >>> from thalweg.rules.adam import adam
        >>> adam.complete({"betas": (0.8, 0.99)})
        {'beta1': 0.8, 'beta2': 0.99, 'eps': 1e-08, 'amsgrad': False}
        """
        values = dict(self.constants)
        for name, value in given.items():
            if name in self.grouped:
                values.update(self._ungroup(name, value))
            elif name in values:
                values[name] = value
            else:
                raise RuleError(self.unknown(name))
        for name, value in values.items():
            self.check_constant(name, value)
        return values

    def check_constant(self, name: str, value: Any) -> None:
        """Raise `RuleError` unless the constant is of the right kind and inside its range.

        A default of True or False makes it a switch, a whole number a whole number.
        """
        if name in self.choices:
            if not any(type(value) is type(choice) and value == choice for choice in self.choices[name]):
                choices = " or ".join(map(repr, self.choices[name]))
                raise RuleError(
                    f"{name} of {self.name} is {choices}, not {shown(value)}.{_did_you_mean(value, self.choices[name])}"
                )
            return
        if isinstance(self.constants[name], bool):
            if not isinstance(value, bool):
                raise RuleError(f"{name} of {self.name} is True or False, not {shown(value)}.")
            return
        wanted = self.ranges.get(name, Range(-math.inf, math.inf, True, True))
        whole = isinstance(self.constants[name], int)
        fits = isinstance(value, Integral) if whole else _is_number(value)
        if isinstance(value, bool) or not fits or not wanted.holds(float(value)):
            kind = "a whole number" if whole else "a number"
            raise RuleError(f"{name} of {self.name} must be {kind} in {wanted}, not {shown(value)}.")

    def _ungroup(self, name: str, value: Any) -> dict[str, Any]:
        members = self.grouped[name]
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise RuleError(
                f"{name} of {self.name} holds {len(members)} numbers ({', '.join(members)}), not {shown(value)}."
            )
        values = list(value)
        if len(values) != len(members):
            raise RuleError(
                f"{name} of {self.name} holds {len(members)} numbers ({', '.join(members)}), not {len(values)}."
            )
        # PyTorch has None for the default of Adafactor's first eps.
        return {m: self.constants[m] if v is None else v for m, v in zip(members, values, strict=True)}

    def unknown(self, name: str, beside: Iterable[str] = ()) -> str:
        """Say that there is no constant of this name; `beside` are other names that may have been meant."""
        known = [*self.constants, *self.grouped]
        listed = f"its constants are {', '.join(known)}" if known else "it has no constants"
        return f"{self.name} has no constant {name!r}; {listed}.{nearest(name, [*known, *beside])}"


def rule(
    *,
    source: str,
    state: Mapping[str, tuple[Any, ...]] | Iterable[str] = (),
    ranges: Mapping[str, str] | None = None,
    choices: Mapping[str, tuple[Any, ...]] | None = None,
    scalars: Scalars | None = None,
    grouped: Mapping[str, tuple[str, ...]] | None = None,
    fixed: Mapping[str, Any] | None = None,
    takes_sparse: bool = False,
    aliases: Iterable[str] = (),
    counts_steps: bool | None = None,
    carried: Mapping[str, float | str] | None = None,
    sums: Callable[..., Any] | None = None,
    decide: Decide | None = None,
    average: Callable[..., Any] | None = None,
    finds_rate: bool = False,
    second_moment: str | None = None,
    decoupled: str | None = None,
    optimizer: str | None = None,
) -> Callable[[Callable[..., Any]], Rule]:
    """Make a `Rule` of an equation `f(w, g, *state, *, lr, constants with defaults, scalars without)`.

    - A default of `lr` is the rule's learning rate where nobody gives one.
    - `optimizer`: the class's name in `thalweg.optim`, where it is not the equation's name in CamelCase (`RMSprop`).
    - `state`: name in the equation to (key, start, …) as in `State`, or just names.
    - `ranges`: constant to an interval such as "[0, 1)"; a constant without one may be any finite number.
    - `source`: where the equation comes from; the title is the first line of its docstring (or of its file's).
    - Everything else: see `Rule`.

    Raises `RuleError` at import where the signature and the description do not fit together.

    >>> @rule(source="Cauchy 1847")
    ... def descent(w: float, g: float, *, lr: float) -> float:
    ...     '''Straight downhill.'''
    ...     return w - lr * g
    >>> descent, descent(1.0, 0.5, lr=0.1)
    (<rule descent: Straight downhill>, 0.95)
    """

    def decorate(equation: Callable[..., Any]) -> Rule:
        states = _states(state)
        constants, from_scalars = _constants(equation, states)
        signature = inspect.signature(equation).parameters
        made = Rule(
            name=equation.__name__,
            equation=equation,
            state=states,
            constants=MappingProxyType(constants),
            ranges=MappingProxyType({name: Range.parse(text) for name, text in (ranges or {}).items()}),
            scalars=scalars,
            source=source,
            title=_title(equation),
            takes=tuple(p.name for p in signature.values() if p.kind is inspect.Parameter.KEYWORD_ONLY),
            weight_decay=_default(signature, DECAY) or 0.0,
            decoupled=decoupled,
            learning_rate=_default(signature, "lr"),
            choices=MappingProxyType(dict(choices or {})),
            aliases=tuple(aliases),
            grouped=MappingProxyType(dict(grouped or {})),
            fixed=MappingProxyType(dict(fixed or {})),
            takes_sparse=takes_sparse,
            counts_steps=scalars is not None if counts_steps is None else counts_steps,
            optimizer=optimizer or "".join(map(str.capitalize, equation.__name__.split("_"))),
            carried=MappingProxyType(dict(carried or {})),
            sums=sums,
            decide=decide,
            average=average,
            finds_rate=finds_rate,
            second_moment=second_moment,
        )
        _check_scalars(made, from_scalars)
        return made

    return decorate


def matrix_rule(*, rest: Rule | None = None, **description: Any) -> Callable[[Callable[..., Any]], Rule]:
    """Make a `Rule` of an equation that takes whole tensors: `w` and `g` in the parameter's shape, state in its own.

    It may use what tensors and arrays share (`@`, `.mT`, `.reshape`, `.shape`) and `maths`. A state that does not exist for a
    tensor (`State.only`) is given as 0. With `rest` the equation moves matrices (two dimensions or more) alone, and the rule
    `rest`, at its defaults, the others. Everything else: see `rule`.
    """

    def decorate(equation: Callable[..., Any]) -> Rule:
        return replace(rule(**description)(equation), is_matrix=True, rest=rest)

    return decorate


def _states(state: Mapping[str, tuple[Any, ...]] | Iterable[str]) -> tuple[State, ...]:
    if isinstance(state, Mapping):
        return tuple(State(name, *described) for name, described in state.items())
    return tuple(State(name, name) for name in state)


def _constants(equation: Callable[..., Any], states: tuple[State, ...]) -> tuple[dict[str, Any], set[str]]:
    """Split the equation's keyword arguments into constants (with a default) and what `scalars` must give (without one)."""
    parameters = inspect.signature(equation).parameters.values()
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if positional != ["w", "g", *(s.name for s in states)]:
        raise RuleError(
            f"The equation {equation.__name__} must take (w, g, {', '.join(s.name for s in states)}) "
            f"before the star, not ({', '.join(positional)})."
        )
    keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    own = [p for p in keywords if p.name not in _ENGINE_NAMES]
    constants = {p.name: p.default for p in own if p.default is not inspect.Parameter.empty}
    return constants, {p.name for p in own} - set(constants)


def _check_scalars(made: Rule, wanted: set[str]) -> None:
    numbers = {**made.constants, **made.begin(made.constants), "lr": made.learning_rate or 1.0}
    given = {*made.carried, *(made.scalars(1, numbers) if made.scalars else ())}
    if (made.sums is None) != (made.decide is None):
        raise RuleError(f"The equation {made.name} needs `sums` and `decide` together, or neither.")
    # Where there are sums, `decide` gives some of the numbers, which are not known before there is a gradient.
    if made.sums is None and not wanted <= given <= wanted | set(made.carried):
        raise RuleError(
            f"The equation {made.name} needs {sorted(wanted)} from `scalars`, which gives {sorted(given)}; "
            "give a constant a default, or compute it there."
        )
    if made.scalars is not None and not made.counts_steps and not made.state:
        raise RuleError(
            f"The equation {made.name} counts no steps and has no state, so that `scalars` cannot know which step it is: "
            "leave counts_steps out."
        )
    for name, value in made.constants.items():
        made.check_constant(name, value)


def _default(signature: Mapping[str, inspect.Parameter], name: str) -> float | None:
    parameter = signature.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else float(parameter.default)


def _title(equation: Callable[..., Any]) -> str:
    text = inspect.getdoc(equation) or inspect.getdoc(inspect.getmodule(equation)) or equation.__name__
    return text.splitlines()[0].rstrip(".")


def _did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    return nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: of a tensor without values
        return False


def _load_rule(module: str, name: str) -> Rule:
    """Give a module's rule by its name: unpickling, since a rule is pickled by name, as a function is."""
    return getattr(importlib.import_module(module), name)
