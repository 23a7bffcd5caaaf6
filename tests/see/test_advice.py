"""Advice is said where the figures say it, with the figures, and not elsewhere."""

import numpy as np
import pytest

from thalweg.records.history import Event
from thalweg.records.plan import Evidence
from thalweg.see.advice import next_steps


def course(values, steps=400):
    """Columns with these validation losses, evenly spread from step 0 to the last."""
    column = np.full(steps + 1, np.nan)
    column[np.linspace(0, steps, len(values)).astype(int)] = values
    return {"validation/loss": column}


def run_of(make_run, values, **given):
    metrics = {"loss": float(min(values))}
    best = int(np.linspace(0, 400, len(values))[int(np.argmin(values))])
    summary = {"start": {"loss": values[0]}, "weights": {"step": best, "averaged": False}, **given.pop("summary", {})}
    return make_run(history=course(values), metrics=given.pop("metrics", metrics), summary=summary, **given)


SETTLED = [2.0, 0.6, 0.3, 0.22, 0.205, 0.202, 0.201, 0.2, 0.2, 0.2, 0.2]
FALLING = [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4]
TURNING = [2.0, 0.9, 0.5, 0.3, 0.35, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9]


def said(run):
    return "\n".join(next_steps(run))


def test_where_all_is_well_it_says_so_and_nothing_else(make_run):
    (line,) = next_steps(run_of(make_run, SETTLED))
    assert line.startswith("All is well: the validation loss improved and had levelled off by the end")


def test_what_is_left_to_gain_depends_on_the_gap_between_training_and_validation(make_run):
    run = run_of(make_run, SETTLED)
    assert "more data or another model" in said(run)
    run.history["loss"] = np.full(401, 0.01)
    assert "training loss of 0.01 is far below the validation loss of 0.2" in said(run)


def test_a_best_long_before_the_end_is_overfitting_where_the_training_loss_went_on_falling(make_run):
    text = said(run_of(make_run, TURNING))
    assert (
        "The validation loss was best at step 120 of 400 (0.3) and 0.9 at the end while the training loss went from"
        in text
    )
    assert "overfitting" in text
    assert "6 epochs were enough" in text
    assert "still improving" not in text


def test_a_best_long_before_the_end_is_not_overfitting_where_the_training_loss_rose_too(make_run):
    run = run_of(make_run, TURNING)
    run.history["loss"] = np.linspace(0.5, 2.0, 401)
    assert "not overfitting" in said(run)


def test_a_small_loss_after_the_best_is_noise(make_run):
    assert "overfitting" not in said(run_of(make_run, [2.0, 0.5, 0.2, 0.201, 0.203, 0.202, 0.21, 0.205]))


def test_still_improving_at_the_end_asks_for_a_longer_budget(make_run):
    text = said(run_of(make_run, FALLING))
    assert (
        "still improving: 0.6 after four fifths of the run, 0.4 at the end. Give it twice the budget (40 epochs)"
        in text
    )


def test_the_better_of_raw_and_averaged_weights_counts(make_run):
    run = run_of(make_run, TURNING)
    run.history["ema/loss"] = course(SETTLED)["validation/loss"]
    assert "overfitting" not in said(run)


def test_a_criterion_to_be_raised_is_read_the_other_way_round(make_run):
    rising = [0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.83, 0.86, 0.9, 0.95]

    def of(values):
        return make_run(
            history={"validation/accuracy": course(values)["validation/loss"]},
            summary={"select": "accuracy", "mode": "max", "start": {"accuracy": values[0]}},
            metrics={"accuracy": max(values)},
        )

    assert "accuracy was still improving: 86 % after four fifths of the run, 95 % at the end" in said(of(rising))
    assert "The accuracy was best at step 0 of 400 (95 %) and 10 % at the end" in said(of(rising[::-1]))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (2.6, "worse than before the first step: the validation loss is 2.6 at the end, 2 at the start"),
        (1.99, "Nothing was learnt worth the name: the validation loss is 1.99 at the end, 2 at the start"),
        (float("nan"), "ended not finite"),
    ],
)
def test_no_better_than_the_start_is_said_first(make_run, after, words):
    run = run_of(make_run, [2.0, 2.0], metrics={"loss": after})
    assert words in next_steps(run)[0]


def test_an_r2_of_nothing_is_no_better_than_the_mean(make_run):
    assert "no better than always predicting the mean" in said(
        run_of(make_run, SETTLED, metrics={"loss": 0.2, "r2": -0.1})
    )


def test_cures_ask_for_another_plan(rescued):
    assert "The rate of 0.003 was too high for this descent: it went back once and ended with 0.0015" in said(rescued)
    assert "`--fix learning_rate=0.0015`" in said(rescued)


def test_clipping_most_steps_says_how_often_and_how_far(make_run):
    norms = np.full(401, 4.0)
    history = course(SETTLED) | {"gradient_norm": norms, "clip_scale": np.full(401, 0.25)}
    given = {"clip_norm": 1.0, "evidence": {"learning_rate": Evidence("given")}}
    run = make_run(history=history, plan=given, metrics={"loss": 0.2})
    assert "shortened in 100 % of the steps (median norm 4, limit 1)" in said(run)
    assert "Try half the learning rate" in said(run)
    searched = make_run(history=history, plan={"clip_norm": 1.0}, metrics={"loss": 0.2})
    assert "The rate was searched with this limit" in said(searched)
    assert "shortened" not in said(make_run(history=history, plan={"clip_norm": None}, metrics={"loss": 0.2}))


def search(rates, scores, steps=None):
    figures = {
        "learning_rates": rates,
        "steps": steps or [80] * len(rates),
        "seeds": [0] * len(rates),
        "scores": scores,
    }
    return {"evidence": {"learning_rate": Evidence("searched", "", figures)}}


def test_a_best_rate_at_the_edge_of_the_search_says_which_edge(make_run):
    low = run_of(make_run, SETTLED, plan=search([1e-3, 1e-2, 1e-1], [0.1, 0.5, 0.9]))
    assert "0.001, was the lowest that was tried: one beyond it, such as 0.0001" in said(low)
    high = run_of(make_run, SETTLED, plan=search([1e-3, 1e-2, 1e-1], [0.9, 0.5, 0.1]))
    assert "0.1, was the highest that was tried: one beyond it, such as 1," in said(high)


def test_a_tie_in_the_search_says_that_the_choice_matters_little(make_run):
    plan = search([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [0.9, 0.200, 0.201, 0.9, float("inf")])
    assert "Learning rates 0.001 and 0.01 came out alike in the search (0.2 and 0.201)" in said(
        run_of(make_run, SETTLED, plan=plan)
    )


def test_only_the_longest_short_runs_decide_a_tie(make_run):
    plan = search([1e-4, 1e-3, 1e-2, 1e-3, 1e-2, 3e-3], [0.9, 0.2, 0.2, 0.1, 0.3, 0.2], [80] * 3 + [225] * 3)
    assert "alike" not in said(run_of(make_run, SETTLED, plan=plan))


def test_a_rate_that_nobody_searched_is_said_to_be_a_default(make_run):
    plan = {"evidence": {"learning_rate": Evidence("default", "a rate that serves most")}}
    assert "The learning rate is a stated default" in said(run_of(make_run, SETTLED, plan=plan))


def test_without_validation_it_asks_for_some(make_run):
    assert "`validation=`" in said(make_run(validation=False))
    assert "overfitting" not in said(make_run(validation=False))


def test_parameters_without_a_gradient_are_named(make_run):
    text = said(make_run(summary={"idle_parameters": [f"head.{k}" for k in range(6)]}))
    assert "No gradient reached head.0, head.1, head.2, head.3 and 2 more" in text


def test_batches_left_out_are_counted(make_run):
    events = tuple(Event(s, "nonfinite", "left out", {}, 1, False) for s in (3, 9))
    assert "2 batches gave a loss or gradient that is not finite" in said(make_run(events=events))


def test_memory_that_ran_out_says_how_to_start_next_time(make_run):
    events = (
        Event(3, "out_of_memory", "", {"accumulate": 2}, 1, False),
        Event(4, "out_of_memory", "", {"accumulate": 4}, 1, False),
    )
    assert "`--fix accumulate=4`" in said(make_run(events=events))


def test_an_unfinished_run_says_how_to_go_on(make_run, keep, tmp_path):
    run = keep(make_run(summary={"status": "interrupted"}), tmp_path / "a b")
    assert f"`run = thalweg.resume({str(tmp_path / 'a b')!r}, task=task)`" in next_steps(run)[0]
    (tmp_path / "a b" / "task.toml").write_text('name = "task"\nmodule = "thalweg.examples.digits"\n', "utf-8")
    assert f"`thalweg resume '{tmp_path}/a b'`" in next_steps(run)[0]


def test_a_run_given_up_says_where_to_look_and_which_rate_to_try(make_run):
    line = next_steps(make_run(summary={"status": "diverged"}))[0]
    assert "`thalweg check`" in line
    assert "3e-05 instead of 0.003" in line


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_of_few_steps_gets_advice_too(make_run, steps):
    assert next_steps(make_run(steps=steps))
