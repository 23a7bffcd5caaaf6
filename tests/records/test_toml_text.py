import pytest

from thalweg.cli import main
from thalweg.errors import PlanError, TaskError
from thalweg.records.plan import Plan
from thalweg.records.task import Source
from thalweg.records.toml_text import parse_toml

UNREADABLE = ["a = " + "[" * 5000, "x = " + "9" * 5000, "a = [", "\0", "a = {b = " * 2000]
WRONG = [
    "name = 3\nfile = 'x.py'",
    "file = 3",
    "module = ['os']",
    "name = 'a'",
    "file = 'a.py'\nmodule = 'b'",
    "none = 3",
]
WRONG += [
    "file = 'a.py'\narguments = 3",
    "file = 'a.py'\nnone = [[1]]",
    'file = "a\\u0000.py"',
    "file = 'a.py'\nother = 1",
]


def test_toml_is_read_with_a_mark_of_its_encoding():
    assert parse_toml("\ufeffa = 'ä'".encode()) == {"a": "ä"}


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_a_sentence_wherever_toml_is_read(text, tmp_path, capsys):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.toml: this is not TOML"):
        Plan.load(path)
    with pytest.raises(TaskError, match="cannot be read as a task's source"):
        Source.read(path)
    assert main(["train", "digits", "--plan", str(path), "--steps", "2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", WRONG)
def test_a_source_of_wrong_kinds_is_told(text, tmp_path):
    path = tmp_path / "task.toml"
    path.write_text(text)
    with pytest.raises(TaskError, match="cannot be read as a task's source"):
        Source.read(path)
