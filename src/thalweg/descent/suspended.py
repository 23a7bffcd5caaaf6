"""A descent that stands still between two steps, so that others can run meanwhile, and goes on later with the same bits.

It stands in memory, or as a state that a checkpoint can hold, from which another process goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import torch

from thalweg.descent.cooling import branch
from thalweg.descent.loop_kinds import LOOP_KINDS, SNAPSHOT_KINDS
from thalweg.descent.memory_history import HistoryWriter, MemoryHistory
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder, present_state
from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.json_values import without_tuples
from thalweg.records.kinds import check, flag, number
from thalweg.records.plan import Plan
from thalweg.watch.changes import Changes


class _Call(NamedTuple):
    """Something that was recorded: which method of a history was called, and with what."""

    method: str
    arguments: tuple[Any, ...]


RECORDING = ("append", "digest", "event", "supersede")  # methods of a history


class TapedHistory(MemoryHistory):
    """A history in memory that can be written into another one, with what rollbacks undid."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = list[_Call]()

    def append(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Record figures of a step."""
        super().append(step, values)
        self._calls.append(_Call("append", (step, dict(values))))

    def digest(self, step: int, text: str) -> None:
        """Record a digest of the weights."""
        super().digest(step, text)
        self._calls.append(_Call("digest", (step, text)))

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened."""
        super().event(step, kind, message, data)
        self._calls.append(_Call("event", (step, kind, message, data)))

    def supersede(self, from_step: int) -> None:
        """Drop the figures from this step on."""
        super().supersede(from_step)
        self._calls.append(_Call("supersede", (from_step,)))

    def write_into(self, history: HistoryWriter) -> None:
        """Record in another history all that was recorded in this one, which is empty afterwards."""
        for method, arguments in self._calls:
            getattr(history, method)(*arguments)
        self._calls.clear()
        self.rows, self.digests = {}, {}

    def copy(self) -> TapedHistory:
        """Give a history with the same records, that goes on by itself."""
        other = TapedHistory()
        for method, arguments in self._calls:
            getattr(other, method)(*arguments)
        return other

    def state_dict(self) -> dict[str, Any]:
        """Give all that was recorded for a checkpoint to hold: figures of the same names in one tensor, the rest in a list."""
        tables: dict[tuple[tuple[str, bool], ...], list[tuple[int, int, list[float]]]] = {}
        others = list[list[Any]]()
        for place, (method, arguments) in enumerate(self._calls):
            if method != "append":
                others.append([place, method, *without_tuples(arguments)])
                continue
            step, values = arguments
            names = tuple((name, value is not None) for name, value in values.items())
            figures = [float(value) for value in values.values() if value is not None]
            tables.setdefault(names, []).append((place, step, figures))
        return {
            "others": others,
            "figures": [
                {
                    "names": [list(name) for name in names],
                    "places": torch.tensor([[place, step] for place, step, _ in rows], dtype=torch.int64),
                    "values": torch.tensor([values for _, _, values in rows], dtype=torch.float64),
                }
                for names, rows in tables.items()
            ],
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> TapedHistory:
        """Read what `state_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        calls = {place: _Call(method, tuple(arguments)) for place, method, *arguments in state["others"]}
        for table in state["figures"]:
            for (place, step), row in zip(table["places"].tolist(), table["values"].tolist(), strict=True):
                given = iter(row)
                calls[place] = _Call(
                    "append", (step, {name: next(given) if known else None for name, known in table["names"]})
                )
        history = TapedHistory()
        for place in sorted(calls):
            method, arguments = calls[place]
            if method not in RECORDING:
                raise ValueError(f"{method!r} records nothing")
            getattr(history, method)(*arguments)
        return history


class Suspended:
    """A descent's state, copied, and what was recorded of it.

    Like a checkpoint, but in memory: what goes on is a new `Descent`, so that nothing of the first one is kept alive. It is gone
    on from once: the copies are handed over, so that a run does not hold them until its end.

    `is_whole`: nothing of the user's is left out that no checkpoint holds, such as an iterator; without that, what goes on may be
    another run. `schedule_factor`: where the schedule stands. `lost`: the paths of objects that could not be put back where the
    state was gone on from, as they are others in this process.
    """

    def __init__(
        self,
        plan: Plan,
        state: dict[str, Any],
        best: BestWeights | None,
        history: TapedHistory,
        diagnoses: Sequence[Diagnosis],
        *,
        is_over: bool,
        is_whole: bool,
        schedule_factor: float,
    ) -> None:
        self.plan, self._state, self._best = plan, state, best
        self.history, self.diagnoses = history, list(diagnoses)
        self.is_over, self.is_whole, self.schedule_factor = is_over, is_whole, schedule_factor
        loop = state["loop"]
        self.step: int = loop["step"]
        self.last_validation: dict[str, float] = dict(loop["last"])
        self.changes = Changes.from_dict(loop["cures"])
        self.repeated: int = loop.get("repeated", 0)
        self.lost = list[str]()

    @staticmethod
    def of(descent: Descent, recorder: Recorder, history: TapedHistory, *, copied: bool = True) -> Suspended:
        """Suspend a descent, of which so much was recorded. Not `copied`, it is good until the descent's next step."""
        state = present_state(descent)
        return Suspended(
            descent.plan,
            clone_into(None, state) if copied else state,
            descent.best_weights,
            history,
            recorder.diagnoses,
            is_over=descent.is_over,
            is_whole=not (descent.objects.problems or descent.batches.unkept),
            schedule_factor=descent.schedule.factor(descent.step, descent.schedule_state or None),
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the sections of a checkpoint that holds all of it, but for the plan."""
        standing = {"is_over": self.is_over, "is_whole": self.is_whole, "schedule_factor": self.schedule_factor}
        best = {} if self._best is None else {"best": self._best.state_dict()}
        record = {"history": self.history.state_dict(), "diagnoses": [one.to_dict() for one in self.diagnoses]}
        return {**without_tuples(self._state), "record": without_tuples(record), "standing": standing, **best}

    @staticmethod
    def from_state(state: Mapping[str, Any], plan: Plan) -> Suspended:
        """Read what `state_dict` gave. Raises TypeError, KeyError, ValueError or CheckpointError for anything else."""
        sections = dict(state)
        record, standing, best = sections.pop("record"), sections.pop("standing"), sections.pop("best", None)
        check(sections["loop"], LOOP_KINDS)
        check(standing, {"is_over": flag, "is_whole": flag, "schedule_factor": number})
        if "snapshot" in sections:
            check(sections["snapshot"], SNAPSHOT_KINDS, ("model", "optimizer", "loop"))
        return Suspended(
            plan,
            sections,
            None if best is None else BestWeights.from_state(best),
            TapedHistory.from_state(record["history"]),
            [Diagnosis.from_dict(entries) for entries in record["diagnoses"]],
            **standing,
        )

    @property
    def best(self) -> BestWeights | None:
        """The weights that validated best so far, where the plan keeps those."""
        return self._best

    @property
    def depends_on_length(self) -> bool:
        """Whether its steps are others than those of a run of another length: how much of a run may be undone to begin again, and
        which batches make up a step together, follow from where the run ends."""
        return self.repeated > 0 or self.changes.accumulate > 1

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
        """Give a descent that goes on from the same state by another plan; this one is left as it is (see `cooling.branch`)."""
        descent, self.lost = branch(problem, plan, self._state)
        return descent

    def forked(self, plan: Plan) -> Suspended:
        """Give a copy that goes on from here by another plan, whose run is the same until now; this one is left as it is."""
        best = None if self._best is None else BestWeights.from_state(clone_into(None, self._best.state_dict()))
        return Suspended(
            plan,
            clone_into(None, self._state),
            best,
            self.history.copy(),
            self.diagnoses,
            is_over=False,
            is_whole=self.is_whole,
            schedule_factor=self.schedule_factor,
        )

    def _load(self, descent: Descent) -> None:
        self.lost = descent.load_state_dict({name: part for name, part in self._state.items() if name != "snapshot"})
