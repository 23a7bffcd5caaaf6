"""Advice is said where the figures say it, with the figures, and not elsewhere."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg import schedule
from thalweg.examples import digits
from thalweg.records.diagnosis import Cure, Diagnosis
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
    assert line == (
        "All is well: the validation loss improved, and nothing had to be corrected. It had levelled off: 0.202 by half of the"
        " run, 0.2 at its end."
    )


@pytest.mark.parametrize(
    "values", [[2.5, 2.8, 2.7, 2.6, 2.51, 2.41, 2.32], FALLING, [2.0, 1.0, 0.9, 0.5, 0.45, 0.4, 0.35]]
)
def test_a_loss_that_fell_to_the_end_is_not_said_to_have_levelled_off(make_run, values):
    assert "levelled off" not in said(run_of(make_run, values))
    assert "another model" not in said(run_of(make_run, values))


def test_where_the_training_examples_are_known_by_heart_more_data_are_worth_more_than_a_longer_run(make_run):
    run = run_of(make_run, SETTLED)
    assert "by heart" not in said(run)
    run.history["loss"] = np.full(401, 0.01)
    assert "training loss of 0.01 is far below the validation loss of 0.2" in said(run)
    assert "more data, augmentation or dropout promise more than a longer run" in said(run)


def test_a_best_long_before_the_end_is_overfitting_where_the_training_loss_went_on_falling(make_run):
    text = said(run_of(make_run, TURNING))
    assert (
        "The validation loss was best at step 120 of 400 (0.3) and about 0.8 over the last fifth of the run, while the"
        " training loss went from" in text
    )
    assert "overfitting" in text
    assert "6 epochs were enough" in text
    assert "still improving" not in text


def test_a_best_long_before_the_end_is_not_overfitting_where_the_training_loss_rose_too(make_run):
    run = run_of(make_run, TURNING)
    run.history["loss"] = np.linspace(0.5, 2.0, 401)
    assert "not overfitting" in said(run)


def test_a_best_that_has_worsened_by_half_since_is_overfitting_however_small_it_is(make_run):
    run = run_of(make_run, [0.73, 0.05, 0.041, 0.037, 0.045, 0.05, 0.055, 0.06, 0.05, 0.075, 0.045])
    run.history["loss"] = np.geomspace(0.7, 0.001, 401)
    text = said(run)
    assert "best at step 120 of 400 (0.037) and about 0.05 over the last fifth" in text
    assert "More data, augmentation, dropout or more weight decay may help, or fewer steps" in text


@pytest.mark.parametrize(
    "losses",
    [
        np.full(401, 2.0),  # above the validation loss
        np.linspace(1.0, 0.79, 401),  # hardly below it
        np.where(np.arange(401) % 2, 0.1, 1.0),  # as it was, and noisy
    ],
)
def test_a_best_long_before_the_end_is_called_neither_where_the_training_loss_does_not_tell(make_run, losses):
    run = run_of(make_run, TURNING)
    run.history["loss"] = losses
    text = said(run)
    assert "The validation loss was best at step 120 of 400 (0.3) and about 0.8 over the last fifth of the run" in text
    assert "does not tell whether that is overfitting or steps too long: a lower rate would." in text
    assert "more weight decay" not in text
    assert "All is well" not in text


def test_a_small_loss_after_the_best_is_noise(make_run):
    assert "overfitting" not in said(run_of(make_run, [2.0, 0.5, 0.2, 0.201, 0.203, 0.202, 0.21, 0.205]))


CONSTANT = {"schedule": schedule.constant(), "evidence": {"learning_rate": Evidence("given")}}


def test_a_loss_that_fell_much_in_the_second_half_at_a_constant_rate_asks_for_a_longer_run(make_run):
    (line,) = next_steps(run_of(make_run, FALLING, plan=CONSTANT))
    assert line == (
        "At a constant rate the validation loss was 1 by half of the run and 0.4 at its end: a longer run will probably bring it"
        " further. Give it twice the budget (40 epochs)."
    )


@pytest.mark.parametrize("values", [SETTLED, TURNING, [*FALLING[:8], 0.75, 0.78, 0.8], [3.0, 2.0, 1.0]])
def test_no_longer_run_is_asked_for_where_the_second_half_gained_little(make_run, values):
    assert "budget" not in said(run_of(make_run, values, plan=CONSTANT))


def test_a_schedule_that_falls_to_zero_is_no_reason_for_a_longer_run(make_run):
    given = {"evidence": {"learning_rate": Evidence("given")}}
    assert "budget" not in said(run_of(make_run, FALLING, plan=given))
    assert "budget" not in said(run_of(make_run, [2.0, 1.0, 0.6, 0.5, 0.48, 0.425, 0.423], plan=given))


@pytest.mark.parametrize(
    ("values", "metrics"),
    [
        ([0.6, 0.1, 0.02, 0.004, 0.001, 0.0006, 0.0004, 0.00025, 0.000175, 0.00015, 0.00013], {}),
        (FALLING, {"accuracy": 1.0}),
    ],
)
def test_where_nothing_is_left_to_gain_no_longer_budget_is_asked_for(make_run, values, metrics):
    (line,) = next_steps(run_of(make_run, values, metrics={"loss": values[-1], **metrics}, plan=CONSTANT))
    assert line.endswith("By this measure there is next to nothing left to gain.")


def of_lengths(make_run, short, middle):
    """A run of 400 steps that ends at 0.2, after a search whose best runs of 50 and 100 steps ended with these."""
    plan = search([1e-3, 1e-2, 1e-1, 1e-3, 1e-2], [short, 9.0, 9.0, middle, 9.0], [50] * 3 + [100] * 2)
    return run_of(make_run, [2.0, 0.6, 0.4, 0.3, 0.25, 0.22, 0.2], plan=plan)


def test_complete_runs_of_other_lengths_are_a_reason_for_a_longer_run(make_run):
    text = said(of_lengths(make_run, 1.4, 0.7))
    assert (
        "In the search the best candidates, cooled down after 50 and 100 steps, brought the validation loss to 1.4 and 0.7,"
        " this one of 400 to 0.2: a "
        "longer run will probably bring it further. Give it twice the budget (40 epochs), from the start: the schedule is cut"
        " to the run's length." in text
    )


@pytest.mark.parametrize(
    ("short", "middle"),
    [
        (0.25, 0.21),
        (2.0, 0.3),
        (0.19, 0.18),
        (9.0, 0.22),
    ],  # flat, flattening, no better
)
def test_complete_runs_of_other_lengths_that_were_hardly_worse_are_none(make_run, short, middle):
    assert "budget" not in said(of_lengths(make_run, short, middle))


def test_where_the_training_examples_are_known_by_heart_no_longer_run_is_asked_for(make_run):
    run = of_lengths(make_run, 1.4, 0.7)
    run.history["loss"] = np.full(401, 0.01)
    assert "budget" not in said(run)


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
            plan=CONSTANT,
        )

    assert "At a constant rate the accuracy was 75 % by half of the run and 95 % at its end" in said(of(rising))
    falling = said(of([0.1, *rising[::-1]]))
    assert "The accuracy was best at step 36 of 400 (95 %) and about 30 % over the last fifth" in falling


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
    assert "`learning_rate=0.0005` (with `--set` for `thalweg train`, with `--fix` for `thalweg fit`)" in said(rescued)


def test_clipping_most_steps_says_how_often_and_how_far(make_run):
    norms = np.full(401, 4.0)
    history = course(SETTLED) | {"gradient_norm": norms, "clip_scale": np.full(401, 0.25)}
    given = {"rule": "momentum", "clip_norm": 1.0, "evidence": {"learning_rate": Evidence("given")}}

    def of(**knobs):
        return said(make_run(history=history, plan={**given, **knobs}, metrics={"loss": 0.2}))

    assert "shortened in 100 % of the steps (median norm 4, `clip_norm` 1)" in of()
    assert "raise it to `clip_norm=4` and lower the rate in proportion, to about `learning_rate=0.00075`" in of()
    assert "The rate was searched with this limit" in of(evidence={"learning_rate": Evidence("searched")})
    assert "shortened" not in of(clip_norm=None)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("rule", "rate", "clip"), [("momentum", 0.1, 0.1), ("momentum", 0.3, 0.3), ("gradient_descent", 0.3, 0.3)]
)
def test_followed_the_advice_on_clipping_shortens_outliers_only(rule, rate, clip, seed):
    plan = tw.Plan(rule=rule, learning_rate=rate, clip_norm=clip, schedule=schedule.linear(warmup=0.1))
    text = said(tw.train(digits.task(), plan, epochs=5, seed=seed))
    limit, lower = (float(re.search(rf"`{knob}=([^`]+)`", text)[1]) for knob in ("clip_norm", "learning_rate"))
    followed = tw.train(digits.task(), plan.replace(clip_norm=limit, learning_rate=lower), epochs=5, seed=seed)
    assert np.nanmean(followed.history["clip_scale"] < 1) < 0.2
    assert "shortened" not in said(followed)


@pytest.mark.parametrize(
    ("rule", "rate", "clip"),
    [("momentum", 0.03, 5.0), ("gradient_descent", 0.03, None), ("adamw", 3e-3, 0.1), ("gradient_descent", 0.1, 0.03)],
)
def test_nothing_is_said_of_clipping_that_is_rare_or_does_not_matter(rule, rate, clip):
    plan = tw.Plan(rule=rule, learning_rate=rate, clip_norm=clip, schedule=schedule.linear(warmup=0.1), watch=False)
    assert "shortened" not in said(tw.train(digits.task(), plan, epochs=5))


@pytest.mark.parametrize("rule", ["adam", "adamw", "rmsprop"])
def test_a_rule_that_divides_by_the_gradients_size_gets_no_advice_from_its_clipping(make_run, rule):
    history = course(SETTLED) | {"gradient_norm": np.full(401, 400.0), "clip_scale": np.full(401, 0.0025)}
    plan = {"rule": rule, "clip_norm": 1.0, "evidence": {"learning_rate": Evidence("given")}}
    text = said(make_run(history=history, plan=plan, metrics={"loss": 0.2}))
    assert "shortened" not in text
    assert "half the learning rate" not in text


def creeping(make_run, fall, **given):
    """A run whose loss falls in proportion to the rates walked so far, by this share of the start."""
    plain = make_run()
    way = np.cumsum(np.nan_to_num(plain.history["learning_rate"]))
    column = np.where(np.arange(401) % 20 == 0, 30_000 * (1 - fall * way / way[-1]), np.nan)
    losses = {"loss": float(column[-1])}
    plan = {"evidence": {"learning_rate": Evidence("given")}}
    summary = {"start": {"loss": 30_000.0}, **given.pop("summary", {})}
    return make_run(history={"validation/loss": column}, metrics=losses, summary=summary, plan=plan, **given)


def test_a_loss_that_crept_down_steadily_asks_for_a_higher_rate_and_nothing_else(make_run):
    (line,) = next_steps(creeping(make_run, 0.008))
    assert line.startswith("Hardly anything was learnt: the validation loss is 29,760 at the end, 30,000 at the start.")
    assert (
        "the learning rate of 0.003 is likely far too low. Raise it, for example tenfold: `learning_rate=0.03`" in line
    )
    assert "or let `thalweg fit` search for it" in line


def test_where_the_rule_found_too_low_a_rate_its_own_factor_is_to_be_raised(make_run):
    run = creeping(make_run, 0.008)
    (line,) = next_steps(dataclasses.replace(run, plan=run.plan.replace(rule="prodigy", constants={"d_coef": 2.0})))
    assert (
        "the rate that prodigy found is likely far too low. Raise it, for example tenfold: `constants.d_coef=20`"
        in line
    )
    assert "search for it" not in line


def test_a_higher_rate_is_not_asked_for_where_the_loss_had_levelled_off_or_run_away(make_run):
    assert "Raise it" not in said(run_of(make_run, [2.0, 1.98, 1.971, 1.97, 1.97, 1.9699, 1.9698, 1.9697, 1.9696]))
    assert "Raise it" not in said(creeping(make_run, 0.5))
    back = (Event(100, "rollback", "", {"from": 120, "to": 100}, 2, False),)
    assert "Raise it" not in said(creeping(make_run, 0.008, events=back))


def test_what_was_found_before_training_comes_first_with_its_cure(make_run):
    found = Diagnosis("softmax twice", "the outputs are already probabilities.", cure=Cure("Return the logits."))
    lines = next_steps(run_of(make_run, TURNING, diagnoses=(found,)))
    assert lines[0] == "Found before training: softmax twice. The outputs are already probabilities. Return the logits."
    failed = said(run_of(make_run, [2.0, 2.0], metrics={"loss": 2.0}, diagnoses=(found,)))
    assert "What was found before training is the likely cause" in failed
    assert "thalweg check" not in failed


def test_a_note_from_before_training_comes_last(make_run):
    note = Diagnosis("zero gradient", "one is zero.", "note", cure=Cure("Look."))
    lines = next_steps(run_of(make_run, SETTLED, diagnoses=(note,)))
    assert lines[0].startswith("All is well")
    assert lines[-1] == "Found before training: zero gradient. One is zero. Look."


def test_a_finding_that_the_training_refutes_is_said_to_be_refuted(make_run):
    found = Diagnosis("one batch cannot be fitted", "too slow.", cure=Cure("Check the labels."))
    assert "Check the labels" in said(run_of(make_run, [2.0, 1.9, 1.9, 1.9, 1.9], diagnoses=(found,)))
    lines = next_steps(run_of(make_run, SETTLED, diagnoses=(found,)))
    assert lines[-1].endswith("But the training did learn, so nothing needs to be mended.")


def test_what_is_found_while_training_is_not_said_to_be_from_before(rescued):
    assert "Found before training" not in said(rescued)


def search(rates, scores, steps=None, best=3e-3):
    figures = {
        "learning_rates": rates,
        "steps": steps or [80] * len(rates),
        "seeds": [0] * len(rates),
        "scores": scores,
    }
    return {"learning_rate": best, "evidence": {"learning_rate": Evidence("searched", "", figures)}}


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (1e-3, "0.001, was the lowest that was tried: one beyond it, such as 0.0001,"),
        (1e-1, "0.1, was the highest that was tried: one beyond it, such as 1,"),
        (1e-2, None),
    ],
)
def test_a_best_rate_at_the_edge_of_the_search_says_which_edge(make_run, best, words):
    scores = [0.5 if rate == best else 0.9 for rate in (1e-3, 1e-2, 1e-1)]
    plan = search([1e-3, 1e-2, 1e-1], scores, best=best)
    assert (words is None) == ("one beyond it" not in said(run_of(make_run, SETTLED, plan=plan)))
    assert (words or "") in said(run_of(make_run, SETTLED, plan=plan))


def test_rates_that_came_out_alike_are_no_advice(make_run):
    plan = search([1e-4, 0.0316, 0.0562, 0.1, 0.1, 1.0], [0.9, 0.2, 0.2, 0.19, 0.25, 3.0], best=0.1)
    assert "alike" not in said(run_of(make_run, SETTLED, plan=plan))


def test_a_rate_that_nobody_searched_is_said_to_be_a_default(make_run):
    plan = {"evidence": {"learning_rate": Evidence("default", "a rate that serves most")}}
    assert "The learning rate is a stated default" in said(run_of(make_run, SETTLED, plan=plan))


def test_no_search_is_advised_for_a_rule_that_finds_its_own_rate(make_run):
    plan = {"rule": "prodigy", "learning_rate": 1.0, "evidence": {}}
    assert "stated default" not in said(run_of(make_run, SETTLED, plan=plan))


def test_without_validation_it_asks_for_some(make_run):
    assert "`validation=`" in said(make_run(validation=False))
    assert "overfitting" not in said(make_run(validation=False))


def test_parameters_without_a_gradient_are_named(make_run):
    text = said(make_run(summary={"idle_parameters": [f"head.{k}" for k in range(6)]}))
    assert "No gradient reached head.0, head.1, head.2, head.3 and 2 more" in text


def test_batches_left_out_are_counted(make_run):
    events = tuple(Event(s, "nonfinite", "left out", {"batch": s}, 1, False) for s in (3, 9))
    assert "2 batches gave a loss or gradient that is not finite" in said(make_run(events=events))


def test_memory_that_ran_out_says_how_to_start_next_time(make_run):
    events = (
        Event(3, "out_of_memory", "", {"accumulate": 2}, 1, False),
        Event(4, "out_of_memory", "", {"accumulate": 4}, 1, False),
    )
    assert "`accumulate=4` (with `--set`" in said(make_run(events=events))


def test_an_unfinished_run_says_how_to_go_on(make_run, keep, tmp_path):
    run = keep(make_run(summary={"status": "interrupted"}), tmp_path / "a b")
    assert f"`run = thalweg.resume({str(tmp_path / 'a b')!r}, task=task)`" in next_steps(run)[0]
    (tmp_path / "a b" / "task.toml").write_text('name = "task"\nmodule = "thalweg.examples.digits"\n', "utf-8")
    assert f"`thalweg resume '{tmp_path}/a b'`" in next_steps(run)[0]


def test_a_run_given_up_says_where_to_look_and_which_rate_to_try(make_run):
    line = next_steps(make_run(summary={"status": "diverged"}))[0]
    assert "`thalweg check`" in line
    assert "then try a learning rate of 3e-05 from the start" in line
    lowered = next_steps(make_run(summary={"status": "diverged", "cures": {"rate_factor": 1 / 1024}}))[0]
    assert "lower rates from 0.003 down to 2.93e-06 and clipping did not save it" in lowered
    assert "then try a learning rate of 2.93e-06 from the start" in lowered


@pytest.mark.parametrize(
    ("end", "words"),
    [(0.2, "Plan anew around a third of it: `learning_rate=0.0005`"), (1.9, "Start with `learning_rate=3e-05`")],
)
def test_a_lowered_rate_is_advised_only_where_the_run_learnt_at_it(make_run, end, words):
    summary = {"cures": {"rate_factor": 0.5}}
    back = (Event(100, "rollback", "", {"from": 120, "to": 100}, 2, False),)
    text = said(run_of(make_run, [2.0, 1.9, 1.9, 1.9, 1.9, end], summary=summary, events=back, metrics={"loss": end}))
    assert words in text


def test_where_the_loss_ran_away_and_nothing_was_learnt_the_rate_is_named_and_not_the_task(make_run):
    run = run_of(make_run, [2.0, 2.0], metrics={"loss": 2.0}, summary={"cures": {"rate_factor": 0.25}})
    assert "The learning rate, at which the loss ran away, is the likely cause." in said(run)
    assert "thalweg check" not in said(run)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_of_few_steps_gets_advice_too(make_run, steps):
    assert next_steps(make_run(steps=steps))


def line(size=1.0):
    """A linear task, whose inputs are this large."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(400, 1, generator=generator)
    data, validation = (size * x[:300], y[:300]), (size * x[300:], y[300:])
    return tw.Task(model=lambda: nn.Linear(5, 1), loss=nn.functional.mse_loss, data=data, validation=validation)


DESCENT = {"rule": "gradient_descent", "batch_size": 32}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rate_beyond_the_edge_of_the_search_is_better_where_it_is_advised(seed):
    fixed = {
        **DESCENT,
        "clip_norm": 2e-4,
        "weight_decay": 0.0,
        "watch": False,  # which would raise the rate itself
    }  # so that only rates beyond the range make steps long enough
    run = tw.fit(line(), epochs=10, seed=seed, effort=4, fixed=fixed)
    said_of_it = re.search(r"was the highest that was tried: one beyond it, such as ([\d,.e+]+), may", said(run))
    further = float(said_of_it[1].replace(",", ""))
    beyond = tw.fit(line(), epochs=10, seed=seed, fixed={**fixed, "learning_rate": further})
    assert beyond.metrics["loss"] < 0.9 * run.metrics["loss"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "size", [1.0, 0.03, 1e-3]
)  # with inputs too small to be learnt from, every rate comes out alike
def test_no_rate_beyond_the_edge_is_advised_where_the_best_is_within_or_all_are_alike(size, seed):
    assert "one beyond it" not in said(tw.fit(line(size), epochs=10, seed=seed, fixed={**DESCENT, "clip_norm": None}))


@pytest.mark.parametrize(("exact", "words"), [(True, "bitwise"), (False, "It may differ"), (None, "Resume it with")])
def test_a_resumed_run_is_promised_to_be_exact_only_where_nothing_says_otherwise(make_run, tmp_path, exact, words):
    run = dataclasses.replace(make_run(summary={"status": "interrupted", "exact": exact}), folder=tmp_path)
    (line, *_) = next_steps(run)
    assert words in line
    assert ("bitwise" in line) is (exact is True)


def of_metric(make_run, values):
    """A run that is selected by a metric, with these values of it."""
    column = course(values)["validation/loss"]
    history = {**course([2.0, *[0.2] * (len(values) - 1)]), "validation/m": column}
    finite = [value for value in values if np.isfinite(value)]
    summary = {"select": "m", "mode": "max", "start": {"loss": 2.0, "m": values[0]}}
    return make_run(history=history, metrics={"loss": 0.2, "m": max(finite, default=np.nan)}, summary=summary)


def test_a_metric_that_was_never_a_number_has_not_improved(make_run):
    run = of_metric(make_run, [np.nan] * 5)
    assert "All is well" not in said(run)
    assert "nobody can say how good the model is: the m is not a number" in said(run)


def test_a_metric_that_was_no_number_at_first_is_not_said_to_have_improved(make_run):
    text = said(of_metric(make_run, [np.nan, 0.4, 0.5, 0.6, 0.7]))
    assert "improved" not in text
    assert "not a number in 1 of 5 validations" in text


def test_validations_in_which_the_metric_was_no_number_are_counted(make_run):
    assert "The m was not a number in 2 of 5 validations" in said(of_metric(make_run, [0.1, np.nan, 0.5, np.nan, 0.7]))
    assert "not a number" not in said(of_metric(make_run, [0.1, 0.3, 0.5, 0.6, 0.7]))


@pytest.mark.parametrize(("losses", "words"), [(None, "prepared as the training data are"), (2.0, "thalweg check")])
def test_a_run_whose_validations_only_got_worse_is_not_said_to_have_ended_where_it_began(make_run, losses, words):
    run = run_of(make_run, [2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
    if losses is not None:
        run = dataclasses.replace(run, history={**run.history, "loss": np.full(401, losses)})
    text = said(run)
    assert "No validation was better than the one before the first step: the validation loss was 2 then, and 6" in text
    assert "at the end, 2 at the start" not in text
    assert words in text
