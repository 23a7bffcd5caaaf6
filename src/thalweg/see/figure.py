"""A run's curves as a matplotlib figure, for those who have matplotlib: nothing else here needs it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from thalweg.errors import RunError
from thalweg.records.run import Run
from thalweg.see import run_text

OTHERS = 3  # metrics beside the loss that get a panel of their own


def plot(run: Run) -> Any:
    """Draw the curves of a run; see `Run.plot`.

    The figure belongs to no window and changes no setting of matplotlib: `figure.savefig("run.png")` writes it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError(
            "plot() needs matplotlib: pip install matplotlib. thalweg.report(run) draws the same without it."
        ) from error
    names = [n.removeprefix("validation/") for n in run.history if n.startswith("validation/")]
    metrics = [name for name in names if name != "loss"][:OTHERS]
    figure = Figure(figsize=(7, 2.6 + 1.6 * (1 + len(metrics))), layout="constrained")
    axes: Any = figure.subplots(
        2 + len(metrics), 1, sharex=True, height_ratios=[2.6, *[1.6] * (1 + len(metrics))], squeeze=False
    )[:, 0]
    evaluated = "validation" if run.summary.get("validated") else "evaluated"
    _draw(axes[0], run, {"training": "loss", evaluated: "validation/loss", "average": "ema/loss"})
    axes[0].set_ylabel("loss")
    axes[0].set_title(run_text.name(run), loc="left")
    _draw(axes[1], run, {"learning rate": "learning_rate"})
    axes[1].set_ylabel("learning rate")
    for axis, metric in zip(axes[2:], metrics, strict=True):
        _draw(axis, run, {"validation": f"validation/{metric}", "average": f"ema/{metric}"})
        axis.set_ylabel(metric)
    axes[-1].set_xlabel("step")
    figure._repr_png_ = lambda: _png(figure)  # pyright: ignore[reportAttributeAccessIssue] # by which a notebook shows it
    return figure


def _draw(axis: Any, run: Run, columns: dict[str, str]) -> None:
    """Draw the columns that the history has, each where it has figures."""
    for label, column in columns.items():
        values = run.history.get(column, np.empty(0))
        known = np.isfinite(values)
        if known.any():
            thin = column in ("loss", "learning_rate")
            axis.plot(run.history["step"][known], values[known], label=label, lw=1, marker="" if thin else "o", ms=3)
    if len(axis.lines) > 1:
        axis.legend(frameon=False)


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100)
    return written.getvalue()
