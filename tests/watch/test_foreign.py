"""Tables of other programs: read as they come, refused with the place, and diagnosed by what they hold."""

import csv
import json
import math
import random

import pytest

import thalweg as tw
from thalweg.cli import main
from thalweg.watch.foreign import read_history


def table(losses, head=("step", "train_loss", "lr"), rate=lambda step: 1e-3):
    rows = [dict(zip(head, (step, loss, rate(step)), strict=False)) for step, loss in enumerate(losses, 1)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def noisy(count, level, seed=0):
    generator = random.Random(seed)
    return [level(step) * math.exp(generator.gauss(0, 0.05)) for step in range(count)]


SHAPES = {
    "diverging": lambda step: 2.3 * math.exp(-step / 50) if step < 100 else 0.3 * math.exp((step - 100) / 5),
    "stagnant": lambda step: 2.3,
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_symptom_is_named_at_the_tables_own_step(tmp_path, ending, kind):
    rows = [{**row, "step": 50 * row["step"]} for row in table(noisy(200, SHAPES[kind]))]
    found = tw.diagnose(write(tmp_path / f"history.{ending}", rows))
    if kind == "diverging":
        assert (found[0].name, found[0].symptom) == ("learning-rate-too-high", "diverging")
        assert 5000 < found[0].step < 6500
        assert found[0].step % 50 == 0
    assert all("gradient norm" in " ".join(each.not_measured) for each in found)


def test_a_healthy_table_has_no_fault(tmp_path):
    path = write(tmp_path / "history.csv", table(noisy(500, lambda step: 2.3 * math.exp(-step / 100) + 0.1)))
    assert tw.diagnose(path) == []


def test_a_loss_that_becomes_nan_is_found_and_a_cell_that_is_empty_is_not(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss,val_loss\n1,2.0,\n2,1.9,\n2,,1.5\n3,nan,\n")
    (found,) = [each for each in tw.diagnose(path) if each.symptom == "non-finite"]
    assert found.step == 3
    path.write_text("step,loss,val_loss\n1,2.0,\n2,1.9,\n2,,1.5\n3,1.8,\n")
    assert tw.diagnose(path) == []


def test_validation_that_gets_worse_is_found(tmp_path):
    rows = []
    for step in range(1, 401):
        row = {"iteration": step, "loss": 2.0 * math.exp(-step / 100)}
        if step % 20 == 0:
            row["Val Loss"] = 1.0 + abs(step - 160) / 150
        rows.append(row)
    found = tw.diagnose(write(tmp_path / "history.csv", rows))
    assert "overfitting" in {each.symptom for each in found}


def test_the_columns_are_found_by_their_usual_names(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(
        "trainer/global_step;train/loss;train/grad_norm;train/learning_rate\n1;2.5;1.0;0.1\n2;2.4;1.0;0.1\n"
    )
    history = read_history(path)
    assert history.taken == {
        "step": "trainer/global_step",
        "loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "gradient_norm": "train/grad_norm",
    }
    assert history.columns["loss"].tolist() == [2.5, 2.4]


BAD = {
    "text in a cell": ("step,loss\n1,2.0\n2,high\n", r"line 3, column `loss`: 'high' is no number"),
    "a missing cell": ("step,loss\n1\n", r"line 2: 1 cells, where the first line has 2 names"),
    "no loss": ("step,accuracy\n1,0.5\n", r"no column of the training loss: its columns are step, accuracy"),
    "nothing": ("", "holds no table"),
    "names alone": ("step,loss\n", "holds no table"),
    "a line cut off": ('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', r"line 2: no JSON .* Is the file cut off\?"),
    "a list in a line": ('{"loss": 2.0}\n[1, 2]\n', r"line 2: \[1, 2\] is no table"),
    "true for a loss": ('{"loss": true}\n', "True is no number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_error_that_names_the_place(tmp_path, case):
    text, message = BAD[case]
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(tw.RunError, match=message):
        tw.diagnose(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "history.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 9)
    with pytest.raises(tw.RunError, match="is no text"):
        tw.diagnose(path)


def test_the_command_says_what_it_read_and_its_status_what_it_found(tmp_path, capsys):
    path = write(tmp_path / "history.csv", table(noisy(200, SHAPES["diverging"])))
    assert main(["diagnose", str(path)]) == 11
    out = capsys.readouterr().out
    assert "200 rows of history.csv: step from `step`, loss from `train_loss`, learning_rate from `lr`." in out
    assert "More could be told with a column of the gradient norm" in out
