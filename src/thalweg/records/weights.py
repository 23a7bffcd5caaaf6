"""Weights by name: read from a model, and loaded into one bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from thalweg.errors import CheckpointError


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Give all parameters and buffers by name, buffers that are not persistent too; tied ones under each name.

    Sparse buffers (a graph's adjacency, say) are constants of the model and left out.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    buffers = model.named_buffers(remove_duplicate=False)
    return {**named, **{name: buffer for name, buffer in buffers if is_strided(buffer)}}


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor is dense, or will be once its shape is known."""
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer) or tensor.layout is torch.strided


def make_writable(model: nn.Module) -> None:
    """Replace by copies the parameters and buffers that cannot be written to: expanded, or made in inference mode."""
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in tensors.items():
                if tensor is None or not _is_read_only(tensor):
                    continue
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, tensor.requires_grad)
                tensors[name] = copies.setdefault(id(tensor), copy)  # pyright: ignore[reportArgumentType]


def _is_read_only(tensor: Tensor) -> bool:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer) or not is_strided(tensor):
        return False
    return tensor.is_inference() or any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy values into a model's parameters and buffers.

    Buffers that are None until the model's first call take what they had.

    Raises CheckpointError where names or shapes differ.
    """
    _make_buffers(model, state)
    present = model_state(model)
    for name in present.keys() & state.keys():
        if isinstance(present[name], UninitializedParameter | UninitializedBuffer):  # a lazy layer that saw no data yet
            cast("UninitializedParameter", present[name]).materialize(tuple(state[name].shape))
    missing, extra = sorted(present.keys() - state.keys()), sorted(state.keys() - present.keys())
    wrong = sorted(n for n in present.keys() & state.keys() if present[n].shape != state[n].shape)
    if missing or extra or wrong:
        differences = [f"{name} is not in the checkpoint" for name in missing[:3]] + [
            f"{name} is not in the model" for name in extra[:3]
        ]
        differences += [
            f"{n} is {tuple(state[n].shape)} in the checkpoint and {tuple(present[n].shape)} in the model"
            for n in wrong[:3]
        ]
        raise CheckpointError(
            f"The checkpoint is of another model: {'; '.join(differences)}. Use the task the run was made with."
        )
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(state[name])


def buffer_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give the shapes of a model's buffers by name; those of lazy layers that saw no data yet are left out."""
    named = model.named_buffers(remove_duplicate=False)
    return {name: tuple(buffer.shape) for name, buffer in named if not isinstance(buffer, UninitializedBuffer)}


def remove_buffers(model: nn.Module, names: Collection[str]) -> None:
    """Remove buffers that a model has made in its calls: it makes them anew, or they are loaded with another shape."""
    for name in names:
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers.pop(own, None)  # pyright: ignore[reportPrivateUsage]


def make_late_buffers(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the buffers of a state that a model registers in its first call only, where the state has all else that it has.

    Nothing that a module has under that name already, such as a method, is hidden.
    """
    present, modules = model_state(model).keys(), dict(model.named_modules())
    if present - state.keys():
        return  # of another model
    device = next((p.device for p in model.parameters()), None)
    for name in state.keys() - present:
        owner, _, own = name.rpartition(".")
        if owner in modules and own.isidentifier() and not hasattr(modules[owner], own):
            modules[owner].register_buffer(own, torch.empty_like(state[name], device=device))


def _make_buffers(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the buffers of a state that the model has registered as None."""
    device = next((p.device for p in model.parameters()), None)
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage]
            of_state = state.get(f"{prefix}.{name}" if prefix else name)
            if buffer is None and of_state is not None:
                module._buffers[name] = torch.empty_like(of_state, device=device)  # pyright: ignore[reportPrivateUsage]
