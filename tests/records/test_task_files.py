import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg.errors import TaskError
from thalweg.records import task_files

FILE = """
import beside

class Rows:
    def __eq__(self, other): return type(other) is Rows
    def __hash__(self): return 1
    def __len__(self): return beside.LENGTH

def square(x): return x * x
"""
LOADERS = """
import torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
import thalweg as tw
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

class Rows(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.randn(3, generator=torch.Generator().manual_seed(index)), index % 2

def square(x):
    return x * x

def task(context="spawn") -> tw.Task:
    with get_context(context).Pool(1) as pool:
        assert pool.map(square, [3]) == [9]
    with ProcessPoolExecutor(1, mp_context=get_context(context)) as pool:
        assert list(pool.map(square, [3])) == [9]
    rows = DataLoader(Rows(), 5, num_workers=1, multiprocessing_context=context)
    return tw.Task(lambda: nn.Linear(3, 2), F.cross_entropy, rows, rows)
"""


@pytest.fixture(autouse=True)
def path_as_found(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


def write(folder: Path, text: str = FILE, name: str = "task.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "beside.py").write_text("LENGTH = 3\n")
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", ["task.py", "my task_2.1.py", "Größe.py", "\udcff.py", "a\nb.py", "os.py"])
def test_another_process_can_import_a_task_file_by_its_name(tmp_path, name):
    """Shown in this process, which forgets the module, and finds it again by what a pickle says."""
    module = task_files.run(write(tmp_path, name=name))
    assert task_files.path_of(module.__name__) == tmp_path / name
    assert module.__name__.rpartition(".")[2].isidentifier()
    pickles = [pickle.dumps(thing, protocol) for thing in (module.Rows(), module.square) for protocol in range(6)]
    del sys.modules[module.__name__]
    sys.path.remove(str(tmp_path))
    sys.modules.pop("beside")
    rows, square = pickle.loads(pickles[0]), pickle.loads(pickles[-1])
    assert (len(rows), square(3)) == (3, 9)
    assert type(rows) is sys.modules[module.__name__].Rows is not module.Rows
    assert all(pickle.loads(text) in (rows, square) for text in pickles)


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path):
    one, other = (task_files.run(write(tmp_path / folder)) for folder in ("a_b", "a"))
    assert one.__name__ != other.__name__
    assert [pickle.loads(pickle.dumps(module.square)) is module.square for module in (one, other)] == [True, True]


def test_a_file_that_does_not_run_leaves_no_module(tmp_path):
    path = write(tmp_path, "raise ValueError('no')\n")
    name = task_files.module_name(path)
    with pytest.raises(TaskError, match=r"task\.py does not run: line 1: ValueError: no"):
        task_files.run(path)
    assert name not in sys.modules
    before = task_files.run(write(tmp_path))
    with pytest.raises(TaskError):
        task_files.run(write(tmp_path, "raise SystemExit"))
    assert sys.modules[name] is before


@pytest.mark.parametrize("name", ["nothing", "_2fnone", "_2", "_zz", "x.y", "_00"])
def test_a_name_that_is_no_files_is_not_found(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"thalweg.records.task_files.{name}")


@pytest.mark.heavy
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_loader_workers_and_pools_of_new_processes_know_what_a_task_file_defines(tmp_path, context):
    path = write(tmp_path, LOADERS)
    words = [sys.executable, "-m", "thalweg", "train", str(path), "--context", context, "--steps", "4", "--out"]
    done = subprocess.run([*words, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
