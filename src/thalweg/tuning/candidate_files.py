"""The states of candidates in a folder, so that a search that is stopped goes on with them, and workers pass them on.

Each is a checkpoint in a folder of its own, named by the sum of its plan. It is removed when the candidate falls behind.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from thalweg.descent.suspended import Suspended
from thalweg.errors import CheckpointError
from thalweg.records import checkpoint
from thalweg.records.kinds import check, count
from thalweg.records.plan import Plan
from thalweg.tuning.outcome import plan_sum

NAME = "state"


class CandidateFiles:
    """The states of a search's candidates. Nothing is written or made before the first `save`.

    A state that is damaged, or of another version, is as good as none: its candidate is trained again, to the same bits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, suspended: Suspended, steps_paid: int) -> None:
        """Write a candidate's state, in place of an earlier one. Raises CheckpointError where that fails."""
        state = {"candidate": suspended.state_dict(), "paid": {"steps": steps_paid}}  # in one file
        checkpoint.save(self._of(suspended.plan), state, step=suspended.step, name=NAME)

    def load(self, plan: Plan) -> tuple[Suspended, int] | None:
        """Read the state of a plan's candidate, and the steps paid for it; None where there is none to go on from."""
        with suppress(
            CheckpointError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
        ):
            if self._of(plan).is_symlink():
                return None
            state = checkpoint.load(self._of(plan) / NAME).state
            check(state["paid"], {"steps": count}, ("steps",))
            return Suspended.from_state(state["candidate"], plan), state["paid"]["steps"]
        return None

    def has(self, plan: Plan) -> bool:
        """Whether there is a state of a plan's candidate."""
        return self._of(plan).is_dir()

    def remove(self, plan: Plan) -> None:
        """Remove the state of a plan's candidate, where there is one."""
        checkpoint.remove(self._of(plan))

    def clear(self) -> None:
        """Remove all states; the folder stays, which may be locked."""
        with suppress(OSError):
            for path in list(self.folder.iterdir()):
                checkpoint.remove(path)

    def _of(self, plan: Plan) -> Path:
        return self.folder / plan_sum(plan)
