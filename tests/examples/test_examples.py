import dataclasses
import subprocess
import sys

import pytest

from thalweg import examples
from thalweg.errors import TaskError

NAMES = list(examples.EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_an_example_is_whole(name):
    known = examples.info(name)
    assert known.title == examples.EXAMPLES[name]
    assert known.source
    assert known.licence
    assert known.epochs > 0
    assert known.seconds > 0
    assert known.expected
    assert all(low < high for low, high in known.expected.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        known.title = "another"


@pytest.mark.parametrize("name", NAMES)
def test_expected_figures_are_of_the_tasks_own_metrics(name):
    assert set(examples.info(name).expected) <= set(examples.load(name).metrics)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_example_has_its_name_and_knows_its_source(name):
    task = examples.load(name)
    assert task.name == name
    assert task.source is not None
    assert task.source.load().name == name


@pytest.mark.parametrize("ask", [examples.load, examples.info])
def test_an_unknown_example_is_refused_with_the_nearest_name(ask):
    with pytest.raises(TaskError, match=r"no example 'digit'. Did you mean 'digits'\? There are digits, mnist, "):
        ask("digit")


def test_an_unknown_argument_is_refused_with_the_list():
    with pytest.raises(
        TaskError, match=r"no argument 'hiden'. Did you mean 'hidden'\? It takes \['held_out', 'hidden'\]"
    ):
        examples.load("letters", hiden=3)


def test_arguments_reach_the_task():
    sizes = [sum(p.numel() for p in examples.load("letters", hidden=h).make_model().parameters()) for h in (4, 5)]
    assert sizes == [h * (16 + 1) + h * (h + 1) + 26 * (h + 1) for h in (4, 5)]


def test_listing_the_examples_imports_no_data_package():
    code = (
        "import sys; from thalweg import examples; [examples.info(name) for name in examples.EXAMPLES];"
        "print(sorted({'sklearn', 'mlxtend', 'scipy', 'pandas', 'matplotlib', 'pydoc_data.topics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
