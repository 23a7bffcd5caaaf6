"""Write which faults do harm into the suite, from the runs without the watch: `python bench/watch/gaps.py`.

With --provisional those that one seed alone was run of are judged too, by a tenth of the twin's loss as the spread.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from thalweg.examples import faults
from tuning.lines import read_lines
from watch.runs import file_of, twin_of

FILE = Path(faults.__file__).with_name("gaps.json")
FEWEST = 2  # seeds
UNKNOWN = 0.1  # of the twin's loss, the spread of a single seed


def finals() -> dict[str, list[float]]:
    """Give the final losses of each program over seeds."""
    found = dict[str, dict[int, float]]()
    for line in read_lines(file_of("off")):
        found.setdefault(line["program"], {})[line["seed"]] = line["loss"]
    return {name: list(by_seed.values()) for name, by_seed in found.items()}


def main() -> None:
    fewest = 1 if "--provisional" in sys.argv[1:] else FEWEST
    losses, made = finals(), dict[str, dict[str, float | None]]()
    for program in faults.candidates():
        own, twin = losses.get(program.name, []), losses.get(twin_of(program).name, [])
        if min(len(own), len(twin)) < fewest:
            continue
        spreads = [
            statistics.stdev(values) for values in (own, twin) if len(values) > 1 and all(map(math.isfinite, values))
        ]
        if fewest == 1 and not spreads and math.isfinite(twin[0]):
            spreads = [UNKNOWN * twin[0]]
        figures = {"loss": _median(own), "twin": _median(twin), "spread": max(spreads) if spreads else None}
        made[program.name] = {name: _rounded(value) for name, value in figures.items()} | {"seeds": len(own)}
    FILE.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    harmful = [name for name, gap in made.items() if faults.does_harm(gap)]
    print(f"{len(made)} of {len(faults.candidates())} candidates measured, {len(harmful)} do harm")


def _median(values: list[float]) -> float | None:
    found = statistics.median(value if math.isfinite(value) else math.inf for value in values)
    return found if math.isfinite(found) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


if __name__ == "__main__":
    main()
