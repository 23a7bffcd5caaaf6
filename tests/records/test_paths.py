import os

import pytest

from thalweg.errors import RunError
from thalweg.records import paths
from thalweg.records.paths import as_path, typed


def given(value):
    return as_path(value, "a run's folder", "runs/mine", RunError)


def test_a_path_stays_where_it_was_when_the_working_directory_changes(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    path = given("r")
    monkeypatch.chdir("there")
    assert path == tmp_path / "r"


def test_a_path_is_shown_relative_only_to_where_the_process_began(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "STARTED_IN", tmp_path)
    assert typed(tmp_path / "runs" / "r") == os.path.join("runs", "r")
    assert typed(tmp_path.parent / "r") == str(tmp_path.parent / "r")
    monkeypatch.chdir("there")
    assert typed(tmp_path / "there" / "r") == str(tmp_path / "there" / "r")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a working directory")
def test_a_working_directory_that_was_removed_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunError, match=r"No such file or directory.*Give a path that begins with /"):
        given("r")
    assert given(str(tmp_path)) == tmp_path
    assert typed(tmp_path) == str(tmp_path)


def test_a_home_of_nobody_is_told():
    with pytest.raises(RunError, match="'~nobody-of-this-name/r' cannot be a run's folder"):
        given("~nobody-of-this-name/r")
