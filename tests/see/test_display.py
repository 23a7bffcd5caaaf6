"""Progress is shown where somebody looks: in a terminal and in a notebook, and elsewhere when asked for."""

import io
import sys
import threading
import types

import pytest

from thalweg.errors import ArgumentError
from thalweg.see.display import choose_display
from thalweg.see.live import LineProgress, RichProgress
from thalweg.see.notebook import NotebookProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Silent:
    def begin(self, plan, step, validation): ...
    def step(self, figures): ...
    def validated(self, step, figures): ...
    def event(self, step, kind, message): ...
    def end(self): ...


@pytest.fixture
def notebook(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=print))
    monkeypatch.setitem(sys.modules, "IPython", module)
    return shell


def test_a_terminal_shows_by_default_and_a_pipe_shows_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert choose_display() is None
    assert isinstance(choose_display(True), LineProgress)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(choose_display(), RichProgress)
    assert choose_display(False) is None


def test_a_notebook_shows_by_default_and_ipython_in_a_pipe_does_not(notebook):
    assert isinstance(choose_display(), NotebookProgress)
    assert choose_display(False) is None
    notebook.kernel = None
    assert choose_display() is None


@pytest.mark.parametrize("stream", [None, io.StringIO(), types.SimpleNamespace()])
def test_an_output_of_whatever_kind_is_no_error(stream, monkeypatch):
    if isinstance(stream, io.StringIO):
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    assert choose_display() is None


def test_other_threads_are_silent_unless_asked(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    chosen = []
    thread = threading.Thread(target=lambda: chosen.extend([choose_display(), choose_display(True)]))
    thread.start()
    thread.join()
    assert chosen[0] is None
    assert chosen[1] is not None


def test_a_display_of_ones_own_is_used_as_it_is():
    own = Silent()
    assert choose_display(own) is own


@pytest.mark.parametrize("given", [1, "bar", print, Silent, types.SimpleNamespace(step=print)])
def test_what_is_no_display_is_refused(given):
    with pytest.raises(ArgumentError, match=r"`progress` is .*Give True, False, or an object with begin, step,"):
        choose_display(given)
