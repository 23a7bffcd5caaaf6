"""A descent that stands still between two steps, so that others can run meanwhile, and goes on later with the same bits."""

from __future__ import annotations

from thalweg.descent.memory_history import MemoryHistory
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder, present_state
from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan


class Suspended:
    """A descent's state, copied, and what was recorded of it.

    Like a checkpoint, but in memory: what goes on is a new `Descent`, so that nothing of the first one is kept alive.
    """

    def __init__(self, descent: Descent, recorder: Recorder, history: MemoryHistory) -> None:
        self.plan, self.step, self.is_over = descent.plan, descent.step, descent.is_over
        self.last_validation = dict(descent.last_validation)
        self.history, self.diagnoses = history, list[Diagnosis](recorder.diagnoses)
        self._state = clone_into(None, present_state(descent))
        self._best = descent.best_weights

    @property
    def best(self) -> BestWeights | None:
        """The weights that validated best so far, where the plan keeps those."""
        return self._best

    def resumed(self, problem: Problem) -> Descent:
        """Give the descent as it was, to go on with."""
        descent = Descent(problem, self.plan)
        self._load(descent)
        if "snapshot" in self._state:
            descent.snapshot = clone_into(None, self._state["snapshot"])
        elif self.plan.snapshot_every:  # the state itself was the snapshot
            descent.take_snapshot()
        descent.best_weights = self._best
        return descent

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
