import importlib.util
from pathlib import Path

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
