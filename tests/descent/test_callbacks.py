"""Callbacks see every step and validation of the training, change no bit, and what fails in them is told after saving."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import blobs, classes, network, plan, same_bits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw


class Noisy(IterableDataset[Any]):
    """Draws from the global generators as it goes."""

    def __iter__(self) -> Any:
        for x, y in zip(*blobs(), strict=True):
            yield x + 0.1 * torch.randn(4), y


def meddle(model: nn.Module, *figures: Any) -> None:
    """Do all that a callback may do without touching the weights."""
    torch.rand(3), np.random.rand(3), random.random()
    model.eval()
    model(torch.randn(5, 4)).sum().backward()


def test_callbacks_are_told_of_every_step_and_validation() -> None:
    steps: list[Any] = []
    validations: list[Any] = []
    run = tw.train(
        classes(),
        plan(validate_every=10),
        on_step=lambda model, figures: steps.append((figures.step, figures.loss)),
        on_validation=lambda model, step, figures: validations.append((step, figures)),
    )
    assert steps == list(zip(run.history["step"][1:], run.history["loss"][1:], strict=True))
    assert [step for step, _ in validations] == [0, 10, 20, 30]
    assert validations[-1][1].keys() == {"loss", "accuracy"}


def test_fit_calls_back_in_the_training_only_and_resume_from_where_it_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(model: nn.Module, figures: Any) -> None:
        seen.append(figures.step)
        if figures.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.fit(classes(), steps=20, effort=2, out=tmp_path / "r", on_step=stop)
    tw.resume(tmp_path / "r", classes(), on_step=lambda model, figures: seen.append(figures.step))
    assert seen == list(range(1, 21))


@pytest.mark.parametrize("kind", ["memory", "loader", "stream", "dropout and batch norm"])
def test_callbacks_change_no_bit(kind: str) -> None:
    changes: dict[str, Any] = {
        "memory": {},
        "loader": {"data": DataLoader(TensorDataset(*blobs()), 16, shuffle=True)},
        "stream": {"data": DataLoader(Noisy(), batch_size=16)},
        "dropout and batch norm": {"model": lambda: network(nn.Dropout(0.3))},
    }[kind]
    made = tw.Plan(learning_rate=0.01) if kind != "memory" else plan(ema=0.9)
    alone = tw.train(classes(**changes), made, steps=20)
    watched = tw.train(classes(**changes), made, steps=20, on_step=meddle, on_validation=meddle)
    assert same_bits(alone.model, watched.model)
    assert alone.metrics == watched.metrics


def fail_at(step: int) -> Any:
    def fail(model: nn.Module, figures: Any, *rest: Any) -> None:
        if (figures if isinstance(figures, int) else figures.step) == step:
            raise ZeroDivisionError("by\nzero")

    return fail


@pytest.mark.parametrize(
    ("name", "step", "saved"), [("on_step", 7, 7), ("on_step", 10, 10), ("on_step", 30, 30), ("on_validation", 10, 10)]
)
def test_an_error_in_a_callback_ends_the_run_after_saving(name: str, step: int, saved: int, tmp_path: Path) -> None:
    whole = tw.train(classes(), plan(validate_every=10))
    with pytest.raises(
        tw.CallbackError, match=rf"`{name}` failed after step {step}: ZeroDivisionError: by zero\. Saved; go"
    ) as told:
        tw.train(classes(), plan(validate_every=10), out=tmp_path / "r", **{name: fail_at(step)})
    assert isinstance(told.value.__cause__, ZeroDivisionError)
    assert told.value.run.summary["steps"] == saved
    assert told.value.run.summary["status"] == tw.Run.open(tmp_path / "r").summary["status"] == "failed"
    assert (tmp_path / "r" / "report.html").exists()
    run = tw.resume(tmp_path / "r", classes())
    assert same_bits(run.model, whole.model)
    assert np.array_equal(run.history["validation/loss"], whole.history["validation/loss"], equal_nan=True)


def test_in_memory_the_error_carries_what_was_trained() -> None:
    with pytest.raises(tw.CallbackError, match="It has no folder; what was trained is the exception's `run`") as told:
        tw.train(classes(), plan(), on_step=fail_at(9))
    assert len(told.value.run.history["loss"]) == 10
    assert told.value.run.model(blobs()[0]).shape == (96, 3)


def test_a_callback_stops_a_run_by_an_interruption() -> None:
    def stop(model: nn.Module, step: int, figures: Any) -> None:
        if step == 20:
            raise KeyboardInterrupt("Good enough")

    with pytest.raises(tw.Interrupted, match="Good enough at step 20") as told:
        tw.train(classes(), plan(validate_every=10), on_validation=stop)
    assert told.value.run.summary["status"] == "interrupted"


@pytest.mark.parametrize("given", [3, "print", nn.Module, [print]])
def test_what_is_no_callback_is_refused_before_the_data_are_looked_at(given: Any) -> None:
    broken = classes(data=(blobs()[0] * float("nan"), blobs()[1]))
    for verb in (lambda **o: tw.train(broken, plan(), **o), lambda **o: tw.fit(broken, steps=9, **o)):
        for name in ("on_step", "on_validation"):
            with pytest.raises(tw.ArgumentError, match=rf"`{name}` is .*cannot be called\. Give a function"):
                verb(**{name: given})


def test_a_signal_during_a_callback_waits_for_the_end_of_the_step(tmp_path: Path) -> None:
    def end(model: nn.Module, figures: Any) -> None:
        if figures.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(tw.Interrupted) as told:
        tw.train(classes(), plan(), out=tmp_path / "r", on_step=end)
    assert told.value.exit_status == 143
    assert told.value.run.summary["steps"] == 5
