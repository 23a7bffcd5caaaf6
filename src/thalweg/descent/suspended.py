"""A descent that stands still between two steps, so that others can run meanwhile, and goes on later with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

from thalweg.descent.memory_history import HistoryWriter, MemoryHistory
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder, present_state
from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan


class TapedHistory(MemoryHistory):
    """A history in memory that can be written into another one, with what rollbacks undid."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = list[Callable[[HistoryWriter], None]]()

    def append(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Record figures of a step."""
        super().append(step, values)
        kept = dict(values)
        self._calls.append(lambda history: history.append(step, kept))

    def digest(self, step: int, text: str) -> None:
        """Record a digest of the weights."""
        super().digest(step, text)
        self._calls.append(lambda history: history.digest(step, text))

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened."""
        super().event(step, kind, message, data)
        self._calls.append(lambda history: history.event(step, kind, message, data))

    def supersede(self, from_step: int) -> None:
        """Drop the figures from this step on."""
        super().supersede(from_step)
        self._calls.append(lambda history: history.supersede(from_step))

    def write_into(self, history: HistoryWriter) -> None:
        """Record in another history all that was recorded in this one, which is empty afterwards."""
        for call in self._calls:
            call(history)
        self._calls.clear()
        self.rows, self.digests = {}, {}


class Suspended:
    """A descent's state, copied, and what was recorded of it.

    Like a checkpoint, but in memory: what goes on is a new `Descent`, so that nothing of the first one is kept alive. It is gone
    on from once: the copies are handed over, so that a run does not hold them until its end.

    `is_whole`: nothing of the user's is left out that no checkpoint holds, such as an iterator; without that, what goes on may be
    another run. `schedule_factor`: where the schedule stands.
    """

    def __init__(self, descent: Descent, recorder: Recorder, history: TapedHistory) -> None:
        self.plan, self.step, self.is_over = descent.plan, descent.step, descent.is_over
        self.last_validation, self.cures = dict(descent.last_validation), dict(descent.cures)
        self.schedule_factor = descent.schedule.factor(descent.step, descent.schedule_state or None)
        self.history, self.diagnoses = history, list[Diagnosis](recorder.diagnoses)
        self._state = clone_into(None, present_state(descent))
        self.is_whole = not (descent.objects.problems or descent.batches.unkept)
        self._best = descent.best_weights

    @property
    def best(self) -> BestWeights | None:
        """The weights that validated best so far, where the plan keeps those."""
        return self._best

    def resumed(self, problem: Problem) -> Descent:
        """Give the descent as it was, to go on with."""
        descent = Descent(problem, self.plan)
        self.hand_over(descent)
        return descent

    def hand_over(self, descent: Descent) -> None:
        """Take a new descent of the same knobs to this state, which is not kept here any more."""
        self._load(descent)
        if "snapshot" in self._state:
            descent.snapshot = self._state["snapshot"]
        elif self.plan.snapshot_every:  # the state itself was the snapshot
            descent.take_snapshot()
        descent.best_weights = self._best
        self._state, self._best = {}, None

    def branch(self, problem: Problem, plan: Plan) -> Descent:
        """Give a descent that goes on from the same state by another plan; this one is left as it is.

        `plan`: with the same rule and groups. What was best before does not count for the branch.
        """
        descent = Descent(problem, plan)
        self._load(descent)
        descent.schedule_state = descent.schedule.initial_state()
        descent.best_validation = None
        return descent

    def _load(self, descent: Descent) -> None:
        descent.load_state_dict({name: part for name, part in self._state.items() if name != "snapshot"})
