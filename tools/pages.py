"""Write the pages of the update rules, `docs/rules/`, from the rules themselves: `python tools/pages.py` (or `--check`).

A page shows the equation as it stands in the rule's file, its constants and state, what it does in a bowl, how to use it, and
what it costs (from the measurements in bench/raw/rules.json, where there are some).
"""

from __future__ import annotations

import inspect
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thalweg import optim
from thalweg.errors import RuleError
from thalweg.rules import RULES
from thalweg.rules.formula import Assignment, as_latex, average, equation, scalars, summands
from thalweg.rules.notation import latex, symbol, text
from thalweg.rules.program import switches
from thalweg.rules.rule import DECAY, Rule, State
from thalweg.theory import Edge, edge_form, stable_edge, temperature, temperature_form

ROOT = Path(__file__).resolve().parent.parent
PAGES, MEASURED = ROOT / "docs" / "rules", ROOT / "bench" / "raw" / "rules.json"
WRITTEN = "<!-- Written by tools/pages.py (`make docs`): change the rule's file, not this page. -->"
BYTES = 4  # of a number in float32
_BYTES_PER = {"weights": "bytes per weight", "rows": "bytes per row", "columns": "bytes per column"}
SHARE = 0.1  # of the stable edge: the curvature for which a page gives the temperature
Samples = Sequence[Mapping[str, Any]]

EXAMPLE = """\
import torch
import thalweg as tw

torch.manual_seed(0)
x = torch.randn(256, 8)
y = torch.sin(x @ torch.randn(8, 2))
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
optimizer = {optimizer}
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses[0], losses[-1])"""

AVERAGED = """
with optimizer.averaged():  # the weights to evaluate and to save
    print(torch.nn.functional.mse_loss(model(x), y).item())"""


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` say whether they are as they would be written."""
    current = pages(json.loads(MEASURED.read_text("utf-8"))["samples"] if MEASURED.exists() else [])
    stale = [path for path, body in current.items() if not path.exists() or path.read_text("utf-8") != body]
    obsolete = [path for path in PAGES.glob("*.md") if path not in current]
    if "--check" in arguments:
        for path in [*stale, *obsolete]:
            print(f"{path.relative_to(ROOT)} is not what its rule gives: run `make docs`.")
        return int(bool(stale or obsolete))
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(current[path], "utf-8")
    for path in obsolete:
        path.unlink()
    return 0


def pages(samples: Samples) -> dict[Path, str]:
    """Give every page's text, with its costs from these measurements."""
    rule_pages = {PAGES / f"{name}.md": page(rule, samples) for name, rule in RULES.items()}
    return {**rule_pages, PAGES / "README.md": index(RULES)}


def page(rule: Rule, samples: Samples) -> str:
    """Write a rule's page."""
    sections = {
        "Equation": [*_equation(rule), *_sums(rule), *_scalars(rule), *_average(rule)],
        "Constants": [_constants(rule), _decay(rule)],
        "State": _state(rule),
        "In a bowl": _bowl(rule),
        "Use": _use(rule),
        "Cost": _cost([sample for sample in samples if sample["rule"] == rule.name]),
        "Notes": _notes(rule),
    }
    parts = [f"# `{rule.name}`", WRITTEN, f"{rule.title}.", _origin(rule)]
    for heading, body in sections.items():
        parts += [f"## {heading}", *body] if body else []
    return "\n\n".join(parts) + "\n"


def index(rules: Mapping[str, Rule]) -> str:
    """Write the page that lists all rules."""
    rows = [
        [f"[`{name}`]({name}.md)", rule.title, _memory(rule), _edge_in_short(rule), _number(rule.learning_rate)]
        for name, rule in rules.items()
    ]
    parts = [
        "# Update rules",
        WRITTEN,
        "Each rule is one equation in one file of [`src/thalweg/rules/`](../../src/thalweg/rules). Its page shows the equation\n"
        "as it runs, its constants and state, up to which curvature it converges, at what temperature noisy gradients keep it,\n"
        "how to use it, and what a step costs.",
        _table(["rule", "in a sentence", "state", "stable edge", "default rate η"], rows),
        "State is counted in float32, beside 4 bytes of weight and 4 of gradient. The stable edge is the largest curvature of a\n"
        "bowl in which the rule converges, all but its momentum at the defaults; where a star stands, curvature is measured\n"
        "relative to the scale of the gradients in the rule's state; where a dash stands, the page says why there is none.\n"
        "[`theory/stable_edge.py`](../../src/thalweg/theory/stable_edge.py) finds it from the equation.",
        "To add a rule, write its file and run `make tables docs`.",
    ]
    return "\n\n".join(parts) + "\n"


def _edge_in_short(rule: Rule) -> str:
    form, edge = edge_form(rule), stable_edge(rule, lr=_rate(rule))
    if edge.curvature is None:
        return "–"
    return (f"`{text(form[-1].value)}`" if form else _number(edge.curvature)) + (" *" if edge.scales else "")


# Equation


def _origin(rule: Rule) -> str:
    file = f"src/thalweg/rules/{rule.name}.py"
    also = f" Also called {', '.join(f'`{alias}`' for alias in rule.aliases)}." if rule.aliases else ""
    return f"Source: {rule.source}. File: [`{file}`](../../{file}).{also}"


def _equation(rule: Rule) -> list[str]:
    if rule.is_matrix:
        return ["It moves whole tensors, by a program:", _code(rule.equation)]
    usual = equation(rule)
    signs = "Here $w$ is the weight, $g$ its gradient, $\\eta$ the learning rate"
    parts = [_math(usual), f"{signs}, $\\lambda$ the weight decay." if rule.takes_decay else f"{signs}."]
    for switch in switches(rule):
        default = rule.constants[switch]
        other = not default if isinstance(default, bool) else 0.0 if default else 0.5
        changed = equation(rule, {switch: other})
        if as_latex(changed) != as_latex(usual):
            parts += [f"With{'out' if default else ''} `{switch}`:", _math(changed)]
    return parts


def _sums(rule: Rule) -> list[str]:
    lines, totals = summands(rule)
    if not totals:
        return []
    sums = _fenced("math", r",\quad ".join(rf"\sum {latex(total)}" for total in totals))
    parts = ["Before that it sums, over all weights of a group,", sums]
    parts += ["where", _math(lines)] if lines else []
    return [*parts, "and computes from these sums:", _code(rule.decide)] if rule.decide else parts


def _scalars(rule: Rule) -> list[str]:
    if rule.scalars is None:
        return []
    starts = ", ".join(f"`{name}` from {_start(start)}" for name, start in rule.carried.items())
    intro = "Once per step, in float64, with $t$ the number of the step, from 1"
    try:
        shown = _math(scalars(rule))
    except RuleError:  # more than a line of arithmetic
        shown = _code(rule.scalars)
    return [f"{intro}; carried from step to step: {starts}:" if starts else f"{intro}:", shown]


def _average(rule: Rule) -> list[str]:
    if rule.average is None:
        return []
    try:
        value = average(rule)
        shown = _fenced("math", latex(value)) if value else ""
    except RuleError:  # more than one expression
        shown = _code(rule.average)
    return ["The weights to evaluate and to save are not those at which gradients are taken, but", shown]


def _math(lines: Iterable[Assignment], becomes: str = r"\leftarrow") -> str:
    return _fenced("math", as_latex(lines, becomes))


def _code(function: Callable[..., Any]) -> str:
    source = textwrap.dedent(inspect.getsource(function))
    return _fenced("py", source[source.index("def ") :].rstrip())  # blocks of `python` are whole programs, and run


def _fenced(language: str, body: str) -> str:
    return f"```{language}\n{body}\n```"


# Constants and state


def _constants(rule: Rule) -> str:
    grouped = {member: f"`{group}[{i}]`" for group, names in rule.grouped.items() for i, member in enumerate(names)}
    defaults = {"lr": rule.learning_rate, **rule.constants, DECAY: rule.weight_decay}
    rows = [
        [f"`{name}`", _sign(name), _number(default), _range(rule, name), grouped.get(name, "")]
        for name, default in defaults.items()
    ]
    return _table(["constant", "sign", "default", "range", "in PyTorch's group"], rows)


def _sign(name: str) -> str:
    return "" if symbol(name) == name else symbol(name)


def _range(rule: Rule, name: str) -> str:
    if name in ("lr", DECAY):
        return "[0, inf)"
    if name in rule.choices:
        return " or ".join(f"`{choice!r}`" for choice in rule.choices[name])
    if isinstance(rule.constants[name], bool):
        return "`True` or `False`"
    whole = "whole numbers in " if isinstance(rule.constants[name], int) else ""
    return whole + str(rule.ranges.get(name, "(-inf, inf)"))


def _decay(rule: Rule) -> str:
    ways = (
        "Weight decay shrinks the weight itself, in proportion to the rate",
        "Weight decay is added to the gradient",
    )
    default = ways[rule.couples(rule.constants)]
    if rule.decoupled is None:
        return f"{default}."
    other = {rule.decoupled: not rule.constants[rule.decoupled]}
    instead = ("it shrinks the weight itself", "it is added to the gradient")[rule.couples({**rule.constants, **other})]
    return f"{default}; with `{rule.decoupled}={other[rule.decoupled]}` {instead}."


def _state(rule: Rule) -> list[str]:
    if not rule.state:
        return ["It has no state."]
    rows = [[f"`{s.name}`", f"`{s.key}`", _start(s.start), _exists(s), _bytes(s)] for s in rule.state]
    counted = ", and one `step` per parameter" if rule.counts_steps else ""
    rest = f" Tensors that are no matrices are moved by [`{rule.rest.name}`]({rule.rest.name}.md)." if rule.rest else ""
    return [
        _table(["state", "in `state_dict`", "starts at", "exists", "in float32"], rows),
        f"At its defaults that makes {_memory(rule)}{counted}.{rest}",
    ]


def _start(start: float | str) -> str:
    words = {"zeros": "0", "weights": "a copy of the weight"}
    return f"{start:g}" if not isinstance(start, str) else words.get(start, f"`{start}`")


def _exists(state: State) -> str:
    parts = [f"with `{state.when}`" if state.when else "", f"for {state.only} only" if state.only else ""]
    return ", ".join(part for part in parts if part) or "always"


def _bytes(state: State) -> str:
    return f"{BYTES} {_BYTES_PER[state.shape]}"


def _memory(rule: Rule) -> str:
    """Say how large a rule's state is for a matrix, at its defaults, in float32."""
    shapes = [state.shape for state in rule.states(rule.constants) if state.exists_for(matrix=True)]
    parts = [f"{BYTES * shapes.count(shape)} {_BYTES_PER[shape]}" for shape in dict.fromkeys(shapes)]
    return " and ".join(parts) or "nothing"


# In a bowl


def _bowl(rule: Rule) -> list[str]:
    edge = stable_edge(rule, lr=_rate(rule))
    if not edge.curvature or math.isinf(edge.curvature):
        return [f"No stable edge can be given. {edge.reason}"]
    value = f"At its defaults and the rate {_number(_rate(rule))} that is {_number(edge.curvature)}.{_edge_notes(rule, edge)}"
    form = edge_form(rule)
    here = "It converges in a bowl of curvature $L$, where the gradient is $L w$, up to the stable edge"
    start = (
        [f"{here} (constants that do not stand in it at their defaults):", _math(form, "=")] if form else [f"{here}."]
    )
    return [*start, value, *_temperature(rule, edge.curvature)]


def _edge_notes(rule: Rule, edge: Edge) -> str:
    scaled = " and ".join(f"`{scale}`" for scale in edge.scales)
    scales = f" Curvature and noise are the preconditioned ones: measured with {scaled} at 1." if scaled else ""
    steps = " That is of the weights at which gradients are taken, after many steps; their average varies less."
    return scales + (steps if rule.average else "")


def _temperature(rule: Rule, edge: float) -> list[str]:
    value = temperature(rule, lr=_rate(rule), curvature=SHARE * edge, noise=1.0)
    form = temperature_form(rule)
    noise = (
        "Gradient noise of standard deviation $\\sigma$ keeps it at a temperature $T$ ($L$ times the variance of $w$)"
    )
    return [
        f"{noise}{':' if form else '.'}",
        *([_math(form, "=")] if form else []),
        f"For $\\sigma = 1$, at a tenth of the edge, that is {_number(value, 4)}.",
    ]


def _rate(rule: Rule) -> float:
    return rule.learning_rate or 1.0


# Use, cost, notes


def _use(rule: Rule) -> list[str]:
    rate = f"lr={_number(_rate(rule))}"
    has_class = hasattr(optim, rule.optimizer)
    optimizer = (
        f"tw.optim.{rule.optimizer}(model.parameters(), {rate})"
        if has_class
        else f'tw.optim.Optimizer(model.parameters(), "{rule.name}", {rate})'
    )
    return [
        "In your own loop:",
        _fenced("python", EXAMPLE.format(optimizer=optimizer) + (AVERAGED if rule.average else "")),
        *(["It takes sparse gradients, without weight decay."] if rule.takes_sparse else []),
        f'In a plan: `tw.Plan(rule="{rule.name}")`. From the command line, with all else chosen around it:',
        _fenced("console", f"$ thalweg fit digits --rule {rule.name}"),
    ]


def _cost(samples: Samples) -> list[str]:
    if not samples:
        return ["Not measured yet."]
    nanoseconds: dict[tuple[str, int, int], dict[bool, list[float]]] = {}
    for sample in samples:
        if "full" in sample:  # a whole step; others are parts of one
            times = nanoseconds.setdefault(
                (sample["engine"], sample["threads"], sample["weights"]), {True: [], False: []}
            )
            times[sample["full"]].append(sample["nanoseconds"])
    rows = [
        [engine, str(threads), f"{weights:,}", *(f"{statistics.median(times[full]):.3g}" for full in (False, True))]
        for (engine, threads, weights), times in sorted(nanoseconds.items())
    ]
    return [
        _table(["engine", "threads", "weights", "ns per weight", "with clipping, average and norms"], rows),
        "Medians of `bench/raw/rules.json`. With small models most of a step is overhead around the equation.",
    ]


def _notes(rule: Rule) -> list[str]:
    head = inspect.getdoc(inspect.getmodule(rule.equation)) or ""
    rest = head.partition("\n\n")[2].strip("\n")
    return ["From the head of the rule's file:", rest] if rest else []


def _number(value: Any, digits: int = 6) -> str:
    if value is None or isinstance(value, bool | str):
        return "none" if value is None else f"`{value!r}`"
    return re.sub(r"e([+-])0", r"e\1", f"{value:,.{digits}g}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
