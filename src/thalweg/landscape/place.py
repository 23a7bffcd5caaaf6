"""What kind of place a point of the loss surface is: minimum, saddle point, plateau, slope, or the edge of stability.

First it is asked whether the point is critical at all: whether a step along the gradient would still lower the loss by an
amount that matters, and whether the gradient stands out of its own sampling error. Then eigenvalues say where to look, and
evaluations decide: along each direction of negative or of no curvature the loss is followed, both ways, to the first distance
at which its change shows. So kinks, and points where the second derivative vanishes, are judged by the loss itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from thalweg.landscape.dots import dot, length
from thalweg.landscape.lanczos import Eigenpairs
from thalweg.landscape.surface import Slope, Surface

Kind = Literal["minimum", "saddle point", "maximum", "plateau", "slope", "edge of stability", "cannot tell"]
KINDS: tuple[str, ...] = get_args(Kind)

GAIN = 1e-3  # of the scale: a step along the gradient that lowers the loss by more is worth taking
OWN_GAIN = 1e-4  # of the change of loss over the distance at which the curvature changes, where no scale is given
NOISE = 1.5, 4.0  # times its squared sampling error: a squared gradient below is noise, one above is none
ZERO = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest: an eigenvalue that round-off hides
RESOLUTION = {torch.float32: 2e-6, torch.float64: 1e-14}  # of the loss: a change that round-off hides
EDGE = 0.9  # of the rule's stable edge
FLAT = 1e-3  # of the curvature where the descent began: a plateau's
DESCENDED = 0.1  # of the loss where the descent began: one that lies lower is on no plateau
SPHERE = 64  # random directions that are tried where there is no curvature at all
DOUBLINGS = 80
FAR = 20  # doublings of the weights' own length, beyond which a curvature that has not changed never does


@dataclass(frozen=True)
class Place:
    """The kind of a place, and what it was decided by.

    Attributes:
        kind: see `Kind`.
        index: directions in which the loss curves downwards, as far as known; None where that was not asked.
        index_is_exact: whether there are no more of them.
        reason: a sentence.
        figures: by name, each with what it was compared with in `thresholds`.
        direction: of shape (size,), length 1: where it goes down, of a saddle point; else None.
        drop: by how much the loss falls along it, as far as it was followed.
    """

    kind: Kind
    reason: str
    index: int | None = None
    index_is_exact: bool = False
    figures: dict[str, float] = field(default_factory=dict[str, float])
    thresholds: dict[str, float] = field(default_factory=dict[str, float])
    direction: Tensor | None = None
    drop: float = 0.0


def find_place(
    surface: Surface,
    point: Tensor,
    slope: Slope,
    pairs: Eigenpairs,
    *,
    scale: float | None = None,
    began: tuple[float, float] | None = None,
    edge: tuple[float, float] | None = None,
) -> Place:
    """Tell the kind of a place.

    Arguments:
        surface, point: the loss, and where it is looked at; a vector of shape (size,).
        slope, pairs: its gradient and the ends of its Hessian's spectrum there.
        scale: a change of the loss that matters is a thousandth of it: the loss that is left, say. None: taken from the
            surface, as the change over the distance at which the curvature is another.
        began: loss and largest curvature where the descent began, beside which a plateau is flat.
        edge: the curvature in the descent's own measure (for Adam preconditioned), and that at which its rule becomes unstable.
    """
    judge = _Judge(surface, point, slope, pairs, scale)
    figures, thresholds = judge.figures, judge.thresholds
    if edge is not None:
        figures["curvature"], thresholds["curvature"] = edge
        if edge[0] >= EDGE * edge[1] > 0:
            reason = (
                f"The curvature, {edge[0]:.3g}, is {edge[0] / edge[1]:.2g} of that at which the rule becomes unstable: steps"
                f" go to and fro across the valley."
            )
            return Place("edge of stability", reason, None, False, figures, thresholds)
    verdict = judge.slope()
    if verdict is not None:
        return verdict
    if began is not None:
        figures["loss"], thresholds["loss"] = slope.loss, DESCENDED * began[0]
        figures["largest curvature"], thresholds["largest curvature"] = pairs.largest, FLAT * began[1]
        if slope.loss > DESCENDED * began[0] and pairs.largest < FLAT * began[1]:
            reason = (
                f"Neither gradient nor curvature lead anywhere: the curvature is {pairs.largest / began[1]:.1g} of that at"
                f" the start, and the loss still {slope.loss / began[0]:.0%} of it."
            )
            return Place("plateau", reason, None, False, figures, thresholds)
    return judge.critical()


class _Judge:
    def __init__(self, surface: Surface, point: Tensor, slope: Slope, pairs: Eigenpairs, scale: float | None) -> None:
        self.surface, self.point, self.found, self.pairs = surface, point, slope, pairs
        self.zero = ZERO.get(point.dtype, 1e-5) * pairs.largest
        self.resolution = RESOLUTION.get(point.dtype, 2e-6)
        self.norm2 = dot(slope.gradient, slope.gradient)
        self.scale = scale
        self.reach = self._reach()
        self.figures: dict[str, float] = {"gradient norm": math.sqrt(self.norm2)}
        self.thresholds: dict[str, float] = {}

    def slope(self) -> Place | None:
        """Give the verdict where a step along the gradient would lower the loss by what matters."""
        gain = self._gain()
        if self.scale is not None:
            least = GAIN * self.scale
        elif math.isfinite(self.reach):
            least = OWN_GAIN * self.pairs.largest * self.reach**2 / 2
        else:
            least = GAIN * abs(self.found.loss)
        self.figures["gain of a step"], self.thresholds["gain of a step"] = gain, least
        error = self.found.squared_error
        if error > 0:
            self.thresholds["gradient norm"] = math.sqrt(NOISE[1] * error)
        if gain <= least or self.norm2 <= NOISE[0] * error:
            return None
        if self.norm2 < NOISE[1] * error:
            reason = (
                f"The gradient, {math.sqrt(self.norm2):.3g}, is only {math.sqrt(self.norm2 / error):.2g} times its sampling"
                f" error: more examples would tell whether it still leads downhill."
            )
            return Place("cannot tell", reason, None, False, self.figures, self.thresholds)
        of = "" if self.scale is None else f", {gain / self.scale:.1%} of what is left"
        reason = f"It still goes downhill: one step along the gradient would lower the loss by {gain:.3g}{of}."
        return Place("slope", reason, None, False, self.figures, self.thresholds)

    def critical(self) -> Place:
        """Give the verdict of a place where the gradient leads nowhere."""
        pairs = self.pairs
        values = [*pairs.top, *pairs.bottom]
        vectors = torch.cat([pairs.top_vectors, pairs.bottom_vectors])
        residuals = [*pairs.top_residuals, *pairs.bottom_residuals]
        negative = [i for i, value in enumerate(values) if value < -max(residuals[i], self.zero)]
        unclear = [i for i, value in enumerate(values) if i not in negative and value < -self.zero]
        everything = pairs.complete and len(values) == self.point.numel()
        is_exact = everything or (pairs.known and not unclear and len(negative) < len(pairs.bottom))
        self.figures["smallest curvature"] = min(values, default=0.0)
        self.thresholds["smallest curvature"] = -self.zero
        index = len(negative)
        if everything and index == self.point.numel():
            return Place(
                "maximum", "The loss curves downwards in every direction.", index, True, self.figures, self.thresholds
            )
        best: tuple[float, Tensor] | None = None
        for i in sorted(negative, key=lambda i: values[i]):
            drop, direction = self._followed(vectors[i])
            if best is None or drop > best[0]:
                best = drop, direction
        if best is not None and best[0] > (GAIN * self.scale if self.scale is not None else 0):
            more = "" if is_exact else "at least "
            reason = (
                f"The loss curves downwards in {more}{index} direction{'s' if index > 1 else ''}, most by {min(values):.3g};"
                f" along the best of them it falls by {best[0]:.3g}."
            )
            return Place("saddle point", reason, index, is_exact, self.figures, self.thresholds, best[1], best[0])
        if unclear and not pairs.known:
            reason = (
                f"Whether the curvature of {min(values[i] for i in unclear):.3g} is below zero is not known: its error is"
                f" {max(residuals[i] for i in unclear):.2g}."
            )
            return Place("cannot tell", reason, index, False, self.figures, self.thresholds)
        return self._by_evaluation(vectors, values, index, is_exact, None if best is None else best[0])

    def _by_evaluation(
        self, vectors: Tensor, values: list[float], index: int, is_exact: bool, small_drop: float | None
    ) -> Place:
        """Decide by losses along directions without curvature; small negative ones lead nowhere."""
        flat = [i for i, value in enumerate(values) if abs(value) <= self.zero]
        lowest, changes = 0.0, False
        direction = None
        for vector in self._to_try(vectors[flat] if flat else vectors[:0]):
            for sign in (1.0, -1.0):
                change = self._first_change(sign * vector)
                changes |= change != 0
                if change < lowest:
                    lowest, direction = change, sign * vector
        if direction is not None and (self.scale is None or self._deepest(direction) > GAIN * self.scale):
            reason = "The curvature vanishes in some direction, and along it the loss falls on one side."
            return Place("saddle point", reason, index, is_exact, self.figures, self.thresholds, direction, -lowest)
        if self.pairs.largest <= 0 and not changes:
            return Place("plateau", "The loss is the same all around.", index, is_exact, self.figures, self.thresholds)
        if small_drop is not None:
            reason = (
                f"The loss curves downwards in some direction, but along it falls by no more than {small_drop:.2g}: as good as a"
                f" minimum."
            )
        elif flat and not changes:
            reason = f"The loss rises or stays the same in every direction that was tried; in {len(flat)} it is flat."
        else:
            reason = "The loss rises in every direction that was tried."
        return Place("minimum", reason, index, is_exact, self.figures, self.thresholds)

    def _to_try(self, flat: Tensor) -> Iterable[Tensor]:
        """Give the directions without curvature; where there are no others, random ones too."""
        yield from flat
        if self.pairs.largest > 0 or not self.point.numel():
            return
        generator = torch.Generator().manual_seed(0)
        for _ in range(SPHERE):
            vector = torch.randn(self.point.numel(), generator=generator).to(self.point)
            yield vector / vector.norm()

    def _gain(self) -> float:
        """Give by how much one step along the gradient lowers the loss, as long as the curvature along it says."""
        if not self.norm2 > 0:
            return 0.0
        along = self.surface.hessian(self.point)(self.found.gradient)
        curvature = dot(along, self.found.gradient) / self.norm2
        curvature = curvature if curvature > self.zero else self.pairs.largest
        if not curvature > 0:
            return math.sqrt(self.norm2) * max(1.0, length(self.point))
        predicted = self.norm2 / (2 * curvature)
        if predicted <= self.resolution * abs(self.found.loss):
            return predicted
        ahead = self.surface.loss(self.point - self.found.gradient / curvature)
        return max(0.0, self.found.loss - ahead) if math.isfinite(ahead) else 0.0

    def _reach(self) -> float:
        """Give the distance along the most curved direction at which its curvature is another by half; infinite where it is
        the same everywhere."""
        pairs = self.pairs
        if not pairs.largest > 0:
            return math.inf
        values, vectors = [*pairs.top, *pairs.bottom], [*pairs.top_vectors, *pairs.bottom_vectors]
        most = max(range(len(values)), key=lambda i: abs(values[i]))

        def differs(distance: float) -> bool:
            ahead = self.surface.slope(self.point + distance * vectors[most]).gradient - self.found.gradient
            curvature = dot(ahead, vectors[most]) / distance
            return not abs(curvature - values[most]) < abs(values[most]) / 2

        distance = 0.1 * (length(self.point) or 1.0)
        if differs(distance):
            for _ in range(DOUBLINGS):
                distance /= 2
                if not differs(distance):
                    return 2 * distance
            return math.inf  # round-off all the way
        for _ in range(FAR):
            distance *= 2
            if differs(distance):
                return distance
        return math.inf

    def _radii(self) -> Iterable[float]:
        largest = self.reach if math.isfinite(self.reach) else (length(self.point) or 1.0)
        return (largest * 2.0**-k for k in range(20, -1, -1))

    def _first_change(self, direction: Tensor) -> float:
        """Give the change of the loss at the first distance at which it shows; 0 where it does at none."""
        for radius in self._radii():
            change = self.surface.loss(self.point + radius * direction) - self.found.loss
            hidden = 10 * self.resolution * max(abs(self.found.loss), self.pairs.largest * radius**2 / 2)
            if not math.isfinite(change) or abs(change) > hidden:
                return change if math.isfinite(change) else math.inf
        return 0.0

    def _followed(self, direction: Tensor) -> tuple[float, Tensor]:
        """Give by how much the loss falls along a direction of negative curvature, on the better side, and that direction.

        It is 0 where it rises at the first distance at which a change shows.
        """
        sides = [(self._deepest(sign * direction), sign * direction) for sign in (1.0, -1.0)]
        return max(sides, key=lambda side: side[0])

    def _deepest(self, direction: Tensor) -> float:
        """Follow the loss along a direction until it rises again, and give how far it fell."""
        if self._first_change(direction) >= 0:
            return 0.0
        lowest = self.found.loss
        radius = next(iter(self._radii()))
        for _ in range(DOUBLINGS // 2):
            loss = self.surface.loss(self.point + radius * direction)
            if not math.isfinite(loss) or loss > lowest + abs(self.found.loss - lowest) + 1e-300:
                break
            lowest = min(lowest, loss)
            radius *= 2
        return self.found.loss - lowest
