"""The words about a run follow from its figures."""

import numpy as np
import pytest

from thalweg.records.plan import Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.records.task import Source
from thalweg.see import curves, run_text
from thalweg.watch.finished import FinishedHistory


def test_a_figure_that_did_not_move_stayed(make_run):
    run = make_run(metrics={"loss": 2.45}, summary={"start": {"loss": 2.4500001}})
    assert run_text.headline(run).startswith("Validation loss stayed at 2.45, in 400 steps")


def test_figures_without_a_start_are_told_alone(make_run):
    run = make_run(metrics={"loss": 0.5}, summary={"start": {}})
    assert run_text.headline(run).startswith("Validation loss is 0.5, in")


def test_the_criterion_comes_before_other_metrics_and_the_loss_last(make_run):
    metrics = {"loss": 0.1, "a": 1.0, "f1": 0.5}
    run = make_run(metrics=metrics, summary={"select": "f1", "start": {}})
    assert run_text.headline(run).startswith("F1 is 50 %, a is 1 and validation loss is 0.1, in")


@pytest.mark.parametrize(
    ("averaged", "keep", "mode", "told"),
    [
        (
            True,
            "best",
            "min",
            "The model holds the averaged weights (EMA) of step 7, those with the lowest validation loss.",
        ),
        (False, "best", "max", "The model holds the weights of step 7, those with the highest validation loss."),
        (False, "last", "min", "The model holds the weights of step 7, the last."),
    ],
)
def test_says_which_weights_were_kept_and_why(make_run, averaged, keep, mode, told):
    summary = {"weights": {"step": 7, "averaged": averaged}, "mode": mode}
    assert run_text.weights(make_run(plan={"keep": keep}, summary=summary)) == told


def test_weights_that_do_not_say_whether_they_are_averaged_are_weights(make_run):
    one, other = ({"weights": {"step": 7, **entries}} for entries in ({}, {"averaged": False}))
    assert run_text.weights(make_run(summary=one)) == run_text.weights(make_run(summary=other))


def test_an_average_of_the_rules_own_is_named_as_what_it_is(make_run):
    run = make_run(plan={"rule": "schedule_free_adamw"}, summary={"weights": {"step": 7, "averaged": True}})
    assert run_text.weights(run) == (
        "The model holds the averaged weights (schedule_free_adamw) of step 7, those with the lowest validation loss."
    )
    assert "validation, averaged weights (schedule_free_adamw)" in curves.loss(run)
    assert "averaged weights (schedule_free_adamw)" in "".join(curves.metrics(run))
    assert "EMA" not in curves.loss(run)


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (4096, "On the training data, in evaluation mode: top k 0.5, accuracy 99 %, loss 0.02."),
        (5000, "On the first 4,096 training examples, in evaluation mode: top k 0.5, accuracy 99 %, loss 0.02."),
    ],
)
def test_says_the_metrics_on_training_data(make_run, examples, told):
    measured = {"loss": 0.02, "top_k": 0.5, "accuracy": 0.99}
    run = make_run(summary={"training": measured, "examples": examples})
    assert run_text.on_training_data(run) == told
    assert run_text.on_training_data(make_run(summary={"training": {}})) == ""


def test_the_training_loss_is_that_of_the_steps_before_the_kept_weights(make_run):
    run = make_run(history={"loss": np.r_[np.nan, np.full(200, 2.0), np.full(200, 1.0)]})
    assert FinishedHistory.of(run).training_loss(200) == 2.0
    assert FinishedHistory.of(run).training_loss() == 1.0


def test_a_nan_that_was_measured_is_told_from_a_step_without_a_figure(make_run):
    losses = make_run().history["loss"].copy()
    losses[5] = np.nan
    x, y = FinishedHistory.of(make_run(history={"loss": losses})).recorded("loss")
    assert len(x) == 400  # step 0 took no step
    assert np.isnan(y[x == 5]).all()


def test_commands_name_what_is_there(make_run, keep, tmp_path):
    folder = tmp_path / "it's"
    run = keep(make_run(), folder)
    assert run_text.commands(run) == []  # no weights were kept, and nobody knows the task
    best = folder / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / "model.safetensors").touch()
    Source("make", "/a b/t.py", arguments={"hidden_size": 3, "x;y": "$(z)"}).save(folder / "task.toml")
    told = dict(run_text.commands(run))
    assert f"Run.open({str(folder)!r}).model" in told["Use the trained model"]
    again = "thalweg train '/a b/t.py:make' --hidden-size=3 '--x;y=$(z)' --plan "
    assert again in told["Train this plan again from the start"]
    (folder / "task.toml").write_text(
        'name = "make"\nfile = "/a b/t.py"\n'
    )  # by somebody else: not suggested to be run
    assert "Train this plan again from the start" not in dict(run_text.commands(run))


def test_code_that_the_report_gives_for_weights_runs(make_run, keep, tmp_path):
    import torch
    from safetensors.torch import save_file

    run = keep(make_run(steps=5), tmp_path / "it's <here>")
    best = tmp_path / "it's <here>" / "checkpoints" / "best"
    best.mkdir(parents=True)
    save_file({"w": torch.ones(2)}, best / "model.safetensors")
    names = {}
    exec(dict(run_text.commands(run))["Its weights without thalweg"], names)
    assert torch.equal(names["weights"]["w"], torch.ones(2))


def test_a_run_in_memory_says_how_to_keep_its_weights(make_run):
    assert run_text.commands(make_run())[0][1] == 'torch.save(run.model.state_dict(), "weights.pt")'


def test_an_empty_run_has_no_steps_and_no_figures():
    run = Run(plan=Plan(), history=HistoryColumns())
    assert (FinishedHistory.of(run).steps, run_text.figures(run)) == (0, [])


def test_weights_that_no_number_chose_are_the_last(make_run):
    summary = {"weights": {"step": 7, "averaged": False}}
    run = make_run(summary=summary, metrics={"loss": float("nan")})
    assert run_text.weights(run) == "The model holds the weights of step 7, the last."
