"""Trainable tensors that a loss depends on and that are not the model's, so that no optimiser would train them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from thalweg.descent.user_errors import naming_errors
from thalweg.errors import TaskError, few
from thalweg.landscape.objective import Objective
from thalweg.sampling.sources import leaves


def check_outside_weights(
    objective: Objective, model: nn.Module, batch: Any, loss: Tensor, given: Any = None
) -> list[str]:
    """Refuse a loss that depends on trainable tensors outside of the model.

    Such are layers that a module keeps in a plain list, a head or a learnt factor that `step` or a lambda brings, and the weights
    of the user's own module, of which a copy is trained.

    Arguments:
        objective: gives the loss of a batch once more: what is trainable in both was not made for the batch, as inputs are of
            which a loss takes derivatives.
        model: of which the loss was computed.
        batch: the batch.
        loss: its loss, before any backward pass.
        given: what the task has as its model.

    Gives a note on parameters that are made anew at each call, which begin anew with it.

    Raises TaskError with the shapes of what nobody would train, or the names where these are of the module that was given.
    """
    found = _outside(loss, model, batch)
    if not found:
        return []
    with naming_errors("The model or the loss", "on a second training batch"):
        again, _ = objective.loss(model, batch)
    kept = _outside(again, model, batch)
    lasting = [tensor for key, tensor in found.items() if key in kept]
    if not lasting:
        return _made_anew(found.values())
    own = {id(p): name for name, p in given.named_parameters()} if isinstance(given, nn.Module) else {}
    names = [own[id(tensor)] for tensor in lasting if id(tensor) in own]
    if names:
        raise TaskError(
            f"The loss uses weights of the module that is given as `model` ({few(names, 3)}), but a copy of it is trained, so"
            f" these never change. Use the model that step(model, batch) is given; a penalty on weights goes there too."
        )
    if not {id(p) for p in model.parameters()} & {id(leaf) for leaf in _trainable(loss)}:
        raise TaskError(
            "The loss depends on trainable tensors, but on none of the model's: it is computed from another model. Use the model,"
            " or its output, that step(model, batch) is given, or the output that loss(output, target) is given."
        )
    shapes = few([str(tuple(tensor.shape)) for tensor in lasting], 3)
    raise TaskError(
        f"The loss depends on {len(lasting)} trainable tensors that are not among model.parameters() (of shape {shapes}), so"
        f" nobody would train them. Make them part of the model (layers in a list: nn.ModuleList; a head or"
        f" factor of the loss: a submodule, used in step(model, batch)), or freeze them with requires_grad_(False)."
    )


def _made_anew(tensors: Iterable[Tensor]) -> list[str]:
    shapes = [str(tuple(tensor.shape)) for tensor in tensors if isinstance(tensor, nn.Parameter)]
    if not shapes:
        return []
    return [
        f"The model or the loss makes {len(shapes)} parameters anew at each call (of shape {few(shapes, 3)}), so they never"
        f" learn. Make them in the model's __init__."
    ]


def check_no_gradient_elsewhere(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Refuse a task whose first gradient was written to tensors that its functions hold, too; it is taken away again.

    So are found those that the graph of the loss does not show, as where PyTorch's checkpoint computes it anew in the backward
    pass. `before`, `after`: the tensors outside of the model that had a gradient, by path.

    Raises TaskError with their paths.
    """
    written = [path for path in after if path not in before]
    for path in written:
        after[path].grad = None
    if written:
        raise TaskError(
            f"A gradient was written to {few(written, 3)}, which are no parameters of the model, so nobody would train them. Make"
            f" them part of the model (a submodule, used in step(model, batch)), or freeze them with requires_grad_(False)."
        )


def _outside(loss: Tensor, model: nn.Module, batch: Any) -> dict[int, Tensor]:
    """Give the trainable tensors that a loss was computed from, less those of the model and of the batch, by identity."""
    known = {id(p) for p in model.parameters()}
    known |= {id(leaf) for part in leaves(batch) for leaf in _trainable(part)}
    return {id(leaf): leaf for leaf in _trainable(loss) if id(leaf) not in known}


def _trainable(tensor: Tensor) -> Iterator[Tensor]:
    """Give the trainable tensors that a tensor was computed from, itself where it was not computed."""
    if tensor.requires_grad and tensor.grad_fn is None:
        yield tensor
    seen, nodes = set[Any](), [tensor.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), Tensor):  # the node that adds to a tensor's gradient
            yield node.variable
        nodes += [following for following, _ in node.next_functions]
