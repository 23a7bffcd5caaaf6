"""Whatever is trained, and however it is interrupted: the resumed run has the bits of the uninterrupted one.

Or it was said before the first step that it will not be exact.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matrix
import pytest
from test_killed import KILLED, Nursery, compare, moment

import thalweg as tw
from thalweg.errors import ThalwegError

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery("matrix")
    yield opened
    opened.close()


def test_every_two_values_of_two_factors_come_together() -> None:
    assert len(matrix.COMBINATIONS) >= 300
    for i, some in enumerate(matrix.FACTORS):
        for j, others in enumerate(matrix.FACTORS[:i]):
            assert {(one[i], one[j]) for one in matrix.COMBINATIONS} == {(a, b) for a in some for b in others}


class Said:
    """What was said before the first step."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.has_begun = False

    def __call__(self, sentence: str) -> None:
        if not self.has_begun:
            self.sentences.append(sentence)

    @property
    def not_exact(self) -> bool:
        return any("exact" in one or "resume" in one for one in self.sentences)


def trained(case: str, folder: Path, said: Said, on_step: Callable[..., None], **others: Any) -> str:
    """Train, or resume where there is something to; give the kind of end."""

    def step(model: Any, figures: Any) -> None:
        said.has_begun = True
        on_step(figures.step)

    try:
        if (folder / "checkpoints").exists() and any((folder / "checkpoints").iterdir()):
            tw.resume(folder, matrix.task(case), say=said, on_step=step, progress=False, **others)
        else:
            tw.train(matrix.task(case), matrix.plan(case), out=folder, say=said, on_step=step, progress=False, **others)
    except (ThalwegError, tw.Interrupted) as ended:
        return f"{type(ended).__name__}: {ended}"
    return "finished"


def interrupted(case: str, folder: Path) -> str:
    """Train with the case's interruption, and resume until the end."""
    kind = matrix.COMBINATIONS[int(case)].interruption
    places = {"twice": [9, 10], "at the first step": [1], "at the last step": [matrix.STEPS - 1]}.get(kind, [11])
    raises: dict[str, Callable[[], Any]] = {
        "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
        "in the callback": lambda: (_ for _ in ()).throw(matrix.FaultError("interrupted")),
    }
    fails_in_loss = kind in ("in the loss", "between checkpoints")
    waiting = [] if fails_in_loss or kind == "in validation" else list(places)

    def on_step(step: int) -> None:
        if waiting and step >= waiting[0]:
            waiting.pop(0)
            raises.get(kind, lambda: signal.raise_signal(signal.SIGINT))()
        if fails_in_loss and step == 11 and not done:
            done.append(step)
            matrix.FAULT.after, matrix.FAULT.calls = 0, 0

    def on_validation(model: Any, step: int, figures: Any) -> None:
        if kind == "in validation" and step >= 8 and not done:
            done.append(step)
            raise KeyboardInterrupt

    done: list[int] = []
    ends = []
    for _ in range(5):
        ends.append(trained(case, folder, Said(), on_step, on_validation=on_validation))
        matrix.FAULT.after = None
        if ends[-1] == "finished" or not ("nterrupted" in ends[-1] or "Callback" in ends[-1]):
            break
    return ends[-1]


def killed(case: str, folder: Path, nursery: Nursery) -> str:
    """Kill a process that trains, and resume in another."""
    status = nursery.run("train", case, folder, moment(folder, 7, int(case) % 3, 40))
    assert status in (0, KILLED), Path(f"{folder}.err").read_text()
    if status == KILLED:
        status = nursery.run("resume", case, folder)
    return "finished" if status == 0 else Path(f"{folder}.err").read_text()


@pytest.mark.parametrize(
    "case", [*map(str, range(len(matrix.COMBINATIONS)))], ids=lambda c: str(matrix.COMBINATIONS[int(c)])
)
def test_resumed_run_is_bitwise_the_uninterrupted_one_or_says_that_it_will_not_be(
    case: str, folder: Path, nursery: Nursery
) -> None:
    said, steps = Said(), list[int]()
    end = trained(case, folder / "whole", said, steps.append)
    if not steps:  # refused before the first step, in a sentence
        assert ": " in end
        return
    if matrix.COMBINATIONS[int(case)].interruption == "SIGKILL" and hasattr(os, "fork") and end == "finished":
        other = killed(case, folder / "other", nursery)
    else:
        other = interrupted(case, folder / "other")
    try:
        assert other.partition(".")[0] == end.partition(".")[0]
        if end == "finished":
            compare(folder / "other", folder / "whole")
    except AssertionError:
        if not said.not_exact:
            raise
