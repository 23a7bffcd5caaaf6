"""An equation as a program: assignments in a row, read from its syntax tree, with its branches on constants resolved.

Whatever turns equations into something else (a compiled kernel, a formula, another language) starts here, so that what an
equation may contain is decided in one place: assignments of `+ - * / **` and the functions of `maths`, comparisons inside
them, `if` on whether constants are set, and a `return`.

The source that is read must be the code that runs: of all functions in the file, the one is taken that compiles to it.
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
_ARGUMENTS = {name: len(inspect.signature(getattr(maths, name)).parameters) for name in FUNCTIONS}

_RESERVED = {*FUNCTIONS, "min", "max", "range"}
"""Names of functions that compiled kernels call: no variable of an equation may have one of them."""


@dataclass(frozen=True)
class Line:
    """One assignment; `per_weight` tells whether each weight has its own value, rather than all the same one in a step."""

    name: str
    value: ast.expr
    per_weight: bool


@dataclass(frozen=True)
class Program:
    """An equation under given constants.

    - `state`: names of the active states.
    - `lines`: the assignments, in order.
    - `results`: the new weight and the new states, in the order of `state`.
    """

    state: tuple[str, ...]
    lines: tuple[Line, ...]
    results: tuple[ast.expr, ...]


@cache
def switches(rule: Rule) -> tuple[str, ...]:
    """Name the constants that an equation branches on, or on which a state depends.

    >>> from thalweg.rules.rmsprop import rmsprop
    >>> switches(rmsprop)
    ('centered', 'momentum')
    """
    names = {state.when: None for state in rule.state if state.when}
    for equation in (rule.equation, *((rule.sums,) if rule.sums else ())):
        for node in ast.walk(_function(equation)):
            if isinstance(node, ast.If):
                names |= dict.fromkeys(_tested_constants(rule, node))
    return tuple(names)


def read(rule: Rule, constants: Mapping[str, Any]) -> Program:
    """Read a rule's equation. Raises RuleError for what no equation may contain, with the line."""
    reader = _read(rule, rule.equation, constants)
    if len(reader.results) != 1 + len(rule.state):
        wanted = ", ".join(("the new weight", *(f"the new {state.name}" for state in rule.state)))
        raise RuleError(f"The equation {rule.name} must return {wanted}, not {len(reader.results)} values.")
    active = tuple(state.name for state in rule.states(constants))
    named = zip(["w", *(s.name for s in rule.state)], reader.results, strict=True)
    results = tuple(value for name, value in named if name in ("w", *active))
    return Program(active, tuple(reader.lines), results)


def read_sums(rule: Rule, constants: Mapping[str, Any]) -> Program:
    """Read what a rule sums over all weights (`Rule.sums`): `results` are the summands."""
    assert rule.sums is not None
    reader = _read(rule, rule.sums, constants)
    return Program(tuple(s.name for s in rule.states(constants)), tuple(reader.lines), tuple(reader.results))


@cache
def scalars(equation: Callable[..., Any]) -> tuple[str, ...]:
    """Name the numbers that an equation takes, the same for all weights: `lr`, constants, and what `Rule.scalars` gives.

    >>> from thalweg.rules.adagrad import adagrad
    >>> scalars(adagrad.equation)
    ('lr', 'lr_decay', 'initial_accumulator_value', 'eps', 'slowed')
    """
    return tuple(argument.arg for argument in _function(equation).args.kwonlyargs)


def is_per_weight(expression: ast.expr, per_weight: set[str]) -> bool:
    """Tell whether each weight has its own value of an expression: whether it reads a name that has."""
    return any(isinstance(node, ast.Name) and node.id in per_weight for node in ast.walk(expression))


def _read(rule: Rule, equation: Callable[..., Any], constants: Mapping[str, Any]) -> _Reader:
    tree = _function(equation)
    given = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args)]
    wanted = ["w", "g", *(state.name for state in rule.state)]
    if given != wanted:  # compiled kernels pass arguments by name, other engines by order
        raise RuleError(
            f"`sums` of {rule.name} must take ({', '.join(wanted)}) before the star, not ({', '.join(given)})."
        )
    names = [state.name for state in rule.states(constants)]
    reader = _Reader(rule, constants, {"w", "g", *names}, {argument.arg for argument in tree.args.kwonlyargs})
    reader.absent = {state.name for state in rule.state} - set(names)
    for name in sorted({*names, *reader.per_step}):
        reader.check_name(name)
    if not reader.read_statements(tree.body):
        raise RuleError(f"The equation {rule.name} must end in a return, whichever branches it takes.")
    return reader


def _tested_constants(rule: Rule, branch: ast.If) -> Iterator[str]:
    """Name the constants that an `if` tests. It may test only whether they are set: kernels are compiled for that alone."""
    for node in ast.walk(branch.test):
        if isinstance(node, ast.Name) and node.id in rule.constants:
            yield node.id
        elif not isinstance(node, ast.BoolOp | ast.And | ast.Or | ast.UnaryOp | ast.Not | ast.Load):
            raise RuleError(
                f"The equation {rule.name} has `if {ast.unparse(branch.test)}` in line {branch.lineno}: an `if` may ask"
                " whether constants are set, with `and`, `or`, `not`, and nothing else. Write `where` for weights, and compute"
                " in `scalars` what depends on a number."
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
    matching = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda) and _compiles_to(node, code)
    )
    definition = min(matching, key=lambda node: abs(node.lineno - code.co_firstlineno), default=None)
    if definition is None:
        raise RuleError(
            f"The equation {name} is no longer what stands in {code.co_filename}: the file was edited after it was imported."
            " Import it again."
        )
    _check_functions(equation, code, name)
    return definition if isinstance(definition, ast.FunctionDef) else _as_function(definition)


def _as_function(node: ast.Lambda) -> ast.FunctionDef:
    body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
    return ast.copy_location(ast.FunctionDef("<lambda>", node.args, body, []), node)


def _compiles_to(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """Tell whether a definition compiles to this code."""
    if code.co_name != (node.name if isinstance(node, ast.FunctionDef) else "<lambda>"):
        return False
    bare: Any = copy.deepcopy(node)
    bare.decorator_list = bare.type_params = []
    # A closure compiles to other code than a function without free variables: compile it in a function that has them.
    module = ast.parse(f"def enclosing({', '.join(code.co_freevars)}): pass")
    (enclosing,) = (line for line in module.body if isinstance(line, ast.FunctionDef))
    enclosing.body = [bare if isinstance(node, ast.FunctionDef) else ast.copy_location(ast.Expr(bare), bare)]
    (outer,) = _nested_code(compile(module, "<equation>", "exec", dont_inherit=True))
    return any(_behaviour(inner) == _behaviour(code) for inner in _nested_code(outer))


def _nested_code(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _behaviour(code: CodeType) -> tuple[Any, ...]:
    """Give a code's instructions, constants and names without its file and line numbers, to compare two codes."""
    # By `repr`, since 1, 1.0 and True are equal; a nested code by its name, since its `repr` has its address.
    constants = [c.co_name if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    names = code.co_names, code.co_varnames, code.co_freevars
    return code.co_name, code.co_code, constants, names, code.co_argcount, code.co_kwonlyargcount


def _check_functions(equation: Callable[..., Any], code: CodeType, name: str) -> None:
    """Raise RuleError where a name such as `sqrt` is not the function of `maths`, which is what a compiled kernel calls."""
    cells = dict(zip(code.co_freevars, getattr(equation, "__closure__", None) or (), strict=True))
    for function in sorted({*FUNCTIONS} & {*code.co_names, *code.co_freevars}):
        cell = cells.get(function)
        called = cell.cell_contents if cell is not None else getattr(equation, "__globals__", {}).get(function)
        if called is not getattr(maths, function):
            raise RuleError(
                f"The equation {name} calls a `{function}` that is not the one of thalweg.rules.maths: import it from there,"
                " or give your own another name."
            )


class _Reader:
    """Reads statements into lines and results.

    `per_weight` and `per_step` are the names known so far, of what each weight has its own value and of what all share;
    `absent` are the states that do not exist under the constants.
    """

    def __init__(self, rule: Rule, constants: Mapping[str, Any], per_weight: set[str], per_step: set[str]) -> None:
        self.rule, self.constants, self.per_weight, self.per_step = rule, constants, per_weight, per_step
        self.absent = set[str]()
        self.lines: list[Line] = []
        self.results: list[ast.expr] = []

    def read_statements(self, statements: Sequence[ast.stmt]) -> bool:
        """Read statements up to a return; tells whether there was one."""
        for statement in statements:
            match statement:
                case ast.Expr(value=ast.Constant()):  # the docstring
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._assign(name, value)
                case ast.If():
                    if self.read_statements(statement.body if self._is_true(statement) else statement.orelse):
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
                f"The equation {self.rule.name} has a variable {name!r}, which means something else in a compiled kernel, as"
                " do all names that end in _: give it another name."
            )

    def _assign(self, name: str, value: ast.expr) -> None:
        self.check_name(name)
        self._check(value)
        per_weight = is_per_weight(value, self.per_weight)
        # Kernels compute what all weights share before they go over the weights, so that it cannot change from line to line.
        if not per_weight and name in (self.per_weight | self.per_step):
            raise RuleError(
                f"The equation {self.rule.name} gives {name} another value in line {value.lineno}, one for all weights: give"
                " that a name of its own."
            )
        self.lines.append(Line(name, value, per_weight))
        (self.per_weight if per_weight else self.per_step).add(name)
        self.absent -= {name}

    def _is_true(self, branch: ast.If) -> bool:
        values = {name: bool(self.constants[name]) for name in _tested_constants(self.rule, branch)}
        return bool(eval(compile(ast.Expression(branch.test), "<equation>", "eval"), {"__builtins__": {}}, values))

    def _check(self, expression: ast.expr) -> None:
        for node in ast.walk(expression):
            match node:
                case ast.Call(func=ast.Name(id=name), args=values) if len(values) == _ARGUMENTS.get(name):
                    continue
                case ast.Name(id=name) if name not in self.per_weight | self.per_step | {*FUNCTIONS}:
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
            f"The equation {self.rule.name} reads {node.id} in line {node.lineno}, which {why}. A number from outside must be a"
            " constant: an argument after the star, with a default."
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
