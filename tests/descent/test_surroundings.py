"""A run that goes on in a process with other settings says which; in the same one it says nothing."""

import pytest
import torch
from small import classes, plan

import thalweg as tw
from thalweg.descent.surroundings import VARIABLES, differences, surroundings
from thalweg.errors import Interrupted


def stop(model, figures):
    if figures.step in (3, 5):
        raise KeyboardInterrupt


def stopped(folder):
    with pytest.raises(Interrupted):
        tw.train(classes(), plan(steps=8), out=folder, progress=False, on_step=stop)


def told(folder):
    """Resume, and give what is said."""
    run = tw.resume(folder, classes(), progress=False)
    return [event.message for event in run.events if "in a process unlike" in event.message]


def test_the_same_process_is_told_nothing(tmp_path):
    stopped(tmp_path / "run")
    assert told(tmp_path / "run") == []


def test_other_settings_are_named(tmp_path, monkeypatch):
    stopped(tmp_path / "run")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(UserWarning, match="in a process unlike"):
            (message,) = told(tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(before)
    for text in (
        f"float32 matmul precision was {before} and is medium",
        "deterministic algorithms was False and is True",
        "MKL_CBWR was None and is COMPATIBLE",
    ):
        assert text in message


def test_a_run_that_went_on_in_another_process_is_never_again_said_to_be_exact(tmp_path, monkeypatch):
    stopped(tmp_path / "run")
    assert tw.Run.open(tmp_path / "run").summary["exact"] is True
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    with pytest.warns(UserWarning, match="in a process unlike"), pytest.raises(Interrupted):
        tw.resume(tmp_path / "run", classes(), progress=False, on_step=stop)
    assert tw.Run.open(tmp_path / "run").summary["exact"] is False
    assert tw.resume(tmp_path / "run", classes(), progress=False).summary["exact"] is False


def test_a_default_dtype_that_changed_is_among_them():
    before = surroundings(torch.device("cpu"))
    torch.set_default_dtype(torch.float64)
    try:
        found = differences(before, surroundings(torch.device("cpu")))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == ["default dtype was torch.float32 and is torch.float64"]
    assert set(VARIABLES) < set(before)


def test_what_an_older_checkpoint_does_not_know_is_no_difference():
    assert differences({}, surroundings(torch.device("cpu"))) == []
