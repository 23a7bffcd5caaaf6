"""Which term of a loss became NaN or infinite first."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

MOST_NAMED = 3


class LostTerms(NamedTuple):
    """The first step at which a term was not finite, as long as one is not: these and their values, and those that were."""

    step: int
    lost: Mapping[str, float]
    finite: tuple[str, ...]

    def state(self) -> list[Any]:
        """Give it as built-in types."""
        return [self.step, dict(self.lost), list(self.finite)]

    @staticmethod
    def from_state(state: Sequence[Any]) -> LostTerms:
        """Read what `state` gave."""
        step, lost, finite = state
        return LostTerms(int(step), {str(name): float(value) for name, value in lost.items()}, tuple(map(str, finite)))

    def __str__(self) -> str:
        """Say it.

        >>> print(LostTerms(812, {"kl": math.nan}, ("reconstruction",)))
        term "kl" became NaN at step 812 while "reconstruction" stayed finite
        """
        became = "NaN" if all(math.isnan(value) for value in self.lost.values()) else "infinite"
        if became == "infinite" and any(math.isnan(value) for value in self.lost.values()):
            became = "NaN or infinite"
        rest = f" while {_named(self.finite)} stayed finite" if self.finite else ""
        return f"term{'s' if len(self.lost) > 1 else ''} {_named(tuple(self.lost))} became {became} at step {self.step:,}{rest}"


def lost_terms(step: int, terms: Mapping[str, float], before: LostTerms | None) -> LostTerms | None:
    """Give the lost terms after a step that had these, those of an earlier step first; None where all are finite."""
    lost = {name: value for name, value in terms.items() if not math.isfinite(value)}
    if not lost or before is not None:
        return before if lost else None
    return LostTerms(step, lost, tuple(name for name in terms if name not in lost))


def gradients_text(lost: Sequence[str], names: Collection[str]) -> str:
    """Say of which terms the gradient is not finite.

    >>> gradients_text(["norm"], ["fit", "norm"])
    'the gradient of term "norm" is not finite, that of "fit" is.'
    >>> gradients_text([], ["fit", "norm"])
    'the gradient of each term by itself is finite.'
    """
    if not lost:
        return "the gradient of each term by itself is finite."
    finite = tuple(name for name in names if name not in lost)
    rest = f", that of {_named(finite)} is" if finite else ""
    return f"the gradient of term{'s' if len(lost) > 1 else ''} {_named(tuple(lost))} is not finite{rest}."


def _named(names: tuple[str, ...]) -> str:
    shown = [f'"{name}"' for name in names[:MOST_NAMED]]
    if len(names) > MOST_NAMED:
        shown.append(f"{len(names) - MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
