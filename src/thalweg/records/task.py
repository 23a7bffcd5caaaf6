"""The task: what to descend. A model, a loss, data, and the criterion by which runs are compared."""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import json
import os
import re
import sys
import tomllib
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from thalweg.errors import TaskError, ThalwegError, error_text, nearest, shown
from thalweg.formatting import is_storable
from thalweg.records import files, task_files, trust
from thalweg.records.names import checks_names, suggestion
from thalweg.records.toml_text import parse_toml

Loss = Tensor | Mapping[str, Tensor]
"""A loss, or its terms by name; their sum is descended, or the entry `loss` where there is one."""
StepResult = Loss | tuple[Loss, float | int | Tensor] | tuple[Loss, float | int | Tensor | None, Mapping[str, Any]]
"""A loss; or (loss, weight); or, for validation, (loss, weight, figures)."""


@runtime_checkable
class StreamingMetric(Protocol):
    """A metric that sees the validation set batch by batch: `reset`, `update`, then `compute`."""

    def reset(self) -> None:
        """Start anew, without the batches added so far."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add one batch."""

    def compute(self) -> Any:
        """Give the figure over all batches since `reset`."""


Metric = Callable[[Any, Any], Any] | Callable[[Mapping[str, float]], Any] | StreamingMetric


@dataclass(frozen=True)
class Source:
    """Where a task came from, so that another process can make it again.

    `module` is a dotted name of an importable module, `file` the path of a Python file; one of the two is set. `name` is the
    task, or the function that returns it; `arguments` are passed to that function.
    """

    name: str = "task"
    file: str | None = None
    module: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def load(self, found: Task | Callable[..., Task] | None = None, *, strict: bool = False) -> Task:
        """Make the task again; `found` is what `find_task` gave, where that is known, so that the file runs once.

        `strict` is for a source that somebody else wrote, see `find_task`.

        Raises TaskError where the file is missing, does not run, holds no such task, or refuses the arguments.
        """
        found = find_task(self, strict=strict) if found is None else found
        task = _call(found, self) if not isinstance(found, Task) else found
        if isinstance(found, Task) and self.arguments:
            raise TaskError(
                f"{self.where}: '{self.name}' is a ready task and takes no arguments, but {sorted(self.arguments)} were"
                f" given. Make it a function that returns the task, with these as its parameters."
            )
        named = task if task.name != "task" else replace(task, name=self.stem)
        return replace(named, source=self)

    @property
    def where(self) -> str:
        """The file or module, for a message."""
        return self.file or self.module or "?"

    @property
    def stem(self) -> str:
        """A short name: the file's, or the task's where it is not just `task`."""
        if self.name != "task":
            return self.name
        return Path(self.file).stem if self.file else (self.module or "task").rsplit(".", 1)[-1]

    @property
    def effect(self) -> str:
        """What to load it does, for a message to somebody who is to decide on it: all of it, as far as a line can hold."""
        first = f"run the file {self.file!r}" if self.file else f"import the module {self.module!r}"
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return shorten(f"{first} and take {self.name!r} from it, called with ({given})", 2000, placeholder=" …")

    def save(self, path: Path) -> None:
        """Write `task.toml`. Raises TaskError where an argument is no plain value."""
        files.replace(path, self.to_toml().encode())

    def to_toml(self) -> str:
        """Give the text that `save` writes, sealed as this user's. Raises TaskError where an argument is no plain value."""
        unset = [name for name, value in self.arguments.items() if value is None]  # TOML has no None
        paths = [name for name, value in self.arguments.items() if isinstance(value, Path)]
        given = {n: str(v) if isinstance(v, Path) else v for n, v in self.arguments.items() if v is not None}
        file = None if self.file is None else os.path.abspath(self.file)  # for a process in another folder
        known = {"name": self.name, "file": file, "module": self.module}
        known |= {"none": unset or None, "paths": paths or None, "arguments": given}
        import tomlkit  # takes a while, and only who writes needs it

        try:
            text = tomlkit.dumps({key: value for key, value in known.items() if value is not None})
            text.encode()  # fails where a path is no UTF-8
        except UnicodeEncodeError as error:
            raise TaskError(
                f"Where the task came from cannot be recorded, as it is no UTF-8: {self.where!r}, {given}. Rename the file."
            ) from error
        except ValueError as error:
            raise TaskError(f"The task's arguments {given} cannot be recorded: {error}. Give plain values.") from error
        return f'seal = "{trust.seal(_what_is_sealed(tomllib.loads(text)))}"\n{text}'

    @staticmethod
    def read(path: Path) -> RecordedSource:
        """Read `task.toml`. Raises TaskError where it is damaged."""
        try:
            entries = parse_toml(files.read(path))
            seal = entries.pop("seal", None)
            sealed = isinstance(seal, str) and trust.is_sealed(_what_is_sealed(entries), seal)
            unset: dict[str, Any] = dict.fromkeys(entries.pop("none", []))
            paths = entries.pop("paths", [])
            arguments: dict[str, Any] = {**entries.pop("arguments", {}), **unset}
            arguments |= {name: Path(arguments[name]) for name in paths}
            source = Source(**entries, arguments=arguments)
            source._check_kinds()
            return RecordedSource(source, sealed)
        except (OSError, LookupError, ValueError, TypeError) as error:
            raise TaskError(f"{path}: cannot be read as a task's source ({error}). Pass the task itself.") from error

    def _check_kinds(self) -> None:
        """Raise TypeError where a part is of another kind than it is to be."""
        if not isinstance(self.name, str):
            raise TypeError(f"`name` is {self.name!r:.80}, which is no text")
        if not all(isinstance(name, str) for name in self.arguments):
            raise TypeError("an argument's name is no text")
        texts = [text for text in (self.file, self.module) if text is not None]
        if len(texts) != 1 or not isinstance(texts[0], str) or "\0" in texts[0]:
            raise TypeError("it names no file and no module, or both")


class RecordedSource(NamedTuple):
    """What `task.toml` says, and whether this user wrote it, see `records/trust.py`."""

    source: Source
    is_ours: bool


def _what_is_sealed(entries: Mapping[str, Any]) -> str:
    """Give all that `task.toml` says, but the seal, as one text that the layout of the file does not change."""
    return json.dumps(entries, sort_keys=True, default=repr)


MORE_IS_BETTER = {
    *(
        "accuracy",
        "acc",
        "precision",
        "recall",
        "sensitivity",
        "specificity",
        "f1",
        "auc",
        "auroc",
        "auprc",
        "ap",
        "map",
    ),
    *(
        "iou",
        "miou",
        "dice",
        "r2",
        "mcc",
        "kappa",
        "top1",
        "top5",
        "ndcg",
        "mrr",
        "bleu",
        "rouge",
        "psnr",
        "ssim",
        "likelihood",
    ),
}
LESS_IS_BETTER = {
    *(
        "loss",
        "error",
        "err",
        "mse",
        "rmse",
        "mae",
        "mape",
        "smape",
        "msle",
        "nll",
        "crossentropy",
        "perplexity",
        "ppl",
    ),
    *("brier", "cer", "wer", "fid", "ece", "bpc", "deviance"),
}
INVERTED = {"neg", "negative", "minus", "inverse"}
"""Words in a criterion's name that tell whether less or more of it is better, and such as may turn it round."""


@checks_names("A task", TaskError)
@dataclass(frozen=True)
class Task:
    """What to descend.

    Arguments:
        model: a factory without arguments that returns an `nn.Module`, or a module, which is copied for every run and never
            changed (fine-tuning: a seed then varies order and dropout only). A batch's inputs reach it as `model(x)`; a tuple of
            inputs, `(a, b, y)` or `((a, b), y)`, as `model(a, b)`; a mapping, `({"a": a, "b": b}, y)`, as `model(a=a, b=b)`. In
            a batch that is one mapping, the entry called target, targets, label, labels or y is the target, and the rest are
            keyword arguments.
        loss: `loss(output, target)` -> mean over the batch, a scalar; a function or a module. Not needed with `step`.
        data: training data: `(x, y)` tensors or arrays (or data frames, nested tuples, dicts), a `Dataset`, an
            `IterableDataset`, or a `DataLoader`, whose batch size is then given. One tensor alone is its own target.
        validation: the same kinds. Without it `fit` and `tune` hold out a part of the training examples; `train` does where the
            plan's `holdout` says so, else the training loss decides.
        metrics: name -> `f(outputs, targets)` over the whole validation set, or an object with `reset`/`update`/`compute`.
            Without `loss`, name -> `f(figures)`, of the averaged figures over the whole set: {"loss": …} and whatever `evaluate`
            returns beside it. Perplexity: `{"perplexity": lambda figures: math.exp(figures["loss"])}`.
        name: a short name, used for the run's folder.
        step: `step(model, batch)` -> the loss or `(loss, weight)`, where a step is not `loss(model(x), y)`. Averages and
            accumulation use the weight (tokens, say). The loss may be a dict of named terms, each a tensor of one number: their
            sum is descended, or the entry "loss" where there is one; the history has a column `term/NAME` for each, and now and
            then `term_gradient/NAME`, the norm of its gradient.
        evaluate: `evaluate(model, batch)` -> what is measured on a validation batch: the loss, or `(loss, weight)`, or `(loss,
            weight, {name: figure})`, all means over the batch. They are averaged over the set with the weights (None: the
            number of examples), the figures under their names. Default: `step`, or the loss of `loss(model(x), y)`.
        per_example_loss: `per_example_loss(model, batch)` -> a vector, one loss per example of the batch; for tools that name
            hard examples. Training never calls it.
        select: the criterion of best: "loss" or the name of a metric.
        mode: "min" or "max" of that criterion; "auto" goes by its name where that is well known ("accuracy", "val_rmse"), and
            is refused for any other metric.
        collate_fn: puts single examples together into a batch, for ragged data.
        weights: one sampling weight per example, for drawing with replacement.
        groups: one value per example (an array, a list, a frame's column), such as the patient: examples of one group are never
            both trained on and held out for validation.
        series: the data are a time series, whose last stretch is held out: True where the examples are in the order of time, or
            one time per example (numbers or dates). Where examples overlap in time, as windows do, give `validation`
            with a gap of your own.
        source: the file or module and the arguments that the task was made from. The command sets it, so that `resume` can make
            the task again; a task that you make in Python needs none.

    Raises TaskError where the parts cannot be a task.
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: Callable[..., Tensor] | None = None
    data: Any = None
    validation: Any = None
    metrics: Mapping[str, Metric] = field(default_factory=dict[str, Metric])
    name: str = "task"
    step: Callable[[nn.Module, Any], StepResult] | None = None
    evaluate: Callable[[nn.Module, Any], StepResult] | None = None
    per_example_loss: Callable[[nn.Module, Any], Tensor] | None = None
    select: str = "loss"
    mode: Literal["min", "max", "auto"] = "auto"
    collate_fn: Callable[[list[Any]], Any] | None = None
    weights: Any = None
    groups: Any = None
    series: Any = False
    source: Source | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, type) or not callable(self.model):
            _check_model_type(self.model)
        elif not isinstance(self.model, nn.Module) and (missing := _needed_arguments(self.model)):
            raise TaskError(
                f"`model` is a function that needs arguments ({', '.join(missing[:3])}), but a factory is called without any."
                f" Give model=lambda: {_brief(self.model)}(…)."
            )
        if self.loss is None and self.step is None:
            raise TaskError("The task has neither `loss` nor `step`. Give loss(output, target) or step(model, batch).")
        for part in ("loss", "step", "evaluate", "per_example_loss", "collate_fn"):
            value = getattr(self, part)
            if value is not None and not callable(value):
                raise TaskError(f"`{part}` is a {type(value).__name__}, which cannot be called. Give a function.")
        trained = [name for name, p in _parameters(self.loss) if p.requires_grad]
        if trained:
            raise TaskError(
                f"`loss` has parameters of its own ({', '.join(trained[:3])}), which nobody would train: only the model's are."
                f" Freeze them (requires_grad_(False)), or make them part of the model and give step(model, batch)."
            )
        if isinstance(self.loss, type):
            raise TaskError(f"`loss` is the class {self.loss.__name__}. Give an instance: loss={self.loss.__name__}().")
        if self.data is None:
            raise TaskError("The task has no `data`. Give (x, y), a Dataset, an IterableDataset or a DataLoader.")
        if self.source is not None and not isinstance(self.source, Source):
            raise TaskError(f"`source` is a {type(self.source).__name__}. Leave it out: the command sets it.")
        if self.groups is not None and self.series is not False:
            raise TaskError("Give `groups` or `series`, not both: a split goes by one of them.")
        if self.series is None:
            object.__setattr__(self, "series", False)
        _check_metrics(self)
        if self.mode == "auto":
            object.__setattr__(self, "mode", _known_mode(self.select))

    def __repr__(self) -> str:
        shown = {"model": _brief(self.model), "loss": _brief(self.loss), "step": _brief(self.step)}
        shown |= {"data": _brief(self.data), "validation": _brief(self.validation), "metrics": ", ".join(self.metrics)}
        parts = ", ".join(f"{name} {text}" for name, text in shown.items() if text)
        return f"<Task {self.name!r}: {parts}>"

    def make_model(self) -> nn.Module:
        """Make a model to start from: the factory's, or a copy of the person's module.

        Raises TaskError where the factory fails or gives no module.
        """
        if isinstance(self.model, torch.jit.ScriptModule):
            raise TaskError(
                "`model` is a TorchScript module, which cannot be copied. Give the module itself, or a factory."
            )
        if isinstance(self.model, nn.Module):
            return _copy(self.model)
        model = self._made_by_factory()
        # A factory such as `lambda: model` returns the caller's own module, which training must not change, and every
        # trial of a search would start from the weights that the one before left. A module made by the factory has two
        # references here (the name `model` and the argument of getrefcount); more mean that somebody else holds it.
        # Without this, such a factory would train the caller's module in place; copying always would double the memory of
        # every large model for the sake of the rare factory.
        if sys.getrefcount(model) == 2:
            return model
        # It may be held by itself alone, as by a hook that keeps `self`, which would go on to act on the original if it was
        # copied. Then it is gone once nobody else holds it, and is made again.
        held = weakref.ref(model)
        del model
        gc.collect()
        shared = held()
        return self._made_by_factory() if shared is None else _copy(shared)

    def _made_by_factory(self) -> nn.Module:
        try:
            model = self.model()
        except ThalwegError:
            raise
        except Exception as error:
            raise TaskError(f"The model's factory failed: {error_text(error)}") from error
        if not isinstance(model, nn.Module):
            raise TaskError(
                f"The model's factory returned a {type(model).__name__}, not an nn.Module. Return the module."
            )
        return model


def checked_task(task: Any) -> Task:
    """Give the task. Raises TaskError where it is none."""
    if not isinstance(task, Task):
        raise TaskError(f"`task` is a {type(task).__name__}. Give a thalweg.Task(model=…, loss=…, data=…).")
    return task


def _brief(value: Any) -> str:
    """Describe a part of a task in a word or two: the shape of data, else a name; nothing for None."""
    if value is None or hasattr(value, "shape"):
        return "" if value is None else f"({', '.join(map(str, value.shape))})"
    if type(value) is tuple:
        return " and ".join(_brief(part) for part in cast("tuple[Any, ...]", value)[:4])
    name = getattr(value, "__name__", type(value).__name__)
    return "from a lambda" if name == "<lambda>" else str(name)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TaskError(
            f"The model cannot be copied, and training must not change yours: {error_text(error)}. Give a factory that makes it:"
            f" model=make_model."
        ) from error


def _parameters(value: Any) -> list[tuple[str, nn.Parameter]]:
    return list(value.named_parameters()) if isinstance(value, nn.Module) else []


def _check_model_type(model: Any) -> None:
    if isinstance(model, type) and issubclass(model, nn.Module):
        if _needed_arguments(model):
            raise TaskError(
                f"`model` is the class {model.__name__}, whose constructor needs arguments."
                f" Give a factory: model=lambda: {model.__name__}(...)."
            )
        return
    raise TaskError(f"`model` is a {type(model).__name__}. Give an nn.Module, or a function that returns one.")


def _needed_arguments(call: Callable[..., Any]) -> list[str]:
    """Name the arguments without which something cannot be called."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _check_metrics(task: Task) -> None:
    if not isinstance(task.name, str) or not task.name.strip():
        raise TaskError(f"`name` is {shown(task.name)}. Give a short text; it names the run's folder.")
    if not isinstance(task.metrics, Mapping):
        raise TaskError("`metrics` must be a mapping from name to f(outputs, targets), such as {'accuracy': accuracy}.")
    for name, metric in task.metrics.items():
        if not isinstance(name, str):
            raise TaskError(f"A metric is called {name!r}. Metrics go by names that are texts, such as 'accuracy'.")
        if isinstance(metric, type):
            raise TaskError(f"Metric '{name}' is the class {metric.__name__}. Give an instance: {metric.__name__}().")
        if not callable(metric) and not isinstance(metric, StreamingMetric):
            raise TaskError(f"Metric '{name}' is neither a function nor an object with reset, update and compute.")
        if not is_storable(name):
            raise TaskError(
                f"A metric cannot be called {shown(name, 80)}: it has characters that no file takes. Rename it."
            )
        if name == "loss" or "/" in name:
            raise TaskError(
                f"A metric cannot be called '{name}': 'loss' is taken and '/' separates columns. Rename it."
            )
    choices = ["loss", *task.metrics]
    if not isinstance(task.select, str):
        raise TaskError(f"`select` is {shown(task.select, 80)}. Give the name of one of {choices}.")
    if task.select not in choices:
        raise TaskError(f"`select` is '{task.select}', which is none of {choices}.{suggestion(task.select, choices)}")
    if not isinstance(task.mode, str) or task.mode not in ("min", "max", "auto"):
        raise TaskError(
            f"`mode` is {shown(task.mode, 80)}. Give 'min' where less of '{task.select}' is better, else 'max'."
        )
    if task.select == "loss" and task.mode == "max":
        raise TaskError("`mode` is 'max', but of the loss less is better. Leave `mode` out, or select a metric.")
    streaming = [name for name, metric in task.metrics.items() if isinstance(metric, StreamingMetric)]
    if streaming and task.loss is None:
        raise TaskError(
            f"Metric '{streaming[0]}' is given outputs and targets, which needs `loss`. Give it beside `step`; or a function of"
            f" the averaged figures that `evaluate` returns as (loss, weight, {{name: figure}})."
        )


def _known_mode(criterion: str) -> Literal["min", "max"]:
    """Tell by a criterion's name whether less or more of it is better. Raises TaskError where the name does not say."""
    words = set(re.findall(r"[a-z0-9]+", criterion.lower().replace("cross_entropy", "crossentropy")))
    more, less = bool(words & MORE_IS_BETTER), bool(words & LESS_IS_BETTER)
    if more == less or words & INVERTED:
        raise TaskError(
            f'Whether less or more of \'{criterion}\' is better does not follow from its name. Say so: mode="min" or mode="max".'
        )
    return "max" if more else "min"


def parse_source(address: str, arguments: Mapping[str, Any] | None = None) -> Source:
    """Read `path/to/task.py[:name]` into a source.

    Raises TaskError where there is no such file.
    """
    path, _, name = address.partition(":") if not _is_drive(address) else (address, "", "")
    file = Path(path).expanduser()
    if os.path.isdir(file):
        raise TaskError(f"{path} is a folder. Give the Python file that holds the task, such as {file / 'task.py'}.")
    if not os.path.isfile(file):
        raise TaskError(f"There is no file {path}. Give the path of a Python file with a task, or an example's name.")
    return Source(name=name or "task", file=str(file.resolve()), arguments=dict(arguments or {}))


def _is_drive(address: str) -> bool:
    return len(address) > 1 and address[1] == ":" and address[0].isalpha() and address.count(":") == 1


def find_task(source: Source, *, strict: bool = False) -> Task | Callable[..., Task]:
    """Run the source's file and give what it holds under the name, before it is called.

    `strict`, for a source that somebody else wrote: a function must be defined in that file or module, and be said to give a
    task, so that not just any function there is can be called with arguments of somebody else's.

    Raises TaskError where the file does not run or has no task.
    """
    module = _import(source.module) if source.module else task_files.run(Path(source.file or ""))
    found = getattr(module, source.name, None)
    if isinstance(found, Task):
        return found
    if callable(found) and not isinstance(found, type | types.BuiltinFunctionType):
        if strict and not _is_said_to_give_a_task(found, module):
            raise TaskError(
                f"'{source.name}' in {source.where} is not called, as nothing there says that it gives a task. Pass the task"
                f" itself; in a file of yours, define `def {source.name}(…) -> thalweg.Task`."
            )
        return cast("Task | Callable[..., Task]", found)
    tasks = [name for name, value in vars(module).items() if isinstance(value, Task)]
    if found is None and source.name == "task" and len(tasks) == 1:
        return cast(Task, getattr(module, tasks[0]))
    hint = f" It has the tasks {tasks}: name one as {source.where}:{tasks[0]}." if tasks else ""
    raise TaskError(
        f"{source.where} has no task called '{source.name}'.{nearest(source.name, tasks)}{hint}"
        f" Write `task = thalweg.Task(...)`, or a function `{source.name}()` that returns one."
    )


def _is_said_to_give_a_task(function: Any, module: types.ModuleType) -> bool:
    """Whether a function is defined in the module, and by its annotation, or by the word `task` in its name, gives a task."""
    if not isinstance(function, types.FunctionType) or function.__module__ != module.__name__:
        return False
    try:
        given = inspect.signature(function).return_annotation
    except (TypeError, ValueError, NameError):  # NameError: an annotation that is evaluated only now, and cannot be
        return False
    if given is inspect.Signature.empty:
        return "task" in function.__name__.lower().split("_")
    return given is Task or (isinstance(given, str) and given.rpartition(".")[2] == Task.__name__)


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise TaskError(
            f"The task's module {name} cannot be imported: {error_text(error)}. Install what it needs."
        ) from error


def _call(function: Callable[..., Task], source: Source) -> Task:
    parameters = inspect.signature(function).parameters
    for name in source.arguments:
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise TaskError(
                f"{source.where}: {source.name}() has no argument '{name}'.{nearest(name, parameters)}"
                f" It takes {sorted(parameters) or 'none'}."
            )
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in source.arguments]
    missing = [
        n
        for n in missing
        if parameters[n].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    if missing:
        raise TaskError(f"{source.where}: {source.name}() also needs {missing}. Give each as --{missing[0]} VALUE.")
    try:
        task = function(**source.arguments)
    except ThalwegError:
        raise
    except Exception as error:
        line = task_files.line_text(error, Path(source.file)) if source.file else ""
        raise TaskError(f"{source.where}: {source.name}() failed: {line}{error_text(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"{source.where}: {source.name}() returned a {type(task).__name__}, not a thalweg.Task. Return the task."
        )
    return task
