"""The gradient noise scale: the batch size at which the noise of a gradient is as large as the gradient itself.

Where single examples' gradients have the mean G and a covariance matrix of trace S, the mean gradient g of B examples has
E |g|^2 = |G|^2 + S / B. So two batch sizes give both parts without bias:

    |G|^2 = (B_big |g_big|^2 - B_small |g_small|^2) / (B_big - B_small)
    S     = (|g_small|^2 - |g_big|^2) / (1 / B_small - 1 / B_big)

and the noise scale is S / |G|^2, in examples. Below it, a step with twice the examples gets nearly twice as far; beyond it, more
examples are wasted. It grows in training, and says little before the first steps, when all gradients point the same way.

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A. Their running means are replaced by plain ones or a decay of choice,
negative estimates of single steps are kept, as leaving them out biases the mean, and the ratio has an interval (Fieller 1954).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.9  # of the interval
SUMS = ("weight", "weight2", "noise", "gradient", "noise2", "gradient2", "both")
FEWEST = 4  # measurements that an interval can be made of
COMPARABLE = ("examples", "targets", "calls", "sum", "weighted", "unknown")  # reductions in which parts make up a whole
EVERY = 200, 400  # steps between measurements beside a run: the least, and the most
SHORT, EVERY_OF_SHORT = 1_000, 100  # steps of a short run, and between measurements beside it
POINTS = 50  # measurements of a run between the two
STRETCHES, PER_STRETCH = 10, 10  # into which a run is divided, at most, and measurements in each, at least


def noise_every(total: int) -> int:
    """Give every how many steps of a run of so many the noise of the gradient is measured beside one.

    In a small model one takes the time of three steps: up to 3 % of a short run, and half of that of a longer one.

    >>> noise_every(1_000), noise_every(5_000), noise_every(20_000)
    (100, 200, 400)
    """
    return EVERY_OF_SHORT if total <= SHORT else min(max(EVERY[0], total // POINTS), EVERY[1])


class GradientNorms(NamedTuple):
    """Squared norms of gradients of two batch sizes at the same weights: `small` may be the mean of several small batches'."""

    small_batch: float
    small: float
    big_batch: float
    big: float

    @staticmethod
    def of_micro_batches(squared_norms: Sequence[float], squared_norm_of_mean: float, examples: float) -> GradientNorms:
        """Take the micro-batches of one step, which costs nothing where a step is accumulated anyway.

        Arguments:
            squared_norms: of each micro-batch's mean gradient; at least two, of equally many examples each.
            squared_norm_of_mean: of their mean.
            examples: in all of them.

        Raises ValueError where there are fewer than two.
        """
        count = len(squared_norms)
        if count < 2:
            raise ValueError(f"{count} micro-batches say nothing of the noise between them. Give at least two.")
        return GradientNorms(examples / count, math.fsum(squared_norms) / count, examples, squared_norm_of_mean)

    @property
    def gradient(self) -> float:
        """The squared norm of the mean gradient of all examples, estimated without bias: it may be negative."""
        return (self.big_batch * self.big - self.small_batch * self.small) / (self.big_batch - self.small_batch)

    @property
    def noise(self) -> float:
        """The trace of the covariance matrix of single examples' gradients, estimated without bias: it may be negative."""
        return (self.small - self.big) / (1 / self.small_batch - 1 / self.big_batch)


def of_part_and_whole(
    part2: float, both: float, whole2: float, part_size: float, whole_size: float
) -> tuple[float, float]:
    """Estimate |G|^2 and S, without bias, from the mean gradients of a part of a batch and of the whole of it.

    The gradient of the rest follows from the two. |G|^2 is its product with that of the part: so no example is multiplied with
    itself, and a few with large gradients do not hide what all have in common.

    Arguments:
        part2, both, whole2: the squared norm of the part's, their product, and the squared norm of the whole's.
        part_size, whole_size: examples in each.

    >>> of_part_and_whole(9.0, 6.0, 4.0, 8, 16)  # 3 of the part, 1 of the rest: 2 of both
    (3.0, 16.0)
    """
    rest_size = whole_size - part_size
    gradient = (whole_size * both - part_size * part2) / rest_size
    rest2 = (whole_size**2 * whole2 - 2 * whole_size * part_size * both + part_size**2 * part2) / rest_size**2
    return gradient, (part2 - 2 * gradient + rest2) / (1 / part_size + 1 / rest_size)


class NoiseScale(NamedTuple):
    """The estimate, in examples, with its interval of 90 %.

    `value` and `high` are infinite where the gradient is within its error of zero: then only `low` is known, and it is 0 where
    the noise is within its error of zero too.
    """

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there is an estimate, not only a bound."""
        return math.isfinite(self.high)

    def __str__(self) -> str:
        """Say it.

        >>> print(NoiseScale(120.0, 80.0, 200.0)), print(NoiseScale(math.inf, 340.0, math.inf))
        120 (80 to 200)
        larger than 340
        (None, None)
        """
        if not math.isfinite(self.value):
            return f"larger than {self.low:.3g}" if self.low > 0 else "not known"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


UNKNOWN = NoiseScale(math.inf, 0.0, math.inf)


class NoiseScaleMeter:
    """Averages measurements, numerator and denominator separately, and divides only then.

    Arguments:
        decay: of the weight of earlier measurements at each new one; 1 weighs all alike, 0.95 follows a noise scale that changes.

    Measurements with a norm that is not finite are left out.
    """

    def __init__(self, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"`decay` is {decay}; it lies in (0, 1].")
        self.decay = decay
        self._sums: dict[str, float] = dict.fromkeys(SUMS, 0.0)

    def add(self, norms: GradientNorms) -> None:
        """Add a measurement. Raises ValueError where its two batch sizes are equal, in the wrong order or not above zero."""
        if not 0 < norms.small_batch < norms.big_batch:
            raise ValueError(
                f"Of {norms.small_batch:g} and {norms.big_batch:g} examples the small batch must be smaller."
            )
        self.add_estimates(norms.gradient, norms.noise)

    def add_estimates(self, gradient: float, noise: float) -> None:
        """Add a measurement that is already |G|^2 and S."""
        if not (math.isfinite(noise) and math.isfinite(gradient)):
            return
        new = {
            "weight": 1.0,
            "noise": noise,
            "gradient": gradient,
            "noise2": noise**2,
            "gradient2": gradient**2,
            "both": noise * gradient,
        }
        for name, value in new.items():
            self._sums[name] = self.decay * self._sums[name] + value
        self._sums["weight2"] = self.decay**2 * self._sums["weight2"] + 1.0

    @property
    def count(self) -> float:
        """The number of measurements, of those with a decay the number that weigh as much."""
        return self._sums["weight"] ** 2 / self._sums["weight2"] if self._sums["weight2"] else 0.0

    @property
    def gradient(self) -> float:
        """The mean estimate of the squared norm of the mean gradient; NaN without measurements."""
        return self._mean("gradient")

    @property
    def noise(self) -> float:
        """The mean estimate of the trace of single examples' covariance matrix; NaN without measurements."""
        return self._mean("noise")

    def estimate(self, confidence: float = CONFIDENCE) -> NoiseScale:
        """Give the noise scale with its interval; of fewer than four measurements, one that says nothing is known.

        The interval holds the ratios R for which S - R |G|^2 is within its error of zero. It is one of two sides where |G|^2 is
        clearly above zero; else all large ratios are in it.
        """
        count = self.count
        if count < FEWEST:
            return UNKNOWN
        noise, gradient = self.noise, self.gradient
        spread = student_quantile(0.5 + confidence / 2, count - 1) ** 2 / (count - 1)
        noise_error = spread * max(0.0, self._mean("noise2") - noise**2)
        gradient_error = spread * max(0.0, self._mean("gradient2") - gradient**2)
        both_error = spread * (self._mean("both") - noise * gradient)
        # a R^2 - 2 b R + c <= 0 within the interval
        a, b, c = gradient**2 - gradient_error, noise * gradient - both_error, noise**2 - noise_error
        is_bounded, has_noise = a > 0 and gradient > 0, c > 0 and noise > 0
        if not is_bounded and not has_noise:
            return UNKNOWN
        root = math.sqrt(max(0.0, b * b - a * c))
        if is_bounded:
            return NoiseScale(max(0.0, noise / gradient), max(0.0, (b - root) / a), max(0.0, (b + root) / a))
        # The smaller positive root, in the form that does not divide by a, which may be zero.
        return NoiseScale(math.inf, c / (b + root), math.inf) if b + root > 0 else UNKNOWN

    def state_dict(self) -> dict[str, float]:
        """Give the state as built-in types."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore `state_dict`'s values."""
        self._sums = {name: float(state[name]) for name in self._sums}

    def _mean(self, name: str) -> float:
        return self._sums[name] / self._sums["weight"] if self._sums["weight"] else math.nan


class Stretch(NamedTuple):
    """The noise scale over some steps of a run, from the first to the last."""

    first: int
    last: int
    scale: NoiseScale


def noise_scales(steps: Sequence[float], gradients: Sequence[float], traces: Sequence[float]) -> list[Stretch]:
    """Give the noise scale over up to ten stretches of a run, with equally many measurements in each, at least ten.

    Arguments:
        steps: in order; the others have one value for each.
        gradients, traces: estimates of |G|^2 and of S; NaN where nothing was measured.

    Gives nothing of fewer than four measurements.
    """
    known = [row for row in zip(steps, gradients, traces, strict=True) if all(map(math.isfinite, row))]
    if len(known) < FEWEST:
        return []
    count = min(max(1, len(known) // PER_STRETCH), STRETCHES)
    ends = [round(number * len(known) / count) for number in range(count + 1)]
    found: list[Stretch] = []
    for first, last in itertools.pairwise(ends):
        meter = NoiseScaleMeter()
        for _, gradient, trace in known[first:last]:
            meter.add_estimates(gradient, trace)
        found.append(Stretch(int(known[first][0]), int(known[last - 1][0]), meter.estimate()))
    return found


def student_quantile(share: float, freedom: float) -> float:
    """Give the quantile of Student's distribution, by its expansion in 1 / freedom: within 1 % from 3 degrees of freedom on.

    Source: Abramowitz and Stegun, 26.7.5.

    >>> round(student_quantile(0.95, 3), 2), round(student_quantile(0.95, 20), 3)
    (2.35, 1.725)
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
