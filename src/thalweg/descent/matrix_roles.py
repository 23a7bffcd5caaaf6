"""The role of each weight matrix in its network: embedding, hidden, or output layer.

Muon's authors (Jordan et al. 2024) leave embeddings and the output layer to AdamW. So do the update rules here
whose `Rule.rest` names another rule for them. Complex matrices are left to it too, as the equations of these are for real ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

PRODUCTS = ("mm", "mv", "dot", "convolution", "linear")
"""Parts of the names of autograd operations that multiply by a weight matrix."""

SHAPES = (
    "T",
    "Transpose",
    "Permute",
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "ToCopy",
    "Clone",
)
"""Autograd operations that only reshape, copy or cast the weights."""


def matrix_roles(model: nn.Module, loss: Tensor) -> dict[str, str]:
    """Give the role of every trainable matrix, by its name: "embedding", "hidden" or "output layer"; of complex ones "complex".

    Embeddings are the weights of `nn.Embedding` and `nn.EmbeddingBag`. The output layer is the matrix nearest to the loss in
    the autograd graph: it may be registered in any order, tied to an embedding, or used without a module. Where the graph
    shows no such product (a compiled model is one operation) it is the last linear layer registered, else the last matrix.

    >>> import torch
    >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 2))
    >>> matrix_roles(model, model(torch.tensor([1, 4])).sum())
    {'0.weight': 'embedding', '1.weight': 'hidden', '2.weight': 'output layer'}
    """
    matrices = {id(p): name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    outputs = _nearest_to_loss(loss, matrices) or _last_registered(model, matrices)
    complexes = {id(p) for p in model.parameters() if p.is_complex()}
    ends = {**dict.fromkeys(outputs, "output layer"), **dict.fromkeys(embeddings, "embedding")}
    roles = {**ends, **dict.fromkeys(complexes, "complex")}
    return {name: roles.get(i, "hidden") for i, name in matrices.items()}


def _nearest_to_loss(loss: Tensor, matrices: Collection[int]) -> set[int]:
    """Find the matrices, by `id`, that are the fewest operations away from the loss: a breadth-first search of the graph."""
    level, seen = [loss.grad_fn], set[Any]()
    while level:
        below = [(node, child) for node in level if node is not None for child, _ in node.next_functions]
        found = {id(_weights(child)) for node, child in below if _is_product(node)} & {*matrices}
        if found:
            return found
        seen.update(level)
        level = [*dict.fromkeys(child for _, child in below if child is not None and child not in seen)]
    return set()


def _is_product(node: Any) -> bool:
    name = type(node).__name__.lower()
    return any(part in name for part in PRODUCTS)


def _weights(node: Any) -> Any:
    """Give the parameter that an operation reshapes, copies or casts, through any number of such operations; else None."""
    while node is not None and not hasattr(node, "variable"):
        inputs = node.next_functions
        if len(inputs) != 1 or not type(node).__name__.startswith(tuple(f"{shape}Backward" for shape in SHAPES)):
            return None
        node = inputs[0][0]
    return getattr(node, "variable", None)


def _last_registered(model: nn.Module, matrices: Collection[int]) -> set[int]:
    layers = [id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in matrices]
    return {*(layers or [*matrices])[-1:]}
