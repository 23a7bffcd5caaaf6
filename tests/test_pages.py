"""The rules' pages are what the rules give, and what they show runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg import cli
from thalweg.rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(rule, language):
    return [body for kind, body in BLOCK.findall((PAGES / f"{rule}.md").read_text("utf-8")) if kind == language]


def test_the_pages_are_what_the_tool_writes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pages.py"), "--check"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_page_and_stands_in_the_index():
    index = (PAGES / "README.md").read_text("utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {*RULES, "README"}
    assert all(f"]({name}.md)" in index for name in RULES)


@pytest.mark.parametrize("rule", RULES)
def test_what_a_page_shows_runs_and_goes_downhill(rule, capsys):
    (body,) = blocks(rule, "python")
    exec(compile(body, f"{rule}.md", "exec"), {"__name__": "page"})
    first, last = map(float, capsys.readouterr().out.splitlines()[0].split())
    assert last < first


@pytest.mark.parametrize("rule", RULES)
def test_the_command_that_a_page_shows_is_taken(rule):
    (body,) = blocks(rule, "console")
    words = shlex.split(body.removeprefix("$ "))
    assert words[0] == "thalweg"
    arguments = cli.build_parser().parse_args(words[1:])
    assert arguments.rule == rule
