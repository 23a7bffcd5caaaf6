"""Which display shows the progress: a line that updates in a terminal or a notebook, else nothing unless it is asked for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from thalweg.descent.recorder import Progress
from thalweg.errors import ArgumentError, shown
from thalweg.terminal import standard_output

METHODS = ("begin", "step", "validated", "event", "end")


def choose_display(progress: bool | Progress | None = None) -> Progress | None:
    """Give the display for an argument `progress=`; None shows nothing.

    Arguments:
        progress: None: a line that updates where the standard output is a terminal or a notebook, in the main thread, else
            nothing; True: lines of text where it is neither; False: nothing; or a display of one's own.

    Raises ArgumentError for anything else.
    """
    if progress is None:
        is_wanted = threading.current_thread() is threading.main_thread() and (
            notebook_display() or standard_output().isatty()
        )
        return _standard_display() if is_wanted else None
    if isinstance(progress, bool):
        return _standard_display() if progress else None
    missing = [name for name in METHODS if not callable(getattr(progress, name, None))]
    if isinstance(progress, type) or missing:
        lacks = "is a class" if isinstance(progress, type) else f"has no {', '.join(missing)}"
        raise ArgumentError(
            f"`progress` is {shown(progress, 80)}, which {lacks}. Give True, False, or an object with {', '.join(METHODS)}."
        )
    return progress


def _standard_display() -> Progress:
    from thalweg.see.live import make_progress  # which imports rich: only where something is shown
    from thalweg.see.notebook import NotebookProgress

    display = notebook_display()
    return make_progress() if display is None else NotebookProgress(display)


def notebook_display() -> Callable[..., Any] | None:
    """Give IPython's `display` where this process is a notebook's kernel, else None. IPython is not imported for that."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return None
    return ipython.display.display
