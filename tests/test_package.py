"""The package as strangers get it: imported, typed, quick to import, built into a wheel and run elsewhere."""

import importlib
import os
import pkgutil
import subprocess
import sys
import sysconfig
import types
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(tw.__path__, "thalweg.") if m.name != "thalweg.__main__"]
TASK = """
import torch, torch.nn.functional as F
from torch import nn
import thalweg as tw
x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
task = tw.Task(model=lambda: nn.Linear(4, 2), loss=F.cross_entropy, data=(x, (x[:, 0] > 0).long()))
"""


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_imported_and_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


def run(code: str, *flags: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # else each import compiles anew
    environment = {**kept, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_first_in_a_process_of_its_own():
    # A circle shows itself only from the side one enters it; forked children share one import of torch.
    code = f"""
import gc, importlib, os, sys, torch
gc.disable()
for name in {MODULES!r}:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(name)
"""
    run(code, "-W", "ignore:This process")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    task = tw.Task(model=lambda: nn.Linear(4, 2), loss=F.cross_entropy, data=(x, (x[:, 0] > 0).long()))
    folder = tmp_path_factory.mktemp("package")
    plan = tw.tune(task, steps=30, effort=1)
    return task, plan, tw.train(task, plan, out=folder / "run"), folder


CALLS = {
    "Comparison": lambda task, plan, run, folder: str(tw.Comparison(("a",), (1.0,), (2.0,), ((0.0,),), ((0.0,),))),
    "compare": lambda task, plan, run, folder: tw.compare([run, run]).to_json(),
    "Cure": lambda task, plan, run, folder: tw.Cure("Wait."),
    "Diagnosis": lambda task, plan, run, folder: tw.Diagnosis("flat", "nothing moves."),
    "Escape": lambda task, plan, run, folder: str(tw.Escape("slope", "", "loss", "min", True, 1.0, 1.0, 20)),
    "Estimate": lambda task, plan, run, folder: tw.Estimate(0.5, 0.1).text("loss"),
    "Evidence": lambda task, plan, run, folder: tw.Evidence("given"),
    "Forecast": lambda task, plan, run, folder: str(tw.Forecast(1, 2, False, {}, {})),
    "Group": lambda task, plan, run, folder: tw.Group(weight_decay_factor=0),
    "Plan": lambda task, plan, run, folder: tw.Plan(),
    "Run": lambda task, plan, run, folder: tw.Run.open(run.folder, task).model,
    "Survey": lambda task, plan, run, folder: tw.Survey.from_json(tw.Survey(kind="slope").to_json()),
    "Task": lambda task, plan, run, folder: task.make_model(),
    "Watch": lambda task, plan, run, folder: tw.Watch(run.model, torch.optim.SGD(run.model.parameters())).close(),
    "check": lambda task, plan, run, folder: tw.check(task),
    "evaluate": lambda task, plan, run, folder: tw.evaluate(run, task.data),
    "diagnose": lambda task, plan, run, folder: tw.diagnose(run) + tw.diagnose(run.folder),
    "fit": lambda task, plan, run, folder: tw.fit(task, steps=20, effort=1),
    "forecast": lambda task, plan, run, folder: tw.forecast(run),
    "escape": lambda task, plan, run, folder: tw.escape(run, steps=20).to_json(),
    "survey": lambda task, plan, run, folder: tw.survey(run, slices=False).to_json(),
    "report": lambda task, plan, run, folder: tw.report(run).stat(),
    "resume": lambda task, plan, run, folder: tw.resume(run.folder, task),
    "train": lambda task, plan, run, folder: tw.train(task, plan, out=run.folder),
    "tune": lambda task, plan, run, folder: tw.tune(task, steps=20, effort=1),
}


@pytest.mark.parametrize("name", tw.__all__)
def test_every_name_of_the_package_does_something(name, done):
    thing = getattr(tw, name)
    if isinstance(thing, types.ModuleType):
        assert thing.__all__
        assert all(hasattr(thing, inner) for inner in thing.__all__)
    elif isinstance(thing, type) and issubclass(thing, BaseException):
        assert issubclass(thing, tw.ThalwegError | KeyboardInterrupt)
        assert str(thing("what, where, what to do")) == "what, where, what to do"
    elif isinstance(thing, type) or callable(thing):
        assert thing.__doc__
        CALLS[name](*done)
    else:
        assert isinstance(thing, str)


def test_no_module_hides_a_verb():
    for name in MODULES:
        importlib.import_module(name)
    for verb in (
        "check",
        "compare",
        "diagnose",
        "escape",
        "fit",
        "forecast",
        "report",
        "resume",
        "survey",
        "train",
        "tune",
    ):
        assert isinstance(getattr(tw, verb), types.FunctionType)


def test_importing_costs_little_beyond_torch():
    # A full collection goes over all objects of torch; into whose import it falls is chance.
    code = (
        "import gc, time, torch; gc.disable(); start = time.process_time(); import thalweg;"
        " print(time.process_time() - start)"
    )
    run(code)  # compiles what was not yet compiled
    costs = sorted(float(run(code)) for _ in range(3))
    assert costs[len(costs) // 2] <= 0.15, costs


def test_importing_pulls_in_nothing_heavy():
    code = "import sys, torch, numpy; import thalweg; print(*sys.modules)"
    loaded = set(run(code).split())
    assert not loaded & {
        "numba",
        "optuna",
        "rich",
        "pandas",
        "matplotlib",
        "sklearn",
        "scipy",
        "starlette",
        "thalweg.see.report",
    }


def test_importing_leaves_the_process_as_found():
    code = """
import random, signal, sys, threading, warnings
import numpy, torch
def found():
    return (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()), torch.get_num_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), signal.getsignal(signal.SIGINT),
            threading.active_count(), list(sys.path))
import logging
before = found(), logging.root.handlers[:], logging.root.level
import thalweg
assert before == (found(), logging.root.handlers[:], logging.root.level)
"""
    run(code)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    built = subprocess.run([*words, "--wheel-dir", folder, ROOT], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("thalweg-*.whl"))


def test_the_wheel_holds_the_package_its_types_and_its_pages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "thalweg/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    shipped = {
        f"thalweg/{p.relative_to(ROOT / 'src/thalweg')}" for p in (ROOT / "src/thalweg").rglob("*") if p.is_file()
    }
    missing = {name for name in shipped if "__pycache__" not in name and not name.endswith((".pyc", ".tmp"))} - names
    assert not missing
    assert not [name for name in names if name.startswith(("tests", "bench", "tools"))]


def test_the_wheel_runs_in_an_empty_environment_outside_the_repository(wheel, tmp_path):
    home = tmp_path / "other place"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True, timeout=60)
    python = home / "env/bin/python"
    words = [
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
    ]
    subprocess.run([sys.executable, *words, wheel], check=True, timeout=60)
    site = next((home / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # instead of installing torch again
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}

    def command(*words: str) -> str:
        done = subprocess.run(
            [home / "env/bin/thalweg", *words], cwd=home, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    assert "train a plan" in command("--help")
    assert command("--version").strip() == f"thalweg {tw.__version__}"
    (home / "mine.py").write_text(TASK)
    command("fit", "mine.py", "--steps", "40", "--effort", "2", "--out", "run")
    assert (home / "run/report.html").is_file()
    where = subprocess.run(
        [python, "-c", "import thalweg; print(thalweg.__file__)"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert where.stdout.startswith(str(site))
