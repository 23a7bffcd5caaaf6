"""Steps that can show nothing come into the window later, and nothing else is found for it."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.records.step_figures import StepFigures
from thalweg.watch.monitor import Monitor
from thalweg.watch.usual import EVERY, usual_after
from thalweg.watch.window import Window


def course(kind: str, seed: int, steps: int = 700) -> list[StepFigures]:
    """A run of some kind: its losses fall with noise, and something may happen now and then."""
    draw = random.Random(seed)
    found: list[StepFigures] = []
    for step in range(1, steps + 1):
        loss, norm, rate = 2 / (1 + step / 100) * draw.lognormvariate(0, 0.3), draw.lognormvariate(0, 0.5), 0.1
        if kind == "spiky" and draw.random() < 0.02:
            loss, norm = loss * draw.choice((1, 4, 50)), norm * draw.choice((1, 20))
        elif kind == "not a number" and draw.random() < 0.01:
            loss, norm = draw.choice(((math.nan, math.nan), (loss, math.inf), (math.inf, math.nan)))
        elif kind == "runs away" and step > 400:
            loss *= 1.02 ** (step - 400)
        elif kind == "stands":
            loss = 2 + draw.gauss(0, 0.1)
        elif kind == "swings":
            loss = 2 + (-1) ** step * 0.5 + draw.gauss(0, 0.1)
        elif kind == "below zero":
            loss -= 3
        elif kind == "rests" and step > 300:
            rate = 1e-6
        norms = [norm * 0.6, norm * 0.8]
        found.append(StepFigures(step, loss, rate, norm, examples=32, gradient_norms=norms))
    return found


KINDS = ("falls", "spiky", "not a number", "runs away", "stands", "swings", "below zero", "rests")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_found_than_if_each_step_were_looked_at(kind: str) -> None:
    taken_later = 0
    for seed in range(4):
        later, at_once = Monitor(total=2000), Monitor(total=2000)
        for figures in course(kind, seed):
            at_once.window.step  # noqa: B018 - who asks for the window has each step in it
            assert later.observe(figures) == at_once.observe(figures)
            taken_later += figures.step < later.usual_before
            if figures.step % 150 == 0 and kind != "not a number":
                later.validated(figures.step, figures.loss), at_once.validated(figures.step, figures.loss)
        assert repr(later.state_dict()) == repr(at_once.state_dict())
    assert taken_later > 0


def test_a_state_holds_the_steps_that_are_to_be_looked_at_later() -> None:
    steps = course("spiky", 1)
    whole, first = Monitor(total=2000), Monitor(total=2000)
    for figures in steps[:453]:
        whole.observe(figures), first.observe(figures)
    rest = Monitor(total=2000)
    rest.load_state_dict(first.state_dict())
    for figures in steps[453:]:
        assert whole.observe(figures) == rest.observe(figures)
    assert repr(whole.state_dict()) == repr(rest.state_dict())


@pytest.mark.parametrize("seed", range(5))
def test_no_usual_steps_make_another_one_stand_out(seed: int) -> None:
    draw = random.Random(seed)
    window = Window()
    for figures in course(draw.choice(KINDS[:2]), seed, draw.randint(60, 300)):
        window.push(figures)
    usual = usual_after(window, window.step + EVERY)
    assert usual is not None
    spikes = list(window.spikes)
    for step in range(window.step + 1, window.step + EVERY):
        # The lowest and the highest that are usual: these are what moves the median most.
        loss = draw.choice((usual.loss, -1e9, 0.0, usual.loss * draw.random()))
        norm = draw.choice((usual.norm, 0.0))
        window.push(StepFigures(step, min(loss, usual.loss), 0.1, norm))
        assert (window.loss_excess, window.norm_excess, window.is_odd) == (0.0, 0.0, False)
    assert list(window.spikes) == spikes


class Faulty(nn.Module):
    """A layer whose gradient, not its output, is no number where it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)
        self.breaks = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        if self.breaks:
            hidden = hidden + (hidden * 0).sqrt()
        return self.second(hidden)


def loop(steps: int, *, breaks_at: int = 0, set_to_none: bool = True, spike_at: int = 0) -> tuple[tw.Watch, list[str]]:
    """Train by a loop of one's own, and give what was found at which step."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x.sum(1) > 0).long()
    model = Faulty()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    watch, found = tw.Watch(model, optimizer, total=steps), list[str]()
    for step in range(1, steps + 1):
        rows = torch.randint(0, 256, (32,))
        model.breaks = step == breaks_at
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows]) * (30.0 if step == spike_at else 1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        found += [f"{each.symptom} {step}" for each in watch.step(loss)]
    return watch, found


@pytest.mark.parametrize("step", [301, 302, 303, 304])
def test_a_gradient_that_is_not_finite_is_seen_at_its_own_step(step: int) -> None:
    _, found = loop(step, breaks_at=step)
    assert found[-1:] == [f"non-finite {step}"]


@pytest.mark.parametrize("step", [301, 302, 303, 304])
def test_a_spike_is_seen_at_its_own_step(step: int) -> None:
    watch, _ = loop(step, spike_at=step)
    window = watch._monitor.window
    assert window.spikes[-1] == step
    assert window.norm_excess > 1
    assert window.gradient_norm == pytest.approx(math.hypot(*window.by_parameter[-1]))


def test_a_gradient_that_is_filled_with_zeros_before_the_watch_looks_is_measured_within_the_step() -> None:
    watch, found = loop(400, set_to_none=False)
    assert found == []
    assert min(watch._monitor.window.gradient_norms) > 0
    assert watch._recorder is not None
    assert watch._recorder.plain_before == 0


def test_gradients_are_let_go_of_once_the_watch_has_looked() -> None:
    watch, _ = loop(301)
    assert watch._recorder is not None
    assert watch._recorder.plain_before > 301
    assert watch._recorder.plain is None
    assert watch._recorder._gradient is None
