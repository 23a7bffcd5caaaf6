"""Put the runs of `runs.py` into one table: `python bench/watch/summary.py --write`.

By half of the suite and by mode. "Named": the share of faulty programs of which a true cause is the first diagnosis of severity
warning or above, or, where there is none of those, the first of all. "Planted": the share of which it is the very one that was
planted. "Repaired": the share that ends, watched and cured, with a final loss at most 10 % above the healthy twin's, or no
higher than the twin's highest over seeds; "mended": the same, of the programs whose cause a cure can take away (not labels, data
or a network that are as they are). "Closed": the median share of the way from the unwatched final loss to the twin's
that the cure makes, in logarithms. "Steps": the median step at which a true cause was named.
False alarms: healthy programs with a diagnosis of severity warning or above; "made worse": healthy programs that were cured of
something and end more than 10 % above where they do unwatched. Programs that a mode refuses are left out there.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from thalweg.examples import faults
from thalweg.examples.faults.program import Program
from tuning.lines import read_lines, write_table
from watch.runs import file_of, twin_of

WATCHED = ("train", "cured", "closure", "bare")
CURED = ("train", "cured")
CLOSE = 1.1  # times the twin's final loss
UNMENDABLE = ("no-gradient", "nothing-to-learn", "overfitting", "low-precision")  # the person's to set right
WORST = 100.0  # times the twin's: more counts no more
Line = dict[str, Any]


def first_of(line: Line) -> Line | None:
    """Give the first diagnosis of severity warning or above, else the first of all."""
    found = line["found"]
    return next((each for each in found if each["severity"] != "note"), found[0] if found else None)


def first_name(line: Line) -> str:
    first = first_of(line)
    return first["name"] if first is not None else "(nothing)"


def is_named(program: Program, line: Line) -> bool:
    return first_name(line) in program.causes


def alarms(line: Line) -> list[str]:
    return [
        f"{each['name']} ({each['severity']}, step {each['step']})"
        for each in line["found"]
        if each["severity"] != "note"
    ]


def is_worsened(mode: str, program: Program, line: Line) -> bool:
    """Tell whether a healthy program that was cured of something ended clearly above where it does unwatched."""
    losses = twin_losses(mode, program)
    return bool(line["found"]) and bool(losses) and not line["loss"] <= max(CLOSE * statistics.median(losses), *losses)


def twin_losses(mode: str, program: Program) -> list[float]:
    """Give the final losses of the twin, by the same means; of a healthy program its own."""
    twin = twin_of(program).name
    return [line["loss"] for line in LINES["twins" if mode == "train" else "off"] if line["program"] == twin]


def is_repaired(mode: str, program: Program, line: Line) -> bool | None:
    """Tell whether a run ended about where its healthy twin does; None where that is not known."""
    losses = [loss for loss in twin_losses(mode, program) if math.isfinite(loss)]
    if not losses:
        return None
    return line["loss"] <= max(CLOSE * statistics.median(losses), *losses)


def closed(mode: str, program: Program, line: Line) -> float | None:
    """Give how much of the way from the final loss without the watch to the twin's was made, in logarithms: 0 none, 1 all.

    A loss that is not finite counts as a hundred times the twin's. None where one of them is not known, or not above zero.
    """
    losses = [loss for loss in twin_losses(mode, program) if math.isfinite(loss)]
    before = [found["loss"] for found in LINES["off"] if found["program"] == program.name]
    if not losses or not before or min(losses) <= 0:
        return None
    twin = statistics.median(losses)
    worst = WORST * twin
    start, end = (
        loss if math.isfinite(loss) and 0 < loss < worst else worst
        for loss in (statistics.median(before), line["loss"])
    )
    return None if start <= twin else min(1.0, math.log(start / end) / math.log(start / twin))


def share(values: Iterable[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def row(half: str, mode: str) -> dict[str, Any] | None:
    """Give the figures of one half in one mode; None where nothing of it ran."""
    faulty, healthy = list[tuple[Program, Line]](), list[tuple[Program, Line]]()
    known = {each.name: each for each in faults.programs(half)}  # pyright: ignore[reportArgumentType]
    refused = 0
    for line in LINES[mode]:
        program = known.get(line["program"])
        if program is None:
            continue
        if line.get("refused") is not None:
            refused += 1
        else:
            (faulty if program.causes else healthy).append((program, line))
    if not faulty and not healthy:
        return None
    by_cause = dict[str, dict[str, Any]]()
    for cause in sorted({program.planted for program, _ in faulty}):
        chosen = [pair for pair in faulty if pair[0].planted == cause]
        by_cause[cause] = {
            **figures(mode, chosen),
            "first": dict(Counter(first_name(line) for _, line in chosen).most_common()),
        }
    false = {f"{program.name}, seed {line['seed']}": alarms(line) for program, line in healthy if alarms(line)}
    return {
        "half": half,
        "mode": mode,
        **figures(mode, faulty),
        "healthy": len(healthy),
        "false": len(false),
        "alarms": false,
        "worse": [p.name for p, line in healthy if mode in CURED and is_worsened(mode, p, line)],
        "refused": refused,
        "causes": by_cause,
    }


def figures(mode: str, pairs: Sequence[tuple[Program, Line]]) -> dict[str, Any]:
    steps = [
        step for program, line in pairs if is_named(program, line) and (step := (first_of(line) or {}).get("step"))
    ]
    ways = [way for pair in pairs if mode in CURED and (way := closed(mode, *pair)) is not None]
    return {
        "faulty": len(pairs),
        "named": share(is_named(*pair) for pair in pairs),
        "planted": share(first_name(line) == program.planted for program, line in pairs),
        "repaired": share(is_repaired(mode, *pair) for pair in pairs) if mode in CURED else None,
        "mended": share(is_repaired(mode, *p) for p in pairs if p[0].planted not in UNMENDABLE)
        if mode in CURED
        else None,
        "closed": statistics.median(ways) if ways else None,
        "steps": statistics.median(steps) if steps else None,
    }


def percent(value: float | None) -> str:
    return "  –  " if value is None else f"{value:5.0%}"


def show(made: dict[str, Any]) -> None:
    print(
        f"\n{made['half']}, {made['mode']}: {made['faulty']} faulty, {made['healthy']} healthy, {made['refused']} refused"
    )
    print(
        f"  named {percent(made['named'])}, planted {percent(made['planted'])}, repaired {percent(made['repaired'])}"
        f" ({percent(made['mended'])} of the mendable),",
        end=" ",
    )
    print(f"after {made['steps']} steps; false alarms in {made['false']}, made worse {len(made['worse'])}")
    for cause, of in made["causes"].items():
        firsts = ", ".join(f"{name} {count}" for name, count in of["first"].items())
        print(
            f"  {cause:24} {of['faulty']:3} named {percent(of['named'])} repaired {percent(of['repaired'])}"
            f" closed {percent(of['closed'])} step {of['steps'] or '–'!s:>6}: {firsts}"
        )
    if made["half"] == "development":
        for name, said in made["alarms"].items():
            print(f"  false: {name}: {'; '.join(said)}")
    else:
        print(f"  false: {Counter(each.split(' ')[0] for said in made['alarms'].values() for each in said)}")


def single(half: str, mode: str) -> None:
    """Print a line for each faulty program whose cause was not named."""
    known = {each.name: each for each in faults.programs(half)}  # pyright: ignore[reportArgumentType]
    for line in LINES[mode]:
        program = known.get(line["program"])
        if program is not None and program.causes and not line.get("refused") and not is_named(program, line):
            said = "; ".join(f"{each['name']} {each['severity']} {each['step']}" for each in line["found"][:4])
            print(f"  {mode:8} {program.name:56} {line['loss']:9.3g} {said or 'nothing'}")


LINES = {mode: read_lines(file_of(mode)) for mode in ("off", "twins", *WATCHED)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the rows in bench/raw/watch.json, for the README")
    parser.add_argument("--half", choices=("development", "held out"), help="default: both")
    parser.add_argument("--single", action="store_true", help="list the development programs that were not named")
    options = parser.parse_args()
    halves = (options.half,) if options.half else ("development", "held out")
    made = [found for half in halves for mode in WATCHED if (found := row(half, mode)) is not None]
    for each in made:
        show(each)
        if options.single and each["half"] == "development":
            single(each["half"], each["mode"])
    if options.write:
        write_table("watch", {"close": CLOSE, "threads": 1}, made, 0)


if __name__ == "__main__":
    main()
