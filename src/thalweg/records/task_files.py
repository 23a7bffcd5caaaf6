"""Task files as modules: a task file is run under a name that any process can import.

What a loader's worker or a process pool is given is pickled, and a class or function of a task file is pickled as a module's
name and its own. Under fork the child has the module already; a child that is spawned, or comes from a fork server, imports it by
its name. So the name says where the file is: `thalweg.records.task_files.` and the path, in which letters and digits stand for
themselves and every other byte is an underscore and two hexadecimal digits. To import such a name runs the file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from thalweg.errors import TaskError, error_text

__path__: list[str] = []  # by which Python takes this module for a package, and looks for modules in it


def module_name(path: Path) -> str:
    """Give the name under which a task file is a module.

    >>> module_name(Path("/home/me/my_task.py"))
    'thalweg.records.task_files._2fhome_2fme_2fmy_5ftask_2epy'
    """
    letters = (chr(byte) if chr(byte).isalnum() and byte < 128 else f"_{byte:02x}" for byte in os.fsencode(path))
    return f"{__name__}.{''.join(letters)}"


def path_of(name: str) -> Path | None:
    """Give the file of a module's name; None where it is no task file's.

    >>> path_of("thalweg.records.task_files._2fhome_2fme_2fmy_5ftask_2epy").as_posix()
    '/home/me/my_task.py'
    """
    letters = name.removeprefix(f"{__name__}.")
    if letters == name or not re.fullmatch(r"([A-Za-z0-9]|_[0-9a-f]{2})+", letters):
        return None
    parts = re.findall(r"_[0-9a-f]{2}|[A-Za-z0-9]", letters)
    return Path(os.fsdecode(b"".join(bytes.fromhex(part[1:]) if part[0] == "_" else part.encode() for part in parts)))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds task files by the names that `module_name` gives."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = path_of(fullname) if fullname.startswith(__name__) else None
        if file is None or not os.path.isfile(file):
            return None
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())


def run(path: Path) -> types.ModuleType:
    """Run a task file anew and give its module. What lies beside the file can be imported by it, then and later.

    Raises TaskError where there is no such file, or it does not run.
    """
    path = Path(os.path.abspath(path))
    if not os.path.isfile(path):
        raise TaskError(f"The task's file {path} is no longer there. Put it back, or pass the task itself.")
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is no Python file. A task file ends in .py.")
    module, before, folder = importlib.util.module_from_spec(spec), sys.modules.get(name), str(path.parent)
    sys.modules[name] = module  # dataclasses look the module up by its name
    sys.path.insert(0, folder)  # a task file may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        _put_back(name, before)
        if isinstance(error, Exception | SystemExit):
            raise _named(error, path) from error
        raise
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # for what its functions import later
    return module


def _put_back(name: str, before: types.ModuleType | None) -> None:
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


def _named(error: BaseException, path: Path) -> TaskError:
    """Say which line of a task file does not run, and why."""
    if isinstance(error, SyntaxError):
        line_number = f", line {error.lineno}" if error.lineno else ""
        line = f": {error.text.strip()}" if error.text and error.text.strip() else ""
        return TaskError(f"{error.filename or path}{line_number}: {error.msg}{line}. Mend the file.")
    if isinstance(error, SystemExit):
        return TaskError(f"{path} ends the process ({line_text(error, path)}exit). Take that out of a task file.")
    return TaskError(f"{path} does not run: {line_text(error, path)}{error_text(error)}")


def line_text(error: BaseException, path: Path) -> str:
    """Say in which line of a file an error was raised, as the beginning of a message; "" where in none."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
