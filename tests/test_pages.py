"""The rules' pages are what the rules give, and what they show runs."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg import cli
from thalweg.rules import RULES, rule
from thalweg.rules.maths import sign

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name, language):
    return [body for kind, body in BLOCK.findall((PAGES / f"{name}.md").read_text("utf-8")) if kind == language]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("pages_under_test", ROOT / "tools" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_tool_writes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pages.py"), "--check"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_page_and_stands_in_the_index():
    index = (PAGES / "README.md").read_text("utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {*RULES, "README"}
    assert all(f"]({name}.md)" in index for name in RULES)


@pytest.mark.parametrize("name", RULES)
def test_what_a_page_shows_runs_and_goes_downhill(name, capsys):
    (body,) = blocks(name, "python")
    exec(compile(body, f"{name}.md", "exec"), {"__name__": "page"})
    first, last = map(float, capsys.readouterr().out.splitlines()[0].split())
    assert last < first


@pytest.mark.parametrize("name", RULES)
def test_the_command_that_a_page_shows_is_taken(name):
    (body,) = blocks(name, "console")
    words = shlex.split(body.removeprefix("$ "))
    assert words[0] == "thalweg"
    arguments = cli.build_parser().parse_args(words[1:])
    assert arguments.rule == name


def drifting(step, numbers):
    total = 0.0
    for _ in range(3):
        total += numbers["lr"]
    return {"total": total, "speed": numbers["speed"] / 2}


def middle(w, **others):
    half = w / 2
    return half + half


@rule(source="here 2026", state={"m": ("m", 0.5, "heavy")}, scalars=drifting, carried={"speed": "push"}, average=middle)
def odd(w, g, m, *, lr, push=1.0, heavy=False, total, speed):
    """Odd: a rule of a kind that nobody has written yet."""
    if heavy:
        m = m + g
    return w - (lr / total + speed) * sign(g) * push, m


def test_a_page_tells_what_it_can_of_a_rule_that_is_no_plain_formula(tool):
    page = tool.page(odd, [])
    assert "carried from step to step: `speed` from `push`:\n\n```py\ndef drifting(step, numbers):" in page
    assert "With `heavy`:\n\n```math" in page
    assert "not those at which gradients are taken, but\n\n```py\ndef middle(w, **others):" in page
    assert "| `m` | `m` | 0.5 | with `heavy` | 4 bytes per weight |" in page
    assert "No stable edge can be given. Its steps are as long close to the minimum as far from it" in page
    assert 'tw.optim.Optimizer(model.parameters(), "odd", lr=1)' in page
    assert "Not measured yet." in page


def test_a_figure_of_a_page_is_the_median_of_its_samples(tool):
    one = {"rule": "lion", "engine": "cpu", "threads": 2, "weights": 10_836_480}
    samples = [{**one, "full": full, "nanoseconds": n + full} for n in (1.5, 9.0, 1.0) for full in (False, True)]
    assert "| cpu | 2 | 10,836,480 | 1.5 | 2.5 |" in tool.page(RULES["lion"], samples)
    assert "Not measured yet." in tool.page(RULES["adam"], samples)
