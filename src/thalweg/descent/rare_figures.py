"""What is measured beside a step now and then, at its weights and on its batch: the gradient of each term of the loss, and the
noise of the gradient. It leaves no trace: the steps have the same bits with it as without."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import default_collate

from thalweg.descent.gradient import backward, product, squared_norm
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.untouched import untouched
from thalweg.errors import TaskError, few
from thalweg.landscape.loss_terms import MOST_TERMS, is_gradient_due
from thalweg.landscape.noise_scale import COMPARABLE, noise_every, of_part_and_whole
from thalweg.sampling import Draw, ItemSource, TensorSource
from thalweg.sampling.sources import tree_map

PART = 4  # times as large as its part is a batch: of half of it the product is only a little more exact, and costs twice as much
LEAST = 2  # examples of a part: batch normalisation takes no single one
MEANS = tuple(kind for kind in COMPARABLE if kind != "sum")  # the norm of a sum's gradient in the history is no mean's
Result = TypeVar("Result")


class RareFigures:
    """Measures beside the steps of a descent. Where that fails, it is said once, and not tried again."""

    def __init__(self, descent: Descent, recorder: Recorder) -> None:
        self.descent, self.recorder = descent, recorder
        self._failed = set[str]()
        self._names = set[str]()  # of the terms so far
        self._noise_every = noise_every(descent.total_steps)

    def measure(self, loss: float) -> dict[str, Any]:
        """Give what is due of the step whose gradient was just computed, as fields of its `StepFigures`.

        Raises TaskError where the steps so far had too many different terms.
        """
        descent, step = self.descent, self.descent.next_step
        found: dict[str, Any] = {"terms": descent.terms} if descent.terms else {}
        if descent.terms.keys() - self._names:
            self._note_names(step)
        if not descent.plan.watch or not math.isfinite(loss):
            return found
        if descent.terms and is_gradient_due(step, len(descent.terms), descent.total_steps):
            found["term_gradients"] = self._tried("the gradient of each term", self._term_gradients) or {}
        if step % self._noise_every == 0 and descent.problem.objective.reduction.kind in MEANS:
            found["noise"] = self._tried("the noise of the gradient", self._noise)
        return found

    def _note_names(self, step: int) -> None:
        """Say which terms are new, where the steps before had others."""
        new = [name for name in self.descent.terms if name not in self._names]
        if self._names:
            verb = "comes" if len(new) == 1 else "come"
            self.recorder.event(step, "note", f"{few(new, 3, '`')} {verb} in as a term of the loss at step {step:,}.")
        self._names.update(new)
        if len(self._names) > MOST_TERMS:
            raise TaskError(
                f"`step` has returned {len(self._names)} different terms up to step {step:,}, such as {few(new, 3, '`')}; a loss"
                f" has at most {MOST_TERMS}. Call each by the same name in every step."
            )

    def _term_gradients(self) -> dict[str, float]:
        descent = self.descent
        assert descent.last_draw is not None
        norms: dict[str, float] = {}
        for name in descent.terms:
            with untouched(descent):
                backward(descent, descent.last_draw, term=name)
                norms[name] = math.sqrt(squared_norm(p.grad for p in descent.parameters))
        return {name: norm for name, norm in norms.items() if math.isfinite(norm)}

    def _noise(self) -> tuple[float, float] | None:
        """Estimate |G|^2 and the trace S of the covariance of single examples' gradients; None where the batch may not be cut.

        Only the gradient of a part of it is computed: see `of_part_and_whole`.
        """
        descent, draw = self.descent, self.descent.last_draw
        part = None if draw is None else first_part(descent, draw)
        if draw is None or part is None:
            return None
        whole = [p.grad for p in descent.parameters]
        with untouched(descent):
            backward(descent, part)
            own = [p.grad for p in descent.parameters]
            products = product(own, own), product(own, whole), product(whole, whole)
        found = of_part_and_whole(*products, part.sizes[0], sum(draw.sizes))
        return found if math.isfinite(sum(found)) else None

    def _tried(self, what: str, measure: Callable[[], Result]) -> Result | None:
        if what in self._failed:
            return None
        try:
            return measure()
        except Exception as error:
            self._failed.add(what)
            if out_of_memory(error):
                release(self.descent.problem.device)
                reason = "memory ran out"
            else:
                reason = str(error)
            message = f"From here on {what} is not measured any more: {reason}"
            self.recorder.event(self.descent.step + 1, "note", message if message.endswith(".") else f"{message}.")
            return None


def first_part(descent: Descent, draw: Draw) -> Draw | None:
    """Give the first part of a step's examples as a step of its own: its first micro-batch, or a quarter of its rows.

    None where the batch may not be cut, being made by the user's loader or `collate_fn`, or has too few examples.
    """
    if len(draw.parts) > 1:
        return Draw(draw.parts[:1], draw.sizes[:1], None) if draw.sizes[0] < sum(draw.sizes) else None
    size, source = draw.sizes[0], descent.batches.source
    plain = isinstance(source, TensorSource) or (
        isinstance(source, ItemSource)
        and source.own_batches is None
        and source.collator.collate_fn in (None, default_collate)
    )
    count, whole = max(LEAST, size // PART), True

    def rows(leaf: Any) -> Any:
        nonlocal whole
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size:
            return leaf[:count]
        whole = False
        return leaf

    if not plain or 2 * count > size:
        return None
    part = tree_map(rows, draw.parts[0])
    return Draw([part], [count], None) if whole else None
