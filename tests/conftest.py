"""Tests run two at a time on two cores: one thread each, else they wait for each other."""

import atexit
import os
import shutil
import signal
import tempfile

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# No deadlines: cores are shared, and time proves nothing. Examples are the same at every run, or new ones with
# `--hypothesis-profile=search`, as in `make test-all`.
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")

os.environ["XDG_STATE_HOME"] = _state = tempfile.mkdtemp(prefix="thalweg-tests-")  # the key of runs that tests make
atexit.register(shutil.rmtree, _state, ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def efforts_by_price(request, monkeypatch):
    """A named effort buys no seconds of search besides its price in trainings, which would be paid in every test that fits."""
    if "effort_in_seconds" not in request.keywords:
        monkeypatch.setattr("thalweg.tuning.tune.LEAST_SECONDS", {"quick": 0.0, "standard": 0.0, "thorough": 0.0})
