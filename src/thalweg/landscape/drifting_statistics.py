"""Statistics of frozen normalisation layers that every training step still moves."""

from __future__ import annotations

from torch import Tensor, nn


def drifting_statistics(model: nn.Module) -> tuple[str, ...]:
    """Give the names of normalisation layers whose running statistics a training step moves though their weights are frozen.

    A layer is frozen where none of its own parameters is trainable, and where it has none, none of the module around it.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> drifting_statistics(model), drifting_statistics(model[:2].requires_grad_(False))
    ((), ('1',))
    """
    return tuple(
        name for name, module in model.named_modules() if _moves_statistics(module) and _is_frozen(model, name, module)
    )


def _moves_statistics(module: nn.Module) -> bool:
    running = getattr(module, "running_mean", None)
    return isinstance(running, Tensor) and module.training and bool(getattr(module, "track_running_stats", True))


def _is_frozen(model: nn.Module, name: str, module: nn.Module) -> bool:
    parameters = list(module.parameters())
    while not parameters and name:
        name = name.rpartition(".")[0]
        parameters = list(model.get_submodule(name).parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
