"""The report: one self-contained HTML file that says how a run went, on what evidence, and what to do next."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from thalweg.errors import RunError
from thalweg.records.run import REPORT, Run
from thalweg.see.advice import next_steps


def write_report(run: Run, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the report in one move and give its path; default: report.html in the run's folder.

    Raises RunError where there is neither folder nor path, or the disk refuses.
    """
    if path is None and run.folder is None:
        raise RunError("This run has no folder to put its report in. Say where: thalweg.report(run, 'report.html').")
    place = Path(path) if path is not None else Path(run.folder or ".") / REPORT
    fresh = place.with_name(f".{place.name}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(render(run), "utf-8")
        fresh.replace(place)
    except OSError as error:
        raise RunError(f"{place} cannot be written: {error.strerror}. Free some space or give another path.") from error
    return place


def render(run: Run) -> str:
    """Give the report's HTML."""
    steps = "".join(f"<li>{escape(line)}" for line in next_steps(run))
    return f"<!doctype html><meta charset=utf-8><title>{escape(str(run.summary.get('name', 'run')))}</title><ul>{steps}</ul>\n"
