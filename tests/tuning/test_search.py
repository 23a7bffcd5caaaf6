"""A search that is stopped, however, goes on where it stood and comes to the same plan and the same run."""

import json
import os
import signal
import sqlite3
import subprocess
import sys

import optuna
import pytest
import torch.nn.functional as F
from torch import nn
from tuning_tasks import SEARCH, X, Y, marking_loss, model, same, task

import thalweg as tw
from thalweg.records import checkpoint, sealed_json
from thalweg.tuning.outcome import Outcome, Trial


def stopping_at(number, how=KeyboardInterrupt):
    """A `say` that stops the search when so many scores were told."""
    seen = []

    def say(text):
        seen.append(text)
        if sum("learning rate" in one for one in seen) == number:
            seen.append("")
            raise how

    return say


def stopped(out, number=3, made=None, **options):
    with pytest.raises(tw.Interrupted, match="what was found is kept"):
        tw.fit(made or task(), **{**SEARCH, **options}, out=out, say=stopping_at(number))


@pytest.fixture(scope="module")
def whole():
    return tw.fit(task(), **SEARCH)


def study_of(folder):
    storage = f"sqlite:///{folder}/study.sqlite"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.parametrize("numbers", [[1], [3, 6], [1, 1, 1], [5, 7, 8]])
def test_a_search_that_was_stopped_goes_on_to_the_same_plan_and_run(numbers, whole, tmp_path):
    stopped(tmp_path / "run", numbers[0])
    for number in numbers[1:]:
        with pytest.raises(tw.Interrupted):
            tw.resume(tmp_path / "run", task(), say=stopping_at(number))
    said = []
    resumed = tw.resume(tmp_path / "run", task(), say=said.append)
    same(resumed, whole)
    assert sum(text.endswith("(kept)") for text in said) == max(numbers)
    assert not (tmp_path / "run" / "candidates").exists()


def test_nothing_is_trained_twice_where_a_search_goes_on(tmp_path):
    calls = [0]

    def loss(output, target):
        calls[0] += output.requires_grad
        return F.cross_entropy(output, target)

    def counted(work):
        calls[0] = 0
        run = work()
        return calls[0], run

    straight, _ = counted(lambda: tw.fit(task(loss=loss), **SEARCH, out=tmp_path / "whole"))
    before, _ = counted(lambda: stopped(tmp_path / "run", 7, task(loss=loss)))
    opened, _ = counted(lambda: tw.check(task(loss=loss)))
    after, _ = counted(lambda: tw.resume(tmp_path / "run", task(loss=loss)))
    assert before + after <= straight + opened


def test_a_candidate_is_stopped_in_the_middle_of_its_run_and_goes_on_from_there(tmp_path):
    where = tmp_path / "calls"
    loss = marking_loss(where, stopped_at=20)

    def say(text):
        if sum("cooled down" in one for one in said) == 4 and not where.exists():
            where.touch()
        said.append(text)

    options, said = {**SEARCH, "effort": 2.0, "steps": 100}, list[str]()
    with pytest.raises(tw.Interrupted) as told:
        tw.fit(task(loss=loss), **options, out=tmp_path / "run", say=say)
    assert told.value.exit_status == 143
    states = [checkpoint.load(path / "state") for path in (tmp_path / "run" / "candidates").iterdir()]
    judged = {step for trial in study_of(tmp_path / "run").trials for step in trial.intermediate_values}
    assert any(state.step not in judged for state in states)
    resumed, whole = tw.resume(tmp_path / "run", task(loss=loss)), tw.fit(task(loss=loss), **options)
    same(resumed, whole)


KILLED = """
import os, random, signal, sys, threading, time
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
from tuning_tasks import SEARCH, task
import thalweg as tw

def kill():
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)

begun = threading.Event()
def say(text):
    if "learning rate" in text and not begun.is_set():
        begun.set()
        threading.Thread(target=kill, daemon=True).start()

out = sys.argv[1]
if os.path.exists(out + "/request.json"):
    tw.resume(out, task(), say=say)
else:
    tw.fit(task(), **SEARCH, out=out, say=say)
"""


@pytest.mark.parametrize("waits", [[0.1], pytest.param([0.0, 0.05, 0.2, 0.4], marks=pytest.mark.heavy)])
def test_a_search_that_is_killed_goes_on_to_the_same_plan_and_run(waits, whole, tmp_path):
    program = KILLED.format(folder=os.path.dirname(__file__))
    for wait in waits:
        words = [sys.executable, "-c", program, str(tmp_path / "run"), str(wait)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    same(tw.resume(tmp_path / "run", task()), whole)
    assert not (tmp_path / "run" / "candidates").exists()


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["one file", "all states", "the study's figures", "other things there"])
def test_what_is_damaged_is_found_again(what, whole, tmp_path):
    stopped(tmp_path / "run", 7)
    candidates = tmp_path / "run" / "candidates"
    if what == "one file":
        damage(next(iter(candidates.glob("*/state/candidate.safetensors"))))
    elif what == "all states":
        for path in candidates.glob("*/state/loop.json"):
            path.unlink()
    elif what == "the study's figures":
        with sqlite3.connect(tmp_path / "run" / "study.sqlite") as connection:
            rows = connection.execute(
                "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = 'record'"
            )
            for number, text in rows.fetchall():
                text = text.replace('\\"value\\": 0', '\\"value\\": 9')
                connection.execute(
                    "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?", (text, number)
                )
        connection.close()
    else:
        (candidates / "mine.txt").write_text("mine")
        (candidates / "link").symlink_to(tmp_path)
    resumed = tw.resume(tmp_path / "run", task())
    assert resumed.metrics == whole.metrics
    assert resumed.plan.learning_rate == whole.plan.learning_rate
    if what == "other things there":
        assert (candidates / "mine.txt").read_text() == "mine"
        assert (tmp_path / "run" / "run.json").exists()


def test_every_candidate_is_a_trial_of_the_study(tmp_path):
    run = tw.fit(task(), **SEARCH, out=tmp_path / "run")
    study = study_of(tmp_path / "run")
    figures = run.plan.why("learning_rate").figures
    assert {t.params["learning_rate"] for t in study.trials} == {*figures["learning_rates"]}
    assert study.best_trial.params == {
        "rule": run.plan.rule,
        "learning_rate": run.plan.learning_rate,
        "weight_decay": run.plan.weight_decay,
    }
    assert study.best_trial.state is optuna.trial.TrialState.COMPLETE
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    judged = sorted((t.params["learning_rate"], step) for t in study.trials for step in t.intermediate_values)
    assert judged == sorted(zip(figures["learning_rates"], figures["steps"], strict=True))
    (tmp_path / "plan.toml").write_text(study.user_attrs["plan"])
    assert tw.Plan.load(tmp_path / "plan.toml") == run.plan
    for trial in study.trials:
        assert {"run", "record", "steps", "price", "seed", "plan"} <= trial.user_attrs.keys()
        assert trial.user_attrs["plan"]["learning_rate"] == trial.params["learning_rate"]


def test_a_candidate_that_diverges_is_infeasible_and_no_value_is_made_up_for_it(tmp_path):
    def loss(output, target):
        return F.mse_loss(output, F.one_hot(target, 3).float()) * 1e4

    fixed = {"rule": "gradient_descent", "batch_size": 16, "clip_norm": None}
    tw.fit(task(loss=loss), steps=60, effort=12.0, fixed=fixed, out=tmp_path / "run")
    trials = study_of(tmp_path / "run").trials
    infeasible = [t for t in trials if t.user_attrs.get("infeasible")]
    assert infeasible
    for trial in infeasible:
        assert trial.constraints == {"trains": 1.0}
        assert trial.state is optuna.trial.TrialState.PRUNED


def test_a_metric_of_which_more_is_better_is_maximized(tmp_path):
    accuracy = {"accuracy": lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())}
    run = tw.fit(task(metrics=accuracy, select="accuracy"), **SEARCH, out=tmp_path / "run")
    study = study_of(tmp_path / "run")
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE
    assert study.best_params["learning_rate"] == run.plan.learning_rate


def test_optuna_is_as_quiet_as_it_was(tmp_path, capfd):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        tw.tune(task(), **SEARCH, out=tmp_path / "plan.toml")
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert "study" not in "".join(capfd.readouterr())


def test_a_search_whose_task_has_changed_begins_anew(tmp_path):
    stopped(tmp_path / "run")
    said = []
    other = task(data=(X * 2, Y))
    resumed = tw.resume(tmp_path / "run", other, say=said.append)
    assert any(text.startswith("The search begins anew, as its task has changed") for text in said)
    assert not any(text.endswith("(kept)") for text in said)
    assert resumed.metrics == tw.fit(other, **SEARCH).metrics


def test_a_search_that_is_asked_for_otherwise_is_another_one(tmp_path):
    stopped(tmp_path / "run")
    said = []
    run = tw.fit(task(), **{**SEARCH, "seed": 4}, out=tmp_path / "run", say=said.append)
    assert run.plan.seed == 4
    assert not any(text.endswith("(kept)") for text in said)


class Iterating(nn.Module):
    """A model that carries what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.layers, self.numbers = model(), iter(range(10**6))

    def forward(self, x):
        next(self.numbers)
        return self.layers(x)


def test_where_candidates_cannot_be_copied_only_their_scores_are_kept(tmp_path):
    stopped(tmp_path / "run", 7, task(model=Iterating))
    assert not list((tmp_path / "run").glob("candidates/*"))
    said = []
    tw.resume(tmp_path / "run", task(model=Iterating), say=said.append)
    assert sum(text.endswith("(kept)") for text in said) == 7


# tune


def test_tune_keeps_its_search_beside_the_plan_and_the_same_call_goes_on(tmp_path):
    whole = tw.tune(task(), **SEARCH)
    path = tmp_path / "mine.toml"
    with pytest.raises(tw.Interrupted, match="what was found is kept; the same call goes on"):
        tw.tune(task(), **SEARCH, out=path, say=stopping_at(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.candidates", "mine.study.sqlite"]
    said = []
    plan = tw.tune(task(), **SEARCH, out=path, say=said.append)
    assert sum(text.endswith("(kept)") for text in said) == 4
    assert (plan.learning_rate, plan.weight_decay) == (whole.learning_rate, whole.weight_decay)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.study.sqlite", "mine.toml"]


def test_one_search_at_a_time_is_kept_beside_a_plan(tmp_path):
    told = []

    def again(text):
        if not told:
            with pytest.raises(tw.RunError, match="Another process searches the plan") as error:
                tw.tune(task(), **SEARCH, out=tmp_path / "plan.toml")
            told.append(error)

    tw.tune(task(), **SEARCH, out=tmp_path / "plan.toml", say=again)
    assert told


# storage


def test_two_searches_share_a_storage_and_each_goes_on_in_its_own_study(tmp_path):
    storage = tmp_path / "all.sqlite"
    with pytest.raises(tw.Interrupted):
        tw.tune(task(), **SEARCH, storage=storage, say=stopping_at(3))
    tw.tune(task(), **{**SEARCH, "seed": 4}, storage=f"sqlite:///{storage}")
    said = []
    tw.tune(task(), **SEARCH, storage=storage, say=said.append)
    assert sum(text.endswith("(kept)") for text in said) >= 3
    assert len(optuna.get_all_study_names(f"sqlite:///{storage}")) == 2


def test_the_study_of_another_search_is_refused(tmp_path):
    where = {"storage": tmp_path / "all.sqlite", "study": "mine"}
    tw.tune(task(), **SEARCH, **where)
    with pytest.raises(
        tw.StudyError, match=r"'?.*/mine is the study of another search: The training data have other values"
    ):
        tw.tune(task(data=(X * 2, Y)), **SEARCH, **where)
    with pytest.raises(tw.StudyError, match="`seed` was 3 and is 5"):
        tw.tune(task(), **{**SEARCH, "seed": 5}, **where)


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("nonsense://x", "cannot be used"),
        ("postgresql+psycopg2://nobody@127.0.0.1:1/none", "driver that is not installed|cannot be used"),
        ("sqlite:////no/such/folder/x.sqlite", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_refused_before_anything_is_paid_for(storage, told):
    said = []
    with pytest.raises(tw.StudyError, match=told):
        tw.tune(task(), **SEARCH, storage=storage, say=said.append)
    assert said == []


@pytest.mark.parametrize("options", [{"storage": 3}, {"storage": " "}, {"study": "a/b"}, {"study": 3}])
def test_a_storage_or_name_that_cannot_be_is_refused(options):
    with pytest.raises(tw.ArgumentError):
        tw.tune(task(), **SEARCH, **options)


def test_a_storage_that_is_locked_or_another_programs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.tuning.study.SECONDS", 0.1)
    tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite")
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(tw.StudyError, match="is locked by another program"):
        tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite")
    connection.close()
    with sqlite3.connect(tmp_path / "b.sqlite") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(tw.StudyError, match="it is a database of another program's"):
        tw.tune(task(), **SEARCH, storage=tmp_path / "b.sqlite")
    (tmp_path / "c.sqlite").write_text("this is no database, and long enough to be taken for one" * 9)
    with pytest.raises(tw.StudyError, match="not a database"):
        tw.tune(task(), **SEARCH, storage=tmp_path / "c.sqlite")


def test_where_the_study_fails_later_the_search_goes_on_and_writes_it_when_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.tuning.study.SECONDS", 0.1)
    said, held = [], []

    def say(text):
        said.append(text)
        if not held and "learning rate" in text:
            held.append(sqlite3.connect(tmp_path / "a.sqlite"))
            held[0].execute("BEGIN IMMEDIATE")
        elif len(said) > 6:
            held[0].rollback()

    plan = tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite", say=say)
    held[0].close()
    assert sum("The search goes on without it" in text for text in said) == 1
    assert plan.learning_rate == tw.tune(task(), **SEARCH).learning_rate
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path}/a.sqlite")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/a.sqlite")
    assert study.best_params["learning_rate"] == plan.learning_rate


def test_a_request_keeps_no_password(tmp_path):
    from thalweg.records.request import Request

    kept = Request(steps=3, storage="postgresql://me:se:cr@et@host:5/db?x=1").to_dict()
    assert kept["storage"] == "postgresql://me@host:5/db?x=1"
    assert Request.from_dict(kept).storage == kept["storage"]


def test_a_record_that_is_none_is_refused():
    trial = Trial({5: Outcome(5, float("nan"), 9, 0.5, "diverged")}, "stopped", ["killed"])
    read = Trial.from_dict(sealed_json.load(sealed_json.dump(trial.to_dict())))
    assert repr(read) == repr(trial)
    for wrong in ({}, {**trial.to_dict(), "outcomes": [{"step": 3}]}, {**trial.to_dict(), "state": 3}):
        with pytest.raises(TypeError):
            Trial.from_dict(wrong)


@pytest.mark.parametrize("how", ["no database", "a page is lost", "a text is none", "its record is lost"])
def test_a_study_that_is_damaged_is_kept_aside_and_the_search_begins_anew(how, whole, tmp_path):
    stopped(tmp_path / "run", 3)
    file = tmp_path / "run" / "study.sqlite"
    if how == "no database":
        file.write_bytes(b"\x17" * 9000)
    elif how == "a page is lost":
        data = bytearray(file.read_bytes())
        data[4096 : 3 * 4096] = bytes(2 * 4096)
        file.write_bytes(data)
    else:
        change = "DELETE FROM" if how == "its record is lost" else "UPDATE"
        change += " study_user_attributes" + " SET value_json = substr(value_json, 2)" * (change == "UPDATE")
        with sqlite3.connect(file) as connection:
            connection.execute(change)
        connection.close()
    said = []
    for _ in range(2):  # what was set aside is no other thing that the folder holds
        with pytest.raises(tw.Interrupted):
            tw.resume(tmp_path / "run", task(), say=stopping_at(1))
    same(tw.resume(tmp_path / "run", task(), say=said.append), whole)
    assert (tmp_path / "run" / "study.sqlite.set-aside").exists()
    assert not (tmp_path / "run" / "study.sqlite.set-aside-2").exists()


def test_a_study_that_another_program_put_there_or_a_newer_thalweg_is_refused(tmp_path):
    stopped(tmp_path / "run", 1)
    file = tmp_path / "run" / "study.sqlite"
    with sqlite3.connect(file) as connection:
        (text,) = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'search'").fetchone()
        newer = sealed_json.load(json.loads(text)) | {"format": 2}
        connection.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'search'",
            (json.dumps(sealed_json.dump(newer)),),
        )
    connection.close()
    with pytest.raises(tw.StudyError, match="format 2"):
        tw.resume(tmp_path / "run", task())
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(tw.StudyError, match="another program's"):
        tw.resume(tmp_path / "run", task())
    assert [path.name for path in (tmp_path / "run").glob("*set-aside*")] == []


def test_a_run_whose_search_is_over_needs_no_study(tmp_path):
    seen = []

    def stop(model, figures):
        if figures.step == 30:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.fit(task(), **SEARCH, out=tmp_path / "run", on_step=stop, say=seen.append)
    damage(tmp_path / "run" / "study.sqlite")
    (tmp_path / "run" / "study.sqlite").write_bytes(b"\x17" * 9000)
    assert tw.resume(tmp_path / "run", task()).summary["status"] == "finished"


def test_a_link_in_the_place_of_the_candidates_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "plan.candidates").symlink_to(tmp_path / "precious")
    tw.tune(task(), **SEARCH, out=tmp_path / "plan.toml")
    assert not any((tmp_path / "precious").iterdir())
    assert (tmp_path / "plan.candidates.set-aside").is_symlink()
