"""The learning rate, chosen by a race: every candidate is the final run itself, and the losers are stopped on the way.

A race decides who goes on; it runs nothing, and depends neither on the task nor on where candidates run. `bench/tuning` plays it on
a table of finished runs: the rates and stages that are the defaults were chosen there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

WIDENINGS = 2  # candidates that are added beyond the edge where the best one lies there


class Stage(NamedTuple):
    """As far as `share` of the run all candidates go that are left; then the best `keep` of them go on."""

    share: float
    keep: int


class Track(Protocol):
    """Where candidates run."""

    def score(self, rate: float, share: float) -> float:
        """Take the candidate of a rate on to a share of the run, and give what it would be worth there; less is better.

        Infinite where it diverged.
        """
        ...


def race(track: Track, rates: Sequence[float], stages: Sequence[Stage]) -> list[float]:
    """Give the rates that are left after the last stage, the best first.

    Arguments:
        track: gives the scores.
        rates: two or more, from low to high, evenly spaced on a logarithmic scale.
        stages: ever farther; after the first one, candidates are added beyond the edge as long as the best one lies there.
    """
    left, spacing = list(rates), rates[1] / rates[0]
    for number, stage in enumerate(stages):
        scores = {rate: track.score(rate, stage.share) for rate in left}
        for _ in range(WIDENINGS if number == 0 else 0):
            beyond = _beyond(scores, spacing)
            if beyond is None:
                break
            scores[beyond] = track.score(beyond, stage.share)
        left = sorted(scores, key=lambda rate: (scores[rate], rate))[: stage.keep]
    return left


def _beyond(scores: dict[float, float], spacing: float) -> float | None:
    """Give the rate beyond the edge where the best one lies there; None where it does not, or none is finite."""
    low, high = min(scores), max(scores)
    best = min(scores, key=lambda rate: (scores[rate], rate))
    if math.isinf(scores[best]) or best not in (low, high):
        return None
    return low / spacing if best == low else high * spacing
