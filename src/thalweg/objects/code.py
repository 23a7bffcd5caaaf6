"""Code of the user's: which it is, and what a function of it uses."""

from __future__ import annotations

import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

TASK_FILES = "thalweg.records.task_files."  # the names of modules that are task files of the user's begin so
_INSTALLED = {"site-packages", "dist-packages"}
_OF_PYTHON = tuple(str(Path(sysconfig.get_path(name)).resolve()) + "/" for name in ("stdlib", "platstdlib"))


def is_library(module: str) -> bool:
    """Tell whether a module, by its name, comes with Python or an installed package rather than from the user.

    It goes by where its file lies: `profile.py` beside the user's script is the user's, and so is a package that is worked on
    (`pip install --editable`).
    """
    package = module.partition(".")[0]
    if package == "thalweg":
        return not module.startswith(("thalweg.examples", TASK_FILES))
    if package == "__main__":  # whose file is Python's own under `python -m cProfile script.py`
        return False
    if package in ("torch", "numpy"):
        return True
    file = getattr(sys.modules.get(module) or sys.modules.get(package), "__file__", None)
    return lies_in_library(file) if file else package in sys.stdlib_module_names


@lru_cache(maxsize=10_000)
def lies_in_library(file: str) -> bool:
    """Tell whether a file belongs to Python or to an installed package."""
    path = Path(file).resolve()
    return not _INSTALLED.isdisjoint((*path.parts, *Path(file).parts)) or str(path).startswith(_OF_PYTHON)


@lru_cache(maxsize=10_000)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Give the names of globals and attributes that some code uses, with the functions in it."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in names_in(constant)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def cells_of(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    """Give the variables that a function captured, with the cells that hold them; those that are not set yet are left out."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            _ = cell.cell_contents
        except ValueError:
            continue
        yield name, cell
