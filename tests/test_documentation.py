"""Everything that the documentation shows is run."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import thalweg

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = [
    "thalweg",
    *sorted(m.name for m in pkgutil.walk_packages(thalweg.__path__, "thalweg.") if "__main__" not in m.name),
]


def blocks(page: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall((ROOT / page).read_text("utf-8")) if kind == language]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize(
    "page", ["README.md", "docs/forecast.md", "docs/search.md", "docs/speed.md", "docs/survey.md", "docs/your-data.md"]
)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.records.paths.STARTED_IN", tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    found = blocks(page, "python")
    assert found
    for number, body in enumerate(found):
        if first := re.match(r"# (\w+\.py)\n", body):
            (tmp_path / first[1]).write_text(body, "utf-8")
        exec(compile(body, f"{page}, block {number}", "exec"), names)


def test_tests_in_the_readme_are_those_of_the_integration():
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_commands_in_the_readme_run(tmp_path):
    for body in blocks("README.md", "python"):
        if first := re.match(r"# (\w+\.py)\n", body):
            (tmp_path / first[1]).write_text(body, "utf-8")
    commands = [
        line[2:] for body in blocks("README.md", "console") for line in body.splitlines() if line.startswith("$ ")
    ]
    assert commands
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] in ("make", "git", "cd"):  # the set-up itself: tested by being run
            check_target(words)
            continue
        assert words[0] == "thalweg", command
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode in (0, 10, 11), f"{command}: {done.returncode}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr, command


def check_target(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), words


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_promise_names_a_test_that_is_there():
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    named = re.findall(r"`([a-z_/]*test_\w+\.py)::(\w+)`", page)
    assert len(named) > 40
    assert page.count("::") == len(named)
    for file, name in named:
        assert re.search(rf"^def test_{name}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE), (
            f"{file}::{name}"
        )
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| guaranteed", "| noticed"))
    ]
    assert all(".py::" in row for row in rows)
