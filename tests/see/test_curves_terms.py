"""The charts of a loss's terms."""

import numpy as np

from thalweg.see import curves
from thalweg.see.report import render
from thalweg.see.run_text import headline


def with_terms(make_run, names=("fit", "kl"), **changes):
    run = make_run()
    steps, loss = run.history["step"], run.history["loss"]
    history = {f"term/{name}": loss / (k + 1) for k, name in enumerate(names)}
    history |= {f"term_gradient/{name}": np.where(steps % 100 == 1, 0.5 + k, np.nan) for k, name in enumerate(names)}
    return make_run(history={**history, **changes})


def test_each_term_has_a_line_of_its_own_colour_and_a_gradient(make_run):
    drawn, gradients = curves.terms(with_terms(make_run))
    for chart in (drawn, gradients):
        assert '<span class="key t0">fit</span><span class="key t1">kl</span>' in chart
        assert '<g class="t0">' in chart
    html = render(with_terms(make_run))
    assert "Terms of the loss" in html
    assert "Gradient of each term" in html


def test_a_run_without_terms_has_neither_chart(make_run):
    assert "Terms of the loss" not in render(make_run())


def test_many_terms_are_told_apart_and_counted(make_run):
    drawn, _ = curves.terms(with_terms(make_run, [f"t{k}" for k in range(20)]))
    assert "The first 16 of 20." in drawn
    assert '<span class="key t0 dashed">t8</span>' in drawn
    assert ">t16<" not in drawn


def test_a_name_of_the_users_is_escaped(make_run):
    assert "<script>alert" not in render(with_terms(make_run, ["<script>alert('x')</script>"]))


def test_a_term_that_became_nan_is_marked_and_one_that_came_late_is_not(make_run):
    run = make_run()
    steps, loss = run.history["step"], run.history["loss"].copy()
    loss[-1] = np.nan
    lost = np.where(steps == steps[-1], np.nan, loss / 2)
    late = np.where(steps < 200, np.nan, loss / 3)
    history = {"loss": loss, "term/fit": lost, "term/late": np.where(steps == steps[-1], 0.1, late)}
    drawn = curves.terms(make_run(history=history))[0]
    assert "1 not finite" in drawn


def test_the_headline_tells_the_loss_and_not_its_terms(make_run):
    run = with_terms(make_run)
    told = headline(
        make_run(history={"term/fit": run.history["term/fit"]}, metrics={"fit": 0.1, "loss": 0.2, "accuracy": 0.9})
    )
    assert "fit" not in told.lower()
    assert "Accuracy" in told
