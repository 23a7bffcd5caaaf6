"""Whether fresh seeds agree as often as a plan says: `python bench/tuning/calibration.py`, on the table of finished runs.

On one seed the best candidate is compared with the next five, judged at the end or after a cool-down on the way; another seed's
finished runs agree or do not. Printed for each probability that the plan would have said: how often they did.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from thalweg.tuning.confidence import probability_of_better
from tuning import simulate, table
from tuning.suite import DEVELOPMENT, HELD_OUT

BINS = (0.5, 0.6, 0.75, 0.85, 0.95, 1.01)
NEXT = 5


def agreements(task: str, at: float | None) -> list[tuple[float, bool]]:
    """Give the probability said and whether the other seed agrees, for pairs of candidates judged after a share of the run."""
    found, pairs = simulate.losses(task), list[tuple[float, bool]]()
    points = [point for place, point in found if place == at]
    for seed in table.SEEDS:
        scores = {point: found[at, point][seed] for point in points if seed in found[at, point]}
        ranked = sorted(scores, key=scores.__getitem__)
        for other in ranked[1 : 1 + NEXT]:
            said = probability_of_better({p: scores[p] for p in (ranked[0], other)}, ranked[0], at_the_end=at is None)
            ends = [found.get((None, point), {}) for point in (ranked[0], other)]
            fresh = [one for one in table.SEEDS if one != seed and all(one in end for end in ends)]
            pairs += [(said[1], ends[0][one] < ends[1][one]) for one in fresh if said is not None]
    return pairs


def main() -> None:
    for half, suite in (("development", DEVELOPMENT), ("held out", HELD_OUT)):
        for at, name in ((None, "trained to the end"), (0.35, "cooled down at 0.35")):
            binned = defaultdict[float, list[bool]](list)
            for task in suite:
                for said, agrees in agreements(task, at):
                    binned[max(low for low in BINS if low <= said)].append(agrees)
            told = [f"{low:g}: {sum(found) / len(found):.2f} of {len(found)}" for low, found in sorted(binned.items())]
            print(f"{half}, {name}: said at least -> agreed: {', '.join(told)}")


if __name__ == "__main__":
    main()
