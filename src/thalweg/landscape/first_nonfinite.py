"""The first module of a model whose output is not finite: where a NaN comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.sampling.sources import leaves


class _Found(NamedTuple):
    name: str
    kind: str
    was_given: bool  # its own input was not finite either


def first_nonfinite(model: nn.Module, call: Callable[[], Any]) -> str:
    """Call the model, by `call`, and say in a sentence which module's output is the first that is not finite.

    A module is done before those that contain it. Errors of the call end the search.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Threshold(9.0, torch.inf))
    >>> first_nonfinite(model, lambda: model(torch.ones(1, 2)))
    'The first output that is not finite is that of `1` (Threshold).'
    """
    found, handles = list[_Found](), list[Any]()

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                given = _is_finite((arguments, keywords))
                found.append(_Found(name, type(module).__name__, not given))

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(look(name), with_kwargs=True))
        call()
    except Exception:
        pass  # whatever failed, what was seen until then was seen
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "All outputs of the model's modules are finite: look at the loss."
    name, kind, was_given = found[0]
    if not name:
        return f"The output of the model ({kind}) is not finite, but all of its modules' are: it arises in its own forward()."
    if was_given:
        return f"`{name}` ({kind}) is the first module that is given numbers that are not finite: they arise just before it."
    return f"The first output that is not finite is that of `{name}` ({kind})."


def _is_finite(nest: Any) -> bool:
    return all(
        bool(torch.isfinite(leaf.detach()).all())
        for leaf in leaves(_plain(nest))
        if leaf.is_floating_point() or leaf.is_complex()
    )


def _plain(nest: Any) -> Any:
    """Give what is looked at of an output: objects of other kinds hold nothing that is known."""
    return nest if isinstance(nest, Tensor | Mapping | tuple | list) else ()
