"""An equation as a program: straight lines of arithmetic, read from the syntax tree, branches on constants already taken.

Whoever turns equations into something else (a compiled kernel, a formula, another language) starts here, so that what an
equation may contain is decided in one place: assignments of `+ - * / **` and the functions of `maths`, comparisons inside
them, `if` on whether constants are set, and a `return`.

What is read must be what runs: of all functions in the file, the one is taken that compiles to the very code that is called.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

from thalweg.errors import RuleError
from thalweg.rules import maths
from thalweg.rules.rule import Rule

FUNCTIONS = ("sqrt", "maximum", "where", "sign", "power")
_TAKES = {name: len(inspect.signature(getattr(maths, name)).parameters) for name in FUNCTIONS}

_RESERVED = {*FUNCTIONS, "min", "max", "range"}
"""What a kernel calls, so that no number of an equation may be called so."""


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
                found |= dict.fromkeys(_asked(rule, node))
    return tuple(found)


def read(rule: Rule, constants: Mapping[str, Any]) -> Program:
    """Read a rule's equation. Raises RuleError for what no equation may contain, with the line."""
    reader = _read(rule, rule.equation, constants)
    if len(reader.results) != 1 + len(rule.state):
        wanted = ", ".join(("the new weight", *(f"the new {state.name}" for state in rule.state)))
        raise RuleError(f"The equation {rule.name} must return {wanted}, not {len(reader.results)} values.")
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
    tree = _function(equation)
    given = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args)]
    wanted = ["w", "g", *(state.name for state in rule.state)]
    if given != wanted:  # a kernel goes by the names, a call by the order
        raise RuleError(
            f"`sums` of {rule.name} must take ({', '.join(wanted)}) before the star, not ({', '.join(given)})."
        )
    names = [state.name for state in rule.states(constants)]
    reader = _Reader(rule, constants, {"w", "g", *names}, {argument.arg for argument in tree.args.kwonlyargs})
    reader.absent = {state.name for state in rule.state} - set(names)
    for name in sorted({*names, *reader.once}):
        reader.check_name(name)
    if not reader.walk(tree.body):
        raise RuleError(f"The equation {rule.name} must end in a return, whichever branches it takes.")
    return reader


def _asked(rule: Rule, branch: ast.If) -> Iterator[str]:
    """Name the constants that an `if` asks for; only whether they are set, since kernels know no more of them."""
    for node in ast.walk(branch.test):
        if isinstance(node, ast.Name) and node.id in rule.constants:
            yield node.id
        elif not isinstance(node, ast.BoolOp | ast.And | ast.Or | ast.UnaryOp | ast.Not | ast.Load):
            raise RuleError(
                f"The equation {rule.name} has `if {ast.unparse(branch.test)}` in line {branch.lineno}: an `if` may ask"
                " whether constants are set, with `and`, `or`, `not`, and nothing else. Write `where` for weights, work out"
                " in `scalars` what hangs on a number."
            )


@cache
def _function(equation: Callable[..., Any]) -> ast.FunctionDef:
    """Find the syntax tree of a function or lambda. Raises RuleError where it cannot be read."""
    name, code = getattr(equation, "__name__", repr(equation)), getattr(equation, "__code__", None)
    if not isinstance(code, CodeType) or hasattr(equation, "__wrapped__"):
        raise RuleError(
            f"The equation {name} cannot be read, since something else is called in its place: write it with `def` or"
            " `lambda`, and decorate it with nothing but its rule."
        )
    try:
        lines, _ = inspect.findsource(equation)
        tree = ast.parse("".join(lines))
    except (OSError, SyntaxError) as missing:
        raise RuleError(
            f"The source of the equation {name} cannot be read ({missing}): put it into a file or a notebook's cell. On the"
            " CPU engine='tensors' calls it without reading it."
        ) from missing
    alike = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda) and _is_of(node, code))
    found = min(alike, key=lambda node: abs(node.lineno - code.co_firstlineno), default=None)
    if found is None:
        raise RuleError(
            f"The equation {name} is not what {code.co_filename} says any more: the file was edited after it was imported."
            " Import it anew."
        )
    _check_functions(equation, code, name)
    return found if isinstance(found, ast.FunctionDef) else _defined(found)


def _defined(node: ast.Lambda) -> ast.FunctionDef:
    body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
    return ast.copy_location(ast.FunctionDef("<lambda>", node.args, body, []), node)


def _is_of(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """Tell whether a definition compiles to this code."""
    if code.co_name != (node.name if isinstance(node, ast.FunctionDef) else "<lambda>"):
        return False
    bare: Any = copy.deepcopy(node)
    bare.decorator_list = bare.type_params = []
    # Within a function that has what it takes from around it, as it had where it stood.
    module = ast.parse(f"def around({', '.join(code.co_freevars)}): pass")
    (around,) = (line for line in module.body if isinstance(line, ast.FunctionDef))
    around.body = [bare if isinstance(node, ast.FunctionDef) else ast.copy_location(ast.Expr(bare), bare)]
    (outer,) = _within(compile(module, "<equation>", "exec", dont_inherit=True))
    return any(_face(inner) == _face(code) for inner in _within(outer))


def _within(code: CodeType) -> list[CodeType]:
    return [held for held in code.co_consts if isinstance(held, CodeType)]


def _face(code: CodeType) -> tuple[Any, ...]:
    """Give all of a code that decides what it does, and nothing of where it stands."""
    # 1, 1.0 and True are equal and not the same; a code within has an address in its `repr`.
    constants = [held.co_name if isinstance(held, CodeType) else repr(held) for held in code.co_consts]
    names = code.co_names, code.co_varnames, code.co_freevars
    return code.co_name, code.co_code, constants, names, code.co_argcount, code.co_kwonlyargcount


def _check_functions(equation: Callable[..., Any], code: CodeType, name: str) -> None:
    """Raise RuleError where `sqrt` and the like are not those of `maths`: whoever compiles an equation takes those."""
    around = dict(zip(code.co_freevars, getattr(equation, "__closure__", None) or (), strict=True))
    for function in sorted({*FUNCTIONS} & {*code.co_names, *code.co_freevars}):
        held = around.get(function)
        meant = held.cell_contents if held is not None else getattr(equation, "__globals__", {}).get(function)
        if meant is not getattr(maths, function):
            raise RuleError(
                f"The equation {name} calls a `{function}` that is not the one of thalweg.rules.maths: import it from there,"
                " or give your own another name."
            )


class _Reader:
    def __init__(self, rule: Rule, constants: Mapping[str, Any], each: set[str], once: set[str]) -> None:
        self.rule, self.constants, self.each, self.once = rule, constants, each, once
        self.absent = set[str]()
        self.lines: list[Line] = []
        self.results: list[ast.expr] = []

    def walk(self, statements: Sequence[ast.stmt]) -> bool:
        """Read statements up to a return; tells whether there was one."""
        for statement in statements:
            match statement:
                case ast.Expr(value=ast.Constant()):  # the docstring
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._assign(name, value)
                case ast.If():
                    if self.walk(statement.body if self._holds(statement) else statement.orelse):
                        return True
                case ast.Return(value=value) if value is not None:
                    self.results = list(value.elts) if isinstance(value, ast.Tuple) else [value]
                    for result in self.results:
                        if not (isinstance(result, ast.Name) and result.id in self.absent):
                            self._check(result)
                    return True
                case _:
                    self._refuse(statement)
        return False

    def check_name(self, name: str) -> None:
        """Raise RuleError for a name that a kernel uses for something else."""
        if name in _RESERVED or name.endswith("_"):
            raise RuleError(
                f"The equation {self.rule.name} calls a number {name!r}, which means something else in a compiled kernel, as"
                " do all names that end in _: give it another name."
            )

    def _assign(self, name: str, value: ast.expr) -> None:
        self.check_name(name)
        self._check(value)
        each = is_each(value, self.each)
        # Numbers of a step are worked out before the sweep over the weights, where there is no before and after of a line.
        if not each and name in (self.each | self.once):
            raise RuleError(
                f"The equation {self.rule.name} gives {name} another value in line {value.lineno}, one for all weights: give"
                " that a name of its own."
            )
        self.lines.append(Line(name, value, each))
        (self.each if each else self.once).add(name)
        self.absent -= {name}

    def _holds(self, branch: ast.If) -> bool:
        held = {name: bool(self.constants[name]) for name in _asked(self.rule, branch)}
        return bool(eval(compile(ast.Expression(branch.test), "<equation>", "eval"), {"__builtins__": {}}, held))

    def _check(self, expression: ast.expr) -> None:
        for node in ast.walk(expression):
            match node:
                case ast.Call(func=ast.Name(id=name), args=values) if len(values) == _TAKES.get(name):
                    continue
                case ast.Name(id=name) if name not in self.each | self.once | {*FUNCTIONS}:
                    self._refuse_name(node)
                case ast.Compare(ops=[_, _, *_]) | ast.Call():
                    self._refuse(node)
                case ast.Constant(value=value) if not isinstance(value, int | float):
                    self._refuse(node)
                case _ if not isinstance(node, _ALLOWED):
                    self._refuse(node)
                case _:
                    continue

    def _refuse_name(self, node: ast.Name) -> None:
        why = (
            "exists only where its switch is on"
            if node.id in self.absent
            else "is neither an argument nor assigned before"
        )
        raise RuleError(
            f"The equation {self.rule.name} reads {node.id} in line {node.lineno}, which {why}. A number from around it must"
            " be a constant: an argument after the star, with a default."
        )

    def _refuse(self, node: ast.AST) -> None:
        raise RuleError(
            f"The equation {self.rule.name} has `{ast.unparse(node)}` in line {getattr(node, 'lineno', '?')}, which no equation"
            f" may contain: only assignments of + - * / ** and {', '.join(FUNCTIONS)}, `if` on whether constants are set,"
            " and a return."
        )


_ALLOWED = (
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd),
    *(ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.Eq, ast.NotEq),
)
