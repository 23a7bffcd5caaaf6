import importlib.util
from pathlib import Path

import torch

from thalweg.rules import RULES, rule

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
