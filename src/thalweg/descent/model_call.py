"""How a batch's inputs reach the model, told where its forward takes something else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def call_advice(error: Exception, model: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Say how inputs are passed and what forward takes, where these do not go together; "" where that is not the fault.

    A tuple of inputs is passed as several arguments, a mapping by name, anything else as one.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return ""
    layout = _image_layout(str(error), arguments)
    if layout:
        return layout
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return f"{_passed(arguments, keywords)}, but forward takes {_names(signature)}. {_remedy(signature, arguments, keywords)}"
    nests = [type(value).__name__ for value in (*arguments, *keywords.values()) if not isinstance(value, Tensor)]
    if nests and isinstance(error, TypeError | AttributeError):
        return (
            f"{_passed(arguments, keywords)}: a {nests[0]} reaches forward as one object. Give a tuple of tensors for several"
            f" arguments, or a mapping of tensors to pass them by name."
        )
    return ""


def _image_layout(text: str, arguments: Sequence[Any]) -> str:
    """Say where the channels of images are missing, or last, when a convolution found another number of them."""
    wanted = re.search(r"expected input\[[\d, ]+\] to have (\d+) channels", text)
    if wanted is None or len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        return ""
    images, channels = arguments[0], int(wanted.group(1))
    if images.ndim == 4 and images.shape[-1] == channels:
        return "The channels come last, but PyTorch wants them before height and width: x.permute(0, 3, 1, 2), or np.moveaxis."
    if images.ndim == 3 and channels == 1:
        return "The images have no dimension of channels: give x[:, None], of shape (examples, 1, height, width)."
    if images.ndim == 4 and {images.shape[1], channels} == {1, 3}:
        one = (
            "in grey: x.mean(1, keepdim=True)" if channels == 1 else "of three alike channels: x.expand(-1, 3, -1, -1)"
        )
        return f"The images have {images.shape[1]} channels, and the model takes {channels}: make them {one}, or its first layer."
    return ""


def _passed(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    if keywords:
        return f"A mapping is passed by name, model({', '.join(f'{name}=...' for name in keywords)})"
    shown = [f"x{n}" if isinstance(value, Tensor) else type(value).__name__ for n, value in enumerate(arguments, 1)]
    if len(arguments) == 1:
        return f"The inputs are passed as one, model({shown[0].replace('x1', 'x')})"
    return f"Several inputs are passed one by one, model({', '.join(shown)})"


def _names(signature: inspect.Signature) -> str:
    """Give a signature's names and defaults, without annotations."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _remedy(signature: inspect.Signature, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    taken = list(signature.parameters.values())
    needed = [p for p in taken if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    one = len(needed) == 1 and needed[0].kind is not inspect.Parameter.KEYWORD_ONLY
    if keywords:
        remedy = "Name the keys as its arguments, and leave others out"
        return (
            f"{remedy}; for forward to take the mapping as one, give a tuple of one: ({{...}},)."
            if one
            else f"{remedy}."
        )
    if one and len(arguments) > 1:
        return (
            "Put them into one tensor; of (x, y, name), say, the last counts as the target: let `collate_fn` give (x, y) alone,"
            " or give step(model, batch); for forward to take the tuple as one, give a tuple of one: ((x1, x2),)."
        )
    if all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in needed) and needed:
        return f"Give a mapping: {{{', '.join(f'{p.name!r}: ...' for p in needed)}}}."
    return f"Give a tuple of inputs beside the target: (({', '.join(p.name for p in needed)}), y)."
