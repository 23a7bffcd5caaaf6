"""Whose code it is goes by where it lies, not by what it is called."""

import importlib.util
import itertools
import json
import sys

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.objects.code import is_library
from thalweg.objects.state import ObjectState
from thalweg.records.fingerprint import fingerprint

TEXT = "COUNT = 0\ndef loss(output, target):\n    global COUNT\n    COUNT += 1\n    return FACTOR * output.sum()\nFACTOR = 1\n"


def module_at(path, name, text=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["torchlearn", "torch_utils", "torchlearn.losses", "numpystats", "thalwegs", "profile"]
)
@pytest.mark.parametrize("folder", ["project", "site-packages"])
def test_a_module_is_a_librarys_where_it_lies_among_installed_packages(name, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, name, None)  # put back afterwards
    path, installed = tmp_path / folder / "mine.py", folder == "site-packages"
    module = module_at(path, name)
    assert is_library(name) == installed
    state, before = ObjectState({"loss": module.loss}), taken(module)
    module.loss(torch.zeros(1), None)
    assert bool(state.read()) != installed
    edited = module_at(path, name, TEXT.replace("FACTOR = 1", "FACTOR = 2"))
    assert (taken(edited) == before) == installed


def taken(module):
    return fingerprint(tw.Task(nn.Identity, module.loss, ([[1.0]], [1])), nn.Identity())["`loss`"]


def test_pythons_own_and_those_thalweg_runs_with_are_libraries_and_a_script_is_the_users(monkeypatch):
    for module in (json.decoder, itertools, nn, pytest):
        assert is_library(module.__name__)
    assert is_library("thalweg.verbs")
    assert not is_library("thalweg.examples.digits")
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", json.__file__, raising=False
    )  # as under `python -m cProfile`
    assert not is_library("__main__")
    assert not is_library("never_imported")
