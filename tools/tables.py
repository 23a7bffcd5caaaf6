"""Write the plain import tables from the folder listings: `python tools/tables.py` (or `--check`).

A rule is one file in `rules/`, named as its equation; the table in `rules/__init__.py` is what types, linters and completion see.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RULES = Path(__file__).resolve().parent.parent / "src" / "thalweg" / "rules"
NOT_RULES = {"__init__", "maths", "program", "rule", "walk"}


def rule_names(folder: Path) -> list[str]:
    """List the files of a folder that hold an equation."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in NOT_RULES)


def with_rules(text: str, names: list[str]) -> str:
    """Give `rules/__init__.py` with its imports and table for these rules."""
    parts = {**{name: name for name in names}, "rule": "Range, Rule, State, rule"}
    imports = "".join(f"from thalweg.rules.{name} import {parts[name]}\n" for name in sorted(parts))
    table = "".join(f'    "{name}": {name},\n' for name in names)
    text = re.sub(r"(?:from thalweg\.rules\.\w+ import [\w, ]+\n)+", lambda _: imports, text, count=1)
    return re.sub(r"(RULES: dict\[str, Rule\] = \{\n).*?\}", rf"\g<1>{table}}}", text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    """Write the tables, or with `--check` say whether they are as they would be written."""
    path = RULES / "__init__.py"
    text = path.read_text(encoding="utf-8")
    wanted = with_rules(text, rule_names(RULES))
    if "--check" in arguments:
        print("The tables are up to date." if text == wanted else f"{path} differs: run `make tables`.")
        return int(text != wanted)
    if text != wanted:
        path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
