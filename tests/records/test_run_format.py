"""What the page on the run's folder says is executed here."""

import re
from pathlib import Path

import pytest
import torch

from thalweg.records import checkpoint
from thalweg.records.history import SCHEMA, History

PAGE = (Path(__file__).parents[2] / "docs" / "run-format.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    weight = torch.ones(2)
    with History(tmp_path) as history:
        for step in (1, 2):
            history.append(step, {"loss": 1.0 / step})
        history.append(3, {"validation/loss": 1.0})
        history.flush()
        checkpoint.save(tmp_path / "checkpoints", {"model": {"a": weight, "b": weight}, "loop": {"step": 2}}, step=2)
        checkpoint.save(tmp_path / "checkpoints", {"model": {"a": weight}}, step=2, name="best")
        yield tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=["history", "sums", "weights"])
def test_what_the_page_shows_runs(folder, block, capsys):
    names = {"folder": folder}
    exec(block, names)
    if "connection" in names:
        assert capsys.readouterr().out == "1 1.0\n2 0.5\n"
    if "weights" in names:
        assert names["weights"]["a"].tolist() == [1, 1]


def test_the_page_names_every_table_and_column():
    for table, columns in re.findall(r"CREATE TABLE (\w+) \((.*?)\)(?: WITHOUT ROWID)?;", SCHEMA, re.DOTALL):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{table}` |"))
        named = re.findall(r"(?:^|, *\n? *)(\w+)(?= (?:TEXT|INTEGER|BLOB)|$|,)", columns)
        assert named
        assert all(f"`{column}`" in row for column in named), (table, named)
