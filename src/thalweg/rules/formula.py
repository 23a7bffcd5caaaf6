"""A rule's equation as a formula to read, made from its source: as text, or as LaTeX.

>>> from thalweg.rules.momentum import momentum
>>> print(as_text(equation(momentum)))
velocity ← momentum · velocity + g
w ← w − η · velocity

The formula is what runs: the lines come from the syntax tree that the engines compile too, with branches on constants resolved.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from thalweg.errors import RuleError
from thalweg.rules.notation import latex, latex_symbol, symbol, text
from thalweg.rules.program import Program, read, read_sums
from thalweg.rules.rule import Rule


class Assignment(NamedTuple):
    """One line of a formula: `name` becomes `value`."""

    name: str
    value: ast.expr


def equation(rule: Rule, constants: Mapping[str, Any] | None = None) -> tuple[Assignment, ...]:
    """Give a rule's equation line by line, under constants that decide its branches (default: its own).

    States that do not change are left out, and so are lines that only give a value another name; the rest comes in an order in
    which no line reads what an earlier one has already replaced.

    Raises RuleError for a matrix rule, whose equation is a program, and for what no equation may contain.
    """
    values = rule.complete(constants or {})
    if rule.is_matrix:
        raise RuleError(f"{rule.name} moves whole matrices: its equation is a program, not a formula.")
    program = read(rule, values)
    results = [Assignment(name, value) for name, value in zip(("w", *program.state), program.results, strict=True)]
    lines, results = _without_aliases(_lines(program), results)
    return (*lines, *_in_order(results))


def summands(rule: Rule, constants: Mapping[str, Any] | None = None) -> tuple[tuple[Assignment, ...], list[ast.expr]]:
    """Give what a rule sums over all weights before they move (`Rule.sums`): the lines before, and each summand."""
    if rule.sums is None:
        return (), []
    program = read_sums(rule, rule.complete(constants or {}))
    return _lines(program), list(program.results)


def scalars(rule: Rule) -> tuple[Assignment, ...]:
    """Give what `Rule.scalars` computes once per step, as a formula of the step's number t, from 1, and the constants.

    Raises RuleError where that is more than assignments of arithmetic.

    >>> from thalweg.rules.adam import adam
    >>> print(as_text(scalars(adam)))
    c₁ ← 1 − β₁ᵗ
    c₂ ← 1 − β₂ᵗ
    """
    if rule.scalars is None:
        return ()
    tree = _function(rule.scalars)
    step, constants = (argument.arg for argument in tree.args.args)
    lines: list[Assignment] = []
    for statement in _PythonToEquation(step, constants).visit(tree).body:
        lines += _assignments(statement)
    return tuple(line for line in lines if not _is_unchanged(line))


def average(rule: Rule) -> ast.expr | None:
    """Give `Rule.average`, the weights to evaluate and save, in the names of the rule's equation; None where it has none.

    >>> from thalweg.rules.momentum import momentum
    >>> average(momentum) is None
    True
    """
    if rule.average is None:
        return None
    tree = _function(rule.average)
    match tree.body:
        case [*_, ast.Return(value=ast.expr() as value)] if not any(isinstance(line, ast.Assign) for line in tree.body):
            names = [argument.arg for argument in tree.args.args]
            return _renamed(value, dict(zip(names, ("w", *(state.name for state in rule.state)), strict=False)))
        case _:
            raise RuleError(f"The average of {rule.name} is more than one expression.")


def as_text(lines: Iterable[Assignment], becomes: str = "←") -> str:
    """Write assignments as text, one per line, with this sign between the sides."""
    return "\n".join(f"{symbol(name)} {becomes} {text(value)}" for name, value in lines)


def as_latex(lines: Iterable[Assignment], becomes: str = r"\leftarrow") -> str:
    r"""Write assignments as aligned LaTeX, with this sign between the sides.

    >>> from thalweg.rules.gradient_descent import gradient_descent
    >>> print(as_latex(equation(gradient_descent)))
    \begin{aligned}
    w &\leftarrow w - \eta\,g
    \end{aligned}
    """
    rows = " \\\\\n".join(f"{latex_symbol(name)} &{becomes} {latex(value)}" for name, value in lines)
    return f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"


def _lines(program: Program) -> tuple[Assignment, ...]:
    return tuple(Assignment(line.name, line.value) for line in program.lines)


def _without_aliases(
    lines: Sequence[Assignment], results: Sequence[Assignment]
) -> tuple[list[Assignment], list[Assignment]]:
    """Leave out lines that only give a value another name, and use the value's own; not where a later line replaces that."""
    aliases, others = dict[str, str](), list[Assignment]()
    for index, line in enumerate(lines):
        value = _renamed(line.value, aliases)
        aliases = {alias: name for alias, name in aliases.items() if alias != line.name}
        if isinstance(value, ast.Name) and value.id not in {later.name for later in lines[index:]}:
            aliases[line.name] = value.id
        else:
            others.append(Assignment(line.name, value))
    return others, [Assignment(name, _renamed(value, aliases)) for name, value in results]


def _in_order(results: Sequence[Assignment]) -> list[Assignment]:
    """Order assignments that are made all at once so that they can be made one after the other.

    A name can be replaced once no other line reads it. Names that read each other in a circle cannot: they get a prime.
    """
    remaining, ordered = [result for result in results if not _is_unchanged(result)], list[Assignment]()
    while remaining:
        unread = [
            one for one in remaining if not any(_reads(other, one.name) for other in remaining if other is not one)
        ]
        if not unread:
            return [*ordered, *(Assignment(f"{name}′", value) for name, value in remaining)]
        ordered.append(unread[0])
        remaining.remove(unread[0])
    return ordered


def _reads(line: Assignment, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(line.value))


def _is_unchanged(line: Assignment) -> bool:
    return isinstance(line.value, ast.Name) and line.value.id == line.name


def _function(function: Callable[..., Any]) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef) or tree.name != function.__name__:
        raise RuleError(f"{function.__name__} is not a function by itself, whose source can be read.")
    return tree


def _assignments(statement: ast.stmt) -> list[Assignment]:
    match statement:
        case ast.Expr(value=ast.Constant()):
            return []
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [Assignment(name, value)]
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
            return [Assignment(ast.unparse(name), value) for name, value in zip(names, values, strict=True)]
        case ast.Return(value=ast.Dict(keys=keys, values=values)):
            return [Assignment(ast.literal_eval(key), v) for key, v in zip(keys, values, strict=True) if key]
        case _:
            raise RuleError(f"`{ast.unparse(statement)}` is no line of a formula.")


def _renamed(value: ast.expr, names: Mapping[str, str]) -> ast.expr:
    return _Renamer(names).visit(copy.deepcopy(value))


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self.names.get(node.id, node.id), ast.Load())


class _PythonToEquation(ast.NodeTransformer):
    """Rewrites Python as an equation has it: `constants["beta1"]` as `beta1`, `a if c else b` as `where(c, a, b)`."""

    def __init__(self, step: str, constants: str) -> None:
        self.step, self.constants = step, constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name("t" if node.id == self.step else node.id, node.ctx)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(value=ast.Name(id=self.constants), slice=ast.Constant(value=str(name))):
                return ast.Name(name, ast.Load())
            case _:
                return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        return self._where(self.visit(node.test), self.visit(node.body), self.visit(node.orelse))

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        match [self.visit(value) for value in node.values]:
            case [first, second] if isinstance(node.op, ast.Or):
                return self._where(ast.Compare(first, [ast.NotEq()], [ast.Constant(0)]), first, second)
            case _:
                return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(func=ast.Name(id="float"), args=[value]):
                return self.visit(value)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr=name), args=args):
                return ast.Call(ast.Name(name), [self.visit(value) for value in args], [])
            case _:
                return self.generic_visit(node)  # pyright: ignore[reportReturnType]

    def _where(self, condition: ast.expr, x: ast.expr, y: ast.expr) -> ast.expr:
        return ast.Call(ast.Name("where"), [condition, x, y], [])
