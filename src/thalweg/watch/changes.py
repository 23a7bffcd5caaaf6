"""What cures have changed in a run so far: factors on the plan's knobs, which stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from thalweg.records.diagnosis import Cure


@dataclass(frozen=True)
class Changes:
    """Factors on learning rate and weight decay, and what else holds from some step on.

    Arguments:
        rate_factor: multiplies the learning rate. `decay_factor`: the weight decay.
        clip_norm: the largest norm of all gradients together; None: as they are.
        warmup: the rate rises in a line over `steps` steps after step `start`: (start, steps); None: it does not.
        anneal: from step `start` on the rate is at least `share` of the highest, falling in a line to zero at step `end`:
            (start, end, share); None: it is the schedule's.
        accumulate: batches whose gradients make up one step.
        ema: decay of an average of the weights, which is kept since; None: there is none but the plan's.
    """

    rate_factor: float = 1.0
    clip_norm: float | None = None
    decay_factor: float = 1.0
    warmup: tuple[int, int] | None = None
    anneal: tuple[int, int, float] | None = None
    accumulate: int = 1
    ema: float | None = None

    def rate(self, step: int, scheduled: float, highest: float) -> float:
        """Give the learning rate after so many steps.

        Arguments:
            scheduled: what plan and schedule say. `highest`: the highest that they say in the run.

        >>> Changes(rate_factor=0.5, warmup=(10, 4)).rate(10, 0.1, 0.1)
        0.0125
        >>> Changes(anneal=(60, 100, 0.5)).rate(80, 0.0, 0.1)
        0.025
        """
        rate = scheduled
        if self.anneal is not None and step >= self.anneal[0]:
            start, end, share = self.anneal
            left = (end - step) / max(1, end - start)
            rate = max(rate, highest * share * min(1.0, max(0.0, left)))
        if self.warmup is not None:
            start, steps = self.warmup
            rate *= min(1.0, (step - start + 1) / max(1, steps)) if step >= start else 1.0
        return rate * self.rate_factor

    @property
    def moves_rate(self) -> bool:
        """Whether the learning rate is another than the scheduled one."""
        return self.rate_factor != 1.0 or self.warmup is not None or self.anneal is not None

    def with_cure(self, cure: Cure, step: int, end: int) -> Changes:
        """Add a cure: factors multiply, the lower clip norm holds, and the last of the others.

        Arguments:
            step: after which it begins. `end`: of the run.
        """
        clip = min(self.clip_norm or math.inf, cure.clip_norm or math.inf)
        return replace(
            self,
            rate_factor=self.rate_factor * cure.rate_factor,
            decay_factor=self.decay_factor * cure.decay_factor,
            clip_norm=clip if clip < math.inf else None,
            warmup=(step, cure.warmup) if cure.warmup else self.warmup,
            anneal=(step, end, cure.anneal) if cure.anneal else self.anneal,
            accumulate=self.accumulate * cure.accumulate,
            ema=cure.ema if cure.ema is not None else self.ema,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give built-in types; what is not changed is left out, but for rate and clipping."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {
            name: value
            for name, value in values.items()
            if name in ("rate_factor", "clip_norm") or value != getattr(Changes, name)
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Changes:
        """Read what `to_dict` gave."""
        read: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return Changes(**read)
