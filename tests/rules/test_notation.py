import ast

import pytest

from thalweg.errors import RuleError
from thalweg.rules.notation import expression, latex, latex_symbol, symbol, text

WRITTEN = {
    "a - (b - c)": ("a − (b − c)", "a - \\left(b - c\\right)"),
    "a - b - c": ("a − b − c", "a - b - c"),
    "a * (b + c)": ("a (b + c)", r"a\,\left(b + c\right)"),
    "a / (b * c)": ("a / (b c)", r"\frac{a}{b\,c}"),
    "a / b * c": ("(a / b) c", r"\frac{a}{b}\,c"),
    "a * (b / c)": ("a (b / c)", r"a\,\frac{b}{c}"),
    "a * b / c": ("a b / c", r"\frac{a\,b}{c}"),
    "(a / b) * c / d": ("(a / b) c / d", r"\frac{a}{b}\,\frac{c}{d}"),
    "-a * b": ("(−a) b", r"\left(-a\right)\,b"),
    "-(a + b)": ("−(a + b)", r"-\left(a + b\right)"),
    "a + -b": ("a + (−b)", r"a + \left(-b\right)"),
    "+a": ("a", "a"),
    "g * g": ("g²", "g^2"),
    "(a + b) * (a + b)": ("(a + b)²", r"\left(a + b\right)^2"),
    "beta1 ** t": ("β₁ᵗ", r"\beta_1^t"),
    "a ** -0.8": ("a^(−0.8)", "a^{-0.8}"),
    "(a * a) ** rho": ("(a²)^ρ", r"\left(a^2\right)^{\rho}"),
    "power(a, 0.5)": ("√a", r"\sqrt{a}"),
    "sqrt(v + eps)": ("√(v + ε)", r"\sqrt{v + \epsilon}"),
    "maximum(m, -m)": ("|m|", "|m|"),
    "maximum(m, v)": ("max(m, v)", r"\max\left(m, v\right)"),
    "sign(m)": ("sign(m)", r"\operatorname{sign}\left(m\right)"),
    "where(a * b > 0, 1.0, 0.5)": (
        "(1 if a b > 0, else 0.5)",
        r"\begin{cases} 1 & \text{if } a\,b \gt 0 \\ 0.5 & \text{else} \end{cases}",
    ),
    "a != 0": ("a ≠ 0", r"a \ne 0"),
    "momentum * velocity": ("momentum · velocity", r"\mathit{momentum} \cdot \mathit{velocity}"),
    "momentum * (1 - lr)": ("momentum · (1 − η)", r"\mathit{momentum}\,\left(1 - \eta\right)"),
    "lr * velocity": ("η · velocity", r"\eta\,\mathit{velocity}"),
    "lr * sign(m)": ("η sign(m)", r"\eta\,\operatorname{sign}\left(m\right)"),
    "2 * 3.5": ("2 · 3.5", r"2 \cdot 3.5"),
    "d_max * eps": ("d_max · ε", r"d_{\mathrm{max}}\,\epsilon"),
    "lr * d_max": ("η · d_max", r"\eta\,d_{\mathrm{max}}"),
}


@pytest.mark.parametrize("source", WRITTEN)
def test_arithmetic_is_written_as_in_books(source):
    assert (text(expression(source)), latex(expression(source))) == WRITTEN[source]


NAMES = {
    "lr": ("η", r"\eta"),
    "weight_decay": ("λ", r"\lambda"),
    "eps": ("ε", r"\epsilon"),
    "beta2": ("β₂", r"\beta_2"),
    "correction10": ("c₁₀", "c_{10}"),
    "d0": ("d₀", "d_0"),
    "lr_decay": ("η_decay", r"\eta_{\mathrm{decay}}"),
    "beta2_decay": ("β₂_decay", r"\beta_{2,\mathrm{decay}}"),
    "weight_sum": ("weight_sum", r"\mathit{weight\_sum}"),
    "growth_of_it": ("growth_of_it", r"\mathit{growth\_of\_it}"),
    "root2": ("root₂", r"\mathit{root}_2"),
    "w′": ("w′", "w'"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_become_signs(name):
    assert (symbol(name), latex_symbol(name)) == NAMES[name]


@pytest.mark.parametrize("source", ["a % b", "a @ b", "f(a)", "a[0]", "a < b < c", "'a'", "sqrt(a, b)", "max(x=1)"])
def test_what_is_no_arithmetic_is_refused(source):
    for write in (text, latex):
        with pytest.raises(RuleError, match=r"cannot be written as a formula"):
            write(expression(source))


def test_writing_leaves_the_expression_as_it_is():
    source = expression("where(a > 0, a * a, sqrt(b) / 2)")
    before = ast.dump(source)
    text(source)
    latex(source)
    assert ast.dump(source) == before
