"""Arithmetic on lists of tensors by `torch._foreach_*`: a value is a list of tensors, or one number for all of them.

An operation on a list is one kernel launch, or a part of a fused one. These are functions, and equations are rewritten to call
them, because torch.compile can trace functions of lists but not a class of lists with operators.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg.rules import maths, program
from thalweg.rules.rule import Rule


def add(x: Any, y: Any) -> Any:
    """x + y."""
    if isinstance(x, list):
        return list(torch._foreach_add(x, y))  # pyright: ignore[reportPrivateImportUsage]
    return add(y, x) if isinstance(y, list) else x + y


def mul(x: Any, y: Any) -> Any:
    """x y."""
    if isinstance(x, list):
        return list(torch._foreach_mul(x, y))  # pyright: ignore[reportPrivateImportUsage]
    return mul(y, x) if isinstance(y, list) else x * y


def neg(x: Any) -> Any:
    """-x."""
    return list(torch._foreach_neg(x)) if isinstance(x, list) else -x  # pyright: ignore[reportPrivateImportUsage]


def sub(x: Any, y: Any) -> Any:
    """x - y."""
    if isinstance(x, list) and isinstance(y, list):
        return list(torch._foreach_sub(x, y))  # pyright: ignore[reportPrivateImportUsage]
    return add(x, neg(y)) if isinstance(x, list) or isinstance(y, list) else x - y


def div(x: Any, y: Any) -> Any:
    """x / y."""
    if isinstance(x, list):
        return list(torch._foreach_div(x, y))  # pyright: ignore[reportPrivateImportUsage]
    return [x / one for one in y] if isinstance(y, list) else x / y


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of numbers or tensors take lists too, and apply it tensor by tensor."""

    def of_lists(*values: Any) -> Any:
        lengths = [len(value) for value in values if isinstance(value, list)]
        if not lengths:
            return function(*values)
        as_lists = [value if isinstance(value, list) else [value] * lengths[0] for value in values]
        return [function(*arguments) for arguments in zip(*as_lists, strict=True)]

    return of_lists


sqrt = each(maths.sqrt)
where = each(
    lambda condition, x, y: (
        torch.where(condition, x, y) if isinstance(condition, Tensor) else maths.where(condition, x, y)
    )
)
maximum = each(maths.maximum)
sign = each(maths.sign)
power = each(maths.power)
clamp = each(lambda x, low, high: x.clamp(low, high))

NAMES: dict[str, Any] = {  # what a rewritten equation calls
    "sqrt": sqrt,
    "where": where,
    "maximum": maximum,
    "sign": sign,
    "power": power,
    "add_": add,
    "sub_": sub,
    "mul_": mul,
    "div_": div,
    "neg_": neg,
    "pow_": each(lambda x, y: x**y),
    "gt_": each(lambda x, y: x > y),
    "ge_": each(lambda x, y: x >= y),
    "lt_": each(lambda x, y: x < y),
    "le_": each(lambda x, y: x <= y),
}

_FUNCTION_OF: dict[type[ast.AST], str] = {
    ast.Add: "add_",
    ast.Sub: "sub_",
    ast.Mult: "mul_",
    ast.Div: "div_",
    ast.Pow: "pow_",
    ast.Gt: "gt_",
    ast.GtE: "ge_",
    ast.Lt: "lt_",
    ast.LtE: "le_",
}


def equation(rule: Rule, constants: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """Give a rule's equation as a function of lists: f(w, g, *state, **numbers) gives the new w and the new state."""
    read = program.read(rule, constants)
    lines = [f"    {line.name} = {_as_calls(line.value)}" for line in read.lines]
    results = ", ".join(_as_calls(result) for result in read.results)
    text = f"def equation(w, g, {''.join(f'{s}, ' for s in read.state)}*, {', '.join(rule.takes)}):\n"
    return _function("\n".join([text, *lines, f"    return ({results},)\n"]), f"<{rule.name} on lists>", "equation")


def second_moment(rule: Rule, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """Give the mean square that divides the gradient as a function of lists, by name; None where the rule has none."""
    if rule.second_moment is None:
        return None
    expression = ast.parse(rule.second_moment, mode="eval").body
    used = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    numbers = sorted(used - {*names, *program.FUNCTIONS})
    keywords = f"*, {', '.join(numbers)}, " if numbers else ""
    head = f"def moment({', '.join(names)}, {keywords}**others):"
    return _function(f"{head}\n    return {_as_calls(expression)}\n", f"<{rule.name}>", "moment")


def _function(text: str, where: str, name: str) -> Callable[..., Any]:
    """Execute the source text of a function and give the function."""
    names = dict(NAMES)
    exec(compile(text, where, "exec"), names)
    return names[name]


def _as_calls(node: ast.expr) -> str:
    """Write an expression with a call in the place of each operator."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"{_FUNCTION_OF[type(op)]}({_as_calls(left)}, {_as_calls(right)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"neg_({_as_calls(operand)})"
        case ast.Call(func=ast.Name(id=name), args=values):
            return f"{name}({', '.join(_as_calls(value) for value in values)})"
        case _:
            return ast.unparse(node)
