"""Formulae are read back and calculated: what is printed is what runs."""

import ast
import math
import re

import pytest

from thalweg.errors import RuleError
from thalweg.rules import RULES, rule
from thalweg.rules.formula import as_latex, as_text, average, equation, scalars, summands
from thalweg.rules.maths import maximum
from thalweg.rules.notation import symbol, text
from thalweg.rules.program import read, switches

KNOWN = {
    "gradient_descent": "w ← w − η g",
    "momentum": "velocity ← momentum · velocity + g\nw ← w − η · velocity",
    "adamw": (
        "m ← m + (1 − β₁) (g − m)\n"
        "v ← β₂ v + (1 − β₂) g²\n"
        "w ← (1 − η λ) w − (η / c₁) m / (√(v / c₂) + ε)"
    ),
    "lion": (
        "direction ← sign(m + (1 − β₁) (g − m))\n"
        "w ← (1 − η λ) w − η · direction\n"
        "m ← m + (1 − β₂) (g − m)"
    ),
    "adamax": "m ← m + (1 − β₁) (g − m)\nu ← max(β₂ u, |g| + ε)\nw ← w − (η / c₁) m / u",
}  # fmt: skip
ELEMENTWISE = [name for name, one in RULES.items() if not one.is_matrix]


@pytest.mark.parametrize("name", KNOWN)
def test_known_formulae(name):
    assert as_text(equation(RULES[name])) == KNOWN[name]


def test_known_formula_in_latex():
    assert as_latex(equation(RULES["adam"])) == (
        "\\begin{aligned}\n"
        "m &\\leftarrow m + \\left(1 - \\beta_1\\right)\\,\\left(g - m\\right) \\\\\n"
        "v &\\leftarrow \\beta_2\\,v + \\left(1 - \\beta_2\\right)\\,g^2 \\\\\n"
        "w &\\leftarrow w - \\frac{\\eta}{c_1}\\,\\frac{m}{\\sqrt{\\frac{v}{c_2}} + \\epsilon}\n"
        "\\end{aligned}"
    )


def variants(name):
    """Give the defaults, and each switch turned the other way."""
    made = [{}]
    for switch in switches(RULES[name]):
        value = RULES[name].constants[switch]
        made.append({switch: not value if isinstance(value, bool) else 0.0 if value else 0.5})
    return made


def as_python(formula):
    """Turn a line of text back into Python: a reader of its own, so that what is ambiguous to it would be to a person."""
    formula = formula.translate(str.maketrans("₀₁₂₃₄₅₆₇₈₉·−≥≤≠", "0123456789*-GLN"))
    formula = re.sub(r"\|([^|]+)\|", r"abs(\1)", formula)
    formula = re.sub(
        r"([⁰¹²³⁴⁵⁶⁷⁸⁹ᵗ]+)", lambda m: f"**({m[1].translate(str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹ᵗ', '0123456789t'))})", formula
    )
    formula = formula.replace("^", "**").replace("√", "root√").replace(", else", " else").replace("=", "==")
    formula = formula.replace("G", ">=").replace("L", "<=").replace("N", "!=")
    formula = re.sub(r"root√([^\W\d_]\w*)", r"root(\1)", formula).replace("√", "")
    factor, then = r"((?:[\w′])|\))", r"(?=(?:[^\W]|\())"
    formula = re.sub(rf"{factor} {then}(?!(?:if|else)\b)", r"\1 * ", formula)
    return re.sub(r"\b(if|else) \* ", r"\1 ", formula)


def calculated(lines, numbers):
    """Read lines of text, calculate them one by one, and give all names' values."""
    known = {**numbers, "root": math.sqrt, "sign": lambda x: math.copysign(1, x) if x else 0.0, "max": max, "min": min}
    for line in lines.splitlines():
        name, value = line.split(" ← ")
        known[as_python(name)] = eval(as_python(value), known)
    return known


def sample(one, constants):
    """Give a value for each name of an equation."""
    values = one.complete(constants)
    state = {s.name: 0.3 + 0.2 * i for i, s in enumerate(one.states(values))}
    numbers = one.numbers(7, one.begin(values), values, 0.05) | {"weight_decay": 0.1}
    if one.decide is not None:
        numbers |= one.decide([0.3] * 9, numbers)
    return {"w": 0.7, "g": -0.4, **state}, {name: numbers[name] for name in one.takes}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_formula_read_back_calculates_what_the_rule_does(name):
    one = RULES[name]
    for constants in variants(name):
        values, numbers = sample(one, constants)
        places = [values["w"], values["g"], *(values.get(s.name, 0.0) for s in one.state)]
        truth = one(*places, **numbers)
        truth = dict(
            zip(["w", *(s.name for s in one.state)], truth if isinstance(truth, tuple) else (truth,), strict=True)
        )
        signs = {as_python(symbol(key)): value for key, value in {**values, **numbers}.items()}
        found = calculated(as_text(equation(one, constants)), signs)
        for key in values.keys() - {"g"}:
            assert found[as_python(symbol(key))] == pytest.approx(truth[key], rel=1e-12, abs=1e-15), (key, constants)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_assignment_appears(name):
    for constants in variants(name):
        written = {line.name for line in equation(RULES[name], constants)}
        program = read(RULES[name], RULES[name].complete(constants))
        aliases = {line.name for line in program.lines if isinstance(line.value, ast.Name)}
        changed = {
            state
            for state, value in zip(("w", *program.state), program.results, strict=True)
            if ast.unparse(value) != state
        }
        assert {line.name for line in program.lines} - aliases | changed <= written


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_two_names_of_a_rule_never_share_a_sign(name):
    one = RULES[name]
    names = {"w", "g", "lr", *(s.name for s in one.state), *one.constants, *one.takes}
    names |= {line.name for line in equation(one)}
    assert len({symbol(each) for each in names}) == len(names)


@pytest.mark.parametrize("name", RULES)
def test_numbers_of_a_step_read_back_are_those_that_are_used(name):
    one = RULES[name]
    if one.scalars is None:
        assert scalars(one) == ()
        return
    carried = one.begin(one.constants)
    for step in (1, 2, 9, 5000):
        known = {**one.constants, **carried, "lr": 0.05}
        signs = {as_python(symbol(key)): value for key, value in known.items()} | {"t": step}
        found = calculated(as_text(scalars(one)), signs)
        for key, value in one.scalars(step, known).items():
            assert found[as_python(symbol(key))] == pytest.approx(value, rel=1e-12), (key, step)


def test_sums_and_averages_are_formulae_too():
    lines, parts = summands(RULES["prodigy"])
    assert as_text(lines) == "s ← kept · s + weight · g"
    assert [text(part) for part in parts] == ["g (start − w)", "|s|"]
    assert summands(RULES["adam"]) == ((), [])
    assert text(average(RULES["schedule_free_sgd"])) == "w + (1 − 1 / momentum) (z − w)"


def test_branches_are_taken_by_the_constants():
    assert "velocity" not in as_text(equation(RULES["rmsprop"]))
    assert "velocity ← momentum · velocity + step" in as_text(equation(RULES["rmsprop"], {"momentum": 0.5}))
    assert "largest ← max(largest, v)" in as_text(equation(RULES["adam"], {"amsgrad": True}))


@rule(source="here 2026", state=["a", "b"])
def exchanged(w, g, a, b, *, lr):
    """Swap two states."""
    return w - lr * a, b + g, a


@rule(source="here 2026", state=["a", "b"])
def handed_on(w, g, a, b, *, lr):
    """Hand the old weight on."""
    other = a
    a = a + g
    return w - lr * other, b, w


def test_what_happens_at_once_is_told_in_an_order_that_may_happen_one_by_one():
    assert as_text(equation(exchanged)) == "w ← w − η a\na′ ← b + g\nb′ ← a"
    assert as_text(equation(handed_on)) == "other ← a\na ← a + g\na ← b\nb ← w\nw ← w − η · other"


def test_whole_matrices_have_no_formula():
    with pytest.raises(RuleError, match="muon moves whole matrices"):
        equation(RULES["muon"])


def looped(step, constants):
    total = 0.0
    for _ in range(step):
        total += constants["lr"]
    return {"total": total}


@rule(source="here 2026", scalars=looped, average=lambda w, **others: w)
def slowing(w, g, *, lr, total):
    """Count in a loop."""
    return w - maximum(lr, total) * g


def test_a_loop_is_no_formula():
    with pytest.raises(RuleError, match="is no line of a formula"):
        scalars(slowing)
    with pytest.raises(RuleError, match="not a function by itself"):
        average(slowing)
