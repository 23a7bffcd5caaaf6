"""How far a survey has come, told by a clock that the test moves."""

import io

from thalweg.see.survey_progress import SurveyProgress
from thalweg.terminal import UnfailingStream


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(stream, seconds_each, most=10):
    now = [0.0]
    progress = SurveyProgress(UnfailingStream(lambda: stream), lambda: now[0])
    for done in range(1, most + 1):
        progress("Eigenvalues: products", done, most)
        now[0] += seconds_each
    progress.say("Done.")
    progress.clear()
    return stream.getvalue()


def test_the_time_left_is_that_of_what_is_left_at_the_speed_so_far():
    written = told(Terminal(), 2.0)
    lines = written.split("\r\x1b[2K")[1:]
    assert lines[0] == "Eigenvalues: products: 1 of at most 10"
    assert lines[4] == "Eigenvalues: products: 5 of at most 10, 10 s left at most"
    assert lines[-1] == "Done.\n"


def test_elsewhere_a_line_comes_now_and_then_without_control_characters_and_nothing_of_what_is_quick():
    written = told(io.StringIO(), 2.0)
    assert "\r" not in written
    assert "\x1b" not in written
    assert written.count("Eigenvalues") == 3
    assert told(io.StringIO(), 0.1) == "Done.\n"


def test_each_stage_has_its_own_clock():
    now, stream = [0.0], Terminal()
    progress = SurveyProgress(UnfailingStream(lambda: stream), lambda: now[0])
    progress("first", 1, 2)
    now[0] = 100.0
    progress("second", 0, 5)
    now[0] = 103.0
    progress("second", 3, 5)
    assert stream.getvalue().endswith("second: 3 of at most 5, 2 s left at most")
