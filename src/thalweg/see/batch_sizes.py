"""What was measured of batch sizes, as the plan's evidence has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from thalweg.formatting import format_number, printable
from thalweg.records.run import Run


class Row(NamedTuple):
    """A candidate: its speed, 0 where it does not run; its megabytes, None where they are not known; why it failed."""

    batch_size: int
    examples_per_second: float
    megabytes: float | None = None
    error: str = ""


def measured(run: Run) -> list[Row]:
    """Give the candidates, smallest first; of what another program wrote, what can be read."""
    why, rows = run.plan.why("batch_size"), list[Row]()
    sizes, speeds, memory = why.listed("batch_sizes"), why.listed("examples_per_second"), why.listed("megabytes")
    errors = why.table("failed")
    for number, (size, speed) in enumerate(zip(sizes, speeds, strict=False)):
        try:
            megabytes = float(memory[number]) if number < len(memory) else None
            rows.append(Row(int(float(size)), float(speed), megabytes, str(errors.get(str(size), ""))))
        except (TypeError, ValueError, OverflowError):
            continue
    return rows


def limit(run: Run) -> float | None:
    """Give the megabytes that the run might take; None where nothing limits it, or nobody wrote it."""
    return run.plan.why("batch_size").number("memory_limit_megabytes")


def memory_text(run: Run) -> str:
    """Say what memory is made of, how that was found, and what there is."""
    figures = run.plan.why("batch_size").figures
    fixed, each = figures.get("fixed_megabytes"), figures.get("kilobytes_per_example")
    if not isinstance(fixed, Mapping) or not isinstance(each, Mapping):
        return ""
    text = f"Memory, {printable(str(figures.get('memory', 'measured')))}: {_parts(fixed, 'MB')} for any batch"
    text += f", and {_parts(each, 'kB')} an example." if each else "."
    allowed = limit(run)
    if allowed is None:
        return text
    return (
        f"{text} {format_number(allowed)} MB may be taken ({printable(str(figures.get('memory_limit', 'the limit')))})."
    )


def noise_text(run: Run) -> str:
    """Say the gradient noise scale; nothing where it was not measured."""
    why = run.plan.why("batch_size")
    scale, bound = why.listed("noise_scale"), why.number("noise_scale_above")
    if len(scale) == 3 and all(isinstance(part, int | float) for part in scale):
        value, low, high = (format_number(part) for part in scale)
        text = f"The gradient noise scale is {value} ({low} to {high}) examples"
    elif bound is not None:
        text = f"The gradient noise scale is larger than {format_number(bound)} examples"
    else:
        return ""
    return f"{text} after the first steps: below it, twice the examples bring a step nearly twice as far."


def in_a_line(run: Run) -> str:
    """Say sizes, speeds and memory in a line for the terminal; nothing where fewer than two were measured."""
    rows = measured(run)
    if len(rows) < 2:
        return ""
    texts = (f"{row.batch_size:,}: {speed_text(row)}{_memory(row)}" for row in rows)
    return "examples a second by size: " + "; ".join(texts)


def speed_text(row: Row) -> str:
    """Say how fast a size is, or why it is not."""
    if row.examples_per_second:
        return f"{row.examples_per_second:,.0f}"
    return "failed" if row.error else "out of memory"


def _memory(row: Row) -> str:
    return "" if row.megabytes is None else f" ({format_number(row.megabytes)} MB)"


def _parts(parts: Mapping[Any, Any], unit: str) -> str:
    """Give the sum of parts in a unit, and each of them.

    >>> _parts({"weights": 2.0, "gradients": 1.5}, "MB")
    '3.5 MB (weights 2, gradients 1.5)'
    """
    numbers = {str(name): part for name, part in parts.items() if isinstance(part, int | float)}
    named = ", ".join(f"{printable(name)} {format_number(part)}" for name, part in numbers.items())
    return f"{format_number(float(sum(numbers.values())))} {unit}{f' ({named})' if named else ''}"
