"""What is read of an equation is what runs, or it is refused with what to do."""

import ast
import functools
import importlib.util
import linecache
import sys

import pytest
import torch

from thalweg.errors import RuleError
from thalweg.optim import Optimizer
from thalweg.rules import RULES, maths, rule
from thalweg.rules.maths import maximum, sqrt
from thalweg.rules.program import FUNCTIONS, read, read_sums, scalars, switches


def calculated(program, **numbers):
    """What a program gives for numbers, line by line."""
    known = {**{name: getattr(maths, name) for name in FUNCTIONS}, **numbers}
    for line in program.lines:
        known[line.name] = eval(compile(ast.Expression(line.value), "<line>", "eval"), known)
    return tuple(eval(compile(ast.Expression(value), "<result>", "eval"), known) for value in program.results)


def ways(one, lr=0.1, **options):
    """Where both engines lead a rule; a wrong reading would part them."""
    ends = []
    for engine in ("cpu", "tensors"):
        w = torch.linspace(-1, 1, 8, dtype=torch.float64)
        optimizer = Optimizer([w], one, lr=lr, engine=engine, **options)
        for _ in range(3):
            w.grad = w.sin() + 0.1
            optimizer.step()
        ends.append(w)
    return ends


# Which function is read


def test_of_two_lambdas_on_a_line_the_one_that_is_called_is_read():
    product, total = (lambda w, g, *, lr: w * g, lambda w, g, *, lr: w + g)
    for sums, wanted in ((product, 15.0), (total, 8.0)):

        @rule(source="here", sums=sums, decide=lambda sums, numbers: {"d": sums[0]})
        def scaled(w, g, *, lr, d):
            return w - lr * d * g

        assert calculated(read_sums(scaled, {}), w=3.0, g=5.0) == (wanted,)
        assert calculated(read(scaled, {}), w=3.0, g=5.0, lr=0.1, d=2.0) == (2.0,)


def test_a_lambda_beside_the_equation_is_read_and_both_engines_go_its_way():
    @rule(
        source="here",
        sums=lambda w, g, *, lr: (
            w * g,
            g * g,
        ),
        decide=lambda sums, numbers: {"d": sums[0] / sums[1]},
    )
    def scaled(w, g, *, lr, d):
        return w - lr * d * g

    assert calculated(read_sums(scaled, {}), w=3.0, g=5.0) == (15.0, 25.0)
    torch.testing.assert_close(*ways(scaled), rtol=1e-13, atol=1e-15)


def test_a_whole_rule_may_be_a_lambda():
    one = rule(source="here")(lambda w, g, *, lr: w - lr * g)
    assert calculated(read(one, {}), w=1.0, g=0.5, lr=0.1) == (0.95,)


def test_of_functions_of_one_name_the_one_that_is_called_is_read():
    made = []
    for sign in (1, -1):
        if sign > 0:

            @rule(source="here")
            def step(w, g, *, lr):
                return w - lr * g

        else:

            @rule(source="here")
            def step(w, g, *, lr):
                return w + lr * g

        made.append(calculated(read(step, {}), w=1.0, g=1.0, lr=0.5))
    assert made == [(0.5,), (1.5,)]


def test_numbers_that_are_equal_and_not_the_same_tell_functions_apart():
    whole, real = (lambda w, g, *, lr: w - lr * g * 2, lambda w, g, *, lr: w - lr * g * 2.0)
    for equation, kind in ((whole, int), (real, float)):
        found = [n.value for n in ast.walk(read(rule(source="here")(equation), {}).results[0]) if hasattr(n, "value")]
        assert [*map(type, found)] == [kind]


def test_functions_may_be_imported_where_the_rule_is_made():
    from thalweg.rules.maths import sign

    @rule(source="here")
    def step(w, g, *, lr):
        return w - lr * sign(g)

    assert calculated(read(step, {}), w=1.0, g=-3.0, lr=0.5) == (1.5,)


CELL = """
from thalweg.rules import rule

@rule(source="a cell")
def step(w, g, *, lr):
    return w {sign} lr * g
"""


def run(text, name):
    names = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), names)
    return names["step"]


def test_a_notebooks_cells_are_read_each_as_it_was_run(monkeypatch):
    made = []
    for number, sign in enumerate("-+"):
        text, name = CELL.format(sign=sign), f"/tmp/ipykernel_7/{number}.py"
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
        made.append(run(text, name))
    assert [calculated(read(one, {}), w=1.0, g=1.0, lr=0.5) for one in made] == [(0.5,), (1.5,)]


def test_without_a_source_it_is_said_where_to_put_it_and_tensors_need_none():
    step = run(CELL.format(sign="-"), "<string>")
    with pytest.raises(RuleError, match=r"source of the equation step cannot be read.*into a file.*engine='tensors'"):
        Optimizer([torch.ones(3)], step, lr=0.5, engine="cpu")
    w = torch.ones(3)
    optimizer = Optimizer([w], step, lr=0.5, engine="tensors")
    w.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(w, torch.full((3,), 0.5))


def imported(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.step


def test_a_file_that_was_edited_after_it_was_imported_is_not_taken_for_what_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "of_ones_own.py"
    file.write_text(CELL.format(sign="-"))
    one, moved = imported(file), imported(file)
    file.write_text("# a line more\n" + CELL.format(sign="-"))
    assert calculated(read(moved, {}), w=1.0, g=1.0, lr=0.5) == (0.5,)
    file.write_text("# a line more\n" + CELL.format(sign="+ 1 *"))
    with pytest.raises(
        RuleError,
        match=r"step is no longer what stands in .*of_ones_own\.py: the file was edited after it was imported\. Import it again",
    ):
        read(one, {})
    file.write_text("def (")
    with pytest.raises(RuleError, match="source of the equation step cannot be read"):
        read(run(CELL.format(sign="-"), str(file)), {})


def doubled(equation):
    @functools.wraps(equation)
    def inner(w, g, *, lr):
        return equation(w, 2 * g, lr=lr)

    return inner


def test_what_is_called_in_an_equations_place_is_refused():
    @rule(source="here")
    @doubled
    def step(w, g, *, lr):
        return w - lr * g

    assert step(1.0, 1.0, lr=0.25) == 0.5
    partial = functools.update_wrapper(functools.partial(step.equation), step.equation)
    for one in (step, rule(source="here")(partial)):
        with pytest.raises(RuleError, match="step cannot be read, since something else is called in its place"):
            read(one, {})


def test_a_function_that_only_has_the_name_of_one_of_ours_is_refused():
    def sign(x):
        return 7 * x

    @rule(source="here")
    def step(w, g, *, lr):
        return w - lr * sign(g)

    with pytest.raises(RuleError, match=r"step calls a `sign` that is not the one of thalweg\.rules\.maths"):
        read(step, {})


# What an equation may contain


def test_a_return_ends_the_equation():
    @rule(source="here")
    def step(w, g, *, lr, fast=True):
        if fast:
            return w - lr * g
        return w + lr * g

    assert switches(step) == ("fast",)
    assert [calculated(read(step, {"fast": fast}), w=1.0, g=1.0, lr=0.5) for fast in (True, False)] == [(0.5,), (1.5,)]


def test_switches_may_be_joined():
    @rule(source="here")
    def step(w, g, *, lr, a=False, b=0.5):
        if a and not b:
            g = 2 * g
        return w - lr * g

    values = [
        calculated(read(step, {"a": a, "b": b}), w=1.0, g=1.0, lr=0.25) for a in (True, False) for b in (0.0, 0.3)
    ]
    assert values == [(0.5,), (0.75,), (0.75,), (0.75,)]


FACTOR = 2.0


def by_threshold(w, g, *, lr, m=0.3):
    if m > 0.5:
        return w
    return w - lr * g


def by_rate(w, g, *, lr):
    if lr:
        return w - lr * g
    return w


def by_weight(w, g, *, lr):
    if g:
        return w - lr * g
    return w


def without_return(w, g, *, lr, fast=False):  # noqa: RET503
    if fast:
        return w - lr * g


def from_around(w, g, *, lr):
    return w - lr * FACTOR * g


def too_early(w, g, *, lr):
    shrunk = w - step_ahead  # noqa: F821
    step_ahead = lr * g  # noqa: F841
    return shrunk


def one_value_then_another(w, g, *, lr):
    a = lr * 2
    b = a * g
    a = lr * 3
    return w - b - a * g


def a_weights_value_then_a_steps(w, g, *, lr):
    a = g * 2
    b = a * a
    a = lr * 0.5
    return w - a * b


def another_rate(w, g, *, lr):
    lr = lr * 3
    return w - lr * g


def kernels_own_name(w, g, *, lr, max=0.5):
    return w - lr * max * g


def kernels_own_ending(w, g, *, lr, scale_=0.5):
    return w - lr * scale_ * g


def called_like_a_function(w, g, *, lr):
    sign = lr * g
    return w - sign


def two_comparisons(w, g, *, lr):
    return w - lr * g * (0 < w < 1)


def words(w, g, *, lr):
    return w - lr * g * "2"


def one_argument_too_many(w, g, *, lr):
    return w - lr * sqrt(g, 2)


def named_argument(w, g, *, lr):
    return w - lr * maximum(g, y=0.0)


def others_function(w, g, *, lr):
    return w - lr * abs(g)


def loop(w, g, *, lr):
    for _ in range(2):
        w = w - lr * g
    return w


def in_place(w, g, *, lr):
    w -= lr * g
    return w


REFUSED = {
    by_threshold: r"`if m > 0\.5` in line \d+: an `if` may ask whether constants are set",
    by_rate: "`if lr` in line",
    by_weight: "`if g` in line",
    without_return: "must end in a return, whichever branches it takes",
    from_around: r"reads FACTOR in line \d+, which is neither an argument nor assigned before.*must be a constant",
    too_early: "reads step_ahead in line",
    one_value_then_another: r"gives a another value in line \d+, one for all weights",
    a_weights_value_then_a_steps: "gives a another value",
    another_rate: "gives lr another value",
    kernels_own_name: "has a variable 'max', which means something else",
    kernels_own_ending: "has a variable 'scale_'",
    called_like_a_function: "has a variable 'sign'",
    two_comparisons: "`0 < w < 1`",
    words: "`'2'`",
    one_argument_too_many: r"`sqrt\(g, 2\)`",
    named_argument: r"`maximum\(g, y=0\.0\)`",
    others_function: r"`abs\(g\)`",
    loop: "`for _ in range",
    in_place: "`w -= lr",
}


@pytest.mark.parametrize("equation", REFUSED, ids=lambda equation: equation.__name__)
def test_what_a_kernel_would_get_wrong_or_cannot_say_is_refused_by_its_line(equation):
    one = rule(source="here")(equation)
    with pytest.raises(RuleError, match=f"The equation {one.name} .*{REFUSED[equation]}"):
        read(one, one.constants)


def test_it_is_refused_before_the_first_step():
    with pytest.raises(RuleError, match=r"`if m > 0\.5`"):
        Optimizer([torch.ones(3)], rule(source="here")(by_threshold), lr=0.1, engine="cpu")


def test_a_state_more_or_less_than_is_kept_is_refused():
    @rule(source="here", state=("speed",))
    def forgetful(w, g, speed, *, lr):
        return w - lr * (speed + g)

    with pytest.raises(RuleError, match="forgetful must return the new weight, the new speed, not 1 values"):
        read(forgetful, {})


def test_state_that_is_switched_off_cannot_be_read():
    @rule(source="here", state={"speed": ("speed", "zeros", "friction")})
    def rolling(w, g, speed, *, lr, friction=0.5):
        return w - lr * (speed + g), speed + g

    assert calculated(read(rolling, {"friction": 0.5}), w=1.0, g=1.0, speed=0.0, lr=0.5) == (0.5, 1.0)
    with pytest.raises(RuleError, match=r"reads speed in line \d+, which exists only where its switch is on"):
        read(rolling, {"friction": 0.0})


def test_sums_take_what_the_equation_takes_in_its_order():
    @rule(source="here", sums=lambda g, w, *, lr: w * w - g, decide=lambda sums, numbers: {"d": sums[0]})
    def scaled(w, g, *, lr, d):
        return w - lr * d * g

    with pytest.raises(RuleError, match=r"`sums` of scaled must take \(w, g\) before the star, not \(g, w\)"):
        read_sums(scaled, {})


@pytest.mark.parametrize("name", [name for name, one in RULES.items() if not one.is_matrix])
def test_every_rule_of_ours_is_read(name):
    one = RULES[name]
    assert len(read(one, one.constants).results) == 1 + len(one.states(one.constants))
    assert {"lr", *one.constants} >= {*switches(one)}
    assert "lr" in scalars(one.equation)
