"""What the user's own code carries from step to step: which parts of a task may, and that a rehearsal leaves it as found."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from thalweg.errors import few
from thalweg.objects.state import ObjectState
from thalweg.records.task import Task
from thalweg.sampling import Source
from thalweg.sampling.sources import ItemSource, parts_of_passes

STEPPING = ("model", "loss", "step")
"""What a training step calls. The others are called in validation: what they note there, such as their own records, stays."""


def roots(task: Task, model: nn.Module | None = None) -> dict[str, Any]:
    """Give the parts of a task that are called in training and validation, by name, those that a step calls first."""
    parts = {name: getattr(task, name) for name in ("loss", "step", "evaluate", "collate_fn")}
    return {"model": model, **parts, **{f"metrics[{name!r}]": metric for name, metric in task.metrics.items()}}


def objects_of(task: Task, model: nn.Module) -> ObjectState:
    """Give the state of a task's objects and a model, without the parameters and buffers that checkpoints have anyway."""
    loss = task.loss.buffers() if isinstance(task.loss, nn.Module) else ()
    return ObjectState(roots(task, model), {id(tensor) for tensor in (*model.parameters(), *model.buffers(), *loss)})


def of_model(carried: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the model's own modules carry, of what all objects do."""
    return {path: entry for path, entry in carried.items() if path.partition(".")[0] == "model"}


def not_kept(objects: ObjectState) -> list[str]:
    """Say of each place whose state no checkpoint can hold what it is; of what was said once nothing more."""
    found = {path: text for path, text in objects.problems.items() if path not in objects.told}
    objects.told.update(found)
    return [
        f"`{path}` is {text}, which no checkpoint holds: a resumed run may differ by it."
        for path, text in found.items()
    ]


def what_gives_examples(source: Source) -> dict[str, Any]:
    """Give what reads examples and puts them together into batches, by name.

    The task's own `collate_fn` is no part of it: a run carries what that holds.
    """
    if not isinstance(source, ItemSource):
        return {}
    return {
        "data": source.items,
        "data.collate_fn": source.collator.collate_fn if source.own_batches is not None else None,
    }


def counting_data(items: ObjectState) -> list[str]:
    """Say which numbers and texts of a data set, or of its loader's `collate_fn`, change as examples are read.

    Workers read them in processes of their own.

    What has changed is put back.
    """
    found = [path for path, entry in items.read().items() if isinstance(entry["value"], int | float | str)]
    items.write({})
    if not found:
        return []
    return [
        f"{few(found, 3, '`')} changes as examples are read, and no checkpoint holds it: a resumed run may differ by it."
    ]


def feeding_back(objects: ObjectState, order: ObjectState) -> list[str]:
    """Say which of what a stream's order may go by changes in the steps: the way to its place cannot be taken again.

    `objects`: those of a task, as they were read last; `order`: those of the stream.
    """
    found = objects.shared_with(order)
    if not found:
        return []
    return [
        f"{few(found, 3, '`')} changes in the steps, and `data` may go by it: read again up to its place, it may give a resumed"
        f" run other examples. A `state_dict` of the loader's own would tell its place."
    ]


def not_put_back(paths: list[str]) -> str:
    """Say that places which a checkpoint has are gone, or take no such value."""
    return (
        f"What {few(paths, 3, '`')} held could not be put back: the objects are other ones than when it was"
        f" saved. From here on the run may differ by it."
    )


@contextmanager
def as_found(task: Task) -> Generator[None]:
    """Within, a task's functions may be called and its streams read; afterwards what they carry is as it was before."""
    given = task.model if not isinstance(task.model, nn.Module) else None  # which is copied before it is called
    streams = {
        f"{name}: {part}": value
        for name, data in (("data", task.data), ("validation", task.validation))
        for part, value in parts_of_passes(data).items()
    }
    with ObjectState({**roots(task), "model": given, **streams}).unchanged():
        yield
