"""Write the code that follows from rules, causes and decay shapes: `python tools/tables.py` (or `--check`).

A cause is one file in `watch/causes/`, named as the `Cause` in it; from the listing comes the table in its `__init__.py`.
A rule is one file in `rules/`, named as its equation. From the listing come the table in `rules/__init__.py`, a class for each
rule in `optim/classes.py` and the names in `optim/__init__.py`, so that types, linters, completion and pickling see them.

A decay shape is one function in `schedule/shapes.py`. From it come its constructor in `schedule/constructors.py` and its name in
`schedule/__init__.py`.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.rules.rule import Rule
    from thalweg.schedule.lengths import Option
    from thalweg.schedule.shape import Shape

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "thalweg"
RULES = PACKAGE / "rules"
CAUSES = PACKAGE / "watch" / "causes"
OPTIM = PACKAGE / "optim"
SCHEDULE = PACKAGE / "schedule"

HEAD = '''"""An optimiser for each rule, written by `tools/tables.py` from the rules themselves: `make tables`, not by hand."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.optim.optimizer import Optimizer
'''

CLASS = '''

class {name}(Optimizer):
    """{title}

    Arguments:
        params: parameters, named parameters, or groups of either.
{arguments}

{notes}
    """

    def __init__(
        self,
        params: ParamsT,
{signature}
    ) -> None:
        super().__init__(
            params,
            "{rule}",
{passed}
        )
'''

CONSTRUCTORS = '''"""Decay shapes as functions, written by `tools/tables.py` from `shapes.py`: `make tables`, not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from thalweg.schedule.lengths import Length
from thalweg.schedule.names import takes
from thalweg.schedule.record import Schedule, WarmupShape
'''

CONSTRUCTOR = """

@takes
def {name}(
{signature}
) -> Schedule:
{doc}
{body}
"""

KINDS = {"number": "float", "integer": "int", "length": "Length", "lengths": "Sequence[Length]"}


def rule_names(folder: Path) -> list[str]:
    """List the files of a folder that hold an equation of their own name, made a rule by `@rule` or `@matrix_rule`."""
    return sorted(path.stem for path in folder.glob("*.py") if _is_rule(path))


def _is_rule(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return bool(re.search(r"^@(matrix_)?rule\(", text, re.M) and re.search(rf"^def {path.stem}\(", text, re.M))


def with_rules(text: str, names: list[str]) -> str:
    """Give `rules/__init__.py` with its imports and table for these rules."""
    parts = {**{name: name for name in names}, "rule": "Range, Rule, State, rule"}
    imports = "".join(f"from thalweg.rules.{name} import {parts[name]}\n" for name in sorted(parts))
    table = "".join(f'    "{name}": {name},\n' for name in names)
    text = re.sub(r"(?:from thalweg\.rules\.\w+ import [\w, ]+\n)+", lambda _: imports, text, count=1)
    return re.sub(r"(RULES: dict\[str, Rule\] = \{\n).*?\}", rf"\g<1>{table}}}", text, flags=re.DOTALL)


def cause_names(folder: Path) -> list[str]:
    """List the files of a folder that hold a cause of their own name."""
    return sorted(path.stem for path in folder.glob("*.py") if _is_cause(path))


def _is_cause(path: Path) -> bool:
    return bool(re.search(rf"^{path.stem} = Cause\(", path.read_text(encoding="utf-8"), re.M))


def with_causes(text: str, names: list[str]) -> str:
    """Give `watch/causes/__init__.py` with its imports and table for these causes."""
    imports = "".join(f"from thalweg.watch.causes.{name} import {name}\n" for name in names)
    table = "".join(f'    "{name.replace("_", "-")}": {name},\n' for name in names)
    text = re.sub(r"(?:from thalweg\.watch\.causes\.\w+ import \w+\n)+", "", text)
    text = re.sub(r"(from thalweg\.watch\.cause import Cause\n)", rf"\g<1>{imports}", text, count=1)
    body = f"\n{table}" if table else ""
    return re.sub(r"(CAUSES: dict\[str, Cause\] = \{).*?\}", rf"\g<1>{body}}}", text, count=1, flags=re.DOTALL)


def with_classes(text: str, names: Iterable[str]) -> str:
    """Give `optim/__init__.py` with its imports and `__all__` for these classes."""
    imports = "".join(f"    {name},\n" for name in sorted(names, key=str.lower))
    text = re.sub(
        r"(from thalweg\.optim\.classes import \(\n).*?\)\n", rf"\g<1>{imports})\n", text, count=1, flags=re.DOTALL
    )
    return _with_all(text, names, r"^from thalweg\.optim\.(?!classes)\w+ import (.*)$")


def _with_all(text: str, names: Iterable[str], others: str) -> str:
    """Give a file with `__all__` for these names, those it imports in lines that match `others`, and its own functions."""
    beside = re.findall(others, text, re.M)
    public = {
        *names,
        *(name for line in beside for name in line.split(", ")),
        *re.findall(r"^def ([a-z]\w*)\(", text, re.M),
    }
    ordered = sorted(public, key=lambda name: (not name.isupper(), name[0].islower(), name))
    table = "".join(f'    "{name}",\n' for name in ordered)
    return re.sub(r"(__all__ = \[\n).*?\]\n", rf"\g<1>{table}]\n", text, count=1, flags=re.DOTALL)


def class_file(rules: Iterable[Rule]) -> str:
    """Write `optim/classes.py` for these rules."""
    return HEAD + "".join(class_of(rule) for rule in sorted(rules, key=lambda rule: rule.optimizer))


def class_of(rule: Rule) -> str:
    """Write a rule's class: its constants in PyTorch's order where PyTorch has a class of that name, else in the equation's."""
    options = _options(rule)
    own = _constants(rule)
    names = _in_torch_order(["lr", *own], rule.optimizer)
    lr = "float | Tensor" if rule.learning_rate is None else f"float | Tensor = {_literal(rule.learning_rate)}"
    typed = {"lr": lr, **{name: f"{kind} = {_literal(default)}" for name, (kind, default, _) in own.items()}}
    notes = {"lr": _rate_note(rule), **{name: note for name, (_, _, note) in own.items()}}
    signature = [f"{name}: {typed[name]}" for name in names]
    signature += ["*", *(f"{name}: {text}" for name, text in options.items()), "**others: Any"]
    passed = [f"{name}={name}" for name in [*names, *options]]
    return CLASS.format(
        name=rule.optimizer,
        rule=rule.name,
        title=_wrapped(f"{rule.title}.", 4).lstrip(),
        arguments="\n".join(_wrapped(f"{name}: {notes[name]}", 8, 12) for name in names),
        notes=_wrapped(_notes(rule), 4),
        signature=_lines(signature, 8),
        passed=_lines([*passed, "**others"], 12),
    )


def _constants(rule: Rule) -> dict[str, tuple[str, Any, str]]:
    """Give weight decay and the constants in the equation's order, grouped ones as one: type, default, docstring."""
    parameters = inspect.signature(rule.equation).parameters
    group_of = {member: group for group, members in rule.grouped.items() for member in members}
    described: dict[str, tuple[str, Any, str]] = {}
    for name in parameters:
        if name == "weight_decay":
            described[name] = (
                "float",
                rule.weight_decay,
                f"{_literal(rule.weight_decay)}, at least 0; {_decay_note(rule)}.",
            )
        elif name in group_of:
            members = rule.grouped[group_of[name]]
            kind = f"tuple[{', '.join(_kind(parameters[m]) for m in members)}]"
            note = "; ".join(f"{m} = {_constant_note(rule, m)}" for m in members)
            described[group_of[name]] = (kind, tuple(rule.constants[m] for m in members), f"{note}.")
        elif name in rule.constants:
            described[name] = (_kind(parameters[name]), rule.constants[name], f"{_constant_note(rule, name)}.")
    return {
        **described,
        "weight_decay": described.get("weight_decay", ("float", 0.0, f"0.0, at least 0; {_decay_note(rule)}.")),
    }


def _in_torch_order(names: list[str], name: str) -> list[str]:
    import torch

    torch_class = getattr(torch.optim, name, None)
    if torch_class is None:
        return names
    order = [p.name for p in inspect.signature(torch_class).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [*(n for n in order if n in names), *(n for n in names if n not in order)]


def _options(rule: Rule) -> dict[str, str]:
    """Give what every optimiser takes by name, as the signature of `Optimizer` has it."""
    from thalweg.optim.optimizer import Optimizer

    parameters = inspect.signature(Optimizer.__init__).parameters.values()
    common = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("lr", "weight_decay")]
    absent = ("ema", "cautious") if rule.average is not None else ()  # the rule keeps an average itself
    return {p.name: f"{_kind(p)} = {_literal(p.default)}" for p in common if p.name not in absent}


def _kind(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    return (kind if isinstance(kind, str) else inspect.formatannotation(kind)).replace("'", '"')


def _constant_note(rule: Rule, name: str) -> str:
    if name in rule.choices:
        return f"{_literal(rule.constants[name])}; one of {', '.join(map(_literal, rule.choices[name]))}"
    if isinstance(rule.constants[name], bool):
        return f"{rule.constants[name]}, or {not rule.constants[name]}"
    where = f", in {rule.ranges[name]}" if name in rule.ranges else ""
    return f"{_literal(rule.constants[name])}{where}"


def _rate_note(rule: Rule) -> str:
    default = "" if rule.learning_rate is None else f"{_literal(rule.learning_rate)}, "
    return f"learning rate, {default}at least 0."


def _decay_note(rule: Rule) -> str:
    if rule.decoupled is not None:
        return f"decoupled where `{rule.decoupled}` is true, else added to the gradient"
    return "decoupled from the gradient" if rule.takes_decay else "added to the gradient"


def _notes(rule: Rule) -> str:
    import torch

    order = (
        f" Arguments come in the order of `torch.optim.{rule.optimizer}`."
        if hasattr(torch.optim, rule.optimizer)
        else ""
    )
    average = " Evaluate and save the model within `averaged()` alone." if rule.average is not None else ""
    sparse = " Sparse gradients are taken, without weight decay." if rule.takes_sparse else ""
    source = f"The equation: `thalweg.rules.{rule.name}`. Source: {rule.source}."
    return f"All others: see `Optimizer`.{average}{sparse}{order} {source}"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return re.sub(r"e([+-]?)0+(?=\d)", r"e\1", text)


def _wrapped(text: str, depth: int, further: int | None = None) -> str:
    later = " " * (depth if further is None else further)
    return textwrap.fill(
        text, 120, initial_indent=" " * depth, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _lines(parts: Iterable[str], depth: int) -> str:
    return "\n".join(f"{' ' * depth}{part}," for part in parts)


def constructors_file(shapes: Iterable[Shape]) -> str:
    """Write `schedule/constructors.py` for these shapes."""
    return CONSTRUCTORS + "".join(map(constructor_of, shapes))


def constructor_of(shape: Shape) -> str:
    """Write a shape's constructor: lengths first, then its options by name, each with its type and default."""
    options = [f"{name}: {_option_kind(option)}" for name, option in shape.options.items()]
    signature = [
        "total: Length | None = None",
        "warmup: Length = 0",
        "*",
        *options,
        'warmup_shape: WarmupShape = "linear"',
    ]
    return CONSTRUCTOR.format(
        name=shape.name,
        signature=_lines(signature, 4),
        doc=textwrap.indent(f'"""{shape.help}' + ('\n"""' if "\n" in shape.help else '"""'), "    "),
        body=_constructor_body(shape),
    )


def _constructor_body(shape: Shape) -> str:
    call = f'    return Schedule("{shape.name}", total, warmup, warmup_shape'
    pairs = [f'"{name}": {name}' for name in shape.options]
    short = f"{call}, {{{', '.join(pairs)}}})" if pairs else f"{call})"
    return short if len(short) <= 120 else f"    options = {{\n{_lines(pairs, 8)}\n    }}\n{call}, options)"


def _option_kind(option: Option) -> str:
    """Give an option's type and default: None where it has none, or where another may replace it."""
    kind = f"Literal[{', '.join(map(_literal, option.choices))}]" if option.kind == "choice" else KINDS[option.kind]
    return (
        f"{kind} | None = None" if option.default is None or option.unless else f"{kind} = {_literal(option.default)}"
    )


def with_constructors(text: str, names: Iterable[str]) -> str:
    """Give `schedule/__init__.py` with its imports and `__all__` for these shapes."""
    imports = "".join(f"    {name},\n" for name in sorted(names))
    text = re.sub(
        r"(from thalweg\.schedule\.constructors import \(\n).*?\)\n",
        rf"\g<1>{imports})\n",
        text,
        count=1,
        flags=re.DOTALL,
    )
    return _with_all(text, names, r"^from thalweg\.schedule\.(?!constructors|names)\w+ import (.*)$")


def _make_importable() -> None:
    """Make the parts of the package importable while its own tables may still be wrong."""
    if "thalweg" not in sys.modules:
        for name, folder in (("thalweg", PACKAGE), ("thalweg.optim", OPTIM), ("thalweg.schedule", SCHEDULE)):
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package


def main(arguments: list[str]) -> int:
    """Write the tables, or with `--check` say whether they are as they would be written."""
    check = "--check" in arguments
    _make_importable()
    names = rule_names(RULES)
    differing = [_rewrite(RULES / "__init__.py", lambda text: with_rules(text, names), check)]
    rules: Mapping[str, Rule] = {name: getattr(import_module(f"thalweg.rules.{name}"), name) for name in names}
    differing.append(_rewrite(CAUSES / "__init__.py", lambda text: with_causes(text, cause_names(CAUSES)), check))
    differing.append(_rewrite(OPTIM / "classes.py", lambda _: class_file(rules.values()), check))
    classes = [rule.optimizer for rule in rules.values()]
    differing.append(_rewrite(OPTIM / "__init__.py", lambda text: with_classes(text, classes), check))
    differing += _schedule_tables(check)
    if check:
        stale = [path for path in differing if path]
        print(f"{', '.join(stale)}: run `make tables`." if stale else "The tables are up to date.")
        return int(bool(stale))
    return 0


def _schedule_tables(check: bool) -> list[str]:
    shapes: Mapping[str, Shape] = import_module("thalweg.schedule.lookup").SHAPES
    return [
        _rewrite(SCHEDULE / "constructors.py", lambda _: constructors_file(shapes.values()), check),
        _rewrite(SCHEDULE / "__init__.py", lambda text: with_constructors(text, [*shapes]), check),
    ]


def _rewrite(path: Path, change: Callable[[str], str], check: bool) -> str:
    """Rewrite a file, unless it is only to be checked; give its name where it was not up to date, else an empty text."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    current = change(text)
    if current == text:
        return ""
    if not check:
        path.write_text(current, encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
