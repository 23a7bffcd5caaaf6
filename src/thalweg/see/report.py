"""The report: one self-contained HTML file that says how a run went, on what evidence, and what to do next."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib import resources
from pathlib import Path

from thalweg.errors import RunError
from thalweg.records import files
from thalweg.records.run import Run
from thalweg.records.run_folder import REPORT, is_in_run
from thalweg.see import report_sections, run_text, survey_section

TITLE_END = ": thalweg report</title>"  # by which a report is known
HEAD_BYTES = 1 << 16  # in which a report's title ends


def write_report(run: Run, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the report, replacing an old one atomically, and give its path; default: report.html in the run's folder.

    What lies under the default name and is no report is moved aside.

    Raises RunError where there is neither folder nor path, the disk refuses, or another kind of file is there.
    """
    if path is None and run.folder is None:
        raise RunError("This run has no folder to put its report in. Say where: thalweg.report(run, 'report.html').")
    target = Path(path) if path is not None else Path(run.folder or ".") / REPORT
    if path is not None:
        _check_target(target)
    _write(target, render(run), is_ours=path is None)
    return target


def write_page(path: str | os.PathLike[str], html: str) -> Path:
    """Write a page of `page` as `write_report` does a report."""
    target = Path(path)
    _check_target(target)
    _write(target, html, is_ours=False)
    return target


def _write(target: Path, html: str, *, is_ours: bool) -> None:
    """Write a page; under a name of ours what is no report is moved aside."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_ours and os.path.lexists(target) and not (files.is_regular(target) and _is_report(target)):
            files.set_aside(target)
        files.replace(target, html.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror}. Free some space or give another path."
        ) from error


def _check_target(target: Path) -> None:
    """Refuse to write over what is no report, or to put a report among a run's files under a name that may be theirs."""
    if os.path.isdir(target):
        raise RunError(f"{target} is a folder. Give the file to write, such as {target / REPORT}.")
    if target.suffix.lower() in (".html", ".htm"):
        ours, what = not os.path.isfile(target) or _is_report(target), "no report of thalweg's"
    else:
        ours, what = not os.path.isfile(target), "no HTML file"
        if ours and is_in_run(target.absolute()):
            raise RunError(f"{target} is in a run's folder, where a report's name ends in .html. Give such a name.")
    if not ours:
        raise RunError(f"{target} is there already and {what}: it is not overwritten. Give a path such as report.html.")


def _is_report(path: Path) -> bool:
    """Whether a file is a report, or empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return not head or TITLE_END.encode() in head


def render(run: Run) -> str:
    """Give the report's HTML."""
    body = "\n".join(
        make(run)
        for make in (
            report_sections.heading,
            report_sections.tiles,
            report_sections.advice,
            report_sections.charts,
            report_sections.temperature,
            survey_section.survey,
            report_sections.plan,
            report_sections.events,
            report_sections.diagnoses,
            report_sections.use,
            report_sections.environment,
        )
    )
    return page(run_text.name(run), body)


def page(title: str, body: str) -> str:
    """Give a whole HTML page.

    Nothing is loaded from elsewhere, and the content security policy lets the browser run no script but our own, known by
    its hash: a text that were left unescaped by mistake would not be executed.
    """
    style, script = _read_asset("report.css"), _read_asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{report_sections.safe(title)}{TITLE_END}
<style>
{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


@cache
def _read_asset(name: str) -> str:
    return (resources.files("thalweg.see") / name).read_text("utf-8")
