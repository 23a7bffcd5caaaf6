"""What is told to a person: whatever is written to the standard output, and every warning, goes through here and cannot fail.

A terminal may be closed, a pipe's reader gone, the disk under a log full, an encoding too small, or an object of the person's in
the stream's place may raise. What cannot be told is dropped; the work goes on.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any

from thalweg.formatting import printable


class UnfailingStream:
    """A text stream that passes on what is written to it, and drops what cannot be written.

    Characters that the encoding has not become question marks. The first loss is said on the standard error. All else of a stream
    (`isatty`, `encoding`, `fileno`, …) is that of the stream beneath.

    Arguments:
        find: gives the stream beneath, None where there is none: asked each time, since it may be replaced meanwhile.
        work: a sentence on what goes on all the same, said with the loss. "": nothing is said of a reader that went away, as
            it does on purpose (`head`).
    """

    def __init__(self, find: Callable[[], Any], work: str = "") -> None:
        self.find, self.work = find, work
        self.loss: Exception | None = None  # the first error by which something was lost

    def write(self, text: str) -> int:
        """Write a text; give its length, whatever became of it."""
        self._try(lambda stream: _write(stream, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Tell whether the stream beneath is a terminal."""
        try:
            return bool(self.find().isatty())
        except Exception:  # there is none, it is closed, or an object in its place has no such method
            return False

    @property
    def encoding(self) -> str:
        """The encoding of the stream beneath; UTF-8 where it has none."""
        return _encoding(self.find())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.find(), name)

    def _try(self, use: Callable[[Any], Any]) -> None:
        stream = self.find()
        if stream is None:
            return
        try:
            use(stream)
        except Exception as error:
            if self.loss is None:
                self.loss = error
                self._say_loss(error)

    def _say_loss(self, error: Exception) -> None:
        if not isinstance(error, BrokenPipeError):
            tell_error(f"The output cannot be written: {type(error).__name__}: {error}. {self.work}")
        elif self.work:
            tell_error(f"Nobody reads the output any more. {self.work}")


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = _encoding(stream)
        stream.write(text.encode(encoding, "replace").decode(encoding))


def _encoding(stream: Any) -> str:
    encoding = getattr(stream, "encoding", None)
    return encoding if isinstance(encoding, str) else "utf-8"


def standard_output(work: str = "") -> UnfailingStream:
    """Give the standard output, whatever it is at each moment, as a stream that cannot fail; `work` as in `UnfailingStream`."""
    # Rich puts an object of its own in its place while it shows a bar; what it shows must not go through that again.
    return UnfailingStream(lambda: getattr(sys.stdout, "rich_proxied_file", sys.stdout), work)


def tell(text: object, stream: Any = None) -> None:
    """Print a text without control characters, line by line; default: to the standard output."""
    lines = "\n".join(printable(line) for line in str(text).split("\n"))
    print(lines, file=standard_output() if stream is None else stream, flush=True)


def tell_error(text: str) -> None:
    """Print one line about what went wrong to the standard error, where that can be written."""
    with suppress(Exception):
        _write(sys.stderr, f"thalweg: {printable(' '.join(text.split()))}\n")
        sys.stderr.flush()


def warn(text: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Issue a Python warning; where that raises (`-W error`, a handler that fails), the text goes to the standard error instead.

    A warning is to say something about the work, and not to end it. `stacklevel` as in `warnings.warn`.
    """
    try:
        warnings.warn(text, category, stacklevel + 1)
    except Exception:
        tell_error(f"warning: {text}")


@contextmanager
def unfailing_streams() -> Generator[UnfailingStream]:
    """Within, `sys.stdout` and `sys.stderr` are streams that cannot fail, for whatever prints; gives the first."""
    before = sys.stdout, sys.stderr
    out, error = (UnfailingStream(lambda stream=stream: stream) for stream in before)
    sys.stdout = None if sys.stdout is None else out  # as Python has it where there is none
    sys.stderr = None if sys.stderr is None else error
    try:
        yield out
    finally:
        out.flush()
        error.flush()
        sys.stdout, sys.stderr = before


def open_descriptors() -> None:
    """Open those of the three standard descriptors that are closed, so that no file of a run gets the number of one."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def discard_unwritten() -> None:
    """Discard what could not be written, which Python would try to write again as it exits, and complain of."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        if stream is None:
            continue
        try:
            stream.flush()
        except Exception:
            with suppress(Exception):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
