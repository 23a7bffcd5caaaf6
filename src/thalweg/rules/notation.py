"""Writes expressions of an equation's syntax tree as text, or as LaTeX."""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

from thalweg.errors import RuleError

# Precedence, from loosest to tightest: a part that binds more loosely than the operation around it is put in brackets.
_CONDITION, _SUM, _QUOTIENT, _PRODUCT, _POWER, _ATOM = range(6)

_LETTERS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_SIGNS = {**_LETTERS, "eps": "ε", "lr": "η", "weight_decay": "λ", "correction": "c"}
_LATEX = {sign: f"\\{name}" for name, sign in _LETTERS.items()}
_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SUPERSCRIPT = str.maketrans("0123456789t", "⁰¹²³⁴⁵⁶⁷⁸⁹ᵗ")
_COMPARISONS: dict[type[ast.cmpop], str] = dict(
    zip((ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.Eq, ast.NotEq), ">≥<≤=≠", strict=True)
)


def expression(source: str) -> ast.expr:
    """Read one expression, such as a closed form.

    >>> text(expression("(2 + 2 * beta1) / ((1 - beta1) * lr)"))
    '(2 + 2 β₁) / ((1 − β₁) η)'
    """
    return ast.parse(source, mode="eval").body


def text(value: ast.expr) -> str:
    """Write an expression as text.

    >>> text(expression("where(g > 0, sqrt(v) * g, power(g * g, 0.25))"))
    '(√v g if g > 0, else (g²)^0.25)'
    """
    return _TEXT.write(value).text


def latex(value: ast.expr) -> str:
    r"""Write an expression as LaTeX.

    >>> print(latex(expression("lr * m / (sqrt(v) + eps)")))
    \frac{\eta\,m}{\sqrt{v} + \epsilon}
    """
    return _MATH.write(value).text


def symbol(name: str) -> str:
    """Give the symbol for a name: a Greek letter where the name is that letter's, a number at its end as a subscript.

    >>> [symbol(name) for name in ("lr", "beta1", "weight_decay", "lr_max", "velocity")]
    ['η', 'β₁', 'λ', 'η_max', 'velocity']
    """
    stem, number, rest = _parts(name)
    return stem + number.translate(_SUBSCRIPT) + (f"_{rest}" if rest else "")


def latex_symbol(name: str) -> str:
    r"""Give the symbol for a name in LaTeX.

    >>> print(latex_symbol("beta1"), latex_symbol("lr_max"), latex_symbol("velocity"))
    \beta_1 \eta_{\mathrm{max}} \mathit{velocity}
    """
    stem, number, rest = _parts(name.rstrip("′"))
    sign = _LATEX.get(stem, stem if len(stem) == 1 else rf"\mathit{{{stem}}}".replace("_", r"\_"))
    below = ",".join(part for part in (number, rf"\mathrm{{{rest}}}" if rest else "") if part)
    sign += f"_{below}" if len(below) == 1 else f"_{{{below}}}" if below else ""
    return sign + "'" * name.count("′")


def _parts(name: str) -> tuple[str, str, str]:
    """Split a name into its symbol, the number in its subscript, and the word in its subscript."""
    if name in _SIGNS:
        return _SIGNS[name], "", ""
    match = re.fullmatch(r"([A-Za-z]+?)(\d*)(?:_([a-z]+))?", name)
    if match and (match[1] in _SIGNS or len(match[1]) == 1 or not match[3]):
        return _SIGNS.get(match[1], match[1]), match[2], match[3] or ""
    return name, "", ""


class _Part(NamedTuple):
    """A part of a formula, and how tightly its outermost operation binds."""

    text: str
    precedence: int


class _Notation(ABC):
    """Writes expressions; text and LaTeX differ only in the methods that are abstract here."""

    def write(self, node: ast.expr) -> _Part:
        match node:
            case ast.Name(id=name):
                return _Part(self.name(name), _ATOM)
            case ast.Constant(value=bool() | int() | float() as value):
                return _Part(f"{value:g}" if value == int(value) else repr(value), _ATOM)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _Part(self.minus + self.bracketed(operand, _PRODUCT), _SUM)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.write(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                sign = self.comparison(_COMPARISONS[type(op)])
                return _Part(f"{self.bracketed(left, _SUM)} {sign} {self.bracketed(right, _SUM)}", _CONDITION)
            case ast.BinOp(left=left, op=op, right=right):
                return self._operation(left, op, right)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._call(name, args)
            case _:
                raise RuleError(f"`{ast.unparse(node)}` cannot be written as a formula.")

    def bracketed(self, node: ast.expr, precedence: int) -> str:
        """Write an expression, in brackets if it binds more loosely than this."""
        part = self.write(node)
        return part.text if part.precedence >= precedence else self.brackets(part.text)

    def _power(self, base: ast.expr, exponent: ast.expr) -> _Part:
        if isinstance(exponent, ast.Constant) and exponent.value == 0.5:
            return _Part(self.root(base), _ATOM)
        return _Part(self.raised(self.bracketed(base, _ATOM), self.exponent(exponent)), _POWER)

    def _operation(self, left: ast.expr, op: ast.operator, right: ast.expr) -> _Part:
        match op:
            case ast.Add():
                return _Part(f"{self.bracketed(left, _SUM)} + {self.bracketed(right, _QUOTIENT)}", _SUM)
            case ast.Sub():
                return _Part(f"{self.bracketed(left, _SUM)} {self.minus} {self.bracketed(right, _QUOTIENT)}", _SUM)
            case ast.Mult() if ast.dump(left) == ast.dump(right):
                return _Part(self.raised(self.bracketed(left, _ATOM), "2"), _POWER)
            case ast.Mult():
                return _Part(self.product(self.bracketed(left, _PRODUCT), self.bracketed(right, _PRODUCT)), _PRODUCT)
            case ast.Div():
                return self.quotient(left, right)
            case ast.Pow():
                return self._power(left, right)
            case _:
                raise RuleError(f"{type(op).__name__} cannot be written as a formula.")

    def _call(self, name: str, args: Sequence[ast.expr]) -> _Part:
        match name, args:
            case "sqrt", [x]:
                return _Part(self.root(x), _ATOM)
            case "power", [x, exponent]:
                return self._power(x, exponent)
            case "where", [condition, x, y]:
                return _Part(self.cases(*(self.write(part).text for part in (condition, x, y))), _ATOM)
            case ("maximum", [x, ast.UnaryOp(op=ast.USub(), operand=mirrored)]) if ast.dump(x) == ast.dump(mirrored):
                return _Part(f"|{self.write(x).text}|", _ATOM)
            case (("sign" | "maximum" | "max" | "min" | "exp" | "log"), _):
                inside = ", ".join(self.write(part).text for part in args)
                return _Part(self.function({"maximum": "max"}.get(name, name), inside), _ATOM)
            case _:
                raise RuleError(
                    f"{name}({', '.join(ast.unparse(part) for part in args)}) cannot be written as a formula."
                )

    minus: str

    @abstractmethod
    def name(self, name: str) -> str: ...

    @abstractmethod
    def brackets(self, inside: str) -> str: ...

    @abstractmethod
    def comparison(self, sign: str) -> str: ...

    @abstractmethod
    def product(self, left: str, right: str) -> str: ...

    @abstractmethod
    def quotient(self, above: ast.expr, below: ast.expr) -> _Part: ...

    @abstractmethod
    def exponent(self, node: ast.expr) -> str: ...

    @abstractmethod
    def raised(self, base: str, exponent: str) -> str: ...

    @abstractmethod
    def root(self, node: ast.expr) -> str: ...

    @abstractmethod
    def cases(self, condition: str, x: str, y: str) -> str: ...

    @abstractmethod
    def function(self, name: str, inside: str) -> str: ...


@final
class _Text(_Notation):
    minus = "−"

    def name(self, name: str) -> str:
        return symbol(name)

    def brackets(self, inside: str) -> str:
        return f"({inside})"

    def comparison(self, sign: str) -> str:
        return sign

    def product(self, left: str, right: str) -> str:
        # A dot where the factors side by side would be misread: two words, a word before a bracket, or two numbers.
        word = re.search(r"[A-Za-z]{2,}[₀-₉]*$|_[a-z]+$", left)
        before_word = re.search(r"\w$", left) and re.match(r"\d|[A-Za-z]{2,}(?![a-z]*\()|\w+_", right)
        return f"{left} · {right}" if word or before_word else f"{left} {right}"

    def quotient(self, above: ast.expr, below: ast.expr) -> _Part:
        return _Part(f"{self.bracketed(above, _QUOTIENT)} / {self.bracketed(below, _POWER)}", _QUOTIENT)

    def exponent(self, node: ast.expr) -> str:
        return self.bracketed(node, _ATOM)

    def raised(self, base: str, exponent: str) -> str:
        if re.fullmatch(r"\d+|t", exponent):
            return base + exponent.translate(_SUPERSCRIPT)
        return f"{base}^{exponent}"

    def root(self, node: ast.expr) -> str:
        return f"√{self.write(node).text}" if isinstance(node, ast.Name) else f"√({self.write(node).text})"

    def cases(self, condition: str, x: str, y: str) -> str:
        return f"({x} if {condition}, else {y})"

    def function(self, name: str, inside: str) -> str:
        return f"{name}({inside})"


@final
class _Math(_Notation):
    minus = "-"

    def name(self, name: str) -> str:
        return latex_symbol(name)

    def brackets(self, inside: str) -> str:
        return rf"\left({inside}\right)"

    def comparison(self, sign: str) -> str:
        return {"≥": r"\ge", "≤": r"\le", "≠": r"\ne", "<": r"\lt", ">": r"\gt"}.get(sign, sign)

    def product(self, left: str, right: str) -> str:
        apart = right[:1].isdigit() or (re.search(r"\\mathit\{\w+\}$", left) and right.startswith(r"\mathit"))
        return rf"{left} \cdot {right}" if apart else rf"{left}\,{right}"

    def quotient(self, above: ast.expr, below: ast.expr) -> _Part:
        match above:
            case ast.BinOp(left=factor, op=ast.Mult(), right=rest) if _has_quotient(factor):
                fraction = self.quotient(rest, below).text
                return _Part(self.product(self.bracketed(factor, _PRODUCT), fraction), _PRODUCT)
            case _:
                return _Part(rf"\frac{{{self.write(above).text}}}{{{self.write(below).text}}}", _PRODUCT)

    def exponent(self, node: ast.expr) -> str:
        return self.write(node).text

    def raised(self, base: str, exponent: str) -> str:
        return f"{base}^{exponent}" if len(exponent) == 1 else f"{base}^{{{exponent}}}"

    def root(self, node: ast.expr) -> str:
        return rf"\sqrt{{{self.write(node).text}}}"

    def cases(self, condition: str, x: str, y: str) -> str:
        return rf"\begin{{cases}} {x} & \text{{if }} {condition} \\ {y} & \text{{else}} \end{{cases}}"

    def function(self, name: str, inside: str) -> str:
        known = name in ("max", "min", "exp", "log")
        return (rf"\{name}" if known else rf"\operatorname{{{name}}}") + rf"\left({inside}\right)"


def _has_quotient(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and (
        isinstance(node.op, ast.Div) or (isinstance(node.op, ast.Mult) and _has_quotient(node.left))
    )


_TEXT, _MATH = _Text(), _Math()
