"""An equation as a program: straight lines of arithmetic, read from the syntax tree, branches on constants already taken.

Whoever turns equations into something else (a compiled kernel, a formula, another language) starts here, so that what an
equation may contain is decided in one place: assignments of `+ - * / **` and the functions of `maths`, comparisons inside
them, `if` on constants, and one `return`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from thalweg.errors import RuleError
from thalweg.rules import maths
from thalweg.rules.rule import Rule

FUNCTIONS = ("sqrt", "maximum", "where", "sign", "power")
assert all(hasattr(maths, name) for name in FUNCTIONS)


@dataclass(frozen=True)
class Line:
    """One assignment; `each` says whether it is one value a weight, rather than one a step."""

    name: str
    value: ast.expr
    each: bool


@dataclass(frozen=True)
class Program:
    """The equation under given switches.

    `state` are the names of what is carried; `lines` come in order; `results` are the new weight and the new state, in the
    order of `state`.
    """

    state: tuple[str, ...]
    lines: tuple[Line, ...]
    results: tuple[ast.expr, ...]


@cache
def switches(rule: Rule) -> tuple[str, ...]:
    """Name the constants that an equation branches on, or that switch state on.

    >>> from thalweg.rules.rmsprop import rmsprop
    >>> switches(rmsprop)
    ('centered', 'momentum')
    """
    found = {state.when: None for state in rule.state if state.when}
    for equation in (rule.equation, *((rule.sums,) if rule.sums else ())):
        for node in ast.walk(_function(equation)):
            if isinstance(node, ast.If):
                found |= {name.id: None for name in ast.walk(node.test) if isinstance(name, ast.Name)}
    return tuple(found)


def read(rule: Rule, constants: Mapping[str, Any]) -> Program:
    """Read a rule's equation. Raises RuleError for what no equation may contain, with the line."""
    reader = _read(rule, rule.equation, constants)
    absent = {state.name for state in rule.state} - {state.name for state in rule.states(constants)}
    named = zip(["w", *(s.name for s in rule.state)], reader.results, strict=True)
    kept = [value for name, value in named if name not in absent]
    return Program(tuple(s.name for s in rule.states(constants)), tuple(reader.lines), tuple(kept))


def read_sums(rule: Rule, constants: Mapping[str, Any]) -> Program:
    """Read what a rule adds up over all weights: `results` are the summands."""
    assert rule.sums is not None
    reader = _read(rule, rule.sums, constants)
    return Program(tuple(s.name for s in rule.states(constants)), tuple(reader.lines), tuple(reader.results))


@cache
def scalars(equation: Callable[..., Any]) -> tuple[str, ...]:
    """Name the numbers that an equation takes once a step: `lr`, constants, and what `Rule.scalars` gives.

    >>> from thalweg.rules.adagrad import adagrad
    >>> scalars(adagrad.equation)
    ('lr', 'lr_decay', 'initial_accumulator_value', 'eps', 'slowed')
    """
    return tuple(argument.arg for argument in _function(equation).args.kwonlyargs)


def is_each(expression: ast.expr, each: set[str]) -> bool:
    """Whether an expression has one value a weight."""
    return any(isinstance(node, ast.Name) and node.id in each for node in ast.walk(expression))


def _read(rule: Rule, equation: Callable[..., Any], constants: Mapping[str, Any]) -> _Reader:
    names = [state.name for state in rule.states(constants)]
    reader = _Reader(rule, constants, {"w", "g", *names})
    reader.absent = {state.name for state in rule.state} - set(names)
    reader.walk(_function(equation).body)
    return reader


@cache
def _function(equation: Callable[..., Any]) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(equation))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


class _Reader:
    def __init__(self, rule: Rule, constants: Mapping[str, Any], each: set[str]) -> None:
        self.rule, self.constants, self.each = rule, constants, each
        self.absent = set[str]()
        self.lines: list[Line] = []
        self.results: list[ast.expr] = []

    def walk(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.Expr(value=ast.Constant()):  # the docstring
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if not name.endswith("_"):
                    self._check(value)
                    each = is_each(value, self.each)
                    self.lines.append(Line(name, value, each))
                    self.each |= {name} if each else set()
                    self.absent -= {name}
                case ast.If():
                    taken = statement.body if self._holds(statement.test) else statement.orelse
                    self.walk(taken)
                case ast.Return(value=value) if value is not None:
                    self.results = list(value.elts) if isinstance(value, ast.Tuple) else [value]
                    for result in self.results:
                        if not (isinstance(result, ast.Name) and result.id in self.absent):
                            self._check(result)
                case _:
                    self._refuse(statement)

    def _holds(self, test: ast.expr) -> bool:
        return bool(
            eval(compile(ast.Expression(test), "<equation>", "eval"), {"__builtins__": {}}, dict(self.constants))
        )

    def _check(self, expression: ast.expr) -> None:
        for node in ast.walk(expression):
            if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
                self._refuse(node)
            if not isinstance(node, _ALLOWED):
                self._refuse(node)

    def _refuse(self, node: ast.AST) -> None:
        raise RuleError(
            f"The equation {self.rule.name} has `{ast.unparse(node)}` in line {getattr(node, 'lineno', '?')}, which no equation"
            f" may contain: only assignments of + - * / ** and {', '.join(FUNCTIONS)} to names that do not end in _, `if` on"
            " constants, and one return."
        )


_ALLOWED = (
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd),
    *(ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.Eq, ast.NotEq),
)
