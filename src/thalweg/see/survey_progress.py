"""How far a survey has come: a line that is written over in a terminal, or one now and then where the output goes elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from thalweg.formatting import format_seconds
from thalweg.terminal import UnfailingStream, standard_output, tell

TERMINAL_SECONDS, LINE_SECONDS = 0.1, 5.0  # between two updates
FEWEST = 2  # of what is counted, from which on the time left is said


class SurveyProgress:
    """Tells of each stage how much of it is done, and how long the rest takes at most, at the speed so far.

    Arguments:
        stream: where it is told; None: the standard output.
        clock: gives seconds.
    """

    def __init__(self, stream: UnfailingStream | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = standard_output() if stream is None else stream, clock
        self.is_terminal = self.stream.isatty()
        self.stage, self.began, self.first, self.due = "", 0.0, 0, 0.0
        self.is_shown = False

    def say(self, text: str) -> None:
        """Tell a sentence."""
        self.clear()
        tell(text, self.stream)

    def __call__(self, stage: str, done: int, most: int) -> None:
        """Tell that of a stage so much is done, of so much at most."""
        now = self.clock()
        if stage != self.stage or done == 0:
            self.stage, self.began, self.first = stage, now, done
            self.due = now if self.is_terminal else now + LINE_SECONDS
        if now < self.due:
            return
        self.due = now + (TERMINAL_SECONDS if self.is_terminal else LINE_SECONDS)
        text = f"{stage}: {done:,} of at most {most:,}"
        if done - self.first >= FEWEST:
            each = (now - self.began) / (done - self.first)
            text += f", {format_seconds(round(each * (most - done)))} left at most"
        if self.is_terminal:
            self.stream.write(f"\r\x1b[2K{text}")
            self.stream.flush()
            self.is_shown = True
        else:
            tell(text, self.stream)

    def clear(self) -> None:
        """Take the line away."""
        if self.is_shown:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
            self.is_shown = False
