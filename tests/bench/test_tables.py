"""The tables of bench/README.md are what the samples in bench/raw give, and nothing else passes for them."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
RAW = sorted(BENCH.glob("raw/*.json"))


def check(folder):
    command = [sys.executable, str(folder / "tables.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path):
    """A bench folder of its own: the script, the README and the samples."""
    folder = tmp_path / "bench"
    folder.mkdir()
    for name in ("tables.py", "README.md"):
        shutil.copy(BENCH / name, folder / name)
    shutil.copytree(BENCH / "raw", folder / "raw")
    shutil.copy(BENCH.parent / "README.md", tmp_path / "README.md")
    return folder


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("bench_tables", BENCH / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_tables_are_what_the_samples_give():
    done = check(BENCH)
    assert done.returncode == 0, done.stdout


def test_written_anew_from_nothing_the_tables_come_out_the_same(copied):
    readme = copied / "README.md"
    before = readme.read_text("utf-8")
    readme.write_text(
        re.sub(r"(<!-- table: (\w+) -->).*?(<!-- end: \2 -->)", r"\1\n\3", before, flags=re.DOTALL), "utf-8"
    )
    assert check(copied).returncode == 1
    subprocess.run([sys.executable, str(copied / "tables.py")], check=True)
    assert readme.read_text("utf-8") == before


def test_a_digit_changed_in_a_table_is_noticed(copied):
    readme = copied / "README.md"
    text = readme.read_text("utf-8")
    row = next(
        line for line in text.splitlines() if line.startswith("|") and "thalweg" in line and re.search(r"\d", line)
    )
    last = max(i for i, letter in enumerate(row) if letter.isdigit())
    readme.write_text(text.replace(row, f"{row[:last]}{(int(row[last]) + 1) % 10}{row[last + 1 :]}"), "utf-8")
    done = check(copied)
    assert done.returncode == 1
    assert "run bench/tables.py" in done.stdout


@pytest.mark.parametrize("file", RAW, ids=[file.stem for file in RAW])
def test_samples_that_changed_are_noticed(copied, file):
    raw = copied / "raw" / file.name
    samples = json.loads(raw.read_text("utf-8"))
    for sample in samples["samples"]:
        sample.update({key: value * 1.5 for key, value in sample.items() if isinstance(value, float)})
    raw.write_text(json.dumps(samples), "utf-8")
    done = check(copied)
    assert done.returncode == 1
    assert f"'{file.stem}'" in done.stdout


def test_a_table_without_samples_is_noticed(copied):
    (copied / "raw" / "loop.json").unlink()
    assert "'loop'" in check(copied).stdout


@pytest.mark.parametrize("file", RAW, ids=[file.stem for file in RAW])
def test_samples_say_what_was_measured_on_what(file):
    found = json.loads(file.read_text("utf-8"))
    assert found["benchmark"] == file.stem
    assert found["machine"].keys() >= {"processor", "cores", "memory_gib", "versions", "commit"}
    assert found["machine"]["versions"].keys() >= {"python", "torch"}
    assert {"threads", "steps", "seeds"} & found["settings"].keys()
    assert found["samples"]


@pytest.mark.parametrize("file", [*RAW, BENCH / "README.md"], ids=lambda file: file.name)
def test_no_path_of_a_machine_is_told(file):
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)\b", file.read_text("utf-8"))


def test_median_and_spread_are_of_the_values_given(tables):
    assert tables.spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert tables.spread([1500.0, 250.0, 1000.0]) == "1,000 (250 to 1,500)"


def test_a_ratio_is_of_two_times_of_one_round(tables):
    samples = [
        {"model": "mlp", "threads": 1, "peer": peer, "round": number, "microseconds": time}
        for number, (bare, ours) in enumerate([(100.0, 120.0), (200.0, 240.0), (400.0, 480.0)])
        for peer, time in (("bare", bare), ("ours", ours))
    ]
    settings = {"peers": ["bare", "ours"], "models": ["mlp"], "threads": [1], "rounds": 3, "batch": 64}
    lines = tables.loop({"settings": settings, "samples": samples})
    assert lines[-1].split("|")[2:4] == [" 240 ", " 1.20 (1.20 to 1.20) "]


def test_steppers_stand_beside_torch_and_the_missing_are_named(tables):
    samples = [
        {"model": "small", "threads": 1, "who": who, "round": number, "microseconds": time}
        for number, (torchs, ours) in enumerate([(100.0, 50.0), (200.0, 100.0), (400.0, 200.0)])
        for who, time in (("torch", torchs), ("thalweg", ours))
    ]
    settings = {
        "models": ["small"],
        "sizes": {"small": 7000},
        "threads": [1],
        "rounds": 3,
        "peers": ["torch", "thalweg"],
    }
    settings["left_out"] = {"optax": "no package jax"}
    lines = tables.step({"settings": settings, "samples": samples})
    assert lines[0].endswith("Left out: optax, one `jax.jit` (no package jax).")
    assert lines[2].startswith("| small: 7,000 weights | us per step, 1 thread |")
    assert lines[-1] == "| **thalweg** | 100 | 0.50 (0.50 to 0.50) |"


def test_rules_are_told_with_everything_off_and_on_and_the_sweep_alone(tables):
    head = {"rule": "adamw", "engine": "cpu", "weights": 100, "threads": 2, "round": 0}
    samples = [
        {**head, "full": False, "nanoseconds": 0.5, "bytes": 32.0, "share": 0.8},
        {**head, "full": True, "nanoseconds": 12345.6, "bytes": 40.0, "share": 0.6},
        {**head, "sweep": "asleep", "nanoseconds": 0.4, "bytes": 28.0, "share": 0.9},
        {**head, "sweep": "spinning", "nanoseconds": 0.44, "bytes": 28.0, "share": 0.7},
    ]
    settings = {"rules": ["adamw"], "sizes": {"small": 100}, "threads": [2], "rounds": 1}
    lines = tables.rules({"settings": settings, "samples": samples})
    assert "| adamw | 32 | 0.5 | 0.80 (0.80 to 0.80) | 40 | 12,346 | 0.60 (0.60 to 0.60) |" in lines
    assert lines[-1] == "| 100 weights, torch's threads spinning | 28 | 0.44 | 0.70 (0.70 to 0.70) |"


def test_markers_that_are_missing_are_named(tables):
    with pytest.raises(SystemExit, match="table: loop"):
        tables.with_table("no markers here", "loop", "| a |")


def test_a_figure_changed_on_the_first_page_is_noticed(copied):
    page = copied.parent / "README.md"
    page.write_text(page.read_text("utf-8").replace("| 1.00 (1.00 to 1.00) |", "| 1.01 (1.00 to 1.00) |", 1), "utf-8")
    done = check(copied)
    assert done.returncode == 1
    assert done.stdout.startswith("README.md: the table 'loop'")
