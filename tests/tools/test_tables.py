import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from thalweg.rules import RULES, rule
from thalweg.schedule import SHAPES, Option, Schedule, shape
from thalweg.schedule.names import takes

ROOT = Path(__file__).resolve().parents[2]


def tables():
    spec = importlib.util.spec_from_file_location("tables_under_test", ROOT / "tools" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_rules_is_the_folders_listing(capsys):
    assert tables().main(["--check"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_new_file_becomes_a_row_and_a_removed_one_goes():
    module = tables()
    text = (ROOT / "src/thalweg/rules/__init__.py").read_text()
    more = module.with_rules(text, ["adam", "lion"])
    assert "from thalweg.rules.lion import lion\n" in more
    assert '    "lion": lion,\n' in more
    assert "adamw" not in more
    assert module.with_rules(more, module.rule_names(ROOT / "src/thalweg/rules")) == text


def test_what_defines_no_equation_of_its_name_is_no_rule(tmp_path):
    (tmp_path / "climb.py").write_text('@rule(source="here")\ndef climb(w, g, *, lr): ...\n')
    (tmp_path / "half.py").write_text('@matrix_rule(source="here")\ndef half(w, g, *, lr): ...\n')
    (tmp_path / "other.py").write_text('@rule(source="here")\ndef climb(w, g, *, lr): ...\n')
    (tmp_path / "maths.py").write_text("def maths(x): ...\n")
    assert tables().rule_names(tmp_path) == ["climb", "half"]


def test_a_new_cause_becomes_a_row_and_what_holds_none_of_its_name_does_not(tmp_path):
    module = tables()
    folder = ROOT / "src/thalweg/watch/causes"
    text = (folder / "__init__.py").read_text()
    assert module.with_causes(text, module.cause_names(folder)) == text
    more = module.with_causes(text, ["diverging", "tall_loss"])
    assert "from thalweg.watch.causes.tall_loss import tall_loss\n" in more
    assert '    "tall-loss": tall_loss,\n' in more
    assert "overfitting" not in more
    (tmp_path / "tall_loss.py").write_text("tall_loss = Cause(\n")
    (tmp_path / "helper.py").write_text("other = Cause(\n")
    assert module.cause_names(tmp_path) == ["tall_loss"]


def test_the_names_of_the_classes_follow_the_rules():
    module = tables()
    text = (ROOT / "src/thalweg/optim/__init__.py").read_text()
    fewer = module.with_classes(text, ["Adam", "Roll"])
    assert "from thalweg.optim.classes import (\n    Adam,\n    Roll,\n)\n" in fewer
    names = fewer.partition("__all__")[2].partition("]")[0]
    assert [
        name for name in ("AdamW", "Adam", "Roll", "SGD", "Optimizer", "StepRecord", "build") if f'"{name}"' in names
    ] == [
        "Adam",
        "Roll",
        "SGD",
        "Optimizer",
        "StepRecord",
        "build",
    ]
    assert module.with_classes(fewer, [one.optimizer for one in RULES.values()]) == text


def test_a_rules_class_is_written_from_its_equation():
    @rule(
        source="here",
        ranges={"drag": "[0, 1)", "low": "[0, inf)"},
        grouped={"bounds": ("low", "high")},
        optimizer="Rolling",
        choices={"kind": ("round", None)},
    )
    def roll(
        w: float,
        g: float,
        *,
        lr: float = 2e-5,
        drag: float = 1e-10,
        low: float = 0.0,
        high: float = 1.0,
        weight_decay: float = 0.5,
        kind: str | None = "round",
        often: bool = True,
        times: int = 3,
    ) -> float:
        """Roll downhill."""
        return w - lr * drag * g

    text = tables().class_of(roll)
    assert '"""Roll downhill.' in text
    assert "        drag: 1e-10, in [0, 1).\n" in text
    assert "        bounds: low = 0.0, in [0, inf); high = 1.0.\n" in text
    assert '        kind: "round"; one of "round", None.\n' in text
    names = {"Optimizer": torch.optim.Optimizer}
    exec("from __future__ import annotations\n" + text, names)
    order = list(names["Rolling"].__init__.__annotations__)
    assert order[:9] == ["params", "lr", "drag", "bounds", "weight_decay", "kind", "often", "times", "clip_norm"]
    assert names["Rolling"].__init__.__defaults__ == (2e-5, 1e-10, (0.0, 1.0), 0.5, "round", True, 3)


HALVING = '''

@shape(lambda o: f"halved every {with_unit(o['every'])}", every=Option(0.1, kind="length", low=1), final=FINAL)
def halving(span: Span, *, every: int, final: float) -> Curve:
    """Halve at regular steps, down to `final` (0 to 1).

    >>> [halving(total=10, every=2).factor(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return lambda t: max(final, 0.5 ** (t // every))
'''

USED = """
import doctest, inspect
import thalweg as tw
from thalweg.schedule import SHAPES, constructors
from thalweg.schedule.names import takes
from thalweg.testing import check_shape

schedule = tw.schedule.halving(total=100, every="5 %", final=0.1)
assert [schedule.factor(step) for step in (0, 5, 10, 99)] == [1.0, 0.5, 0.25, 0.1]
assert schedule.describe() == "halved every 5 % over 100 steps"
assert list(inspect.signature(tw.schedule.halving).parameters) == ["total", "warmup", "every", "final", "warmup_shape"]
assert doctest.testmod(constructors).failed == 0
assert tw.schedule.Schedule.from_dict(schedule.to_dict()) == schedule
assert eval(repr(schedule), {"schedule": tw.schedule}) == schedule
tw.Plan(schedule=schedule).save("plan.toml")
assert tw.Plan.load("plan.toml").schedule == schedule
try:
    tw.schedule.halving(final=2)
except tw.errors.ScheduleError as error:
    assert "`final` of halving is 2" in str(error)
else:
    raise AssertionError("final=2 was taken")
check_shape(SHAPES["halving"])
"""


def test_a_decay_shape_is_added_by_one_function_and_the_tables(tmp_path):
    """As CONTRIBUTING.md has it, on a copy of the project."""
    for folder in ("src", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src/thalweg/schedule/shapes.py").open("a", encoding="utf-8") as file:
        file.write(HALVING)
    for command in (["tools/tables.py"], ["tools/tables.py", "--check"], ["-c", USED]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_shapes_constructor_is_written_from_its_options():
    @shape(
        "a test",
        power=Option(2e-05),
        count=Option(3, kind="integer"),
        decay=Option(0.2, kind="length", unless="every"),
        every=Option(kind="lengths"),
        kind=Option("up", kind="choice", choices=("up", "down")),
    )
    def odd(span, *, power, count, decay=0, every=(), kind):
        """Fall oddly."""

    text = tables().constructor_of(odd)
    for line in (
        "    power: float = 2e-5,\n    count: int = 3,\n    decay: Length | None = None,\n",
        '    every: Sequence[Length] | None = None,\n    kind: Literal["up", "down"] = "up",\n',
        '    """Fall oddly."""\n',
        '        "every": every,\n        "kind": kind,\n    }\n'
        '    return Schedule("odd", total, warmup, warmup_shape, options)\n',
    ):
        assert line in text, line


def test_each_constructor_makes_the_schedule_of_its_shapes_defaults():
    module = tables()
    names = {"Schedule": Schedule, "takes": takes}
    exec("from __future__ import annotations\n" + "".join(map(module.constructor_of, SHAPES.values())), names)
    for name in SHAPES:
        assert names[name](20, 3) == Schedule(name, 20, 3)
