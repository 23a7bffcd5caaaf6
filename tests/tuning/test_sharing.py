"""Several processes share a search: they divide its candidates, come to one plan, and none waits for one that is gone."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import optuna
import pytest
from tuning_tasks import SEARCH, X, Y, task

import thalweg as tw
from thalweg import cli
from thalweg.records.plan import Plan
from thalweg.tuning import sharing
from thalweg.tuning.outcome import Outcome, Trial, plan_sum
from thalweg.tuning.sharing import Sharing
from thalweg.tuning.study import Study


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr("thalweg.tuning.candidates.WAIT_SECONDS", 0.02)


def trials_of(storage):
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{storage}").trials
    return [trial for trial in trials if trial.state.name != "FAIL"]  # begun twice at the same moment


def the_same(one, other):
    knobs = [{name: value for name, value in plan.to_dict().items() if name != "evidence"} for plan in (one, other)]
    assert knobs[0] == knobs[1]


def address_in(said):
    return next(text.rsplit(" ", 1)[1] for text in said if "take part with" in text)


def test_two_that_share_a_search_come_to_the_plan_of_one_and_train_no_candidate_twice(tmp_path):
    storage, said, plans = tmp_path / "all.sqlite", [], {}
    joined = threading.Thread(target=lambda: plans.update(joiner=tw.tune(task(), join=address_in(said))))

    def say(text):
        said.append(text)
        if "take part with" in text:
            joined.start()

    steps = {**SEARCH, "steps": 150}
    plans["owner"] = tw.tune(task(), **steps, storage=storage, study="mine", say=say)
    joined.join()
    alone = tw.tune(task(), **steps)
    the_same(plans["owner"], alone)
    the_same(plans["joiner"], alone)
    trials = trials_of(storage)
    assert len({trial.user_attrs["run"] for trial in trials}) == len(trials)
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    assert len({trial.user_attrs["claim"]["by"] for trial in trials}) == 2


def test_whoever_joins_later_is_given_what_is_known(tmp_path):
    said, plan = [], tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite", study="mine")
    the_same(tw.tune(task(), join=f"{tmp_path}/a.sqlite/mine", say=said.append), plan)
    assert sum(text.endswith("(kept)") for text in said) == 9


JOIN = """
import sys
sys.path.insert(0, sys.argv[1])
from tuning_tasks import task
import thalweg as tw
print(tw.tune(task(), join=sys.argv[2]).learning_rate)
"""


def test_another_process_goes_on_where_the_one_that_began_is_gone(tmp_path):
    def say(text):
        if text.startswith("learning rate"):
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite", study="mine", say=say)
    words = [sys.executable, "-c", JOIN, os.path.dirname(__file__), f"{tmp_path}/a.sqlite/mine"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == tw.tune(task(), **SEARCH).learning_rate


def test_a_search_is_joined_only_by_its_own_task_and_where_there_is_one(tmp_path):
    tw.tune(task(), **SEARCH, storage=tmp_path / "a.sqlite", study="mine")
    with pytest.raises(tw.StudyError, match="is the study of another search: The training data have other values"):
        tw.tune(task(data=(X * 2, Y)), join=f"{tmp_path}/a.sqlite/mine")
    with pytest.raises(tw.StudyError, match=r"There is no study 'mime' in .*a\.sqlite\. Did you mean 'mine'"):
        tw.tune(task(), join=f"{tmp_path}/a.sqlite/mime")
    with pytest.raises(tw.ArgumentError, match="Give `join` alone"):
        tw.tune(task(), steps=3, join=f"{tmp_path}/a.sqlite/mine")
    for asked in ({"effort": "thorough"}, {"seed": 1}, {"memory": "4 GB"}):
        with pytest.raises(tw.ArgumentError, match="Give `join` alone"):
            tw.tune(task(), join=f"{tmp_path}/a.sqlite/mine", **asked)
    for address in ("mine", "/", "a.sqlite/"):
        with pytest.raises(tw.ArgumentError, match="Give the storage and the study"):
            tw.tune(task(), join=address)
    Study(str(tmp_path / "b.sqlite"), "empty", "min").close()
    with pytest.raises(tw.StudyError, match="has not begun yet"):
        tw.tune(task(), join=f"{tmp_path}/b.sqlite/empty")
    with pytest.raises(tw.StudyError, match="cannot be used"):
        tw.tune(task(), join="postgresql+nodriver://127.0.0.1:1/none/mine")


TASK = """
import os, sys
sys.path.insert(0, os.environ["TASKS"])
from tuning_tasks import task
"""


def test_the_command_begins_and_joins_a_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.records.paths.STARTED_IN", tmp_path)
    monkeypatch.setenv("TASKS", os.path.dirname(__file__))
    (tmp_path / "mine.py").write_text(TASK)
    options = ["--steps", "60", "--effort", "2", "--fix", "batch_size=16", "--storage", "all.sqlite", "--study", "mine"]
    assert cli.main(["tune", "mine.py", *options, "--out", "one.toml"]) == 0
    assert "tune TASK --join all.sqlite/mine" in capsys.readouterr().err
    assert cli.main(["tune", "mine.py", "--join", "all.sqlite/mine", "--out", "two.toml"]) == 0
    the_same(Plan.load("one.toml"), Plan.load("two.toml"))
    assert cli.main(["tune", "mine.py", "--join", "all.sqlite/mine", "--steps", "3"]) == 2
    assert "Give `join` alone" in capsys.readouterr().err


@pytest.fixture
def postgresql():
    """The URL of a database of its own, on a machine that has PostgreSQL."""
    pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("there is no PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_user = {"user": "postgres"} if os.getuid() == 0 else {}  # it does not run as root
    shutil.chown(folder, "postgres") if as_user else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(*words):
        subprocess.run([programs[-1], "-D", folder / "data", *words], check=True, stdout=subprocess.DEVNULL, **as_user)

    control("-o", "-A trust -U postgres", "initdb")
    control("-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1", "-l", folder / "log", "-w", "start")
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    control("-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.heavy
def test_a_search_is_kept_and_joined_in_postgresql(postgresql):
    plan, said = tw.tune(task(), **SEARCH, storage=postgresql, study="mine"), []
    the_same(tw.tune(task(), join=f"{postgresql}/mine", say=said.append), plan)
    assert sum(text.endswith("(kept)") for text in said) == 9
    with pytest.raises(tw.StudyError, match="is the study of another search"):
        tw.tune(task(data=(X * 2, Y)), join=f"{postgresql}/mine")
    with pytest.raises(tw.StudyError, match="does not exist") as told:
        tw.tune(task(), **SEARCH, storage=postgresql.replace("postgres@", "postgres:secret@") + "2")
    assert "secret" not in str(told.value)


@pytest.fixture
def two(tmp_path):
    studies = [Study(str(tmp_path / "a.sqlite"), "mine", "min") for _ in range(2)]
    yield [Sharing(study) for study in studies]
    for study in studies:
        study.close()


PLANS = [Plan(steps=5, learning_rate=rate) for rate in (0.1, 0.2, 0.3)]


PLACES = [
    ("request",),
    ("request", "out"),
    ("begun",),
    ("begun", "cost"),
    ("begun", "cost", "trainings"),
    ("begun", "found"),
    ("process",),
]


@pytest.mark.parametrize("place", [*PLACES, ("task",), ("task", "data")], ids=".".join)
def test_a_record_whose_sum_agrees_and_that_is_none_of_a_search_is_one_sentence(place, tmp_path):
    storage = tmp_path / "all.sqlite"
    tw.tune(task(), **{**SEARCH, "steps": 6}, storage=storage, study="mine")
    study = Study(str(storage), "mine", "min")
    search = inner = study.read_search()
    assert search is not None
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = ["many"]
    study.write_search(search)
    study.close()
    with pytest.raises(tw.StudyError, match=r"The study .*(can be used|cannot be used|can read)"):
        tw.tune(task(), join=f"{storage}/mine")


def test_what_is_no_address_and_a_file_that_is_not_there_are_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(tw.ArgumentError, match="`join` is 3"):
        tw.tune(task(), join=3)
    with pytest.raises(tw.StudyError, match="No such file"):
        tw.tune(task(), join=f"{tmp_path}/none.sqlite/mine")
    assert not list(tmp_path.iterdir())


def test_what_a_search_that_is_stopped_has_in_a_storage_is_said_to_be_kept(tmp_path):
    def say(text):
        if "cooled down" in text:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted, match="what was found is kept; the same call goes on"):
        tw.tune(task(), **SEARCH, storage=tmp_path / "all.sqlite", say=say)


def test_what_one_has_claimed_another_leaves_alone_until_it_is_void(two, monkeypatch):
    one, other = two
    monkeypatch.setattr(sharing, "VOID_SECONDS", 0.0)
    assert one.claim(PLANS, 5, 2) == PLANS[:2]
    assert other.claim(PLANS, 5, 3) == PLANS[2:]
    assert one.claim(PLANS[:1], 5, 1) == PLANS[:1]  # kept up
    assert other.claim(PLANS[:2], 5, 2) == [PLANS[1]]  # not kept up since it was looked at first
    assert other.claim(PLANS[:1], 9, 1) == PLANS[:1]  # to another step


def test_a_claim_is_kept_up(two, monkeypatch):
    one, other = two
    monkeypatch.setattr(sharing, "VOID_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.0)
    one.claim(PLANS[:1], 5, 1)
    for _ in range(3):
        assert other.claim(PLANS[:1], 5, 1) == []
        one.keep_up()
    assert other.claim(PLANS[:1], 5, 1) == []
    assert other.claim(PLANS[:1], 5, 1) == PLANS[:1]


def test_a_claim_of_a_process_that_has_ended_is_void_at_once_and_one_of_another_machine_is_not(two):
    one, other = two
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    one.name = f"{socket.gethostname()}/{ended.pid}/abc"
    one.claim(PLANS[:1], 5, 1)
    assert other.claim(PLANS[:1], 5, 1) == PLANS[:1]
    one.name = f"elsewhere/{ended.pid}/abc"
    one.claim(PLANS[1:2], 5, 1)
    assert other.claim(PLANS[1:2], 5, 1) == []


def test_of_two_trials_that_are_begun_at_the_same_moment_the_first_counts(two):
    one, other = (sharing._study for sharing in two)
    one.read_trials()
    other.read_trials()
    one._add(PLANS[0], plan_sum(PLANS[0]))
    other._add(PLANS[0], plan_sum(PLANS[0]))
    other.write(PLANS[0], Trial({5: Outcome(5, 0.5, 6)}))
    assert one.read_trials()[plan_sum(PLANS[0])].outcomes[5].value == 0.5
    assert len(one._all()) == 1


def test_a_claim_that_is_none_stops_nobody(two):
    one, _ = two
    one._study.write_claim(PLANS[0], {"by": 3, "step": "x"})
    assert one.claim(PLANS[:1], 5, 1) == PLANS[:1]
    assert plan_sum(PLANS[0]) in one._study.read_claims()


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "-1", ""])
def test_a_claim_of_a_process_without_a_number_is_kept_to(number):
    host = sharing._host()
    assert not sharing._is_gone(f"{host}/{number}/abc")
