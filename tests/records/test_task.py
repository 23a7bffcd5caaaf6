import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.errors import PlanError, TaskError
from thalweg.records.task import Source, Task, find_task, parse_source

X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
FILE = """
import torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw

def task(hidden=8, rate=0.5, name="mine", wide=False, sizes=(1, 2)):
    made = tw.Task(model=lambda: nn.Linear(3, 2), loss=F.cross_entropy, data=(torch.zeros(4, 3), torch.zeros(4).long()))
    made.asked = 0
    return made
""".replace("    made.asked = 0\n", "")


def model() -> nn.Module:
    return nn.Linear(3, 2)


def task(**parts: Any) -> Task:
    return Task(**{"model": model, "loss": F.cross_entropy, "data": (X, Y), **parts})


@pytest.fixture(autouse=True)
def path_as_found(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


class Accuracy:
    def reset(self): ...
    def update(self, outputs, targets): ...
    def compute(self): ...


REFUSED = {
    "no model": ({"model": None}, r"`model` is a NoneType\. Give an nn\.Module, or a function that returns one\."),
    "a model that is data": ({"model": X}, r"`model` is a Tensor\. Give an nn\.Module"),
    "a class that needs arguments": (
        {"model": nn.Linear},
        r"`model` is the class Linear, whose constructor needs arguments\. Give a factory: model=lambda: Linear\(\.\.\.\)\.",
    ),
    "a class that is no module": ({"model": dict}, r"`model` is a type\. Give an nn\.Module"),
    "neither loss nor step": (
        {"loss": None},
        r"neither `loss` nor `step`\. Give loss\(output, target\) or step\(model, batch\)",
    ),
    "a loss by name": ({"loss": "mse"}, r"`loss` is a str, which cannot be called\. Give a function\."),
    "a loss class": ({"loss": nn.MSELoss}, r"`loss` is the class MSELoss\. Give an instance: loss=MSELoss\(\)\."),
    "no data": (
        {"data": None},
        r"The task has no `data`\. Give \(x, y\), a Dataset, an IterableDataset or a DataLoader\.",
    ),
    "metrics in a list": ({"metrics": [len]}, r"`metrics` must be a mapping from name to f\(outputs, targets\)"),
    "a metric class": (
        {"metrics": {"accuracy": Accuracy}, "validation": (X, Y)},
        r"Metric 'accuracy' is the class Accuracy\. Give an instance: Accuracy\(\)\.",
    ),
    "a metric that is a number": (
        {"metrics": {"accuracy": 3}, "validation": (X, Y)},
        r"Metric 'accuracy' is neither a function nor an object with reset, update and compute\.",
    ),
    "a metric called loss": (
        {"metrics": {"loss": max}, "validation": (X, Y)},
        r"A metric cannot be called 'loss': .* Rename it\.",
    ),
    "groups and a series": (
        {"groups": [0, 1], "series": True},
        r"Give `groups` or `series`, not both: a split goes by one of them\.",
    ),
    "metrics of outputs without a loss": (
        {"metrics": {"accuracy": Accuracy()}, "validation": (X, Y), "loss": None, "step": max},
        r"Metric 'accuracy' is given outputs and targets, which needs `loss`\. Give it beside `step`; or a function of",
    ),
    "a criterion that is no name": ({"select": None}, r"`select` is None\. Give the name of one of \['loss'\]"),
    "a metric for its name": ({"select": max}, r"`select` is <built-in function max>\. Give the name"),
    "a direction that is no word": ({"mode": ["min"]}, r"`mode` is \['min'\]\. Give 'min'"),
    "a source that is a path": ({"source": "mine.py"}, r"`source` is a str\. Leave it out: the command sets it"),
    "selecting what is not measured": (
        {"metrics": {"accuracy": max}, "validation": (X, Y), "select": "acuracy"},
        r"`select` is 'acuracy', which is none of \['loss', 'accuracy'\]\. Did you mean 'accuracy'\?",
    ),
    "another mode": (
        {"mode": "maximum"},
        r"`mode` is 'maximum'\. Give 'min' where less of 'loss' is better, else 'max'\.",
    ),
    "a criterion whose direction nobody knows": (
        {"metrics": {"swing": max}, "validation": (X, Y), "select": "swing"},
        r"Whether less or more of 'swing' is better does not follow from its name\. Say so: mode=\"min\" or mode=\"max\"\.",
    ),
    "a criterion turned round": (
        {"metrics": {"neg_mse": max}, "validation": (X, Y), "select": "neg_mse"},
        r"Whether less or more of 'neg_mse' is better does not follow",
    ),
    "a criterion of both kinds": (
        {"metrics": {"accuracy_error": max}, "validation": (X, Y), "select": "accuracy_error"},
        r"Whether less or more of 'accuracy_error' is better does not follow",
    ),
    "a loss to be climbed": ({"mode": "max"}, r"`mode` is 'max', but of the loss less is better\."),
    "a name that is a number": ({"name": 3}, r"`name` is 3\. Give a short text; it names the run's folder\."),
    "an empty name": ({"name": " "}, r"`name` is ' '\. Give a short text"),
    "a step that is data": ({"step": X}, r"`step` is a Tensor, which cannot be called\. Give a function\."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_cannot_be_a_task_are_refused(case):
    parts, told = REFUSED[case]
    with pytest.raises(TaskError, match=told):
        task(**parts)


@pytest.mark.parametrize(
    ("criterion", "mode"),
    [
        ("loss", "min"),
        ("accuracy", "max"),
        ("val_acc", "max"),
        ("Top5-Accuracy", "max"),
        ("macro f1", "max"),
        ("roc_auc_score", "max"),
        ("r2", "max"),
        ("mean_average_precision", "max"),
        ("rmse", "min"),
        ("mean_absolute_error", "min"),
        ("error_rate", "min"),
        ("cross_entropy", "min"),
        ("perplexity", "min"),
    ],
)
def test_the_direction_of_a_well_known_criterion_follows_from_its_name(criterion, mode):
    metrics = {} if criterion == "loss" else {criterion: max}
    assert task(metrics=metrics, validation=(X, Y), select=criterion).mode == mode
    if criterion != "loss":
        other = {"min": "max", "max": "min"}[mode]
        assert task(metrics=metrics, validation=(X, Y), select=criterion, mode=other).mode == other


def test_a_direction_survives_a_changed_task():
    made = task(metrics={"swing": max}, validation=(X, Y), select="swing", mode="max")
    assert dataclasses.replace(made, name="other").mode == "max"


def test_a_module_is_copied_and_never_changed():
    mine = model()
    made = task(model=mine).make_model()
    assert made is not mine
    assert torch.equal(made.weight, mine.weight)
    with torch.no_grad():
        made.weight.zero_()
    assert mine.weight.any()


def test_a_factory_that_gives_the_same_module_again_is_copied_too():
    mine = model()
    assert task(model=lambda: mine).make_model() is not mine
    assert task(model=model).make_model() is not task(model=model).make_model()


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (lambda: 1 / 0, r"The model's factory failed: ZeroDivisionError: division by zero"),
        (lambda: None, r"The model's factory returned a NoneType, not an nn\.Module\. Return the module\."),
        (
            lambda width: model(),
            r"`model` is a function that needs arguments \(width\), but a factory is called without any\. Give model=lambda: ",
        ),
    ],
)
def test_a_factory_that_fails_is_told(factory, told):
    with pytest.raises(TaskError, match=told):
        task(model=factory).make_model()


def write(folder: Path, text: str, name: str = "mytask.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, "utf-8")
    return path


BAD_FILES = {
    "a syntax error": ("x = 1\ny = 2 2\n", r"mytask\.py, line 2: invalid syntax.*: y = 2 2\. Mend the file\."),
    "a failing line": ("a = 1\nb = a / 0\n", r"mytask\.py does not run: line 2: ZeroDivisionError: division by zero"),
    "a missing import": (
        "import no_such_thing\n",
        r"does not run: line 1: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "an exit": (
        "import sys\nsys.exit(3)\n",
        r"mytask\.py ends the process \(line 2: exit\)\. Take that out of a task file\.",
    ),
    "an error of many lines": ("raise ValueError('one\\ntwo')\n", r"line 1: ValueError: one two"),
    "no task": (
        "model = 1\n",
        r"has no task called 'task'\. Write `task = thalweg\.Task\(\.\.\.\)`, or a function `task\(\)`",
    ),
    "a task that is a number": ("task = 3\n", r"has no task called 'task'\."),
    "a function that returns nothing": (
        "def task(): pass\n",
        r"task\(\) returned a NoneType, not a thalweg\.Task\. Return the",
    ),
    "a function that fails": ("def task():\n    return {}['x']\n", r"task\(\) failed: line 2: KeyError: 'x'"),
    "a function that needs arguments": (
        "def task(a, b=1): pass\n",
        r"task\(\) also needs \['a'\]\. Give each as --a VALUE\.",
    ),
    "several tasks": (
        FILE.replace("def task(", "def make(") + "first = make()\nsecond = make()\n",
        r"It has the tasks \['first', 'second'\]: name one as .*mytask\.py:first\.",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_task_file_that_gives_no_task_is_told_with_its_line(tmp_path, case):
    text, told = BAD_FILES[case]
    with pytest.raises(TaskError, match=told) as raised:
        parse_source(str(write(tmp_path, text))).load()
    assert "\n" not in str(raised.value)


def test_an_error_in_a_file_beside_it_names_that_file(tmp_path):
    write(tmp_path, "x = = 1\n", "layers_broken.py")
    with pytest.raises(TaskError, match=r"layers_broken\.py, line 1: invalid syntax"):
        parse_source(str(write(tmp_path, "import layers_broken\n"))).load()


@pytest.mark.parametrize("text", ["", "\x00", "\udcff"])
def test_files_that_are_no_python_are_told(tmp_path, text):
    path = tmp_path / "odd.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TaskError):
        parse_source(str(path)).load()


def test_a_missing_file_or_a_folder_is_told(tmp_path):
    with pytest.raises(
        TaskError, match=r"There is no file .*none\.py\. Give the path of a Python file with a task, or an exam"
    ):
        parse_source(str(tmp_path / "none.py"))
    with pytest.raises(
        TaskError, match=r"is a folder\. Give the Python file that holds the task, such as .*task\.py\."
    ):
        parse_source(str(tmp_path))
    path = write(tmp_path, FILE)
    source = parse_source(str(path))
    path.unlink()
    with pytest.raises(
        TaskError, match=r"The task's file .* is no longer there\. Put it back, or pass the task itself\."
    ):
        source.load()


def test_a_task_may_be_an_object_of_any_name_or_a_function(tmp_path):
    ready = FILE.replace("def task(", "def make(")
    assert parse_source(str(write(tmp_path, ready + "anything = make()\n", "one.py"))).load().name == "one"
    assert parse_source(f"{write(tmp_path, FILE, 'two.py')}").load().name == "two"
    assert parse_source(f"{write(tmp_path, ready, 'three.py')}:make").load().name == "make"


def test_a_ready_task_takes_no_arguments(tmp_path):
    path = write(tmp_path, FILE.replace("def task(", "def make(") + "task = make()\n")
    with pytest.raises(
        TaskError, match=r"'task' is a ready task and takes no arguments, but \['hidden'\] were given\. Make it a"
    ):
        parse_source(str(path), {"hidden": 3}).load()


def test_an_unknown_argument_comes_with_the_nearest(tmp_path):
    with pytest.raises(
        TaskError, match=r"task\(\) has no argument 'hiden'\. Did you mean 'hidden'\? It takes \['hidden', "
    ):
        parse_source(str(write(tmp_path, FILE)), {"hiden": 3}).load()


def test_errors_of_the_family_raised_in_a_task_file_pass(tmp_path):
    path = write(tmp_path, "import thalweg as tw\ndef task():\n    tw.Plan(learning_rate=-1)\n")
    with pytest.raises(PlanError, match=r"`learning_rate` is -1\.0"):
        parse_source(str(path)).load()


def test_what_lies_beside_a_task_file_is_found_also_later(tmp_path):
    folder = tmp_path / "größe und raum"
    write(folder, "WIDTH = 3\n", "sizes_beside.py")
    write(folder, "DEEP = 2\n", "sizes_later.py")
    text = FILE.replace("lambda: nn.Linear(3, 2)", "build") + (
        "\nimport sizes_beside\ndef build():\n    import sizes_later\n"
        "    return nn.Linear(sizes_beside.WIDTH, sizes_later.DEEP)\n"
    )
    before = list(sys.path)
    made = parse_source(str(write(folder, text))).load()
    assert made.make_model().in_features == 3
    assert sys.path[: len(before)] == before  # nothing is shadowed


def test_dataclasses_and_pickling_work_in_a_task_file(tmp_path):
    import pickle

    text = (
        FILE
        + "\nfrom dataclasses import dataclass\n@dataclass\nclass Config:\n    width: 'int' = 3\nconfig = Config()\n"
    )
    made = find_task(Source(name="task", file=str(write(tmp_path, text))))
    config = sys.modules[made.__module__].config
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden": 64, "rate": 1e-3, "name": "a 'b' \"c\" ü\n", "wide": True, "sizes": [1, 2]},
        {"rate": float("inf")},
        {"hidden": None, "rate": 1},
        {"name": Path("some where"), "rate": 1},
    ],
)
def test_a_source_comes_back_from_its_file(tmp_path, arguments):
    source = parse_source(str(write(tmp_path, FILE)), arguments)
    source.save(tmp_path / "task.toml")
    back, is_ours = Source.read(tmp_path / "task.toml")
    assert back == source
    assert back.load().source == source
    assert is_ours


def test_an_argument_that_cannot_be_recorded_is_told(tmp_path):
    with pytest.raises(TaskError, match=r"The task's arguments .* cannot be recorded: .* Give plain values\."):
        Source(file="x.py", arguments={"data": object()}).save(tmp_path / "task.toml")


def test_a_file_whose_name_is_no_utf_8_is_told(tmp_path):
    with pytest.raises(TaskError, match=r"Rename the file"):
        Source(file="x\udcff.py").save(tmp_path / "task.toml")


@pytest.mark.parametrize(
    "text", ["none = [1]", "none = 3", "none = [[1]]", "paths = ['n']", "paths = 3", "arguments = 3"]
)
def test_entries_of_other_kinds_are_told(tmp_path, text):
    (tmp_path / "task.toml").write_text(f"{text}\nname = 'task'\nmodule = 'json'\n")
    with pytest.raises(TaskError, match=r"cannot be read as a task's source"):
        Source.read(tmp_path / "task.toml")


def test_a_source_that_is_damaged_is_told(tmp_path):
    (tmp_path / "task.toml").write_text("name = ")
    with pytest.raises(TaskError, match=r"task\.toml: cannot be read as a task's source .* Pass the task itself\."):
        Source.read(tmp_path / "task.toml")
    (tmp_path / "task.toml").write_text("nonsense = 3")
    with pytest.raises(TaskError, match=r"cannot be read as a task's source"):
        Source.read(tmp_path / "task.toml")


def test_a_module_that_cannot_be_imported_is_told():
    with pytest.raises(
        TaskError, match=r"The task's module no_such_module cannot be imported: .* Install what it needs\."
    ):
        Source(module="no_such_module").load()


def test_a_task_file_runs_in_a_fresh_process_from_another_folder(tmp_path):
    path = write(tmp_path / "a b", FILE)
    code = f"from thalweg.records.task import parse_source; print(parse_source({str(path)!r}).load().name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "mytask\n", done.stderr


class Hooked(nn.Module):
    """Keeps itself: its hook stores what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 2), None
        self.layer.register_forward_hook(lambda layer, given, output: setattr(self, "seen", output))

    def forward(self, x: torch.Tensor) -> Any:
        self.layer(x)
        return self.seen


class Parent(nn.Module):
    """Keeps itself: its child knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(3, 2)
        object.__setattr__(self.child, "parent", self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child.parent.child(x)


class Bound(nn.Module):
    """Keeps itself: one of its methods is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.activation = self.double

    def double(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x)


@pytest.mark.parametrize("kind", [Hooked, Parent, Bound])
def test_a_model_that_keeps_itself_is_the_factorys_own_and_no_copy(kind: Any):
    model = Task(kind, F.cross_entropy, (X, Y)).make_model()
    model(X + 1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_factory_is_called_once_for_a_model_that_nobody_holds():
    made: list[int] = []
    Task(lambda: made.append(1) or nn.Linear(3, 2), F.cross_entropy, (X, Y)).make_model()
    assert made == [1]


@pytest.mark.parametrize("kind", [Hooked, Parent, Bound])
def test_a_model_that_somebody_holds_is_copied_though_it_keeps_itself_too(kind: Any):
    model = kind()
    assert Task(lambda: model, F.cross_entropy, (X, Y)).make_model() is not model
